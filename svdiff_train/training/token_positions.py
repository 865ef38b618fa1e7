"""Find a word among the tokens that text encoders read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from svdiff_delta.errors import TrainError


def token_places(pipeline: Any, slots: Sequence[str], prompt: str, word: str) -> tuple[int, ...]:
    """Return where a word stands among a prompt's tokens: every token of it, wherever it stands.

    Args:
        pipeline: the live pipeline.
        slots: its text encoders, whose states stand side by side, so that their tokenizers must agree.
        prompt: what is read.
        word: one of its words, that is between spaces; punctuation may be at its ends.

    Raises:
        TrainError: the prompt does not have it, or has it where it is cut off, or tokenizers disagree.
    """
    tokenizers = [getattr(pipeline, slot.replace("text_encoder", "tokenizer")) for slot in slots]
    places, *others = (_places(tokenizer, prompt, word) for tokenizer in tokenizers)
    if any(other != places for other in others):
        raise TrainError(
            f"the tokenizers of {', '.join(slots)} put {word!r} in different places of {prompt!r}",
            fix="set unmix_weight to 0",
        )
    return places


def _places(tokenizer: Any, prompt: str, word: str) -> tuple[int, ...]:
    wanted = _ids(tokenizer, word)
    places: list[int] = []
    before = _leading(tokenizer, prompt)
    for other in prompt.split():
        ids = _ids(tokenizer, other)
        inside = _inside(wanted, ids) if _bare(other) == _bare(word) else None
        if inside is not None:
            places.extend(range(before + inside, before + inside + len(wanted)))
        before += len(ids)
    if not places:
        raise TrainError(f"the prompt {prompt!r} does not have the token {word!r}", fix="put it into the prompt")
    last = int(tokenizer.model_max_length) - 2  # the end token follows
    if places[-1] > last:
        raise TrainError(f"{prompt!r} is longer than the model reads: {word!r} is cut off", fix="use shorter wordings")
    return tuple(places)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer(text, add_special_tokens=False).input_ids]


def _leading(tokenizer: Any, prompt: str) -> int:
    """Return how many special tokens stand before a prompt's own.

    Raises:
        TrainError: the tokenizer does not read a prompt word by word.
    """
    own = [number for word in prompt.split() for number in _ids(tokenizer, word)]
    before = _inside(own, [*tokenizer(prompt).input_ids])
    if before is None:
        raise TrainError(
            f"{type(tokenizer).__name__}: does not read {prompt!r} word by word", fix="set unmix_weight to 0"
        )
    return before


def _inside(part: Sequence[int], whole: Sequence[int]) -> int | None:
    """Return where a part begins in a sequence."""
    ends = range(len(part), len(whole) + 1)
    return next((end - len(part) for end in ends if [*whole[end - len(part) : end]] == [*part]), None)


def _bare(word: str) -> str:
    """Return a word without the punctuation at its ends, unless that is all of it."""
    return word.strip(".,;:!?()'\"") or word
