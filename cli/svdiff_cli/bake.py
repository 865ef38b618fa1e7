"""The command that bakes deltas into a full checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from . import options
from .progress import Bar
from .references import open_deltas, open_reference, sole_component

if TYPE_CHECKING:
    from svdiff_delta.codec import Dtype


@click.command()
@click.argument("base", metavar="BASE")
@click.argument("deltas", metavar="DELTA[:WEIGHT]...", nargs=-1, required=True)
@options.output("The folder (or file, if BASE is a file) to write.")
@options.dtype
@options.force
@options.quiet
def bake(base: str, deltas: tuple[str, ...], output: Path, dtype: str | None, force: bool, quiet: bool) -> None:
    """Write BASE with deltas in it as a full checkpoint.

    diffusers or transformers loads it as it is. Several deltas are summed first and clipped once (Eq. 4).
    Without --dtype every weight keeps the base's number
    format.

    \b
        svdiff bake tiny dog.safetensors:0.8 -o dog-model
    """
    opened, weights = open_deltas(deltas)
    model = open_reference(base, sole_component(opened))
    from svdiff_delta.bake import bake as write

    chosen = cast("Dtype | None", dtype.upper() if dtype else None)
    pairs = list(zip(opened, weights, strict=True))
    with Bar("baking", quiet=quiet) as bar:
        write(model, pairs, output, dtype=chosen, overwrite=force, progress=bar)
    if not quiet:
        click.echo(f"wrote {output}")
