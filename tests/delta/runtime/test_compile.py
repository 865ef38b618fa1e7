"""torch.compile: a compiled model shows swaps and scales without being compiled again."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from support.live import CASES, delta_of, relative, tiny

from svdiff_delta.runtime import attach

pytestmark = pytest.mark.slow

MODES: dict[str, dict[str, Any]] = {"live": {}, "exact": {"exact": True}, "fused": {"mode": "fused"}}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["UNet", "Flux"])
def test_swapping_and_scaling_do_not_compile_again(name: str, mode: str) -> None:
    model, inputs = tiny(name), CASES[name].inputs(2)
    dog, cat = delta_of(name, seed=1), delta_of(name, seed=2)
    torch.compiler.reset()
    with attach(model, {"dog": dog, "cat": cat}, **MODES[mode]) as handle, torch.no_grad():
        compiled = torch.compile(model)
        compiled(**inputs)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for change in (
                lambda: handle.set_adapters(["dog", "cat"], [0.8, 0.5]),
                lambda: handle.set_scale(0.5),
                lambda: handle.set_adapters("dog"),
                lambda: handle.swap(cat),
                handle.disable,
                handle.enable,
            ):
                change()
                assert relative(compiled(**inputs).sample, model(**inputs).sample) < 1e-5
        with handle.per_sample(["dog", "cat"]) if mode != "fused" else nullcontext():
            assert relative(compiled(**inputs).sample, model(**inputs).sample) < 1e-5
