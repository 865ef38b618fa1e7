"""The tokenizer: every word of the captions is one token, rare ones too, and it loads as CLIP's."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from tools.build_tiny.plan import RARE, draw_plan, generator
from tools.build_tiny.tokenizer import LENGTH, build_tokenizer, save_tokenizer, token_ids, words


@pytest.mark.parametrize("word", [*words(), *RARE, "V1", "V16", "Dog"])
def test_a_word_is_one_token(word: str) -> None:
    assert len(TOKENIZER.tokenize(word)) == 1


def test_rare_words_differ_from_each_other() -> None:
    found = {TOKENIZER.tokenize(word)[0] for word in RARE}
    assert len(found) == len(RARE)


def test_a_rare_word_is_not_found_inside_another() -> None:
    assert TOKENIZER.tokenize("v12x") == ["v</w>", "1</w>", "2</w>", "x</w>"]


def test_captions_fit_but_for_a_few_with_two_rare_words() -> None:
    captions = [draw_plan(generator(1, index)).caption for index in range(2000)]
    long = [caption for caption in captions if len(caption.split()) + 2 > LENGTH]
    assert len(long) < 10


def test_captions_are_padded_with_the_end() -> None:
    ids = token_ids(TOKENIZER, ["a dog", ""])
    assert ids.shape == (2, LENGTH)
    assert (ids[1, 1:] == TOKENIZER.eos_token_id).all()
    assert ids[0, 0] == TOKENIZER.bos_token_id


def test_it_survives_the_disk_and_is_always_the_same(tmp_path: Path) -> None:
    saved = save_tokenizer(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    text = "a photo of a V1 dog beside sks"
    assert loaded(text)["input_ids"] == saved(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert len(loaded) == len(TOKENIZER)


TOKENIZER = build_tokenizer()
