"""How a stage goes by the clock: its learning rate over the time that it is given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Numbers of a run by the clock: warm-up, a constant rate, then `falling` of the time down to nothing.

    Attributes:
        rate: the highest learning rate.
        warmup: steps in which it rises.
        falling: share of the time, at the end, in which it falls.
        weight_decay: of AdamW, on filters and matrices.
        betas: of AdamW.
        ema: memory of the average, per step.
        clip: the gradient is clipped to it.
        measures: how often it is measured, evenly over the time; the last time is the end.
        compiled: whether torch.compile joins kernels: it pays where a run is longer than compiling takes.
    """

    rate: float
    warmup: int = 200
    falling: float = 0.5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    ema: float = 0.999
    clip: float = 1.0
    measures: int = 1
    compiled: bool = False

    def rate_at(self, step: int, share: float) -> float:
        """Return the learning rate of step `step`, counted from 0, after `share` of the time."""
        return self.rate * max(0.0, min(1.0, (step + 1) / max(1, self.warmup), (1 - share) / self.falling))

    def ema_at(self, step: int, steps: int) -> float:
        """Return the average's memory over `steps` steps, the last of them `step`: short at first."""
        return min(self.ema, (1 + step) / (10 + step)) ** steps


PACES = {
    "clip": Pace(rate=1e-3, warmup=200, falling=0.6, betas=(0.9, 0.98), ema=0.998, measures=2),
    "vae": Pace(rate=2e-3, warmup=200, falling=0.6, ema=0.998, measures=3),
    "decoder": Pace(rate=1e-3, warmup=100, falling=0.9, ema=0.998),
    "unet": Pace(rate=1e-3, warmup=500, falling=0.5, ema=0.9995, measures=5, compiled=True),
}
"""The stages by the clock."""
