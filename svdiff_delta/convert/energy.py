"""How much of an adapter a delta must capture."""

from __future__ import annotations

from typing import Final

LEAST: Final = 0.5
"""The least share by default. Measured (`benchmarks/lora.py`): what was a delta before comes back with all of its
energy, or what its rank kept; what was trained as LoRA, or is random, with a few hundredths at most. Nothing lies in
between, so half keeps the two apart, whatever is added to a delta in between."""

WELL: Final = 0.9
"""The retained share below which a low-rank copy is remarked to be a poor one."""
