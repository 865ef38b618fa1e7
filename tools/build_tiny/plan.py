"""What a scene shows, drawn by chance from its seed and index, and the caption that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from svdiff_train.evaluate.article import article

from .grounds import SIDE, Ground, draw_ground
from .subjects import STYLES, TRAINED, Subject

RARE: tuple[str, ...] = (*(f"v{i}" for i in range(1, 17)), "sks", "zwx", "ohwx", "qfb", "olis", "vup")
"""Words of no language, each one token (V1 is read as v1): personalization gives them a meaning.

Before a subject, each tints it with a colour of its own (`scenes.tinted`), so that the text encoder must tell
them apart and the UNet must listen to them; a word that changes nothing is one that both learn to ignore.
"""

_RARE_SHARE = 0.06
_OFFSET = 8


@dataclass(frozen=True)
class Placement:
    """One subject in a scene: centre and size in pixels, angle in degrees, mirrored or not, its rare word if any."""

    subject: Subject
    style: str
    x: float
    y: float
    size: float
    angle: float
    flip: bool
    rare: str = ""


@dataclass(frozen=True)
class Plan:
    """A whole scene before it is painted: placements (left or upper first) and the ground."""

    placements: tuple[Placement, ...]
    ground: Ground
    caption: str


def generator(seed: int, index: int) -> np.random.Generator:
    """The random numbers of scene `index` under `seed`: the same on every machine."""
    return np.random.default_rng([seed, index])


def draw_plan(
    rng: np.random.Generator,
    subjects: Sequence[Subject] = TRAINED,
    single: float = 0.7,
    calm: float = 0.0,
) -> Plan:
    """A scene by chance, with one subject (share `single`) or two, and a caption true of it.

    In the share `calm` of scenes the subjects stand straight, centred and of one size.
    """
    ground = draw_ground(rng)
    style = list(STYLES)[rng.integers(len(STYLES))]
    still = calm > 0 and bool(rng.random() < calm)
    if rng.random() < single:
        subject = subjects[int(rng.integers(len(subjects)))]
        placed = _still(subject, style, 32.0, 32.0, 52.0) if still else _single(rng, subject, style)
        caption, rare = _caption_one(rng, placed, ground)
        return Plan((replace(placed, rare=rare),), ground, caption)
    first, second = rng.choice(len(subjects), 2, replace=False)
    beside = bool(rng.random() < 0.75)
    pair = _pair(rng, (subjects[int(first)], subjects[int(second)]), style, beside, still)
    caption, words = _caption_two(rng, pair, ground, beside)
    return Plan(tuple(replace(p, rare=word) for p, word in zip(pair, words, strict=True)), ground, caption)


def _still(subject: Subject, style: str, x: float, y: float, size: float) -> Placement:
    return Placement(subject, style, x, y, size, angle=0.0, flip=False)


def _single(rng: np.random.Generator, subject: Subject, style: str) -> Placement:
    aside = rng.random() < 0.35
    size = rng.uniform(34, 42) if aside else rng.uniform(44, 58)
    slack = (SIDE - size) / 2
    if aside:
        x, y = rng.uniform(-2, 2, 2)
        offset = rng.choice([-1, 1]) * rng.uniform(max(_OFFSET, slack - 3), slack + 1)
        x, y = (offset, y) if rng.random() < 0.6 else (x, offset)
    else:
        x, y = np.clip(rng.normal(0, 2.5, 2), -slack, slack)
    return _place(rng, subject, style, (SIDE / 2 + x, SIDE / 2 + y), size)


def _pair(
    rng: np.random.Generator,
    subjects: tuple[Subject, Subject],
    style: str,
    beside: bool,
    still: bool,
) -> tuple[Placement, ...]:
    placed = []
    across = rng.uniform(-5, 5)
    for subject, centre in zip(subjects, (16.0, 48.0), strict=True):
        if still:
            x, y = (centre, 32.0) if beside else (32.0, centre)
            placed.append(_still(subject, style, x, y, 29.0))
            continue
        along = centre + rng.uniform(-1, 1)
        other = SIDE / 2 + across + rng.uniform(-1.5, 1.5)
        spot = (along, other) if beside else (other, along)
        placed.append(_place(rng, subject, style, spot, rng.uniform(27, 31)))
    return tuple(placed)


def _place(rng: np.random.Generator, subject: Subject, style: str, spot: tuple[float, float], size: float) -> Placement:
    angle = float(np.clip(rng.normal(0, 4), -10, 10))
    flip = bool(rng.random() < 0.25)
    return Placement(subject, style, float(spot[0]), float(spot[1]), float(size), angle, flip)


def _noun(rng: np.random.Generator, placed: Placement, style: bool) -> tuple[str, str]:
    """The words for a subject, and the rare one among them."""
    rare = RARE[rng.integers(len(RARE))] if rng.random() < _RARE_SHARE else ""
    words = [placed.style if style else "", rare, placed.subject.name]
    return article(" ".join(word for word in words if word), placed.subject.name), rare


def _lead(rng: np.random.Generator) -> str:
    return ("", "a photo of ", "a picture of ")[rng.integers(3)]


def _where(placed: Placement) -> str:
    x, y = placed.x - SIDE / 2, placed.y - SIDE / 2
    if max(abs(x), abs(y)) < _OFFSET - 0.5:
        return ""
    if abs(x) >= abs(y):
        return "on the left" if x < 0 else "on the right"
    return "at the top" if y < 0 else "at the bottom"


def _caption_one(rng: np.random.Generator, placed: Placement, ground: Ground) -> tuple[str, str]:
    short = rng.random() < 0.15
    lead = _lead(rng)
    noun, rare = _noun(rng, placed, style=not short and rng.random() < 0.8)
    parts = [lead + noun]
    if placed.subject.sits and rng.random() < 0.1:
        parts.append("sitting")
    if not short:
        where = _where(placed) or ("in the middle" if rng.random() < 0.15 else "")
        parts += [where] if rng.random() < 0.85 else []
        parts += [ground.phrase] if rng.random() < 0.92 else []
    return " ".join(part for part in parts if part), rare


def _caption_two(
    rng: np.random.Generator, pair: tuple[Placement, ...], ground: Ground, beside: bool
) -> tuple[str, tuple[str, ...]]:
    style = bool(rng.random() < 0.65)
    form = rng.random()
    swap = form >= 0.8
    (first, early), (second, late) = (_noun(rng, p, style) for p in (pair[::-1] if swap else pair))
    if beside and form < 0.5:
        text = f"{first} on the left and {second} on the right"
    elif beside:
        sits = " sitting" if pair[swap].subject.sits and rng.random() < 0.2 else ""
        word = "and" if not sits and rng.random() < 0.2 else ("beside", "next to")[rng.integers(2)]
        text = f"{first}{sits} {word} {second}"
    else:
        text = f"{first} {'below' if swap else 'above'} {second}"
    tail = " " + ground.phrase if rng.random() < 0.85 else ""
    return _lead(rng) + text + tail, (late, early) if swap else (early, late)
