"""Answer the board's page: who asks for what is in `docs/board.md`, what is asked and answered in these functions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from svdiff_delta.errors import InputError
from svdiff_serve.errors import DrainingError, UnknownDeltaError
from svdiff_serve.http.errors import error_response, response_to
from svdiff_serve.http.reading import DISCONNECTED, JSON_TYPE, disconnected, is_of_type, read_body

from .acting import acting, meeting
from .asking import BODY, Checked, Preview, check_preview, read
from .card import Thumbnails
from .listing import LARGEST_OPENED, Listing, dtype_of
from .mix import check_mix
from .page_files import CLOSED, INDEX, page_file
from .previews import Previews
from .reopen import opened_again, read_again
from .shelf import Shelf
from .sums import check_sum
from .ways_out import Export, WaysOut, headers_of

if TYPE_CHECKING:
    from svdiff_serve.http.app import ServerState

T = TypeVar("T")

BYTES = "application/octet-stream"
LINES = "application/x-ndjson"


class BoardRoutes:
    """What the page asks for.

    Args:
        state: what requests share.
    """

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self.shelf = Shelf(state.service)
        self._listing, self._thumbnails = Listing(self.shelf), Thumbnails()
        self._ways_out = WaysOut(self.shelf)
        self._previews = Previews(self.shelf, state.limits, state.rates)

    def add_to(self, app: FastAPI) -> None:
        """Let an application answer the page."""
        app.add_api_route("/", self._index, response_model=None)
        app.add_api_route("/page/{name}", self._file, response_model=None)
        gets: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "base": self._base,
            "deltas": self._deltas,
            "picture": self._picture,
            "profile": self._profile,
            "interference": self._interference,
            "lineage": self._lineage,
        }
        posts: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "check": self._check,
            "preview": self._preview,
            "export": self._export,
            "open": self._open,
        }
        for methods, answers in (("GET", gets), ("POST", posts)):
            for name, answer in answers.items():
                app.add_api_route(f"/board/{name}", self._closed(answer), methods=[methods], response_model=None)

    def _closed(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Return the same answer with the board's headers, and an answer to each error."""

        async def closed(request: Request) -> Response:
            try:
                response = await answer(request)
            except ClientDisconnect:
                response = Response(status_code=DISCONNECTED)
            except TimeoutError:
                response = error_response(408, "the body did not come in time", code="timeout")
            except Exception as error:  # noqa: BLE001 - each becomes an answer
                response = response_to(error)
                if response.status_code >= 500 and not isinstance(error, DrainingError):
                    self._state.log.failure(error, **request.scope["svdiff_facts"])
            for name, value in CLOSED.items():
                response.headers[name] = value
            return response

        return closed

    async def _index(self) -> Response:
        return page_file(INDEX) or error_response(404, "the page is not in this package", code="not_found")

    async def _file(self, name: str) -> Response:
        return page_file(name) or error_response(404, "there is no such file of the page", code="not_found")

    async def _base(self, request: Request) -> Response:
        del request
        return _json(await asyncio.to_thread(self._listing.base, self._state.limits, self._state.defaults))

    async def _deltas(self, request: Request) -> Response:
        version, body = await asyncio.to_thread(self._listing.deltas)
        if request.query_params.get("version") == version:
            return Response(status_code=204)
        return Response(body, media_type=JSON_TYPE)

    async def _picture(self, request: Request) -> Response:
        def shown() -> tuple[str, bytes]:
            pictures = self._listing.card(_asked(request, "name")).pictures
            number = _asked(request, "number")
            if not (number.isdecimal() and len(number) < 4 and int(number) < len(pictures)):
                raise UnknownDeltaError("the card has no such picture", field="number")
            try:
                return self._thumbnails.show(pictures[int(number)].path)
            except InputError:
                raise UnknownDeltaError("the picture cannot be shown", field="number") from None

        kind, content = await asyncio.to_thread(shown)
        return Response(content, media_type=kind)

    async def _profile(self, request: Request) -> Response:
        return _json(await asyncio.to_thread(acting, self.shelf, _asked(request, "name")))

    async def _interference(self, request: Request) -> Response:
        return _json(await asyncio.to_thread(meeting, self.shelf, _asked(request, "a"), _asked(request, "b")))

    async def _lineage(self, request: Request) -> Response:
        def found() -> Any:
            return opened_again(self.shelf, self.shelf.open(_asked(request, "name"), any_base=True).delta)

        return _json(await asyncio.to_thread(found))

    async def _open(self, request: Request) -> Response:
        if not is_of_type(request, BYTES):
            return error_response(415, f"send the file's bytes as {BYTES}", code="wrong_type")
        raw = await read_body(request, LARGEST_OPENED, self._state.limits.body_seconds)
        if raw is None:
            return error_response(413, f"the file has more than {LARGEST_OPENED:,} bytes", code="body_too_large")
        return _json(await asyncio.to_thread(read_again, self.shelf, raw))

    async def _asked_for(self, request: Request, kind: type[T]) -> T | Response:
        """Return what a JSON body asks for, or why it is not taken."""
        if not is_of_type(request, JSON_TYPE):
            return error_response(415, f"the body must be JSON: send it as {JSON_TYPE}", code="wrong_type")
        raw = await read_body(request, BODY, self._state.limits.body_seconds)
        if raw is None:
            return error_response(413, f"the body has more than {BODY:,} bytes", code="body_too_large")
        return read(kind, raw)

    async def _check(self, request: Request) -> Response:
        asked = await self._asked_for(request, Checked)
        if isinstance(asked, Response):
            return asked
        half = dtype_of(self._state.service.pipeline) == "float16"

        def checks() -> list[Any]:
            for mix in asked.mixes:
                check_mix(mix)
            return [check_sum(self.shelf, mix, half=half).json() for mix in asked.mixes]

        return _json({"checks": await asyncio.to_thread(checks)})

    async def _preview(self, request: Request) -> Response:
        asked = await self._asked_for(request, Preview)
        if isinstance(asked, Response):
            return asked
        if not self._state.ready:
            raise DrainingError("the server is ending", fix="wait until it is back")
        stages = check_preview(asked, self._state.limits, self._state.defaults)
        owner: str = request.scope["svdiff_key"]
        facts = request.scope["svdiff_facts"]
        facts |= {"pictures": len(asked.pictures), "steps": max(asked.stages)}
        run = self._previews.begin(asked, owner)
        return _Stream(self._previews.lines(asked, stages, owner, run))

    async def _export(self, request: Request) -> Response:
        asked = await self._asked_for(request, Export)
        if isinstance(asked, Response):
            return asked
        saved = await asyncio.to_thread(self._ways_out.save, asked)
        return Response(saved.content, media_type=saved.kind, headers=headers_of(saved))


class _Stream(Response):
    """An answer of lines, each sent as it comes; nothing more is computed when the client goes."""

    def __init__(self, lines: AsyncGenerator[bytes, None]) -> None:
        super().__init__(media_type=LINES)
        del self.headers["content-length"]
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        gone = asyncio.ensure_future(disconnected(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait((gone, sending), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for each in (gone, sending):
                each.cancel()
            await asyncio.gather(gone, sending, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for line in self._lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        finally:
            await self._lines.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _asked(request: Request, name: str) -> str:
    """Return a value of the address; raise UnknownDeltaError if it is not there."""
    value = request.query_params.get(name)
    if value is None:
        raise UnknownDeltaError(f"the address says no {name}", field=name)
    return value


def _json(value: Any) -> Response:
    return Response(
        json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(), media_type=JSON_TYPE
    )
