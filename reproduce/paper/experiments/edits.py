"""(c) Edits of one picture (sections 3.4 and 4.3, Fig. 7), by SVDiff, full fine-tuning and LoRA (section 4.5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from PIL import Image

from reproduce.paper.cell import Cell, Measured
from reproduce.paper.choices import Choices
from reproduce.paper.lab import SAMPLING, Lab
from reproduce.paper.recipe import Recipe
from reproduce.paper.sight import Sight, ground, half, middle
from reproduce.paper.subjects import SCENE, Edit, Scene
from svdiff_train.data.picture_file import opened_picture
from svdiff_train.sampling.edit import EditConfig, edit
from svdiff_train.settings.config import MethodName

METHODS: Final[tuple[MethodName, ...]] = ("svdiff", "full", "lora")
WAYS: Final = {"plain": False, "inverted": True}
PICTURE_SEEDS: Final = (0, 1, 2)
ASIDE: Final = 0.12
"""How far from the middle a subject "on the left" must be, of half the width."""


def cell(choices: Choices, scene: str, method: MethodName, seed: int) -> Cell:
    """Return a cell of (c): a picture by a method."""
    made = Recipe(rate=choices.picture_rates[method], method=method, scene=scene, seed=seed, prior=0.0)
    return Cell("c", f"{scene}-{method}-{seed}", partial(_measure, made), (made,), shown=seed == 0)


def faithful_cell(letter: str, name: str, made: Recipe) -> Cell:
    """Return a cell that measures how well a picture was learned, and no edits."""
    return Cell(letter, name, partial(_faithful, made), (made,), shown=True)


def _faithful(made: Recipe, lab: Lab, sight: Sight) -> Measured:
    trained, scene = lab.trained(made), SCENE[made.scene or ""]
    with opened_picture(scene.path) as opened:
        source = opened.convert("RGB")
    with lab.with_result(trained) as pipeline:
        again = lab.paint(pipeline, [(scene.prompt, seed) for seed in PICTURE_SEEDS])
    like = sight.image_alignment(again, sight.seen([source]))
    return Measured(
        {"seconds": trained.seconds, "faithful": round(float(like.mean()), 5)}, {"painted": [source, *again]}
    )


def _measure(made: Recipe, lab: Lab, sight: Sight) -> Measured:
    trained = lab.trained(made)
    scene = SCENE[made.scene or ""]
    with opened_picture(scene.path) as opened:
        source = opened.convert("RGB")
    numbers: dict[str, Any] = {"seconds": trained.seconds}
    rows: dict[str, Sequence[Image.Image]] = {}
    targets = [one.prompt for one in scene.edits]
    with lab.with_result(trained) as pipeline:
        again = lab.paint(pipeline, [(scene.prompt, seed) for seed in PICTURE_SEEDS])
        numbers["faithful"] = round(float(sight.image_alignment(again, sight.seen([source])).mean()), 5)
        for way, invert in WAYS.items():
            config = EditConfig(steps=SAMPLING.steps, guidance=SAMPLING.guidance, invert=invert, seeds=_seeds(invert))
            pictures = edit(pipeline, source, targets, config, reconstruct=False).pictures
            numbers[way] = [
                _judged(lab, sight, scene, one, source, found) for one, found in zip(scene.edits, pictures, strict=True)
            ]
            rows[way] = [source, *(found[0] for found in pictures)]
    return Measured(numbers, rows)


def _seeds(invert: bool) -> tuple[int, ...]:
    """Return the seeds of pictures: an inverted latent has no chance in it."""
    return PICTURE_SEEDS[:1] if invert else PICTURE_SEEDS


def _judged(
    lab: Lab, sight: Sight, scene: Scene, one: Edit, source: Image.Image, pictures: Sequence[Image.Image]
) -> dict[str, Any]:
    """Return how often an edit succeeded and its subject survived, and the cosine with the source."""
    where = partial(half, side="left") if scene.paired else _whole
    kinds = [
        sight.seen([where(source)]),
        sight.seen([_as_seen(picture, scene) for picture in lab.class_images(scene.noun)]),
    ]
    own, _ = sight.nearest([where(picture) for picture in pictures], kinds)
    survived = [int(label == 0) for label in own] if one.keeps_subject else None
    return {
        "check": one.check,
        "succeeded": [int(_succeeded(sight, scene, one, picture)) for picture in pictures],
        "survived": survived,
        "like": [round(float(value), 5) for value in sight.image_alignment(pictures, sight.seen([source]))],
    }


def _succeeded(sight: Sight, scene: Scene, one: Edit, picture: Image.Image) -> bool:
    if one.check == "ground":
        return ground(picture) == one.asked
    if one.check == "left":
        return middle(picture) < -ASIDE
    if one.check == "right":
        return middle(picture) > ASIDE
    seen = half(picture, "right") if scene.paired else picture
    named = sight.named([seen])[0]
    return (one.asked in named.split()) == (one.check == "replaced")


def _whole(picture: Image.Image) -> Image.Image:
    return picture


def _as_seen(picture: Image.Image, scene: Scene) -> Image.Image:
    """Return a picture of one thing as it looks where the scene has its subject."""
    if not scene.paired:
        return picture
    side = picture.width
    small = picture.resize((side // 2, side // 2), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    canvas.paste(small, (0, side // 4))
    return half(canvas, "left")
