"""Paint on one replica: a service of its own, which tells Ray's routers what mixes it holds."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.base_model.devices import best_device, find_device
from svdiff_delta.errors import DeltaError
from svdiff_serve.errors import UnknownDeltaError
from svdiff_serve.http.app import ServerState
from svdiff_serve.http.body import Asked
from svdiff_serve.http.errors import response_to
from svdiff_serve.http.logs import Log
from svdiff_serve.http.metrics import Metrics
from svdiff_serve.mixes import parse_mix
from svdiff_serve.service import Service
from svdiff_serve.settings import ServiceSettings
from svdiff_serve.store.sources import source_of
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.tiny import NAME, open_tiny

from .local import listen_where_the_node_does
from .settings import RaySettings


class Refusal(msgspec.Struct, frozen=True):
    """An answer of HTTP that is no picture, as it goes from a replica to the front.

    Attributes:
        status: of HTTP.
        body: its bytes.
        headers: its headers.
        code: what is wrong, in a word for programs.
    """

    status: int
    body: bytes
    headers: dict[str, str]
    code: str = ""


def refusal(error: BaseException) -> Refusal:
    """Return the answer to an error: errors themselves would need their classes' help to be sent."""
    answer = response_to(error)
    code = getattr(error, "code", "")
    return Refusal(answer.status_code, bytes(answer.body), dict(answer.headers), code)


class Painter:
    """One replica.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: RaySettings) -> None:
        import torch

        listen_where_the_node_does()
        torch.set_num_threads(settings.cpus)
        self._log = Log(prompts=settings.log_prompts)
        base = _open(settings.base)
        pipeline = load_pipeline(base, device=_device(settings), dtype=settings.dtype)
        sizes = ServiceSettings(
            batch_size=settings.batch_size,
            queue_size=settings.held * settings.max_pictures,
            queue_of_key=settings.held * settings.max_pictures,
            gain_bytes=settings.gain_memory << 20,
        )
        metrics = Metrics()
        self._service = service = Service(
            base,
            pipeline,
            settings.called,
            [source_of(text) for text in settings.deltas],
            sizes,
            watcher=metrics,
            say=lambda line: self._log.event("store", message=line),
        )
        self._state = ServerState(service=service, log=self._log, metrics=metrics)
        service.store.refresh()
        service.store.watch(settings.watch_every)
        self._seconds = settings.drain

    async def load(self, mix: str) -> str:
        """Have the gains of a mix on the device. `build` wraps this as a multiplexed function of Ray's."""
        await asyncio.to_thread(self._service.gains, parse_mix(mix, self._service.name))
        return mix

    async def paint(self, asked: Asked, key: str, seconds: float) -> list[bytes] | Refusal:
        """Return the pictures of a request, or the answer that it gets instead."""
        try:
            mix = parse_mix(asked.mix, self._service.name)
            if mix.terms and self._known([term.name for term in mix.terms]):
                with suppress(DeltaError):  # what is wrong with it is told by the request itself
                    await self.load(str(mix))
            return await self._state.backend.pngs(asked, key, seconds)
        except Exception as error:  # noqa: BLE001 - each becomes an answer
            answer = refusal(error)
            if answer.status >= 500:
                self._log.failure(error, mix=asked.mix)
            return answer

    def _known(self, names: list[str]) -> bool:
        try:
            for name in names:
                self._service.store.entry(name)
        except UnknownDeltaError:
            return False
        return True

    async def models(self) -> list[tuple[str, int]]:
        """Return the deltas that can be used, and when each was changed."""
        return await self._state.backend.models()

    async def changed(self, name: str) -> int | Refusal:
        """Return when a δ was changed last, or the answer for one that is not there."""
        try:
            return await self._state.backend.changed(name)
        except DeltaError as error:
            return refusal(error)

    async def about(self) -> tuple[int, int]:
        """Return height and width of the model's own pictures, in pixels."""
        return self._service.own_size

    async def figures(self) -> bytes:
        """Return what is counted here, in Prometheus' form."""
        return self._state.metrics.text()

    def check_health(self) -> None:
        """Tell Ray whether this replica can go on; raise RuntimeError if it cannot."""
        if not self._service.engine.alive:
            raise RuntimeError("the engine has ended")

    def __del__(self) -> None:
        if hasattr(self, "_service"):
            self._service.close(self._seconds)


def _open(text: str) -> Base:
    return open_tiny() if text == NAME and not Path(text).exists() else open_base(text)


def _device(settings: RaySettings) -> Any:
    import torch

    if settings.device is not None:
        return find_device(settings.device)
    return best_device() if settings.gpus else torch.device("cpu")
