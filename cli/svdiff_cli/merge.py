"""The command that merges deltas by a method or a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from svdiff_delta.errors import InputError

from . import options
from .delta_output import Writing, writes_delta
from .references import open_deltas


@click.command(cls=options.LightCommand)
@click.argument("deltas", metavar="DELTA[:WEIGHT]...", nargs=-1)
@click.option("--recipe", type=click.Path(path_type=Path), help="A YAML file that says all of it; then no DELTA.")
@click.option(
    "--method",
    type=click.Choice(["linear", "slerp", "ties", "dare_linear", "dare_ties", "magnitude"]),
    help="How to merge [default: linear].",
)
@click.option("--density", type=float, help="The share of shifts to keep (ties, dare_*, magnitude).")
@click.option("--alpha", type=float, help="The share of the first of two deltas (slerp).")
@click.option("--seed", type=int, help="Of random draws (dare_*) [default: 0].")
@options.stored_dtype
@writes_delta
def merge(
    deltas: tuple[str, ...],
    recipe: Path | None,
    method: str | None,
    density: float | None,
    alpha: float | None,
    seed: int | None,
    dtype: str | None,
    writing: Writing,
) -> None:
    """Merge deltas by a method, or as a recipe says.

    \b
        svdiff merge dog.safetensors:1 cat.safetensors:0.7 --method ties --density 0.5 -o both.safetensors
        svdiff merge --recipe both.yaml -o both.safetensors
    """
    from svdiff_delta.format.dtypes import StoredDtype
    from svdiff_delta.ops.merge import merge as run
    from svdiff_delta.ops.merge.recipe import run_recipe

    if recipe is not None:
        if deltas or any(option is not None for option in (method, density, alpha, seed, dtype)):
            raise InputError("a recipe says all of it", fix="write deltas and options into the recipe")
        writing.finish(run_recipe(recipe))
        return
    opened, weights = open_deltas(deltas)
    chosen = cast("StoredDtype", dtype.upper() if dtype else "F32")
    given = None if method == "slerp" and set(weights) == {1.0} else weights
    result = run(
        opened, method=method or "linear", weights=given, density=density, alpha=alpha, seed=seed, dtype=chosen
    )
    writing.finish(result)
