"""A front whose pictures are painted elsewhere: what refused there is answered here as it was said."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx
import pytest

from svdiff_serve.errors import UnknownDeltaError
from svdiff_serve.http.app import Shared, make_front
from svdiff_serve.http.errors import RefusedAnswerError

BODY = b'{"error":{"message":"there is no such one"}}'


@pytest.mark.parametrize(
    ("error", "body"),
    [
        (RefusedAnswerError(404, BODY, {"content-type": "application/json"}), BODY),
        (UnknownDeltaError("there is no such one"), None),
    ],
    ids=["by another process", "by this one"],
)
def test_a_name_that_is_not_there_is_not_found(error: Exception, body: bytes | None) -> None:
    async def changed(name: str) -> int:
        raise error

    async def ask() -> httpx.Response:
        front = make_front(Shared(), SimpleNamespace(name="tiny", changed=changed))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://127.0.0.1") as client:
            return await client.get("/v1/models/none")

    answer = asyncio.run(ask())
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "there is no such one"
    assert body is None or answer.content == body
