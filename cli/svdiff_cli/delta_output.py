"""The end of every command that makes a delta: its options, and how the result is written and reported."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdiff_delta._text.printable import counted

from . import options
from .printing import echo, echo_json

if TYPE_CHECKING:
    from svdiff_delta import Delta


@dataclass(frozen=True)
class Writing:
    """Where and how a command writes its result, as its options say."""

    output: Path
    title: str | None
    force: bool
    dry_run: bool
    as_json: bool
    quiet: bool

    @property
    def silent(self) -> bool:
        """Whether remarks would be in the way."""
        return self.quiet or self.as_json

    def finish(self, result: Delta, **facts: Any) -> None:
        """Write the result, or only check that it could be written, and say what it is.

        Args:
            result: the delta.
            facts: what else to say in JSON.
        """
        from svdiff_delta._util.atomic import check_output
        from svdiff_delta.format.file import dumps, save

        if self.title is not None:
            result = result.with_title(self.title)
        if self.dry_run:
            check_output(self.output, overwrite=self.force)
            size = len(dumps(result))
        else:
            save(result, self.output, overwrite=self.force)
            size = self.output.stat().st_size
        numbers = result.metadata.numbers
        if self.as_json:
            found = {"output": str(self.output), "parameters": len(result), "numbers": numbers, "bytes": size}
            echo_json({**found, **facts, "written": not self.dry_run})
        elif not self.quiet:
            verb = "would write" if self.dry_run else "wrote"
            what = f"{counted(len(result), 'parameter')}, {counted(numbers, 'number')}, {size:,} bytes"
            echo(f"{verb} {self.output}: {what}")


def writes(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `Writing`, which it gets as its argument `writing`.

    Args:
        what: what the help says of -o.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapped(**arguments: Any) -> None:
            own = {field.name: arguments.pop(field.name) for field in fields(Writing)}
            command(**arguments, writing=Writing(**own))

        decorated: Callable[..., None] = wrapped
        for option in (options.quiet, options.as_json, options.dry_run, options.force, options.title):
            decorated = option(decorated)
        return options.output(what)(decorated)

    return decorate


writes_delta = writes("The delta file to write.")
"""Give a command that makes a delta the options of `Writing`."""
