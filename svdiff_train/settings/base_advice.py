"""Read a base's advice to those who train on it: the block `svdiff` at the head of its model card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import Any, Final

from svdiff_delta._text.printable import shown
from svdiff_delta._util.limits import CARD_HEAD
from svdiff_delta._util.reading import read_text
from svdiff_delta._util.typed import build
from svdiff_delta._util.yaml import parse_yaml
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import BaseError, InputError
from svdiff_delta.publish.license import LARGEST_CARD

from .config import TrainConfig

CARD: Final = "README.md"
BLOCK: Final = "svdiff"


@dataclass(frozen=True)
class Advice:
    """What a card says; None is said by most.

    Attributes:
        learning_rate: of δ on singular values, where none is given.
        learning_rate_1d: of δ on norm weights, where none is given.
        familiar_db: how well the autoencoder brings pictures back that are like what the base has seen, in decibels.
    """

    learning_rate: float | None = None
    learning_rate_1d: float | None = None
    familiar_db: float | None = None


def advice_of(base: Base) -> Advice:
    """Return what a base's card says; nothing without a card, or without the block.

    Raises:
        BaseError: the block has an unknown name, or a value that is not a finite number above 0.
    """
    path = base.path / CARD
    said = _block(path)
    known = [field.name for field in fields(Advice)]
    for name, value in said.items():
        if name not in known:
            raise BaseError(f"{path}: {BLOCK} says {name!r}, which means nothing", fix=f"use {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
            raise BaseError(f"{path}: {BLOCK}.{name} must be a finite number above 0, is {shown(value)}")
    return build(Advice, said, f"{path}: {BLOCK}", BaseError)


def settle(config: TrainConfig, base: Base) -> TrainConfig:
    """Return the settings with the learning rates that a base's card names, where none are given.

    They hold for the method svdiff; other methods, and bases whose cards name none, keep the paper's.

    Raises:
        BaseError: the card's block is broken.
    """
    if config.method != "svdiff":
        return config
    advice = advice_of(base)
    return replace(
        config,
        learning_rate=advice.learning_rate if config.learning_rate is None else config.learning_rate,
        learning_rate_1d=advice.learning_rate_1d if config.learning_rate_1d is None else config.learning_rate_1d,
    )


def rate_lines(config: TrainConfig, base: Base) -> Iterator[str]:
    """Yield a line on the run's learning rates that the base's card names, if any."""
    advice = advice_of(base)
    rates = {
        "learning rate": (config.rate, advice.learning_rate),
        "learning rate of norm weights": (config.rate_1d, advice.learning_rate_1d),
    }
    found = [f"{what} {rate:g}" for what, (rate, named) in rates.items() if rate == named]
    if config.method == "svdiff" and found:
        yield f"{', '.join(found)}: as the base's card names for it"


def _block(path: Path) -> dict[str, Any]:
    """Return the block of a card; a card whose head cannot be read says nothing."""
    try:
        parts = read_text(path, LARGEST_CARD).split("---\n", 2)
        if len(parts) < 3 or parts[0].strip():
            return {}
        head = parse_yaml(parts[1], str(path), CARD_HEAD)
    except InputError:
        return {}
    block = head.get(BLOCK) if isinstance(head, dict) else None
    return block if isinstance(block, dict) else {}
