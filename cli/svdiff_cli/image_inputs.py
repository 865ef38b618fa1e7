"""What commands that paint have in common: what is put on the base, prompts, seeds, and words that are cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from svdiff_delta._text.printable import counted

from .references import is_path, say, split_weight

if TYPE_CHECKING:
    from svdiff_delta import Base, Delta
    from svdiff_train.sampling.adapter_stack import Part

OTHERS: Final = frozenset({".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".svg", ".pdf"})
"""Ends of names that say that a picture is no PNG."""


def check_painting(output: Path, *, overwrite: bool, allowed: str = ".png", also: tuple[str, ...] = ()) -> None:
    """Refuse early what writing a picture would refuse late, and a name that says another format than it is written in.

    Raises:
        OutputError: as `check_output`.
        InputError: the name ends otherwise.
    """
    from svdiff_delta._util.atomic import check_output
    from svdiff_delta.errors import InputError

    check_output(output, overwrite=overwrite, folder=None if also and not output.suffix else False)
    suffix = output.suffix.lower()
    if suffix in OTHERS and suffix not in (allowed, *also):
        raise InputError(f"{output}: pictures are written as PNG", fix=f"call it {output.with_suffix('.png')}")


@dataclass(frozen=True)
class WeightedInput:
    """One DELTA[:WEIGHT], which may also name a tuned model or a LoRA.

    Attributes:
        reference: what was written, without its weight.
        weight: its weight.
        delta: the delta, if it is one; else it is a difference of weights.
    """

    reference: str
    weight: float
    delta: Delta | None

    @property
    def name(self) -> str:
        """What pictures call it; never its folder."""
        name = Path(self.reference.partition("@")[0]).name
        return name.removesuffix(".safetensors") or self.reference

    @property
    def label(self) -> str:
        """Its name, with its weight if that is not 1."""
        return self.name if self.weight == 1 else f"{self.weight:g} {self.name}"

    def part(self, base: Base, *, quiet: bool = False) -> Part:
        """Return what a stage shows; a tuned model is compared with the base, and how much differs is said."""
        if self.delta is not None:
            return self.delta
        from svdiff_train.sampling.weight_difference import open_difference

        found = open_difference(self.reference, base)
        what = f"{counted(len(found), 'weight')} {'differs' if len(found) == 1 else 'differ'}"
        say(f"{self.reference}: no delta; {what} from the base", quiet=quiet)
        for remark in found.remarks:
            say(f"note: {self.reference}: {remark}", quiet=quiet)
        return found


def open_given(references: Sequence[str]) -> list[WeightedInput]:
    """Open every DELTA[:WEIGHT] that is a delta; the others are opened when the base is."""
    from svdiff_delta.io import load

    pairs = [split_weight(reference) for reference in references]
    return [WeightedInput(path, weight, None if _is_difference(path) else load(path)) for path, weight in pairs]


def _is_difference(reference: str) -> bool:
    """Tell whether a reference names a folder, or a safetensors file that is no delta."""
    if not is_path(reference):
        return False
    path = Path(reference)
    if path.is_dir():
        return True
    from svdiff_delta.conversion.lazy_tensors import peek
    from svdiff_delta.format.metadata import KEY

    header = peek(path)
    return header is not None and KEY not in header.metadata


def say_cut(pipeline: Any, prompts: Sequence[str], *, quiet: bool = False) -> dict[str, str]:
    """Say which words of prompts the model does not read, and return them by prompt."""
    from svdiff_train.sampling.prompts import cut_words

    found = {prompt: words for prompt in prompts if (words := cut_words(pipeline, prompt))}
    for prompt, words in found.items():
        say(f"warning: {prompt[:40]!r}…: too long, the model does not read {words!r}", quiet=quiet)
    return found


def all_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """Return prompts that were given, then those of a file; raise UsageError if there is none."""
    found = list(prompts)
    if file is not None:
        from svdiff_train.sampling.prompts import read_prompts

        found += read_prompts(file)
    if not found:
        raise click.UsageError("Missing option '--prompt' (or '--prompts').")
    return found


def all_seeds(seeds: Sequence[int], count: int | None) -> list[int]:
    """Return the seeds that were given, or 0 to count − 1, or 0."""
    if seeds and count is not None:
        raise click.UsageError("--seed and --seeds exclude each other.")
    return list(range(count)) if count is not None else list(seeds) or [0]
