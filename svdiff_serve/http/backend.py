"""Say what requests need of whoever paints: the service of this process, or replicas of it elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from svdiff_delta._util.json import JSON
from svdiff_serve.engine.job import Ticket
from svdiff_serve.errors import DrainingError
from svdiff_serve.mixes import parse_mix
from svdiff_serve.service import Service
from svdiff_train.sampling.png import png_bytes, sampling_facts

from .body import Asked


class Backend(Protocol):
    """What paints, wherever it is."""

    @property
    def name(self) -> str:
        """What requests call the base."""

    @property
    def own_size(self) -> tuple[int, int]:
        """Height and width of the pictures that the model paints where nothing is said, in pixels."""

    @property
    def alive(self) -> bool:
        """Whether it has not broken down."""

    async def ready(self) -> bool:
        """Tell whether pictures are taken."""

    async def models(self) -> list[tuple[str, int]]:
        """Return the names of all deltas that can be used, sorted, and when each was changed."""

    async def changed(self, name: str) -> int:
        """Return when the file of a δ was changed last, in seconds since 1970; raise UnknownDeltaError for none."""

    async def figures(self) -> bytes:
        """Return what it counts beside its requests, in Prometheus' form."""

    async def pngs(self, asked: Asked, key: str, seconds: float) -> list[bytes]:
        """Return the pictures of a request as PNG files; give them up when the call is cancelled.

        Args:
            asked: the request.
            key: whose it is, for fairness.
            seconds: after which it is given up.

        Raises:
            DeltaError: one of the errors of serving.
        """


class LocalBackend:
    """The service of this process.

    Args:
        service: what paints.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.draining = False

    @property
    def name(self) -> str:
        """What requests call the base."""
        return self._service.name

    @property
    def own_size(self) -> tuple[int, int]:
        """Height and width of the model's own pictures, in pixels."""
        return self._service.own_size

    @property
    def alive(self) -> bool:
        """Whether the engine runs, or was asked to end."""
        return self._service.engine.alive or self.draining

    @property
    def taking(self) -> bool:
        """Whether pictures are taken."""
        return self._service.engine.alive and not self.draining

    async def ready(self) -> bool:
        """Tell whether pictures are taken."""
        return self.taking

    async def models(self) -> list[tuple[str, int]]:
        """Return the names of all deltas that can be used, sorted, and when each was changed."""
        return [(entry.name, entry.changed) for entry in self._service.store.entries()]

    async def changed(self, name: str) -> int:
        """Return when the file of a δ was changed last; raise UnknownDeltaError for none."""
        return (await asyncio.to_thread(self._service.store.entry, name)).changed

    async def figures(self) -> bytes:
        """Return nothing: what this process counts is all in the figures of its requests."""
        return b""

    async def pngs(self, asked: Asked, key: str, seconds: float) -> list[bytes]:
        """Return the pictures of a request as PNG files.

        Raises:
            DeltaError: one of the errors of serving.
        """
        service = self._service
        if not self.taking:
            raise DrainingError("the server is ending", fix="ask another one, or later")
        mix = parse_mix(asked.mix, service.name)
        await asyncio.to_thread(service.check, asked.sampling)
        gains, deltas = await asyncio.to_thread(service.gains, mix)
        tickets = service.submit(asked.prompt, asked.seeds, asked.sampling, gains, key=key, seconds=seconds)
        images = await self._wait(tickets)
        pairs = zip(images, asked.seeds, strict=True)
        return await asyncio.gather(
            *(asyncio.to_thread(self._png, image, seed, asked, deltas) for image, seed in pairs)
        )

    async def _wait(self, tickets: Sequence[Ticket]) -> list[Any]:
        """Return the pictures; give all up where one fails, or nobody waits."""
        coming = [asyncio.wrap_future(ticket.answer) for ticket in tickets]
        try:
            return await asyncio.gather(*coming)
        except BaseException:
            self._service.engine.cancel(tickets)
            raise
        finally:
            for each in coming:
                if not each.cancel() and not each.cancelled():
                    each.exception()  # asked for, or asyncio would say that nobody has

    def _png(self, image: Any, seed: int, asked: Asked, deltas: list[JSON]) -> bytes:
        service = self._service
        facts = sampling_facts(
            service.pipeline, service.base, asked.sampling, [asked.prompt], [seed], deltas=deltas or None
        )
        return png_bytes(image, facts)
