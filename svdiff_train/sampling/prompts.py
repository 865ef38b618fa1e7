"""Prompts: read from a file, and compared with what a pipeline's tokenizers can take."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from svdiff_delta._util.limits import PROMPTS
from svdiff_delta.errors import InputError
from svdiff_train.data.text_file import text_lines

TOKENIZERS: Final = ("tokenizer", "tokenizer_2", "tokenizer_3")
"""What pipelines call their tokenizers."""


def read_prompts(path: Path) -> list[str]:
    """Return the prompts in a file, one per line that is not empty.

    Raises:
        InputError: it cannot be read, is not UTF-8, or has none.
    """
    prompts = text_lines(path, PROMPTS)
    if not prompts:
        raise InputError(f"{path}: has no prompt", fix="write one per line")
    return prompts


def cut_words(pipeline: Any, prompt: str) -> str:
    """Return the end of a prompt that a tokenizer of a pipeline cuts off, in whole words; empty if all is read.

    It is what lies beyond the tokenizer's `model_max_length`, its marks of beginning and end included. Of several
    tokenizers the one counts that cuts off most: the others may read on. One that does not say where its tokens lie, as
    processors of text and pictures, is not asked.

    Args:
        pipeline: a live text-to-image pipeline.
        prompt: what to paint.
    """
    found = (getattr(pipeline, name, None) for name in TOKENIZERS)
    starts = [_end_of_read(tokenizer, prompt) for tokenizer in found if getattr(tokenizer, "is_fast", False)]
    return prompt[min(starts, default=len(prompt)) :].strip()


def _end_of_read(tokenizer: Any, prompt: str) -> int:
    """Return where in a prompt the first word begins that is not read to its end."""
    ids = tokenizer(prompt, truncation=False).input_ids
    if len(ids) <= tokenizer.model_max_length:
        return len(prompt)
    marks = tokenizer.num_special_tokens_to_add()
    content = tokenizer(prompt, truncation=False, add_special_tokens=False, return_offsets_mapping=True)
    start: int = content.offset_mapping[max(0, tokenizer.model_max_length - marks)][0]
    while start > 0 and not prompt[start - 1].isspace() and not prompt[start].isspace():
        start -= 1
    return start
