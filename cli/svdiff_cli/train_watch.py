"""Show how far a run is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .progress import Bar

if TYPE_CHECKING:
    from svdiff_train.training.callbacks import Report, Watch


def watch_with(bar: Bar, tell: Callable[[str], None] | None = None) -> Watch:
    """Let a bar show bases, then pictures of the class, then steps with what is known of them."""
    from svdiff_train.training.callbacks import Watch

    begun: list[tuple[int, float]] = []

    def step(report: Report) -> None:
        begun.append((report.step, time.monotonic()))
        (first, start), (last, now) = begun[0], begun[-1]
        seconds = (now - start) / max(1, last - first)
        parts = [f"step {report.step} of {report.steps}", f"loss {report.loss:.4f}"]
        parts += [f"{seconds:.2f} s/step"] + ([f"{report.memory / 1e9:.1f} GB"] if report.memory else [])
        if report.dead:
            parts.append(f"{report.dead} dead")
        bar(report.step, report.steps, ", ".join(parts), label="training")

    return Watch(
        basis=lambda done, total: bar(done, total, label="computing bases"),
        class_images=lambda done, total: bar(done, total, label="painting the class"),
        encoded=lambda done, total: bar(done, total, label="encoding pictures"),
        step=step,
        say=tell,
    )
