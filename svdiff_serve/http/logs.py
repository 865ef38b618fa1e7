"""Write one JSON object per line and event; prompts only where they were asked for."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

LOGGER: Final = "svdiff_serve"
LIBRARIES: Final = ("uvicorn.error", "asyncio", "py.warnings")
"""Loggers of what the server stands on; the last one has Python's warnings."""


class Log:
    """The structured log of one server.

    Args:
        stream: where lines go; standard error if not given.
        prompts: whether prompts may be written.
        requests: whether requests are; else what is left out of the store, and errors.
    """

    def __init__(self, stream: TextIO | None = None, *, prompts: bool = False, requests: bool = True) -> None:
        self.prompts, self._requests = prompts, requests
        self._logger = logging.Logger(LOGGER, logging.INFO)
        handler = logging.StreamHandler(stream or sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        self._logger.addHandler(handler)

    def event(self, name: str, **facts: Any) -> None:
        """Write an event with what is known of it; None is left out."""
        if name == "request" and not self._requests:
            return
        known = {key: value for key, value in facts.items() if value is not None}
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        self._logger.info(json.dumps({"time": stamp, "event": name, **known}, ensure_ascii=True, default=str))

    def failure(self, error: BaseException, **facts: Any) -> None:
        """Write what was not foreseen: its class and where it came from, without values, which may hold prompts."""
        frames: list[str] = []
        trace = error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            frames.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno} {code.co_name}")
            trace = trace.tb_next
        self.event("error", error=type(error).__name__, at=frames[-8:], **facts)


@contextmanager
def relayed(log: Log) -> Iterator[None]:
    """Write into a log, too, what the libraries below say, which would else stand between its lines as plain text."""
    relay = _Relay(log)
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [each.propagate for each in loggers]
    logging.captureWarnings(True)
    for each in loggers:
        each.addHandler(relay)
        each.propagate = False
    try:
        yield
    finally:
        for each, propagated in zip(loggers, before, strict=True):
            each.removeHandler(relay)
            each.propagate = propagated
        logging.captureWarnings(False)


class _Relay(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._log.failure(record.exc_info[1], by=record.name)
        else:
            self._log.event("library", by=record.name, message=record.getMessage())
