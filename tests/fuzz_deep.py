"""Let atheris make files by what code they reach: of the container, and of the typed reader.

    python tests/fuzz_deep.py [--target container] [--minutes 5]

It begins from the small files in `tests/corpus/TARGET/`. What it finds beside them lies in `fuzz-out/TARGET/`, and a
file that fails, in `fuzz-out/`. Each target runs in a process of its own: atheris never returns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORPUS = Path(__file__).parent / "corpus"
OUT = Path("fuzz-out")
LONGEST = 4096
"""Bytes of a file that atheris makes."""

SECONDS = 2
MEGABYTES = 1_000
"""Of the whole process; a file of this size may take 200 MB, the interpreter and its instrumentation the rest."""

TARGETS = ("container", "typed")


def container(raw: bytes) -> None:
    """Read a delta file."""
    from svdiff_delta.format.file import loads

    dict(loads(raw))


def typed(raw: bytes) -> None:
    """Read a text as each of the formats that people write, against a type; the first byte says which."""
    from support.deep import read

    read(raw)


def run(name: str, minutes: float) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    sys.path.insert(0, str(Path(__file__).parent))
    with atheris.instrument_imports(include=["svdiff_delta", "support.deep", "yaml", "tomllib"]):
        import_module("svdiff_delta.format.file")
        import_module("support.deep")
    from svdiff_delta.errors import DeltaError

    warnings.simplefilter("error")
    read = {"container": container, "typed": typed}[name]

    def one(raw: bytes) -> None:
        try:
            read(raw)
        except DeltaError as error:
            if not error.message or not str(error).isprintable():
                raise AssertionError("a refusal that is no line") from error

    found = OUT / name
    found.mkdir(parents=True, exist_ok=True)
    atheris.Setup(
        [
            sys.argv[0],
            str(found),
            str(CORPUS / name),
            f"-max_total_time={round(60 * minutes)}",
            f"-max_len={LONGEST}",
            f"-timeout={SECONDS}",
            f"-rss_limit_mb={MEGABYTES}",
            f"-artifact_prefix={OUT}/{name}-",
            "-print_final_stats=1",
        ],
        one,
    )
    atheris.Fuzz()


def main() -> int:
    """Fuzz each target; return how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=5)
    arguments = parser.parse_args()
    if arguments.target:
        run(arguments.target, arguments.minutes)
    each = [sys.executable, __file__, "--minutes", str(arguments.minutes / len(TARGETS)), "--target"]
    return sum(subprocess.run([*each, name], check=False).returncode != 0 for name in TARGETS)


if __name__ == "__main__":
    sys.exit(main())
