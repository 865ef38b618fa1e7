"""Write one JSON object per line and event; prompts only where they were asked for."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Final, TextIO

LOGGER: Final = "svdiff_serve"


class Log:
    """The structured log of one server.

    Args:
        stream: where lines go; standard error if not given.
        prompts: whether prompts may be written.
    """

    def __init__(self, stream: TextIO | None = None, *, prompts: bool = False) -> None:
        self.prompts = prompts
        self._logger = logging.Logger(LOGGER, logging.INFO)
        handler = logging.StreamHandler(stream or sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        self._logger.addHandler(handler)

    def event(self, name: str, **facts: Any) -> None:
        """Write an event with what is known of it; None is left out."""
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
