"""Attaching: every layer is changed, or none."""

from __future__ import annotations

import pytest
import torch
from support.live import delta_of, tiny

from svdiff_delta import InputError, attach
from svdiff_delta.errors import AttachError
from svdiff_delta.runtime.live_weight import SLOT
from svdiff_delta.runtime.patched_layers import LivePatch


def test_an_error_on_one_layer_lets_all_be_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model, done, put = tiny("Llama"), [], LivePatch.put
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def fail_later(site: LivePatch) -> None:
        done.append(site.name)
        put(site)
        if len(done) > 4:
            raise MemoryError

    monkeypatch.setattr(LivePatch, "put", fail_later)
    with pytest.raises(AttachError, match=r"^out of memory while attaching: "):
        attach(model, delta_of("Llama"))
    assert len(done) > 4
    assert not any(hasattr(module, SLOT) for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()


@pytest.mark.parametrize(("base", "kind"), [("tiny", "str"), (["a"], "list")])
def test_a_base_that_was_not_opened_is_refused(base: object, kind: str) -> None:
    words = rf"`base` is a {kind}, not an opened base: pass `open_base\(path\)`"
    with pytest.raises(InputError, match=words):
        attach(tiny("Llama"), delta_of("Llama"), base=base)  # type: ignore[arg-type]
