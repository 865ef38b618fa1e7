"""Running `svdiff`, in this process where that is enough and in one of its own where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path

from svdiff_cli.main import main


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


def svdiff(*arguments: str | Path) -> Outcome:
    """Run a command in this process."""
    out, err = (TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments], prog_name="svdiff")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
    return Outcome(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


def python(
    code: str,
    *arguments: str | Path,
    folder: Path | None = None,
    **environment: str,
) -> Outcome:
    """Run Python code in a process of its own, with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


SVDIFF = "from svdiff_cli.main import main; main(prog_name='svdiff')"
"""Code that is the command, for `python`."""
