"""Answer a request for pictures: read it, have them painted, and give up when nobody waits any more."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from svdiff_delta.errors import DeltaError
from svdiff_serve.errors import CancelledError, DeadlineError, DrainingError
from svdiff_serve.mixes import parse_mix

from .backend import Backend
from .body import Asked, parse_request, read_request
from .errors import error_response, response_to
from .reading import DISCONNECTED, JSON_TYPE, disconnected, is_of_type, read_body

if TYPE_CHECKING:
    from .app import Shared

SEEDS: Final = 2**32
"""Seeds that are drawn lie below this."""

LOGGED: Final = 500
"""Characters of a mix in the log, whose lines no client makes long."""


class Generation:
    """Requests for pictures.

    Args:
        state: what requests share.
        backend: what paints.
    """

    def __init__(self, state: Shared, backend: Backend) -> None:
        self._state, self._backend = state, backend

    async def answer(self, request: Request) -> Response:
        """Return the answer to a request."""
        facts: dict[str, Any] = request.scope["svdiff_facts"]
        try:
            if not is_of_type(request, JSON_TYPE):
                return error_response(415, f"the body must be JSON: send it as {JSON_TYPE}", code="wrong_type")
            most = self._state.limits.body
            raw = await read_body(request, most, self._state.limits.body_seconds)
            if raw is None:
                return error_response(413, f"the body has more than {most:,} bytes", code="body_too_large")
            asked = self._asked(raw)
            self._note(facts, asked)
            return await self._paint(request, asked)
        except (ClientDisconnect, CancelledError):
            return Response(status_code=DISCONNECTED)
        except TimeoutError:
            return error_response(408, "the body did not come in time", code="timeout")
        except Exception as error:  # noqa: BLE001 - each becomes an answer
            response = response_to(error)
            if response.status_code >= 500 and not isinstance(error, DrainingError):
                self._state.log.failure(error, **facts)
            return response

    def _asked(self, raw: bytes) -> Asked:
        state = self._state
        return read_request(
            parse_request(raw),
            base=self._backend.name,
            own_size=self._backend.own_size,
            limits=state.limits,
            defaults=state.defaults,
            seed=secrets.randbelow(SEEDS),
        )

    def _note(self, facts: dict[str, Any], asked: Asked) -> None:
        facts |= {"mix": asked.mix[:LOGGED], "pictures": len(asked.seeds), "steps": asked.sampling.steps}
        if self._state.log.prompts:
            facts |= {"prompt": asked.prompt, "negative_prompt": asked.sampling.negative_prompt}

    async def _paint(self, request: Request, asked: Asked) -> Response:
        key: str = request.scope["svdiff_key"]
        parse_mix(asked.mix, self._backend.name)
        self._state.rates.take(key, len(asked.seeds))
        work = asyncio.ensure_future(self._backend.pngs(asked, key, self._state.limits.seconds))
        try:
            pngs = await _unless_gone(request, work)
        except (CancelledError, DeadlineError):
            raise
        except DeltaError:  # it was refused, and nothing painted
            self._state.rates.give_back(key, len(asked.seeds))
            raise
        data = [self._datum(request, png, seed, asked) for png, seed in zip(pngs, asked.seeds, strict=True)]
        return JSONResponse({"created": int(time.time()), "data": data})

    def _datum(self, request: Request, png: bytes, seed: int, asked: Asked) -> dict[str, Any]:
        """Return one picture as OpenAI's API gives it, and its seed beside."""
        if not asked.urls:
            return {"b64_json": base64.b64encode(png).decode(), "seed": seed}
        start = self._state.public.rstrip("/") or str(request.base_url).rstrip("/")
        return {"url": f"{start}/v1/files/{self._state.pictures.put(png)}.png", "seed": seed}


async def _unless_gone(request: Request, work: asyncio.Future[list[bytes]]) -> list[bytes]:
    """Return what work comes to; cancel it when nobody waits any more.

    Raises:
        CancelledError: the client has gone.
        Exception: what ended the work.
    """
    gone = asyncio.ensure_future(disconnected(request.receive))
    try:
        waiting: set[asyncio.Future[Any]] = {gone, work}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise CancelledError("the client has gone")
    finally:
        work.cancel()
        if not gone.cancel() and not gone.cancelled():
            gone.exception()  # asked for, or asyncio would say that nobody has
