"""Commands that calculate with deltas: add, interpolate, scale, slice. None of them needs torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from svdiff_delta.errors import InputError

from . import options
from .references import open_deltas, say

if TYPE_CHECKING:
    from svdiff_delta import Delta
    from svdiff_delta.codec import Dtype


@click.command(cls=options.LightCommand)
@click.argument("deltas", metavar="DELTA[:WEIGHT]...", nargs=-1, required=True)
@options.output("The delta file to write.")
@options.dtype
@options.title
@options.force
@options.dry_run
@options.as_json
@options.quiet
def add(
    deltas: tuple[str, ...],
    output: Path,
    dtype: str | None,
    title: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Add deltas: the sum of WEIGHT times δ.

    This is Eq. 4 of the paper. A WEIGHT may be negative; without one it is 1. A parameter that one delta lacks
    counts as zeros there.

    \b
        svdiff add dog.safetensors:0.8 cat.safetensors:0.5 -o both.safetensors
    """
    from svdiff_delta import ops

    opened, weights = open_deltas(deltas)
    result = ops.add(*opened, weights=weights, dtype=_dtype(dtype))
    _report_gaps(deltas, opened, result, quiet=quiet or as_json)
    _finish(result, output, title, force=force, dry_run=dry_run, as_json=as_json, quiet=quiet)


@click.command(cls=options.LightCommand)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--alpha", type=float, required=True, help="From 0 (all B) to 1 (all A).")
@options.output("The delta file to write.")
@options.dtype
@options.title
@options.force
@options.dry_run
@options.as_json
@options.quiet
def interpolate(
    a: str,
    b: str,
    alpha: float,
    output: Path,
    dtype: str | None,
    title: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Interpolate between two deltas: α δ_A + (1 − α) δ_B.

    This is Eq. 5 of the paper.

    \b
        svdiff interpolate dog.safetensors cat.safetensors --alpha 0.25 -o between.safetensors
    """
    from svdiff_delta import ops

    (first, second), weights = open_deltas([a, b])
    if weights != [1.0, 1.0]:
        raise InputError("interpolate takes no weights", fix="use --alpha, or `svdiff add` with weights")
    result = ops.interpolate(first, second, alpha, dtype=_dtype(dtype))
    _report_gaps([a, b], [first, second], result, quiet=quiet or as_json)
    _finish(result, output, title, force=force, dry_run=dry_run, as_json=as_json, quiet=quiet)


@click.command(cls=options.LightCommand)
@click.argument("delta", metavar="DELTA")
@click.option("--factor", type=float, required=True, help="What to multiply δ by; it may be negative.")
@options.output("The delta file to write.")
@options.dtype
@options.title
@options.force
@options.dry_run
@options.as_json
@options.quiet
def scale(
    delta: str,
    factor: float,
    output: Path,
    dtype: str | None,
    title: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Multiply a delta by a factor.

    \b
        svdiff scale dog.safetensors --factor 0.5 -o half.safetensors
    """
    from svdiff_delta import load, ops

    result = ops.scale(load(delta), factor, dtype=_dtype(dtype))
    _finish(result, output, title, force=force, dry_run=dry_run, as_json=as_json, quiet=quiet)


@click.command("slice", cls=options.LightCommand)
@click.argument("delta", metavar="DELTA")
@click.argument("selectors", metavar="SELECTOR...", nargs=-1, required=True)
@options.output("The delta file to write.")
@options.title
@options.force
@options.dry_run
@options.as_json
@options.quiet
def slice_(
    delta: str,
    selectors: tuple[str, ...],
    output: Path,
    title: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Keep the part of a delta that a SELECTOR names.

    Values and number formats stay as they are. A SELECTOR is one of the paper's subsets (unet, unet-ca, unet-
    ca-kv, unet-1d, unet-2d, unet-4d, up, down, mid,
    up-ca, down-ca, mid-ca), a parameter name, or a glob over parameter names.

    \b
        svdiff slice dog.safetensors unet-ca -o attention.safetensors
        svdiff slice dog.safetensors 'unet.mid_block.*' up -o part.safetensors
    """
    from svdiff_delta.file import load
    from svdiff_delta.select import select

    result = select(load(delta), *selectors)
    _finish(result, output, title, force=force, dry_run=dry_run, as_json=as_json, quiet=quiet)


def _dtype(name: str | None) -> Dtype:
    return cast("Dtype", name.upper() if name else "F32")


def _report_gaps(references: Sequence[str], deltas: Sequence[Delta], result: Delta, *, quiet: bool) -> None:
    """Say which inputs lack parameters, which count as zeros there."""
    for reference, delta in zip(references, deltas, strict=True):
        if lacking := len(result) - len(delta):
            say(f"note: {reference} lacks {lacking} of {len(result)} parameters; they count as zeros", quiet=quiet)


def _finish(
    result: Delta, output: Path, title: str | None, *, force: bool, dry_run: bool, as_json: bool, quiet: bool
) -> None:
    """Write the result, or only check that it could be written, and say what it is."""
    from svdiff_delta._atomic import check_output
    from svdiff_delta.file import dumps, save

    if title is not None:
        result = result.with_title(title)
    if dry_run:
        check_output(output, overwrite=force)
        size = len(dumps(result))
    else:
        save(result, output, overwrite=force)
        size = output.stat().st_size
    numbers = sum(parameter.size for parameter in result.metadata.parameters.values())
    if as_json:
        facts = {"output": str(output), "parameters": len(result), "numbers": numbers, "bytes": size}
        click.echo(json.dumps({**facts, "written": not dry_run}))
    elif not quiet:
        verb = "would write" if dry_run else "wrote"
        click.echo(f"{verb} {output}: {len(result)} parameters, {numbers:,} numbers, {size:,} bytes")
