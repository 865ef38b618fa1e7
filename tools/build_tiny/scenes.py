"""Painting: subjects' pictures loaded, scenes of 64 by 64 pixels composed from plans."""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from svdiff_train.data.picture_file import opened_picture

from .grounds import paint
from .plan import RARE, Placement, Plan, draw_plan, generator
from .subjects import HELD_OUT, STYLES, TRAINED, Subject

Sprites = Mapping[tuple[str, str], Image.Image]
"""(short name, style) to a square RGBA picture."""

TRAIN_SEED, UNSEEN_SEED, CALM_SEED = 1, 2, 3
"""Seeds of the scenes that the autoencoder and CLIP learn, of those that only measure, and of the UNet's."""


_TINT = 0.5
"""Share of a rare word's colour in the subject that it stands before."""
_TURN = (5**0.5 - 1) / 2
"""Turn of the colour wheel from one rare word to the next: any two are far apart."""


class MissingPictureError(LookupError):
    """A chosen subject has no picture of one of the two vendors in the folder."""


def load_sprites(folder: Path, subjects: Iterable[Subject] = TRAINED + HELD_OUT) -> Sprites:
    """The pictures of `subjects` in both styles.

    `folder` holds one unpacked npm package per vendor (`google`, `twitter`), each with `emoji.json`
    and `img/<vendor>/64`. Only entries that both vendors draw themselves are taken.
    """
    entries = {e["short_name"]: e for e in json.loads((folder / "google" / "emoji.json").read_bytes())}
    found = {}
    for subject in subjects:
        entry = entries.get(subject.short_name, {})
        if not all(entry.get(f"has_img_{vendor}") for vendor in STYLES.values()):
            raise MissingPictureError(f"{subject.short_name}: not drawn by both vendors in {folder}")
        for style, vendor in STYLES.items():
            path = folder / vendor / "img" / vendor / "64" / entry["image"]
            found[subject.short_name, style] = square(_stored(path))
    return found


def _stored(path: Path) -> Image.Image:
    with opened_picture(path) as picture:
        return picture.convert("RGBA")


def square(picture: Image.Image) -> Image.Image:
    """The picture cut to what is not transparent, centred in a transparent square."""
    box = picture.getchannel("A").getbbox()
    cut = picture.crop(box) if box else picture
    side = max(cut.size)
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return canvas


def compose(plan: Plan, sprites: Sprites, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The scene of `plan` as a picture `[64, 64, 3]`; `rng` varies the ground's colours a little."""
    canvas = Image.fromarray(paint(plan.ground, rng))
    for placed in plan.placements:
        _stamp(canvas, sprites[placed.subject.short_name, placed.style], placed)
    return np.asarray(canvas)


def _stamp(canvas: Image.Image, sprite: Image.Image, placed: Placement) -> None:
    size = max(4, round(placed.size))
    small = sprite.resize((size, size), Image.Resampling.LANCZOS)
    if placed.rare:
        small = tinted(small, placed.rare)
    if placed.flip:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    room = math.ceil(size * 0.12)
    padded = Image.new("RGBA", (size + 2 * room, size + 2 * room))
    padded.paste(small, (room, room))
    turned = padded.rotate(placed.angle, Image.Resampling.BICUBIC)
    corner = (round(placed.x - padded.width / 2), round(placed.y - padded.height / 2))
    canvas.paste(turned, corner, turned)


def tinted(picture: Image.Image, rare: str) -> Image.Image:
    """The RGBA picture half as it is, half in light and dark of the rare word's own colour."""
    colour = np.array(colorsys.hsv_to_rgb(RARE.index(rare) * _TURN % 1, 0.9, 1.0), np.float32)
    pixels = np.asarray(picture, np.float32)
    light = 0.25 + 0.75 / 255 * np.asarray(picture.convert("L"), np.float32)[..., None]
    mixed = pixels[..., :3] * (1 - _TINT) + 255 * _TINT * light * colour
    return Image.fromarray(np.concatenate([mixed, pixels[..., 3:]], -1).round().astype(np.uint8))


def scene(
    index: int, sprites: Sprites, seed: int = TRAIN_SEED, single: float = 0.7, calm: float = 0.0
) -> tuple[NDArray[np.uint8], Plan]:
    """Scene number `index` of `seed`: its picture `[64, 64, 3]` and its plan."""
    rng = generator(seed, index)
    plan = draw_plan(rng, single=single, calm=calm)
    return compose(plan, sprites, rng), plan


def batch(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pictures `[n, 64, 64, 3]` of 0 to 255 as a model's input `[n, 3, 64, 64]` of -1 to 1."""
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32) / 127.5 - 1
