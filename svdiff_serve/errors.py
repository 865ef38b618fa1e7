"""Define the errors of serving, each with the HTTP status that it becomes.

Below DeltaError stand RefusedError (with UnknownDeltaError and LimitError), BusyError, DrainingError, DeadlineError and
CancelledError.
"""

from __future__ import annotations

from svdiff_delta.errors import DeltaError


class RefusedError(DeltaError):
    """The server will not take this request as it is.

    Args:
        message: what is wrong and why.
        fix: what mends it.
        field: the field of the request that is meant; empty for none.
    """

    status, code = 400, "invalid_value"

    def __init__(self, message: str, *, fix: str = "", field: str = "") -> None:
        super().__init__(message, fix=fix)
        self.field = field


class UnknownDeltaError(RefusedError):
    """A mix names a δ that is not in the store, or one that cannot be used."""

    status, code = 404, "model_not_found"


class LimitError(RefusedError):
    """More was asked for than the server allows."""

    code = "limit_exceeded"


class BusyError(DeltaError):
    """The queue or the rate of a key is full.

    Args:
        message: which of them.
        retry_after: seconds after which it makes sense to ask again, at least 1.
    """

    status, code = 429, "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message, fix=f"try again in {retry_after} s")
        self.retry_after = retry_after


class DrainingError(DeltaError):
    """The server is ending and takes nothing more."""

    status, code = 503, "shutting_down"


class DeadlineError(DeltaError):
    """The time of a request was over before its picture was done."""

    status, code = 504, "deadline_exceeded"


class CancelledError(DeltaError):
    """Whoever asked has gone."""

    status, code = 499, "cancelled"
