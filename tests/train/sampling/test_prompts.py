"""Prompts: what a tokenizer cuts off is named in whole words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.pipelines import small_sdxl

from svdiff_delta.errors import InputError
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.prompts import cut_words, read_prompts
from svdiff_train.tiny import open_tiny

ROOM = 24
"""Tokens between the two marks of the embedded base's tokenizer."""


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline(open_tiny())


def test_a_prompt_that_fits_is_not_cut(pipeline: Any) -> None:
    assert cut_words(pipeline, " ".join(["cat"] * ROOM)) == ""


def test_the_words_beyond_the_last_token_are_cut(pipeline: Any) -> None:
    assert cut_words(pipeline, " ".join(["cat"] * ROOM) + " red house") == "red house"


def test_a_word_that_is_half_read_counts_as_cut(pipeline: Any) -> None:
    word = "xylophonette"
    assert len(pipeline.tokenizer(word, add_special_tokens=False).input_ids) > 1
    assert cut_words(pipeline, " ".join(["cat"] * (ROOM - 1)) + f" {word} house") == f"{word} house"


def test_of_two_tokenizers_the_shorter_counts() -> None:
    pipeline = small_sdxl()
    text = "a cat on a red car"
    assert cut_words(pipeline, text) == ""
    pipeline.tokenizer_2 = pipeline.tokenizer_2.from_pretrained(open_tiny().path / "tokenizer", model_max_length=6)
    assert cut_words(pipeline, text) == "red car"


def test_prompts_stand_one_per_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat \n\n  ein Häuschen\n", "utf-8")
    assert read_prompts(path) == ["a cat", "ein Häuschen"]


@pytest.mark.parametrize(
    ("text", "message"), [(b"", "has no prompt"), (b"\xff\xfe", "is not UTF-8"), (None, "could not be read")]
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, text: bytes | None, message: str) -> None:
    path = tmp_path / "prompts.txt"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(InputError, match=message):
        read_prompts(path)
