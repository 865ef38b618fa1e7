"""Read the body of a request as far as it may be large, and notice when its client goes."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import Request
from starlette.types import Receive

JSON_TYPE: Final = "application/json"
"""What a body must be: browsers send nothing of this kind to other sites without asking."""

DISCONNECTED: Final = 499
"""The status of requests whose client has gone, in logs and metrics."""


def is_of_type(request: Request, kind: str) -> bool:
    """Tell whether a body says that it is of a media type."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == kind


async def read_body(request: Request, most: int, seconds: float) -> bytes | None:
    """Return the body; None if it is larger than allowed: no more of it is read then.

    Args:
        request: the request.
        most: bytes.
        seconds: in which it must have come.

    Raises:
        TimeoutError: it has not.
        ClientDisconnect: the client has gone.
    """
    said = request.headers.get("content-length", "0")
    if not said.isdecimal() or int(said) > most:
        return None
    raw = bytearray()
    async with asyncio.timeout(seconds):
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > most:
                return None
    return bytes(raw)


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone; its body has been read."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
