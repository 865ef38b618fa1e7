"""Count what a server does, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOGETHER: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The figures of one server, in a registry of its own; also the watcher of its engine."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = self._registry
        self.requests = Counter("svdiff_requests", "Requests by route and status.", ["route", "status"], registry=own)
        self.pictures = Counter("svdiff_pictures", "Pictures by how they ended.", ["outcome"], registry=own)
        self.forwards = Histogram(
            "svdiff_forward_pictures", "Pictures that share a forward.", ["component"], buckets=TOGETHER, registry=own
        )
        self.computing = Histogram(
            "svdiff_forward_seconds", "Seconds of a forward.", ["component"], buckets=SECONDS, registry=own
        )
        self.queued = Histogram("svdiff_queue_seconds", "Seconds that pictures waited.", buckets=SECONDS, registry=own)
        self.painted = Histogram("svdiff_paint_seconds", "Seconds that pictures took.", buckets=SECONDS, registry=own)

    def gauge(self, name: str, what: str, read: Callable[[], float]) -> None:
        """Show a number that is read when somebody asks."""
        Gauge(name, what, registry=self._registry).set_function(read)

    def forward(self, component: str, pictures: int, seconds: float) -> None:
        """Note a forward that so many pictures have shared."""
        self.forwards.labels(component).observe(pictures)
        self.computing.labels(component).observe(seconds)

    def ended(self, outcome: str, waited: float, painted: float) -> None:
        """Note how a picture ended, and its seconds in the queue and after."""
        self.pictures.labels(outcome).inc()
        self.queued.observe(waited)
        if outcome == "done":
            self.painted.observe(painted)

    def text(self) -> bytes:
        """Return all figures in Prometheus' form."""
        return generate_latest(self._registry)
