"""The log: what libraries say stands in it as lines of its own kind."""

from __future__ import annotations

import json
import logging
import warnings

from support.served import Lines

from svdiff_serve.http.logs import Log, relayed


def test_what_libraries_say_becomes_lines_of_the_log() -> None:
    lines, library = Lines(), logging.getLogger("uvicorn.error")
    with warnings.catch_warnings(), relayed(Log(lines)):  # type: ignore[arg-type]
        warnings.simplefilter("always")
        library.warning("Invalid HTTP request received.")
        try:
            raise ValueError("secret words")
        except ValueError as error:
            library.error("Exception in ASGI application", exc_info=error)
        logging.captureWarnings(True)  # again: catch_warnings and pytest have put their own in its place
        warnings.warn("invalid value", RuntimeWarning, stacklevel=1)
        library.info("Started")
    events = [json.loads(line) for line in lines.lines]
    assert [(event["event"], event["by"]) for event in events] == [
        ("library", "uvicorn.error"),
        ("error", "uvicorn.error"),
        ("library", "py.warnings"),
    ]
    assert "secret" not in "".join(lines.lines)
    library.warning("outside")
    assert len(lines.lines) == 3
