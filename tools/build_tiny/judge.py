"""Judging pictures: prompts with known contents, what the CLIP names, the ground's colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from svdiff_train.evaluate.article import article

from .clip import CROP, crops, image_features, name_prompts, text_features
from .grounds import COLOURS
from .scenes import batch
from .subjects import STYLES, TRAINED
from .tokenizer import token_ids

AMONG = 100
"""Names that the right one must win against, itself included."""
BORDER = 3
"""Width in pixels of the border whose colour is the ground's."""


@dataclass(frozen=True)
class Prompt:
    """A prompt and what its picture must show: subjects by number in `TRAINED`, left first."""

    text: str
    subjects: tuple[int, ...]
    colour: str


def single_prompts(count: int, seed: int = 5) -> list[Prompt]:
    """Prompts such as "a photo of a glossy dog on a blue background", every subject equally often."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(TRAINED)) for _ in range(-(-count // len(TRAINED)))])
    found = []
    for number in order[:count]:
        name, colour, style = TRAINED[number].name, *_looks(rng)
        text = f"a photo of {article(f'{style} {name}', name)} {_on(colour)}"
        found.append(Prompt(text, (int(number),), colour))
    return found


def pair_prompts(count: int, seed: int = 6) -> list[Prompt]:
    """Prompts such as "a flat dog on the left and a flat cat on the right on a blue background"."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        pair = tuple(int(i) for i in rng.choice(len(TRAINED), 2, replace=False))
        colour, style = _looks(rng)
        left, right = (article(f"{style} {TRAINED[i].name}", TRAINED[i].name) for i in pair)
        found.append(Prompt(f"{left} on the left and {right} on the right {_on(colour)}", pair, colour))
    return found


def _looks(rng: np.random.Generator) -> tuple[str, str]:
    return str(rng.choice(list(COLOURS))), str(rng.choice(list(STYLES)))


def _on(colour: str) -> str:
    return f"on {article(colour, '')} background"


def border_colour(picture: NDArray[np.uint8]) -> str:
    """The colour word that most border pixels of `[64, 64, 3]` are nearest to."""
    inside = np.zeros(picture.shape[:2], np.bool_)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    pixels = picture[~inside].astype(np.float32)
    away = ((pixels[:, None] - np.array([*COLOURS.values()], np.float32)) ** 2).sum(-1)
    return [*COLOURS][Counter(away.argmin(1).tolist()).most_common(1)[0][0]]


@dataclass(frozen=True)
class Judge:
    """A CLIP and its tokenizer, asked which subject a picture shows."""

    clip: Any
    tokenizer: Any

    @torch.no_grad()
    def scores(self, pictures: torch.Tensor) -> NDArray[np.float32]:
        """Cosines `[n, subjects]` of pictures `[n, 3, 64, 64]` with every subject's name."""
        names = text_features(self.clip, token_ids(self.tokenizer, name_prompts()))
        parts = [image_features(self.clip, part) for part in pictures.split(64)]
        return np.asarray((torch.cat(parts) @ names.T).numpy(), np.float32)

    def named(self, pictures: NDArray[np.uint8], truth: Sequence[int], among: int = AMONG) -> NDArray[np.bool_]:
        """Whether each picture's true subject scores highest among `among` names."""
        found = self.scores(torch.from_numpy(batch(pictures)))
        return correct_among(found, np.asarray(truth), among, seed=7)

    def both_named(
        self, pictures: NDArray[np.uint8], truth: Sequence[tuple[int, ...]], among: int = AMONG
    ) -> NDArray[np.bool_]:
        """Whether the left and the right subject are both named, each from one crop of its side."""
        whole = torch.from_numpy(batch(pictures))
        right = np.ones(len(whole), np.bool_)
        for side, x in enumerate((16.0, 48.0)):
            spots = torch.tensor([x, 32.0]).expand(len(whole), 2)
            cut = crops(whole, spots, torch.full((len(whole),), float(CROP)))
            numbers = np.asarray([pair[side] for pair in truth])
            right &= correct_among(self.scores(cut), numbers, among, seed=8 + side)
        return right


def correct_among(scores: NDArray[np.float32], truth: NDArray[np.int64], among: int, seed: int) -> NDArray[np.bool_]:
    """Whether each row's true column scores highest among itself and `among - 1` others by chance."""
    rng = np.random.default_rng(seed)
    right = np.empty(len(truth), np.bool_)
    for i, true in enumerate(truth):
        others = rng.permutation(np.delete(np.arange(scores.shape[1]), true))[: among - 1]
        right[i] = scores[i, true] > scores[i, others].max()
    return right
