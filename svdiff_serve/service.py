"""Join store, engine and gains into what serves pictures, whoever asks: over HTTP or from a program."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from typing import Any

from svdiff_delta._util.json import JSON
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import DeltaError, InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.sampling.sample import Sampling, check_sampling, is_video

from .engine.engine import Engine, Watcher
from .engine.job import Job, Ticket
from .engine.live_base import LiveBase, MixGains
from .errors import RefusedError
from .mixes import Mix
from .settings import ServiceSettings
from .store.gains import GainCache
from .store.sources import Source
from .store.store import Store


class Service:
    """Pictures of the deltas of a store.

    Args:
        base: the base that is served.
        pipeline: its live pipeline.
        name: what requests call the base.
        sources: where deltas come from.
        settings: how much is done at a time.
        watcher: is told what the engine does.
        say: is told, in one line, what is left out of the store and why.
        cache: where bases are kept; the default cache if not given.

    Raises:
        InputError: the pipeline makes clips.
    """

    def __init__(
        self,
        base: Base,
        pipeline: Any,
        name: str,
        sources: Sequence[Source],
        settings: ServiceSettings | None = None,
        *,
        watcher: Watcher | None = None,
        say: Callable[[str], None] = lambda _: None,
        cache: BasisCache | None = None,
    ) -> None:
        if is_video(pipeline):
            raise InputError(f"{base.path}: makes clips, and pictures are served", fix="name a base that paints")
        settings = settings or ServiceSettings()
        self.base, self.pipeline, self.name = base, pipeline, name
        self.live = LiveBase(pipeline, base, cache)
        self.engine = Engine(
            self.live,
            batch_size=settings.batch_size,
            queue_size=settings.queue_size,
            queue_of_key=settings.queue_of_key,
            watcher=watcher,
        )
        self.cache: GainCache[MixGains] = GainCache(settings.gain_bytes)
        self.store = Store(sources, self._judge, index=settings.index, say=say)

    def _judge(self, delta: Delta) -> None:
        """Take in the layers of a δ, between two steps; raise DeltaError if it is not for this base."""
        try:
            self.live.verify(delta)
            self.live.prepare(delta)
            self.engine.between_steps(lambda: self.live.extend(delta)).result()
        except DeltaError as error:  # clients are told, and where the base is on this machine is nothing to them
            raise RefusedError(error.message.replace(str(self.base.path), self.name), fix=error.fix) from None

    def gains(self, mix: Mix) -> tuple[MixGains | None, list[JSON]]:
        """Return the gains of a mix, and what a picture says of its deltas.

        Raises:
            UnknownDeltaError: a name is not there, or cannot be used.
            RefusedError: a selector matches nothing, or the sum is too large.
        """
        if not mix.terms:
            return None, []
        entries = [self.store.entry(term.name) for term in mix.terms]
        pairs = list(zip(mix.terms, entries, strict=True))
        key = tuple((entry.digest, term.weight, term.selector) for term, entry in pairs)

        def make() -> MixGains:
            parts = [(term.part(self.store.open(entry)), term.weight) for term, entry in pairs]
            try:
                return self.live.gains(parts)
            except RefusedError:
                raise
            except DeltaError as error:
                raise RefusedError(error.message, fix=error.fix, field="model") from None

        facts: list[JSON] = [
            {"name": term.name, "sha256": entry.digest, "weight": term.weight, "layers": term.selector}
            for term, entry in pairs
        ]
        return self.cache.get(key, make), facts

    @property
    def own_size(self) -> tuple[int, int]:
        """Height and width of the pictures that the model paints where nothing is said, in pixels."""
        pipeline = self.pipeline
        model = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
        side: Any = getattr(getattr(model, "config", None), "sample_size", None)
        side = getattr(pipeline, "default_sample_size", 0) if side is None else side
        height, width = (side, side) if isinstance(side, int) else (side[0], side[1])
        factor: int = getattr(pipeline, "vae_scale_factor", 1)
        return height * factor, width * factor

    def check(self, sampling: Sampling) -> None:
        """Check that the pipeline can sample so.

        Raises:
            RefusedError: it cannot, such as paint a size.
        """
        try:
            check_sampling(self.pipeline, sampling)
        except DeltaError as error:
            raise RefusedError(error.message, fix=error.fix) from None

    def submit(
        self, prompt: str, seeds: Sequence[int], sampling: Sampling, mix: MixGains | None, *, key: str, seconds: float
    ) -> list[Ticket]:
        """Accept pictures of one request, all or none; each is painted with its own seed.

        Raises:
            BusyError: the queue is full.
            DrainingError: the server is ending.
        """
        deadline = time.monotonic() + seconds
        return self.engine.submit([Job(prompt, seed, sampling, mix, key, deadline) for seed in seeds])

    def paint(self, prompt: str, seed: int, sampling: Sampling, mix: Mix, *, seconds: float = 300.0) -> Any:
        """Return one picture; as a request for it over HTTP would."""
        self.check(sampling)
        tickets = self.submit(prompt, [seed], sampling, self.gains(mix)[0], key="", seconds=seconds)
        wait([ticket.answer for ticket in tickets])
        return tickets[0].answer.result()

    def close(self, seconds: float | None = None) -> bool:
        """Finish what was accepted, within so many seconds, and take all deltas off; return whether that was enough."""
        self.store.close()
        finished = self.engine.drain(seconds)
        if finished:
            self.live.close()
        return finished
