"""The command line that all sections have."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from .figures import Figures
from .scene import Scene

NO_CARD = 2
"""Exit status where there is no card: nothing was measured, and that is no success."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every script takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--folder", type=Path, help="where weights and bases lie or are made")
    parser.add_argument(
        "--dry", action="store_true", help="tiny sizes on the CPU, no limits: shows that all of it runs"
    )
    return parser


def no_card() -> str | None:
    """Return what to say where there is no card; None if there is one."""
    if torch.cuda.is_available():
        return None
    build = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
    return f"no CUDA device: nothing was measured or tested (torch {torch.__version__} {build})"


def main(section: str, measure: Callable[[Scene, Figures], None], description: str | None) -> None:
    """Run one section by itself; exit with 1 if a limit is missed, with 2 if there is no card."""
    given = arguments(description).parse_args()
    if not given.dry and (line := no_card()):
        print(line, file=sys.stderr)
        sys.exit(NO_CARD)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "unet"
        os.environ["SVDIFF_HOME"] = str(folder / "home")  # what is remembered of other runs does not count
        figures = run(section, measure, folder, dry=given.dry)
    if given.json is not None:
        given.json.write_text(json.dumps(figures.json(), indent=2) + "\n")
    sys.exit(1 if figures.missed else 0)


def run(section: str, measure: Callable[[Scene, Figures], None], folder: Path, *, dry: bool) -> Figures:
    """Return the figures of one section."""
    figures = Figures(section, judged=not dry)
    measure(Scene(folder, torch.device("cpu" if dry else "cuda"), dry=dry), figures)
    return figures
