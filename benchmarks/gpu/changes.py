"""What it takes to attach a delta on a device, and to change it there: live and fused, float16.

    python -m benchmarks.gpu.changes [--json FILE] [--folder FOLDER] [--dry]

Bases are in the cache and fingerprints are remembered. By the clock, the device is waited for before and after; a swap
goes to another delta on all weights each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from typing import Literal

import torch

from svdiff_delta import Delta, attach

from .figures import Figures
from .scene import Scene
from .script import main
from .timing import milliseconds, tidy, wait

ATTACH = 1000.0
Mode = Literal["live", "fused"]

CHANGE: dict[Mode, float] = {"live": 1.0, "fused": 60.0}
ROUNDS = {"live": 20, "fused": 5}


def measure(scene: Scene, figures: Figures) -> None:
    """Measure each mode on a model of its own."""
    deltas = scene.deltas(2)
    _attach(scene, deltas, "live")  # loads what is loaded once
    for mode in CHANGE:
        _mode(scene, figures, deltas, mode)


def _attach(scene: Scene, deltas: list[Delta], mode: Mode) -> float:
    model = scene.unet(torch.float16)
    wait(scene.device)
    begun = time.perf_counter()
    with attach(model, deltas[0], base=scene.base, cache=scene.cache, mode=mode):
        wait(scene.device)
        taken = 1e3 * (time.perf_counter() - begun)
    tidy(scene.device)
    return taken


def _mode(scene: Scene, figures: Figures, deltas: list[Delta], mode: Mode) -> None:
    figures.add(f"attach, {mode}", _attach(scene, deltas, mode), "ms", limit=ATTACH)
    model, rounds = scene.unet(torch.float16), 2 if scene.dry else ROUNDS[mode]
    with attach(model, deltas[0], base=scene.base, cache=scene.cache, mode=mode) as handle:
        turns, factors = cycle(reversed(deltas)), cycle((0.5, 0.75))
        changes: dict[str, Callable[[], object]] = {
            "swap": lambda: handle.swap(next(turns)),
            "scale": lambda: handle.set_scale(next(factors)),
        }
        for name, change in changes.items():
            change()
            taken = milliseconds(change, scene.device, runs=1, rounds=rounds)
            figures.add(f"{name}, {mode}", taken, "ms", limit=CHANGE[mode])
    tidy(scene.device)


if __name__ == "__main__":
    main("changes", measure, __doc__)
