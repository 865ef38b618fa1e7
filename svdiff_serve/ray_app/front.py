"""Answer HTTP in front of the replicas: the same API, and a request whose replica dies goes to another one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from svdiff_delta.errors import DeltaError
from svdiff_serve.errors import BusyError, DeadlineError, DrainingError
from svdiff_serve.http.app import Shared, make_front
from svdiff_serve.http.body import Asked
from svdiff_serve.http.errors import RefusedAnswerError
from svdiff_serve.http.keys import read_keys
from svdiff_serve.http.logs import Log
from svdiff_serve.http.server import check_open
from svdiff_serve.mixes import parse_mix

from .figures import merged
from .local import listen_where_the_node_does
from .painter import Refusal
from .settings import RaySettings

T = TypeVar("T")

PAUSE: Final = 0.1
"""Seconds before a request whose replica has died is sent again: Ray takes the dead one out meanwhile."""

PATIENCE: Final = 30.0
"""Seconds for questions that need no picture."""

SHORT: Final = 2.0
"""Seconds in which replicas that can take pictures say so."""

OTHERS: Final = frozenset({DrainingError.code})
"""Words of a replica for which another one is asked."""


class Front:
    """What HTTP reaches; it computes nothing itself.

    Args:
        settings: of the server.
        painters: Ray's handle to the replicas.
    """

    def __init__(self, settings: RaySettings, painters: Any) -> None:
        listen_where_the_node_does()
        keys = None if settings.keys is None else read_keys(Path(settings.keys))
        shared = Shared(
            limits=settings.limits,
            defaults=settings.defaults,
            keys=keys,
            hosts=check_open(settings.host, keys, no_auth=settings.no_auth),
            public=settings.public_url,
            log=Log(prompts=settings.log_prompts),
        )
        self._backend = RayBackend(settings.called, painters, shared.log)
        self._app = make_front(shared, self._backend)

    async def __call__(self, request: Request) -> Response:
        """Return what answers a request."""
        if request.method == "POST":
            with suppress(DeltaError):  # then the request itself is answered with why
                await self._backend.begin()
        return _Answer(self._app)


class _Answer(Response):
    """An answer that another application gives: Ray calls answers with what it got from the client."""

    def __init__(self, app: Any) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class RayBackend:
    """Replicas that paint.

    Args:
        name: what requests call the base.
        painters: Ray's handle to them.
        log: where it is noted that a request is sent again.
    """

    alive = True

    def __init__(self, name: str, painters: Any, log: Log) -> None:
        self.name, self._painters, self._log = name, painters, log
        self._own_size: tuple[int, int] | None = None

    @property
    def own_size(self) -> tuple[int, int]:
        """Height and width of the model's own pictures, in pixels; known after `begin`."""
        if self._own_size is None:
            raise DrainingError("no replica is there yet", fix="ask again in a moment")
        return self._own_size

    async def begin(self) -> None:
        """Ask once what must be known before the first request."""
        if self._own_size is None:
            self._own_size = tuple(await self._ask(lambda: self._painters.about.remote(), PATIENCE))

    async def ready(self) -> bool:
        """Tell whether a replica answers."""
        try:
            await self._ask(lambda: self._painters.about.remote(), SHORT)
        except (DeadlineError, DrainingError, BusyError):
            return False
        return True

    async def models(self) -> list[tuple[str, int]]:
        """Return the deltas that a replica can use, and when each was changed."""
        return list(await self._ask(lambda: self._painters.models.remote(), PATIENCE))

    async def changed(self, name: str) -> int:
        """Return when a δ was changed last.

        Raises:
            RefusedAnswerError: there is none of this name.
        """
        found: int = _taken(await self._ask(lambda: self._painters.changed.remote(name), PATIENCE))
        return found

    async def figures(self) -> bytes:
        """Return what the replicas count, each under its own label."""
        texts = await self._painters.broadcast("figures").results_async(timeout_s=PATIENCE, return_exceptions=True)
        return merged([text for text in texts if isinstance(text, bytes)])

    async def pngs(self, asked: Asked, key: str, seconds: float) -> list[bytes]:
        """Return the pictures of a request; replicas that hold its mix are asked before others.

        Raises:
            DeltaError: one of the errors of serving.
        """
        mix = str(parse_mix(asked.mix, self.name))
        painters = self._painters.options(multiplexed_model_id=mix) if mix else self._painters
        end = time.monotonic() + seconds
        return _taken(await self._ask(lambda: painters.paint.remote(asked, key, end - time.monotonic()), seconds))

    async def _ask(self, send: Callable[[], Any], seconds: float) -> Any:
        """Return an answer of a replica; of another one if the first dies.

        Raises:
            DeadlineError: there is none in time.
            BusyError: too many wait.
        """
        from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

        lost = (RayActorError, NodeDiedError, ObjectLostError, ReplicaUnavailableError, DeploymentUnavailableError)
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        answer = await _answered(send())
                    except lost as error:
                        self._log.event("again", because=type(error).__name__)
                    else:
                        if not (isinstance(answer, Refusal) and answer.code in OTHERS):
                            return answer
                        self._log.event("again", because=answer.code)
                    await asyncio.sleep(PAUSE)
        except TimeoutError:
            raise DeadlineError("no replica has answered in time", fix="ask again, or for fewer steps") from None
        except BackPressureError:
            raise BusyError("too many pictures wait on all replicas", retry_after=RETRY_AFTER) from None


RETRY_AFTER: Final = 5
"""Seconds after which it makes sense to ask again where too many wait."""


async def _answered(response: Any) -> Any:
    """Return what a response of Ray's comes to; cancelled itself, it cancels that."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


def _taken(answer: T | Refusal) -> T:
    """Return an answer; raise a refusal as what it is."""
    if isinstance(answer, Refusal):
        raise RefusedAnswerError(answer.status, answer.body, answer.headers)
    return answer
