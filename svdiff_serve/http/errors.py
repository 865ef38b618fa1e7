"""Turn errors into answers as OpenAI's API gives them: what, why and the field, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from svdiff_delta.errors import is_out_of_memory
from svdiff_serve.errors import BusyError, CancelledError, DeadlineError, DrainingError, RefusedError

INVALID = "invalid_request_error"
SERVER = "server_error"


class RefusedAnswerError(Exception):
    """Whoever paints elsewhere has refused a request, and said how it is answered.

    Args:
        status: of HTTP.
        body: of the answer.
        headers: of it.
    """

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


def error_response(
    status: int, message: str, *, code: str, field: str = "", headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return an answer that says what is wrong.

    Args:
        status: of HTTP; those from 500 on are the server's fault.
        message: what is wrong, why, and what mends it.
        code: a word for programs.
        field: the field of the request that is meant; empty for none.
        headers: more headers.
    """
    kind = SERVER if status >= 500 else {401: "authentication_error", 429: "rate_limit_error"}.get(status, INVALID)
    error: dict[str, Any] = {"message": message, "type": kind, "param": field or None, "code": code}
    return JSONResponse({"error": error}, status, headers)


def response_to(error: BaseException) -> Response:
    """Return the answer to an error; what was not foreseen is not described."""
    if isinstance(error, RefusedAnswerError):
        return Response(error.body, error.status, dict(error.headers))
    if isinstance(error, BusyError):
        return error_response(
            error.status, str(error), code=error.code, headers={"retry-after": str(error.retry_after)}
        )
    if isinstance(error, RefusedError):
        return error_response(error.status, str(error), code=error.code, field=error.field)
    if isinstance(error, DeadlineError | DrainingError | CancelledError):
        return error_response(error.status, str(error), code=error.code)
    if is_out_of_memory(error):
        return error_response(503, "there is not enough memory for this now: ask for smaller pictures", code="memory")
    return error_response(500, "the server met an error; its log says which", code="internal_error")


def error_body(error: BaseException) -> dict[str, Any]:
    """Return what the answer to an error says, for an answer that has begun already."""
    found: dict[str, Any] = json.loads(bytes(response_to(error).body))
    return found
