"""Attach deltas to live models: weigh, swap, measure and detach them (spec, section 6.6, in the cheapest forms)."""

from __future__ import annotations

from .attachment import attach as attach
from .attachment import handle_of as handle_of
from .handle import Handle as Handle
from .input_moments import measure as measure

__all__ = ["Handle", "attach", "handle_of", "measure"]
