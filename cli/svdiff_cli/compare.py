"""Commands that compare deltas: diff, correlate, interfere."""

from __future__ import annotations

from pathlib import Path

import click

from svdiff_delta._text.printable import counted, printable

from . import options
from .printing import echo, echo_json
from .references import keep_apart, open_deltas, open_reference, sole_component


@click.command(cls=options.LightCommand)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--layers", is_flag=True, help="List every parameter.")
@options.as_json
def diff(a: str, b: str, layers: bool, as_json: bool) -> None:
    """Say how two deltas differ: what only one of them shifts, and by how much the rest differs."""
    from svdiff_delta.ops.stats import difference

    (first, second), _ = open_deltas([a, b])
    found = difference(first, second)
    if as_json:
        facts = {"only in a": found.only_a, "only in b": found.only_b, "norms": found.norms}
        echo_json({**facts, "norm": found.norm, "relative": found.relative, "equal": found.equal})
        return
    if found.equal:
        echo("the same δ in every parameter")
        return
    echo(f"difference {found.norm:.4g}, {found.relative:.2%} of A, in {counted(found.changed, 'parameter')}")
    for label, names in ((f"only in {a}", found.only_a), (f"only in {b}", found.only_b)):
        if names:
            echo(f"{label}: {counted(len(names), 'parameter')}")
    if layers:
        for name, norm in found.norms.items():
            if norm:
                echo(f"{norm:>12.4g}  {printable(name)}")


@click.command(cls=options.LightCommand)
@click.argument("deltas", metavar="DELTA DELTA...", nargs=-1, required=True)
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw a heat map as this PNG.")
@options.force
@options.as_json
def correlate(deltas: tuple[str, ...], plot: Path | None, force: bool, as_json: bool) -> None:
    """Print the cosine between deltas, averaged over their layers.

    This is Fig. 9a of the paper.
    """
    from svdiff_delta.ops.stats import correlations

    opened, _ = open_deltas(deltas)
    matrix = correlations(opened)
    names = [delta.metadata.title or Path(reference).stem for delta, reference in zip(opened, deltas, strict=True)]
    if plot is not None:
        from .plot import heat_map

        keep_apart(plot, *deltas)
        heat_map(names, matrix, plot, overwrite=force)
    if as_json:
        echo_json({"names": names, "mean cosine": matrix.tolist()})
        return
    width = max(8, *map(len, names)) + 1
    echo(" " * width + "".join(f"{printable(name):>{width}}" for name in names))
    for name, row in zip(names, matrix, strict=True):
        echo(f"{printable(name):<{width}}" + "".join(f"{value:>{width}.3f}" for value in row))


@click.command(cls=options.LightCommand)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--base", metavar="BASE", help="Also count the singular values that A + B would clip.")
@options.single_files
@options.as_json
def interfere(a: str, b: str, base: str | None, as_json: bool) -> None:
    """Say how far two deltas get in each other's way when they are added."""
    from svdiff_delta.ops.stats import interference

    (first, second), _ = open_deltas([a, b])
    sigmas = None
    if base is not None:
        model = open_reference(base, sole_component([first, second]))
        from svdiff_delta.svd.prepare import sigmas_of

        sigmas = sigmas_of(model, first) | sigmas_of(model, second)
    found = interference(first, second, sigmas)
    if as_json:
        facts = {"cosine": found.cosine, "conflicts": found.conflicts, "clipped": found.clipped}
        echo_json(facts)
        return
    echo(f"cosine             {found.cosine:.4f}")
    echo(f"opposite signs     {found.conflicts:.1%} of what both move")
    if found.clipped is not None:
        echo(f"clipped at zero    {found.clipped:,} singular values")
