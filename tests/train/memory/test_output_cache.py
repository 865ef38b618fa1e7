"""The cache of what frozen encoders gave: by content, checked, bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from svdiff_delta.errors import InputError, OutputError
from svdiff_train.memory.content import inputs_digest
from svdiff_train.memory.output_cache import GB, OutputCache

KEYS = [f"{number:064x}" for number in range(4)]


def tensors(number: float) -> dict[str, torch.Tensor]:
    return {"states": torch.full((2, 3), number).bfloat16(), "mask": torch.tensor([[True, False]])}


def test_an_entry_comes_back_bit_for_bit(tmp_path: Path) -> None:
    OutputCache(tmp_path).put(KEYS[0], tensors(0.1))
    found = OutputCache(tmp_path).get(KEYS[0])
    assert found is not None
    for name, tensor in tensors(0.1).items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert OutputCache(tmp_path).get(KEYS[1]) is None


@pytest.mark.parametrize("spoil", ["value", "cut", "key"])
def test_a_damaged_entry_is_said_and_not_used(spoil: str, tmp_path: Path) -> None:
    cache = OutputCache(tmp_path)
    cache.put(KEYS[0], tensors(0.1))
    path = cache.path(KEYS[0])
    raw = path.read_bytes()
    if spoil == "key":
        path = cache.path(KEYS[1])
        path.parent.mkdir(exist_ok=True)
    path.write_bytes({"value": raw[:-1] + bytes([raw[-1] ^ 1]), "cut": raw[:-4], "key": raw}[spoil])
    with pytest.warns(UserWarning, match="damaged entry"):
        assert cache.get(KEYS[spoil == "key"]) is None


def test_what_was_not_used_for_longest_goes_first_and_what_is_in_use_stays(tmp_path: Path) -> None:
    one = 8 * 100
    for number, key in enumerate(KEYS[:3]):
        cache = OutputCache(tmp_path)
        cache.put(key, {"": torch.full((100,), float(number), dtype=torch.float64)})
        os.utime(cache.path(key), (number, number))
    assert OutputCache(tmp_path).get(KEYS[0]) is not None  # it is the newest from now on
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    bounded = OutputCache(tmp_path, output_cache_size=(size + one / 2) / GB)
    bounded.put(KEYS[3], {"": torch.zeros(100, dtype=torch.float64)})
    assert [key for key in KEYS if bounded.path(key).exists()] == [KEYS[0], KEYS[2], KEYS[3]]


def test_a_run_that_needs_more_than_the_bound_is_told_how_much(tmp_path: Path) -> None:
    cache = OutputCache(tmp_path, output_cache_size=1e-6)
    cache.put(KEYS[0], {"": torch.zeros(100)})
    with pytest.raises(OutputError, match=r"more than 1e-06 GB.*`output_cache_size=2\.4e-06`"):
        cache.put(KEYS[1], {"": torch.zeros(200)})
    with pytest.raises(InputError, match="must be above 0"):
        OutputCache(tmp_path, output_cache_size=0)


def test_whatever_goes_in_is_told_from_everything_else() -> None:
    picture = Image.new("RGB", (2, 1))
    given: list[object] = [
        "1", 1, 1.0, True, None, b"1", ["1"], ["1", "1"], ["11"], {"a": "1"}, {"b": "1"},
        torch.zeros(2), torch.zeros(2, 1), torch.zeros(2).double(), torch.ones(2), -torch.zeros(2),
        picture, picture.convert("L"), picture.resize((1, 2)), [torch.zeros(1), torch.zeros(1)],
    ]  # fmt: skip
    assert len({inputs_digest(each) for each in given}) == len(given)
    assert inputs_digest({"a": 1, "b": torch.zeros(1)}) == inputs_digest({"b": torch.zeros(1), "a": 1})
    assert inputs_digest(torch.zeros(4, 2).T) == inputs_digest(torch.zeros(2, 4))
    with pytest.raises(TypeError, match="object has no digest"):
        inputs_digest(object())
