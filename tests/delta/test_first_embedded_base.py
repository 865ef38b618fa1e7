"""A delta of the embedded base that shipped before: refused by fingerprint, with the word that the base changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.commands import svdiff

from svdiff_delta.base_model.base import open_base
from svdiff_delta.errors import BaseMismatchError
from svdiff_delta.format.delta import Delta
from svdiff_delta.io import load
from svdiff_delta.ops.select import select
from svdiff_delta.svd.verify import verify_base
from svdiff_train.tiny import base_path, open_tiny

FILE = Path(__file__).parents[1] / "data" / "first_embedded_base.safetensors"
WORD = "the embedded base changed in this version"


@pytest.fixture(scope="module")
def old() -> Delta:
    return load(FILE)


def test_a_weight_of_the_same_shape_is_refused_by_its_fingerprint(old: Delta) -> None:
    name = "text_encoder.encoder.layers.0.self_attn.q_proj.weight"
    with pytest.raises(BaseMismatchError) as caught:
        verify_base(open_tiny(), [old])
    assert caught.value.message.startswith(
        f"{name}: the delta was made for another base (fingerprint {old.metadata.parameters[name].fingerprint}, here "
    )
    assert "2 of 2 parameters do not fit" in caught.value.message
    assert WORD in (caught.value.fix or "")


def test_a_weight_of_another_shape_gets_the_same_word(old: Delta) -> None:
    part = select(old, "unet")
    with pytest.raises(BaseMismatchError, match=r"of shape \[160, 128\], the base has \[128, 128\]") as caught:
        verify_base(open_tiny(), [part])
    assert WORD in (caught.value.fix or "")


def test_a_base_that_is_not_called_tiny_gets_another_word(old: Delta) -> None:
    with pytest.raises(BaseMismatchError) as caught:
        verify_base(open_base(base_path()), [old])
    assert WORD not in (caught.value.fix or "")
    assert "by its own words tiny" in (caught.value.fix or "")


@pytest.mark.parametrize("command", ["bake tiny {file} -o {out}", "verify {file} --base tiny"])
def test_commands_say_it(tmp_path: Path, command: str) -> None:
    done = svdiff(*command.format(file=FILE, out=tmp_path / "out").split())
    assert done.code != 0
    assert WORD in done.err
    assert not (tmp_path / "out").exists()
