"""How much of an adapter a delta must capture."""

from __future__ import annotations

from typing import Final

LEAST: Final = 0.5
"""The least share by default. Measured on the embedded base (`benchmarks/lora.py`): random factors 0.1 %, LoRA that was
trained as such 0.6 to 1.1 %, low-rank copies of deltas 100 %, such copies with as much noise added 50 %. So half asks
for at least as much of a delta as of anything else, and refuses what was trained as LoRA."""

WELL: Final = 0.9
"""The retained share below which a low-rank copy is remarked to be a poor one."""
