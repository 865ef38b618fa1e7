"""Limit what an answer of the Hub may take: count bytes as they come, and give up on a server that drips.

The Hub's library has a limit of time for each single byte only, and believes what a server says of a file's size.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import isfinite
from typing import Any, Final

from svdiff_delta.errors import HubError, SlowError

from .errors import client_errors, guard_logs

SPEED_VARIABLE: Final = "SVDIFF_HUB_SPEED"
"""Bytes a second below which a server is given up, 1000 if not set; 0 waits for ever."""

PATIENCE_VARIABLE: Final = "SVDIFF_HUB_PATIENCE"
"""Seconds over which the speed is measured, and within which an answer has to begin; 30 if not set."""

SPEED, PATIENCE = 1000.0, 30.0

LARGEST_ANSWER: Final = 2**25
"""Bytes of an answer that is no file, such as the list of a repository's files."""

LEAST: Final = 2**20
"""Bytes that any answer may have: errors come instead of small files."""

MOST_ANSWERS: Final = 100
"""Answers to one question: redirects, and downloads that go on where they broke off."""

_XET: Final = "X-Xet-Hash"
"""The header by which the Hub's library leaves a download to another program, whose bytes nobody here can count."""


_WATCH: ContextVar[_Watch | None] = ContextVar("svdiff_watch", default=None)


@contextmanager
def watched(what: object, largest: int) -> Iterator[None]:
    """Watch what the Hub's library fetches in this thread.

    Args:
        what: what is fetched, for errors.
        largest: bytes of an answer beyond which it is given up.

    Raises:
        SlowError: an answer is slower than the settings allow.
        HubError: an answer is larger, there are too many of them, or a setting is wrong.
    """
    guard_logs()
    watch = _Watch(what, max(largest, LEAST), _setting(SPEED_VARIABLE, SPEED), _setting(PATIENCE_VARIABLE, PATIENCE))
    _hook()
    before = _WATCH.set(watch)
    try:
        yield
    except client_errors():
        if watch.expired:
            raise watch.too_slow() from None
        raise
    finally:
        _WATCH.reset(before)
        watch.end()


class _Watch:
    """The answers to one question."""

    def __init__(self, what: object, largest: int, speed: float, patience: float) -> None:
        self._what, self._largest, self._speed, self._patience = what, largest, speed, patience
        self._timer: threading.Timer | None = None
        self._answers = 0
        self.expired = False

    def asked(self) -> None:
        """Give the server its time to begin an answer."""
        if self.expired:  # the Hub's library tries again after what breaks off
            raise self.too_slow()
        self.end()
        if self._speed:
            self._timer = threading.Timer(self._patience, self._expire)
            self._timer.daemon = True
            self._timer.start()

    def answered(self, response: Any) -> None:
        """Count what is read of an answer."""
        self.end()
        self._answers += 1
        if self._answers > MOST_ANSWERS:
            raise HubError(f"{self._what}: the server breaks off, or sends on, again and again", fix="try again later")
        response.headers.pop(_XET, None)
        response.iter_raw = self._raw(response.iter_raw)
        response.iter_bytes = self._decoded(response.iter_bytes)

    def end(self) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()

    def too_slow(self) -> SlowError:
        """Return the error for a server that drips."""
        return SlowError(
            f"{self._what}: the server sends less than {self._speed:,.0f} bytes a second over {self._patience:g} s",
            fix=f"try again later, or set {SPEED_VARIABLE} to less",
        )

    def _expire(self) -> None:
        from huggingface_hub import close_session

        self.expired = True
        close_session()  # nothing else ends a read that goes on byte by byte
        _hook()

    def _raw(self, read: Callable[..., Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
        """Return what reads the bytes of an answer as they come, within the limits of size and speed."""

        def watched(chunk_size: int | None = None) -> Iterator[bytes]:
            since, total, recent = time.monotonic(), 0, 0
            for chunk in read(chunk_size):
                total, recent = total + len(chunk), recent + len(chunk)
                self._check_size(total)
                if (passed := time.monotonic() - since) >= self._patience:
                    if recent < self._speed * passed:
                        raise self.too_slow()
                    since, recent = since + passed, 0
                yield chunk

        return watched

    def _decoded(self, read: Callable[..., Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
        """Return what reads an answer, within the limit of size: compressed ones become larger."""

        def watched(chunk_size: int | None = None) -> Iterator[bytes]:
            total = 0
            for chunk in read(chunk_size):
                total += len(chunk)
                self._check_size(total)
                yield chunk

        return watched

    def _check_size(self, total: int) -> None:
        if total > self._largest:
            raise HubError(
                f"{self._what}: the server sends more than {self._largest:,} bytes",
                fix="check HF_ENDPOINT and the proxy",
            )


def _hook() -> None:
    """Let the client of the Hub's library, which may be a new one, tell of what it asks and is answered."""
    from huggingface_hub import get_session

    hooks = get_session().event_hooks
    for kind, hook in (("request", _on_request), ("response", _on_response)):
        if hook not in hooks.get(kind, []):
            get_session().event_hooks = hooks = {**hooks, kind: [*hooks.get(kind, []), hook]}


def _on_request(request: Any) -> None:  # noqa: ARG001 - the client gives it
    if (watch := _WATCH.get()) is not None:
        watch.asked()


def _on_response(response: Any) -> None:
    if (watch := _WATCH.get()) is not None:
        watch.answered(response)


def _setting(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text.strip() else default
    except ValueError:
        value = -1.0
    if not isfinite(value) or value < 0:
        raise HubError(f"{name}: {text!r} is no number from 0", fix=f"set it to a number, or unset it for {default:g}")
    return value
