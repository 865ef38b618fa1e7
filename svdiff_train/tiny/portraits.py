"""Pictures of held-out subjects: what the demo learns."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from PIL import Image

from svdiff_train.tiny.grounds import Ground
from svdiff_train.tiny.plan import Placement, Plan, generator
from svdiff_train.tiny.scenes import Sprites, compose
from svdiff_train.tiny.subjects import HELD_OUT

LEARNED: Final = ("black cat", "police car")
"""The held-out subjects of the demo."""

STYLE: Final = "glossy"
GROUNDS: Final = ("yellow", "blue", "green", "white", "pink")
SEED: Final = 4


def paint_portraits(sprites: Sprites, out: Path) -> None:
    """Write five pictures of each subject of `LEARNED` to its folder in `out`, each on a ground of its own."""
    subjects = {subject.name: subject for subject in HELD_OUT}
    for number, name in enumerate(LEARNED):
        folder = out / name.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        for index, colour in enumerate(GROUNDS):
            rng = generator(SEED, number * len(GROUNDS) + index)
            x, y = 32 + rng.uniform(-3, 3, 2)
            placed = Placement(subjects[name], STYLE, float(x), float(y), float(rng.uniform(46, 54)), 0.0, False)
            picture = compose(Plan((placed,), Ground("plain", (colour,)), ""), sprites, rng)
            Image.fromarray(picture).save(folder / f"{index:02}.png")
