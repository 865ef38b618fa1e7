"""Answer a request for pictures: read it, have them painted, and give up when nobody waits any more."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from svdiff_delta._util.json import JSON
from svdiff_serve.engine.job import Ticket
from svdiff_serve.errors import CancelledError, DrainingError
from svdiff_serve.mixes import parse_mix
from svdiff_train.sampling.png import png_bytes, sampling_facts

from .body import Asked, parse_request, read_request
from .errors import error_response, response_to

if TYPE_CHECKING:
    from .app import ServerState

JSON_TYPE: Final = "application/json"
"""What a body must be: browsers send nothing of this kind to other sites without asking."""

SEEDS: Final = 2**32
"""Seeds that are drawn lie below this."""

LOGGED: Final = 500
"""Characters of a mix in the log, whose lines no client makes long."""

DISCONNECTED: Final = 499
"""The status of requests whose client has gone, in logs and metrics."""


class Generation:
    """Requests for pictures.

    Args:
        state: what requests share.
    """

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def answer(self, request: Request) -> Response:
        """Return the answer to a request."""
        facts: dict[str, Any] = request.scope["svdiff_facts"]
        try:
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON_TYPE:
                return error_response(415, f"the body must be JSON: send it as {JSON_TYPE}", code="wrong_type")
            raw = await self._body(request)
            if raw is None:
                most = self._state.limits.body
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

    async def _body(self, request: Request) -> bytes | None:
        """Return the body; None if it is larger than allowed: no more of it is read then."""
        limits = self._state.limits
        said = request.headers.get("content-length", "0")
        if not said.isdecimal() or int(said) > limits.body:
            return None
        raw = bytearray()
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > limits.body:
                    return None
        return bytes(raw)

    def _asked(self, raw: bytes) -> Asked:
        state = self._state
        return read_request(
            parse_request(raw),
            base=state.service.name,
            own_size=state.service.own_size,
            limits=state.limits,
            defaults=state.defaults,
            seed=secrets.randbelow(SEEDS),
        )

    def _note(self, facts: dict[str, Any], asked: Asked) -> None:
        facts |= {"mix": asked.mix[:LOGGED], "pictures": len(asked.seeds), "steps": asked.sampling.steps}
        if self._state.log.prompts:
            facts |= {"prompt": asked.prompt, "negative_prompt": asked.sampling.negative_prompt}

    async def _paint(self, request: Request, asked: Asked) -> Response:
        state, service = self._state, self._state.service
        if not state.ready:
            raise DrainingError("the server is ending", fix="ask another one, or later")
        mix = parse_mix(asked.mix, service.name)
        key: str = request.scope["svdiff_key"]
        state.rates.take(key, len(asked.seeds))
        try:
            await asyncio.to_thread(service.check, asked.sampling)
            gains, deltas = await asyncio.to_thread(service.gains, mix)
            seconds = state.limits.seconds
            tickets = service.submit(asked.prompt, asked.seeds, asked.sampling, gains, key=key, seconds=seconds)
        except BaseException:
            state.rates.give_back(key, len(asked.seeds))
            raise
        try:
            images = await self._wait(request, tickets)
        except BaseException:
            service.engine.cancel(tickets)
            raise
        pairs = zip(images, asked.seeds, strict=True)
        pngs = await asyncio.gather(
            *(asyncio.to_thread(self._png, image, seed, asked, deltas) for image, seed in pairs)
        )
        data = [self._datum(request, png, seed, asked) for png, seed in zip(pngs, asked.seeds, strict=True)]
        return JSONResponse({"created": int(time.time()), "data": data})

    async def _wait(self, request: Request, tickets: Sequence[Ticket]) -> list[Any]:
        """Return the pictures.

        Raises:
            CancelledError: the client has gone.
            Exception: what ended one of the pictures.
        """
        gone = asyncio.ensure_future(_disconnected(request))
        coming = [asyncio.wrap_future(ticket.answer) for ticket in tickets]
        waiting: set[asyncio.Future[Any]] = {gone, *coming}
        try:
            while not all(each.done() for each in coming):
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if gone in done:
                    raise CancelledError("the client has gone")
                if failed := next((each for each in coming if each in done and each.exception()), None):
                    failed.result()
            return [each.result() for each in coming]
        finally:
            for each in (gone, *coming):
                if not each.cancel() and not each.cancelled():
                    each.exception()  # asked for, or asyncio would say that nobody has

    def _png(self, image: Any, seed: int, asked: Asked, deltas: list[JSON]) -> bytes:
        service = self._state.service
        facts = sampling_facts(
            service.pipeline, service.base, asked.sampling, [asked.prompt], [seed], deltas=deltas or None
        )
        return png_bytes(image, facts)

    def _datum(self, request: Request, png: bytes, seed: int, asked: Asked) -> dict[str, Any]:
        """Return one picture as OpenAI's API gives it, and its seed beside."""
        if not asked.urls:
            return {"b64_json": base64.b64encode(png).decode(), "seed": seed}
        start = self._state.public.rstrip("/") or str(request.base_url).rstrip("/")
        return {"url": f"{start}/v1/files/{self._state.pictures.put(png)}.png", "seed": seed}


async def _disconnected(request: Request) -> None:
    """Return when the client has gone; its body has been read."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return
