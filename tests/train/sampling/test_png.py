"""PNG files say how they were painted, and the same picture and facts are the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from support.pipelines import small_sd2

from svdiff_delta.errors import InputError
from svdiff_train.sampling.png import png_bytes, read_facts, sampling_facts, save_png
from svdiff_train.sampling.sample import Sampling
from svdiff_train.tiny import open_tiny

IMAGE = Image.new("RGB", (6, 4), "red")


def test_facts_are_read_back_as_they_were(tmp_path: Path) -> None:
    sampling = Sampling(steps=3, guidance=4.5, negative_prompt="blau ü 猫")
    facts = sampling_facts(small_sd2(), open_tiny(), sampling, ["a cat"], [7], deltas=[{"sha256": "0", "weight": 0.5}])
    save_png(IMAGE, tmp_path / "a.png", facts)
    found = read_facts(tmp_path / "a.png")
    assert json.loads(found.pop("deltas")) == [{"sha256": "0", "weight": 0.5}]
    assert found == {
        "prompt": "a cat",
        "negative_prompt": "blau ü 猫",
        "seed": "7",
        "steps": "3",
        "guidance": "4.5",
        "scheduler": "DDIMScheduler",
        "eta": "0",
        "base": "tiny",
        "size": "6x4",
    }


def test_several_prompts_and_seeds_are_lists(tmp_path: Path) -> None:
    facts = sampling_facts(small_sd2(), open_tiny(), Sampling(), ["a", "b"], [0, 1])
    save_png(IMAGE, tmp_path / "a.png", facts)
    found = read_facts(tmp_path / "a.png")
    assert (json.loads(found["prompts"]), json.loads(found["seeds"])) == (["a", "b"], [0, 1])


def test_the_order_of_facts_does_not_matter() -> None:
    assert png_bytes(IMAGE, {"a": 1, "b": "x"}) == png_bytes(IMAGE, {"b": "x", "a": 1})


@pytest.mark.parametrize(("text", "message"), [("a\ud800", "is not Unicode text"), ("a\0b", "has a NUL")])
def test_what_a_file_cannot_hold_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sampling_facts(small_sd2(), open_tiny(), Sampling(), [text], [0])


def test_what_is_no_picture_has_no_facts(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="could not be read as a picture"):
        read_facts(tmp_path / "a.png")
