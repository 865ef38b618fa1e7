"""The scene bank: pictures, captions and subjects of numbered scenes, painted once and kept on disk."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from svdiff_train.tiny.grounds import SIDE
from svdiff_train.tiny.scenes import CALM_SEED, TRAIN_SEED, UNSEEN_SEED, load_sprites, scene
from svdiff_train.tiny.subjects import TRAINED

TRAIN_SCENES, UNSEEN_SCENES, CALM_SCENES = 98_304, 2_048, 131_072
CALM = 0.5
"""Share of the UNet's scenes whose subjects stand straight and centred: learned sooner."""
SINGLE, CALM_SINGLE = 0.7, 0.45
"""Share of scenes with one subject; the UNet, which learns pairs last, sees more pairs from its step 3,650 on."""
_CHUNK = 4_096


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


def build_bank(folder: Path, npm: Path, seed: int, count: int, calm: float = 0.0, single: float = SINGLE) -> Bank:
    """Paint `count` scenes of `seed` into `folder`, unless they lie there, and open them."""
    if not (folder / "captions.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        starts = range(0, count, _CHUNK)
        with ProcessPoolExecutor(2) as pool:
            work = partial(_paint_chunk, npm, seed, count, calm, single)
            _gather(folder, count, pool.map(work, starts))
    return open_bank(folder)


def open_bank(folder: Path) -> Bank:
    """A bank that `build_bank` wrote; its pictures are mapped, not read."""
    return Bank(
        np.load(folder / "pictures.npy", mmap_mode="r"),
        json.loads((folder / "captions.json").read_bytes()),
        np.load(folder / "layout.npy"),
    )


def both_banks(work: Path) -> tuple[Bank, Bank]:
    """The training bank and the unseen one under the work folder, painted if missing."""
    npm = work / "npm"
    return (
        build_bank(work / "bank-train", npm, TRAIN_SEED, TRAIN_SCENES),
        build_bank(work / "bank-unseen", npm, UNSEEN_SEED, UNSEEN_SCENES),
    )


def calm_bank(work: Path) -> Bank:
    """The bank that the UNet learns from, painted if missing."""
    return build_bank(work / "bank-calm", work / "npm", CALM_SEED, CALM_SCENES, CALM, CALM_SINGLE)


_Chunk = tuple[NDArray[np.uint8], list[str], NDArray[np.int16]]


def _paint_chunk(npm: Path, seed: int, count: int, calm: float, single: float, start: int) -> _Chunk:
    sprites = load_sprites(npm, TRAINED)
    number = {subject.name: i for i, subject in enumerate(TRAINED)}
    size = min(_CHUNK, count - start)
    pictures = np.empty((size, SIDE, SIDE, 3), np.uint8)
    layout = np.full((size, 2, 4), -1, np.int16)
    captions = []
    for i in range(size):
        pictures[i], plan = scene(start + i, sprites, seed, single, calm)
        captions.append(plan.caption)
        for k, p in enumerate(plan.placements):
            layout[i, k] = (number[p.subject.name], round(p.x), round(p.y), round(p.size))
    return pictures, captions, layout


def _gather(folder: Path, count: int, chunks: object) -> None:
    shape = (count, SIDE, SIDE, 3)
    pictures = np.lib.format.open_memmap(folder / "pictures.npy", "w+", np.uint8, shape)
    captions: list[str] = []
    layouts = []
    for painted, said, layout in chunks:  # type: ignore[attr-defined]
        pictures[len(captions) : len(captions) + len(said)] = painted
        captions += said
        layouts.append(layout)
    pictures.flush()
    np.save(folder / "layout.npy", np.concatenate(layouts))
    (folder / "captions.json").write_text(json.dumps(captions))
