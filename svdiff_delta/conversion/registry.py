"""List all dialects by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .comfyui import comfyui
from .dialect import Dialect
from .diffusers import diffusers
from .flux import flux
from .full import full
from .kohya import kohya
from .lycoris import lycoris
from .peft import peft
from .svdiff_author import svdiff_author
from .svdiff_pytorch import svdiff_pytorch
from .transformer2 import svf, transformer2

DELTA: Final = "delta"
"""What every dialect is converted from and to: a delta file."""

DIALECTS: Final[Mapping[str, Dialect]] = {
    "full": full,
    "peft": peft,
    "flux": flux,
    "lycoris": lycoris,
    "kohya": kohya,
    "comfyui": comfyui,
    "diffusers": diffusers,
    "svdiff-pytorch": svdiff_pytorch,
    "svdiff-author": svdiff_author,
    "transformer2": transformer2,
    "svf": svf,
}
"""Dialects by the name that commands take; the first one that recognizes an input has it."""
