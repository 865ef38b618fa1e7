"""The scene bank: pictures, captions and subjects of numbered scenes, painted once and kept on disk."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .grounds import SIDE
from .scenes import CALM_SEED, TRAIN_SEED, UNSEEN_SEED, Sprites, load_sprites, scene
from .subjects import TRAINED

TRAIN_SCENES, UNSEEN_SCENES, CALM_SCENES = 98_304, 2_048, 393_216
CALM = 0.5
"""Share of the UNet's scenes whose subjects stand straight and centred: learned sooner."""
SINGLE, CALM_SINGLE = 0.7, 0.45
"""Share of scenes with one subject; the UNet, which learns pairs last, sees more pairs from its step 3,650 on."""
_CHUNK = 4_096
_PICTURES = "pictures.npy"
_NUMBER = {subject.name: i for i, subject in enumerate(TRAINED)}


@dataclass(frozen=True)
class Bank:
    """`pictures [n, 64, 64, 3]` of 0 to 255, `captions`, and per scene what is where.

    `layout [n, 2, 4]` holds for each of at most two subjects its number in `TRAINED` (-1: none) and
    its centre and size in pixels.
    """

    pictures: NDArray[np.uint8]
    captions: list[str]
    layout: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.captions)


def build_bank(
    folder: Path, npm: Path, seed: int, count: int, calm: float = 0.0, single: float = SINGLE, workers: int = 2
) -> Bank:
    """Paint `count` scenes of `seed` into `folder`, unless they lie there, and open them."""
    if not (folder / "captions.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(folder / _PICTURES, "w+", np.uint8, (count, SIDE, SIDE, 3))
        starts = range(0, count, _CHUNK)
        with ProcessPoolExecutor(workers) as pool:
            parts = [*pool.map(partial(_paint_chunk, folder, npm, seed, count, calm, single), starts)]
        np.save(folder / "layout.npy", np.concatenate([layout for _, layout in parts]))
        captions = [caption for said, _ in parts for caption in said]
        part = folder / "captions.part"
        part.write_text(json.dumps(captions))
        part.replace(folder / "captions.json")
    return open_bank(folder)


def open_bank(folder: Path) -> Bank:
    """A bank that `build_bank` wrote; its pictures are mapped, not read."""
    return Bank(
        np.load(folder / _PICTURES, mmap_mode="r"),
        json.loads((folder / "captions.json").read_bytes()),
        np.load(folder / "layout.npy"),
    )


def both_banks(work: Path, workers: int = 2, most: int = TRAIN_SCENES) -> tuple[Bank, Bank]:
    """The training bank, of at most `most` scenes, and the unseen one under the work folder, painted if missing."""
    npm = work / "npm"
    return (
        build_bank(work / "bank-train", npm, TRAIN_SEED, min(most, TRAIN_SCENES), workers=workers),
        build_bank(work / "bank-unseen", npm, UNSEEN_SEED, min(most, UNSEEN_SCENES), workers=workers),
    )


def calm_bank(work: Path, workers: int = 2, most: int = CALM_SCENES) -> Bank:
    """The bank that the UNet learns from, painted if missing."""
    return build_bank(work / "bank-calm", work / "npm", CALM_SEED, min(most, CALM_SCENES), CALM, CALM_SINGLE, workers)


def _paint_chunk(
    folder: Path, npm: Path, seed: int, count: int, calm: float, single: float, start: int
) -> tuple[list[str], NDArray[np.int16]]:
    """Paint one chunk into the bank's pictures; returns its captions and layout."""
    sprites = _sprites(npm)
    size = min(_CHUNK, count - start)
    pictures = np.empty((size, SIDE, SIDE, 3), np.uint8)
    layout = np.full((size, 2, 4), -1, np.int16)
    captions = []
    for i in range(size):
        pictures[i], plan = scene(start + i, sprites, seed, single, calm)
        captions.append(plan.caption)
        for k, p in enumerate(plan.placements):
            layout[i, k] = (_NUMBER[p.subject.name], round(p.x), round(p.y), round(p.size))
    np.lib.format.open_memmap(folder / _PICTURES, "r+")[start : start + size] = pictures
    return captions, layout


@cache
def _sprites(npm: Path) -> Sprites:
    return load_sprites(npm, TRAINED)
