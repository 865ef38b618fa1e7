"""The grounds of the scenes: ten colours, plain, in two halves or in a pattern, and five places."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE = 64
"""Width and height of a scene in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (240, 140, 40),
    "yellow": (246, 216, 80),
    "green": (84, 172, 92),
    "blue": (66, 110, 214),
    "purple": (132, 72, 168),
    "pink": (246, 166, 196),
    "gray": (150, 150, 150),
    "black": (28, 28, 30),
    "white": (248, 248, 246),
}
"""Colour word to its red, green and blue, 0 to 255; scenes vary each by a few units."""

PATTERNS = ("striped", "dotted", "checkered")
PLACES = ("on the grass", "on the beach", "in the snow", "at night", "at sunset")

_SKY, _GRASS, _SAND = (150, 206, 240), (98, 170, 70), (232, 208, 150)
_SNOW, _PALE = (244, 247, 252), (186, 204, 226)
_NIGHT, _DUSK, _GLOW = (24, 30, 66), (232, 96, 96), (252, 196, 96)
_JITTER = 6
_STRIPE = 8


@dataclass(frozen=True)
class Ground:
    """What lies behind the subjects: `kind` is plain, halves, a pattern, or a place's phrase."""

    kind: str
    colours: tuple[str, ...] = ()
    upright: bool = True

    @property
    def phrase(self) -> str:
        """The caption's words for it, such as "on a red and blue striped background"."""
        if self.kind in PLACES:
            return self.kind
        words = " and ".join(self.colours)
        pattern = f" {self.kind}" if self.kind in PATTERNS else ""
        return f"on {'an' if words[0] in 'aeiou' else 'a'} {words}{pattern} background"


def draw_ground(rng: np.random.Generator) -> Ground:
    """A ground by chance: 70 % plain, 10 % in halves, 8 % patterned, 12 % a place."""
    pick = rng.random()
    two = tuple(str(c) for c in rng.choice(list(COLOURS), 2, replace=False))
    upright = bool(rng.random() < 0.5)
    if pick < 0.70:
        return Ground("plain", two[:1])
    if pick < 0.80:
        return Ground("halves", two, upright)
    if pick < 0.88:
        return Ground(PATTERNS[rng.integers(len(PATTERNS))], two, upright)
    return Ground(PLACES[rng.integers(len(PLACES))])


def paint(ground: Ground, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The ground as a picture `[64, 64, 3]`; `rng` varies its colours by a few units."""
    if ground.kind in PLACES:
        canvas = _place(ground.kind, rng)
    else:
        first = np.asarray(COLOURS[ground.colours[0]], np.float32)
        second = np.asarray(COLOURS[ground.colours[-1]], np.float32)
        mask = _mask(ground)[..., None]
        canvas = first * (1 - mask) + second * mask
    shift = rng.integers(-_JITTER, _JITTER + 1, 3).astype(np.float32)
    return np.asarray(np.clip(canvas + shift, 0, 255), np.uint8)


def _mask(ground: Ground) -> NDArray[np.float32]:
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    along = x if ground.upright else y
    if ground.kind == "halves":
        mask = along >= SIDE / 2
    elif ground.kind == "striped":
        mask = (along // _STRIPE) % 2
    elif ground.kind == "checkered":
        mask = ((x // (2 * _STRIPE)) + (y // (2 * _STRIPE))) % 2
    elif ground.kind == "dotted":
        mask = np.clip(4.5 - np.hypot(x % 16 - 7.5, y % 16 - 7.5), 0, 1)
    else:
        mask = np.zeros((SIDE, SIDE))
    return np.asarray(mask, np.float32)


def _blend(top: tuple[int, ...], low: tuple[int, ...]) -> NDArray[np.float32]:
    share = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None, None]
    row = np.asarray(top, np.float32) * (1 - share) + np.asarray(low, np.float32) * share
    return np.broadcast_to(row, (SIDE, SIDE, 3)).copy()


def _place(kind: str, rng: np.random.Generator) -> NDArray[np.float32]:
    if kind == "at sunset":
        return _blend(_DUSK, _GLOW)
    if kind == "at night":
        canvas = _blend(_NIGHT, tuple(min(255, c + 26) for c in _NIGHT))
        for x, y in rng.integers(2, SIDE - 3, (14, 2)):
            canvas[y : y + 2, x : x + 2] = (236, 232, 190)
        return canvas
    tops = {"on the grass": (_SKY, _GRASS), "on the beach": (_SKY, _SAND), "in the snow": (_PALE, _SNOW)}
    sky, floor = tops[kind]
    horizon = int(rng.integers(30, 42))
    canvas = _blend(sky, tuple(min(255, c + 20) for c in sky))
    canvas[horizon:] = floor
    return canvas
