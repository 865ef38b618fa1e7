"""Shifted layers on live models: attach, swap, detach (spec, section 6.6, in the forms that cost least)."""

from __future__ import annotations

from .handle import Handle as Handle
from .handle import attach as attach

__all__ = ["Handle", "attach"]
