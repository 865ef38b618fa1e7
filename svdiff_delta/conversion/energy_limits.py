"""Set the shares of a change below which a conversion is refused, or remarked to be poor."""

from __future__ import annotations

from typing import Final

LEAST: Final = 0.1
"""The share of an adapter that a delta must capture, if nobody says another.

Shares that were measured on the embedded base (`benchmarks/lora.py`):

    adapter                                             captured
    ------------------------------------------------    ------------
    random factors                                      0.1 %
    LoRA that was trained as such                       0.6 to 1.1 %
    low-rank copy of a delta, as much noise added       50 %
    low-rank copy of a delta                            100 %

The limit lies between the second row and the third: it is nine times the one and a fifth of the other. On wider models
LoRA moves further down, as a random change of a weight of M rows and N columns is captured to 1/max(M, N). A delta is
refused when the other changes in the adapter have nine times its energy."""

WELL: Final = 0.9
"""The retained share below which a low-rank copy is remarked to be a poor one."""
