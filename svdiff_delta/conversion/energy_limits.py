"""How much of a change must come through a conversion, and below what it is told that little did."""

from __future__ import annotations

from typing import Final

LEAST: Final = 0.1
"""The share of an adapter that a delta must capture, if nobody says another.

Measured on the embedded base (`benchmarks/lora.py`): random factors 0.1 %, LoRA that was trained as such 0.6 to 1.1 %,
a low-rank copy of a delta with as much noise added 50 %, and without noise 100 %. Any value between the second and the
third tells those groups apart. This one is nine times the one and a fifth of the other: wider models only move LoRA
further down, as a random change is captured to 1/max(M, N), and a delta may be buried in nine times its energy of
other changes before it is refused."""

WELL: Final = 0.9
"""The retained share below which a low-rank copy is remarked to be a poor one."""
