"""Scenes composed of the held-out portraits: two subjects side by side, as the embedded base paints them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from svdiff_train.tiny import pictures_path

CAT, CAR = "black_cat", "police_car"
SIDE = 36
"""Side in pixels of a portrait in a scene, whose subject then is as large as in the pairs that the CLIP learned."""


def portraits(subject: str) -> list[Image.Image]:
    """Return a subject's five pictures of 64 by 64 pixels, each on a ground of its own colour."""
    return [Image.open(path).convert("RGB") for path in sorted(pictures_path(subject).iterdir())]


PAINTED = ("panda", "cat face", "strawberry", "tractor")
"""Pictures that an embedded base painted, and that its CLIP names rightly among all the names that it knows."""


def painted(name: str) -> Image.Image:
    """Return a picture of 64 by 64 pixels that an embedded base painted; later ones paint others."""
    with Image.open(Path(__file__).parents[1] / "data" / "painted" / f"{name.replace(' ', '_')}.png") as picture:
        return picture.convert("RGB")


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return a picture of two portraits, each made small enough for its half, on the ground of the left one."""
    canvas = Image.new("RGB", (64, 64), left.getpixel((0, 0)))
    for x, portrait in ((0, left), (32, right)):
        small = portrait.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        spare = (SIDE - 32) // 2  # only ground
        canvas.paste(small.crop((spare, 0, spare + 32, SIDE)), (x, (64 - SIDE) // 2))
    return canvas


def pairs(left: str, right: str) -> list[Image.Image]:
    """Return five scenes of two subjects."""
    return [side_by_side(*both) for both in zip(portraits(left), portraits(right), strict=True)]


def save_all(images: list[Image.Image], folder: Path) -> Path:
    """Write pictures to a new folder; return it."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    return folder
