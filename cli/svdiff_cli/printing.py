"""All that commands print: control characters of files are escaped, encodings and full disks are no errors."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import click

from svdiff_delta._text.printable import harmless, json_text
from svdiff_delta._util.warned import DeltaWarning
from svdiff_delta.errors import OutputError

from .wording import spelled


def echo(message: object = "", *, err: bool = False) -> None:
    """Print lines, with all escaped in them that a terminal would act on.

    Raises:
        OutputError: what stands on standard output has nowhere to go.
    """
    _check_open(err=err)
    click.echo(harmless(str(message)), err=err)


def echo_json(value: Any, *, indent: int | None = None) -> None:
    """Print JSON for machines, in ASCII, so that it is the same whatever the terminal's encoding.

    Raises:
        OutputError: as `echo`.
    """
    _check_open()
    click.echo(json_text(value, indent=indent))


def _check_open(*, err: bool = False) -> None:
    """Python drops in silence what is printed where there is no standard output (`>&-`)."""
    if sys.stdout is None and not err:
        raise OutputError("standard output is closed", fix="leave it open, or send it to /dev/null")


@contextmanager
def telling_warnings() -> Iterator[None]:
    """Let warnings of this program be lines, as errors are; those of libraries stay what they are."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if issubclass(category, DeltaWarning):
            echo(f"warning: {spelled(str(message))}", err=True)
        else:
            others(message, category, *place, **options)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = others


def prepare_streams() -> None:
    """Let characters that the terminal's encoding lacks be escaped instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def abandon(stream: IO[str]) -> None:
    """Drop what could not be written to a stream: Python would try again at its end, and say so in many lines."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
