"""The command that shows the whole job on the embedded base."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options
from .printing import echo, echo_json
from .progress import Bar
from .references import keep_apart, needs
from .threads import compute_on_one
from .train_watch import watch_with

if TYPE_CHECKING:
    from svdiff_train.demo.run import Report
    from svdiff_train.training.callbacks import Watch


@click.command()
@click.option("--steps", default=200, show_default=True, help="Training steps per subject.")
@options.seed
@options.output("The folder to write.")
@options.force
@options.as_json
@options.quiet
def demo(steps: int, seed: int, output: Path, force: bool, as_json: bool, quiet: bool) -> None:
    """Show the whole job on the embedded base.

    Train two deltas, add, interpolate, slice, edit with, convert, bake and reload them, and lay the pictures on one
    page, each with the command that made it.
    """
    needs("diffusers", "train")
    from svdiff_delta._util.atomic import replace_folder
    from svdiff_train.demo.run import run_demo
    from svdiff_train.tiny import base_path
    from svdiff_train.training.callbacks import peak_memory

    keep_apart(output, base_path())
    begun = time.perf_counter()
    compute_on_one()
    silent = quiet or as_json

    def say(line: str) -> None:
        if not silent:
            echo(line)

    with Bar("loading", quiet=silent) as bar, replace_folder(output, overwrite=force) as folder:

        def watch(label: str) -> Watch:
            del label
            return watch_with(bar)

        report = run_demo(folder, steps=steps, say=say, watch=watch, stage=bar.stage, seed=seed, shown=str(output))
    seconds = time.perf_counter() - begun
    memory = peak_memory()
    page, sheet = output / report.page.name, output / report.sheet.name
    if as_json:
        facts = asdict(report) | {"page": str(page), "sheet": str(sheet)}
        facts |= {"total seconds": seconds, "peak memory": memory}
        echo_json(facts)
    elif not quiet:
        _print(report, page, sheet, seconds, memory)


def _print(report: Report, page: Path, sheet: Path, seconds: float, memory: int) -> None:
    base = report.sizes["base"]
    echo()
    for name, size in report.sizes.items():
        share = "" if name == "base" else f"  1/{base / size:.0f} of the base"
        echo(f"{size:>12,} bytes  {name}{share}")
    echo()
    for dtype, difference in report.difference.items():
        echo(f"attached and baked ({dtype}) pictures differ by at most {difference}/255")
    echo(f"of which rounding to F16 does not explain {report.beyond_rounding}/255")
    most = f", at most {memory / 1e9:.1f} GB of memory" if memory else ""
    echo(f"{seconds:.0f} s in all{most}")
    echo(f"the page: {page}, and as a picture: {sheet}")
