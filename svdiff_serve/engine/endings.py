"""Say how pictures end, and tell whoever asked."""

from __future__ import annotations

from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import Any

from svdiff_delta.errors import DeltaError
from svdiff_serve.errors import CancelledError, DeadlineError

from .job import Ticket


def reason(ticket: Ticket) -> DeltaError:
    """Return why nobody waits for a picture any more, or its time is over."""
    if ticket.gone:
        return CancelledError("whoever asked has gone")
    return DeadlineError("the time of the request was over before its picture was done", fix="ask for fewer steps")


def outcome(error: BaseException | None) -> str:
    """Return the word for how a picture ended: done, failed, cancelled or late."""
    if error is None:
        return "done"
    if isinstance(error, CancelledError):
        return "cancelled"
    return "late" if isinstance(error, DeadlineError) else "failed"


def answer(ticket: Ticket, *, result: Any = None, error: BaseException | None = None) -> None:
    """Give whoever asked the picture, or the error that ended it; once."""
    with suppress(InvalidStateError):  # whoever asked may have gone, or was answered when the engine was ended
        if error is None:
            ticket.answer.set_result(result)
        else:
            ticket.answer.set_exception(error)
