"""The registry of dialects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .dialect import Dialect
from .diffusers import diffusers
from .flux import flux
from .full import full
from .kohya import kohya
from .lycoris import lycoris
from .peft import peft

DELTA: Final = "delta"
"""What every dialect is converted from and to: a delta file."""

DIALECTS: Final[Mapping[str, Dialect]] = {
    "full": full,
    "peft": peft,
    "flux": flux,
    "lycoris": lycoris,
    "kohya": kohya,
    "diffusers": diffusers,
}
"""Dialects by the name that commands take; the first one that recognizes an input has it."""
