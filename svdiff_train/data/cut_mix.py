"""Cut-Mix (section 3.3): samples that show two concepts, cut and pasted side by side or one above the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svdiff_train.settings.prompt_templates import mixed_prompt

from . import seeded_random
from .buckets import Size


@dataclass(frozen=True)
class Mix:
    """What a mixed sample shows.

    Attributes:
        first: number of the concept on the left, or at the top.
        second: number of the other one.
        beside: whether they are side by side, not one above the other.
        template: which wording describes them, by its number among those for the layout.
    """

    first: int
    second: int
    beside: bool
    template: int


@dataclass(frozen=True)
class Mixing:
    """How often and how concepts are mixed.

    Attributes:
        probability: that a sample is mixed.
        beside: templates of prompts where `first` is left of `second`.
        above: the same where it is above.
    """

    probability: float
    beside: tuple[str, ...]
    above: tuple[str, ...]

    def draw(self, concepts: int, seed: int, step: int, sample: int) -> Mix | int:
        """Return what a sample shows: with the probability two concepts without replacement, otherwise one.

        Concepts, their order, the layout and the wording are each equally likely, and depend on nothing else than
        (seed, step, sample).

        Args:
            concepts: how many there are.
            seed: the run's seed.
            step: the optimizer step.
            sample: the sample's index in the whole batch, over all processes.
        """
        at = (seed, step, sample)
        first = seeded_random.integer(concepts, *at, "concept")
        if concepts < 2 or seeded_random.share(*at, "mix") >= self.probability:
            return first
        other = seeded_random.integer(concepts - 1, *at, "other concept")
        beside = seeded_random.integer(2, *at, "layout") == 0
        template = seeded_random.integer(len(self.templates(beside=beside)), *at, "template")
        return Mix(first, other + (other >= first), beside, template)

    def templates(self, *, beside: bool) -> tuple[str, ...]:
        """Return the templates for a layout."""
        return self.beside if beside else self.above

    def prompt(self, mix: Mix, phrases: Sequence[str]) -> str:
        """Return what describes a mixed sample.

        Args:
            mix: what it shows.
            phrases: the noun phrase of every concept, or of every class.
        """
        template = self.templates(beside=mix.beside)[mix.template]
        return mixed_prompt(template, phrases[mix.first], phrases[mix.second])

    def every(self, concepts: int) -> list[Mix]:
        """Return everything that a mixed sample can show, in a fixed order."""
        if self.probability == 0:
            return []
        return [
            Mix(first, second, beside, template)
            for first in range(concepts)
            for second in range(concepts)
            if first != second
            for beside in (True, False)
            for template in range(len(self.templates(beside=beside)))
        ]


def half(size: Size, *, beside: bool) -> Size:
    """Return height and width of each of two pictures that fill a size (height, width), which has even sides."""
    height, width = size
    return (height, width // 2) if beside else (height // 2, width)


def compose(first: Tensor, second: Tensor, *, beside: bool) -> Tensor:
    """Return two pictures (3, height, width) as one: first left of second, or above it."""
    return torch.cat([first, second], dim=2 if beside else 1)
