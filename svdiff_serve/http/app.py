"""Answer requests: OpenAI's images API, and what operators ask a server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from fastapi import FastAPI, Request
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svdiff_delta.errors import DeltaError
from svdiff_serve.board.routes import BoardRoutes
from svdiff_serve.mixes import escaped
from svdiff_serve.service import Service
from svdiff_serve.settings import Defaults, Limits

from .backend import Backend, LocalBackend
from .errors import RefusedAnswerError, error_response, response_to
from .generation import Generation
from .keys import ANYONE, Keys
from .logs import Log
from .metrics import CONTENT_TYPE, Metrics
from .pictures import PictureStore
from .rates import Rates

PROBES: Final = frozenset({"/healthz", "/readyz"})
"""Paths that programs ask every few seconds: the log does not say so."""

OPEN: Final = PROBES | {"/"}
"""Paths that need no key: they say nothing of what is served."""

PAGE: Final = "/page/"
"""Where the files of the board's page are, which are the same everywhere."""

FILES: Final = "/v1/files/"
"""Where pictures are under a token, which is the key to one of them."""

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(kw_only=True)
class Shared:
    """What requests share, whoever paints.

    Attributes:
        limits: what requests may ask for.
        defaults: what counts where they do not say.
        keys: whose keys are taken; None takes requests of anyone.
        hosts: the names under which a browser may reach it; None for any.
        public: how addresses of pictures begin; as the request's own if not given.
        log: where events are written.
        metrics: what is counted.
    """

    limits: Limits = field(default_factory=Limits)
    defaults: Defaults = field(default_factory=Defaults)
    keys: Keys | None = None
    hosts: frozenset[str] | None = None
    public: str = ""
    log: Log = field(default_factory=Log)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.rates = Rates(self.limits.rate)
        self.pictures = PictureStore()
        self.began = int(time.time())


@dataclass(kw_only=True)
class ServerState(Shared):
    """What requests share where the service of this process paints.

    Attributes:
        service: what paints.
        board: whether the board is served, too.
    """

    service: Service
    board: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.backend = LocalBackend(self.service)
        service, gauge = self.service, self.metrics.gauge
        gauge("svdiff_waiting_pictures", "Pictures that wait.", lambda: service.engine.waiting)
        gauge("svdiff_painting_pictures", "Pictures that are being painted.", lambda: service.engine.painting)
        gauge("svdiff_deltas", "Deltas that can be used.", lambda: len(service.store.names()))
        gauge("svdiff_deltas_left_out", "Deltas that cannot be used.", lambda: len(service.store.faults()))
        gauge("svdiff_gain_bytes", "Bytes of gains that are kept.", lambda: service.cache.nbytes)
        gauge("svdiff_gain_hits", "Mixes whose gains were there.", lambda: service.cache.hits)
        gauge("svdiff_gain_misses", "Mixes whose gains were computed.", lambda: service.cache.misses)

    @property
    def ready(self) -> bool:
        """Whether pictures are taken."""
        return self.backend.taking


class Gate:
    """Let requests in: those with a key, by a name of this server, of a size; and count and log all of them.

    Args:
        app: what answers those that are let in.
        state: what requests share.
    """

    def __init__(self, app: ASGIApp, state: Shared) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number, begun, status = secrets.token_hex(8), time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = number
            await send(message)

        request = Request(scope)
        scope["svdiff_facts"] = facts = {"request": number}
        try:
            refused = self._refuse(request)
            if refused is None:
                await self._app(scope, receive, answer)
            else:
                await refused(scope, receive, answer)
        except Exception as error:  # noqa: BLE001 - a request never ends without an answer
            self._state.log.failure(error, **facts)
            if not status:
                await response_to(error)(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._state.metrics.requests.labels(route, str(status)).inc()
            if route not in PROBES:
                seconds = round(time.perf_counter() - begun, 3)
                self._state.log.event("request", route=route, status=status, seconds=seconds, **facts)

    def _refuse(self, request: Request) -> Response | None:
        """Return why a request is not let in; None if it is."""
        state = self._state
        if state.hosts is not None and _host(request.headers.get("host", "")) not in state.hosts:
            return error_response(421, "the server has another name: ask for localhost", code="wrong_host")
        path = request.url.path
        if state.keys is None or path in OPEN or path.startswith((FILES, PAGE)):
            request.scope["svdiff_key"] = ANYONE
            return None
        owner = state.keys.owner(request.headers.get("authorization"))
        if owner is None:
            headers = {"www-authenticate": "Bearer"}
            message = "a key is needed: send it as `Authorization: Bearer KEY`"
            return error_response(401, message, code="invalid_api_key", headers=headers)
        request.scope["svdiff_key"] = request.scope["svdiff_facts"]["key"] = owner
        return None


def _host(header: str) -> str:
    """Return the name of a Host header, without its port."""
    name, _, port = header.rpartition(":")
    return (name if name and port.isdigit() else header).lower()


def make_app(state: ServerState) -> ASGIApp:
    """Return the application that answers requests by the service of this process."""
    return make_front(state, state.backend, BoardRoutes(state).add_to if state.board else _no_more)


def _no_more(app: FastAPI) -> None:
    """Let an application answer nothing else."""


def make_front(state: Shared, backend: Backend, more: Callable[[FastAPI], None] = _no_more) -> ASGIApp:
    """Return the application that answers requests, whoever paints.

    Args:
        state: what requests share.
        backend: what paints.
        more: lets the application answer other requests, too.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    more(app)
    generation = Generation(state, backend)

    @app.get("/healthz")
    async def healthz() -> Response:
        alive = backend.alive
        return JSONResponse({"status": "ok" if alive else "dead"}, 200 if alive else 500)

    @app.get("/readyz")
    async def readyz() -> Response:
        ready = await backend.ready()
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(state.metrics.text() + await backend.figures(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> Response:
        own = backend.name
        data = [_described(own, state.began)]
        data += [_described(escaped(name), created) for name, created in await backend.models() if name != own]
        return JSONResponse({"object": "list", "data": data})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name == backend.name:
            return JSONResponse(_described(name, state.began))
        try:
            plain = unquote(name)
            return JSONResponse(_described(escaped(plain), await backend.changed(plain)))
        except (DeltaError, RefusedAnswerError) as error:
            return response_to(error)

    @app.post("/v1/images/generations")
    async def generations(request: Request) -> Response:
        return await generation.answer(request)

    @app.get(FILES + "{token}.png")
    async def picture(token: str) -> Response:
        found = state.pictures.get(token)
        if found is None:
            return error_response(404, "there is no such picture any more", code="not_found")
        return Response(found, media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        return error_response(error.status_code, str(error.detail), code=code, headers=dict(error.headers or {}))

    return Gate(app, state)


def _described(name: str, created: int) -> dict[str, Any]:
    """Return what OpenAI's API says of a model; the identifier of a δ is a mix of it alone."""
    return {"id": name, "object": "model", "created": created, "owned_by": "svdiff"}
