"""Pictures of held-out subjects: what the demo and the report learn, and what the report edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from .grounds import Ground
from .plan import Placement, Plan, generator
from .scenes import Sprites, compose
from .subjects import HELD_OUT, TRAINED, Subject

LEARNED: Final = (
    "black cat", "police car",  # the demo's
    "poodle", "fire engine", "polar bear", "white rabbit", "pagoda", "hibiscus", "racehorse", "guide dog", "banjo",
)  # fmt: skip
"""The held-out subjects that have pictures."""

STYLE: Final = "glossy"
GROUNDS: Final = ("yellow", "blue", "green", "white", "pink")
SEED: Final = 4
ALONE, LEFT, RIGHT = (32.0, 32.0), (17.0, 32.0), (47.0, 32.0)


@dataclass(frozen=True)
class EditScene:
    """A picture that the report edits: what stands where, on which ground."""

    name: str
    subjects: tuple[str, ...]
    ground: Ground


EDIT_SCENES: Final = (
    EditScene("horse", ("racehorse",), Ground("plain", ("green",))),
    EditScene("cat-mushroom", ("black cat", "mushroom"), Ground("plain", ("yellow",))),
    EditScene("bear", ("polar bear",), Ground("in the snow")),
    EditScene("castle", ("pagoda",), Ground("at sunset")),
    EditScene("car-tree", ("police car", "tree"), Ground("plain", ("gray",))),
)
"""One picture each; a held-out subject is in every one."""


def paint_portraits(sprites: Sprites, out: Path) -> None:
    """Write five pictures of each subject of `LEARNED` to its folder in `out`, and `EDIT_SCENES` to `edits`."""
    subjects = {subject.name: subject for subject in TRAINED + HELD_OUT}
    for number, name in enumerate(LEARNED):
        folder = out / name.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        for index, colour in enumerate(GROUNDS):
            rng = generator(SEED, number * len(GROUNDS) + index)
            x, y = 32 + rng.uniform(-3, 3, 2)
            placed = _placed(subjects[name], (float(x), float(y)), float(rng.uniform(46, 54)))
            picture = compose(Plan((placed,), Ground("plain", (colour,)), ""), sprites, rng)
            Image.fromarray(picture).save(folder / f"{index:02}.png")
    _paint_edits(sprites, subjects, out / "edits")


def _paint_edits(sprites: Sprites, subjects: dict[str, Subject], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(EDIT_SCENES):
        spots: Sequence[tuple[float, float]] = (ALONE,) if len(scene.subjects) == 1 else (LEFT, RIGHT)
        size = 50.0 if len(scene.subjects) == 1 else 29.0
        placed = tuple(_placed(subjects[name], spot, size) for name, spot in zip(scene.subjects, spots, strict=True))
        rng = generator(SEED, 1_000 + number)
        picture = compose(Plan(placed, scene.ground, ""), sprites, rng)
        Image.fromarray(picture).save(folder / f"{scene.name}.png")


def _placed(subject: Subject, spot: tuple[float, float], size: float) -> Placement:
    return Placement(subject, STYLE, *spot, size, 0.0, False)
