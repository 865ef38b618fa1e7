"""Commands that calculate with deltas. None of them needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import click

from svdiff_delta.errors import InputError

from . import options
from .delta_output import Writing, writes_delta
from .references import open_deltas, say, split_weight

if TYPE_CHECKING:
    from svdiff_delta import Delta
    from svdiff_delta.format.dtypes import StoredDtype
    from svdiff_delta.ops.weights import Weight


@click.command(cls=options.LightCommand)
@click.argument("deltas", metavar="DELTA[:WEIGHT]...", nargs=-1, required=True)
@click.option(
    "--where",
    "places",
    metavar="SELECTOR=W,W,...",
    multiple=True,
    help="Other weights, one per DELTA, for what SELECTOR names; may be given several times, the last one counts.",
)
@options.sample_size
@options.stored_dtype
@writes_delta
def add(
    deltas: tuple[str, ...], places: tuple[str, ...], sample_size: int | None, dtype: str | None, writing: Writing
) -> None:
    """Add deltas: the sum of WEIGHT times δ.

    This is Eq. 4 of the paper. A WEIGHT may be negative; without one it is 1. A parameter that one delta lacks counts
    as zeros there.

    \b
        svdiff add dog.safetensors:0.8 cat.safetensors:0.5 -o both.safetensors
        svdiff add a.safetensors b.safetensors --where unet-ca=1,0 --where unet-4d=0,1 -o mixed.safetensors

    Geometry from one, appearance from the other (Fig. 10 of the paper, in SD 1.5):

    \b
        svdiff add shape.safetensors:0 look.safetensors:1 --where '(16,down,1)-(8,down,0)=1,0' -o mixed.safetensors
    """
    from svdiff_delta.ops import arithmetic

    pairs = [split_weight(reference) for reference in deltas]
    weights = _weights([weight for _, weight in pairs], places)
    sizes: list[int] = []
    opened = _opened([path for path, _ in pairs], weights, sizes)
    result = arithmetic.add_all(opened, dtype=_dtype(dtype), sample_size=sample_size)
    _report_gaps(deltas, sizes, len(result), quiet=writing.silent)
    writing.finish(result)


def _opened(paths: Sequence[str], weights: Sequence[Weight], sizes: list[int]) -> Iterator[tuple[Delta, Weight]]:
    """Open one delta after the other, and note how many parameters each has."""
    from svdiff_delta.io import load

    for path, weight in zip(paths, weights, strict=True):
        delta = load(path)
        sizes.append(len(delta))
        yield delta, weight


def _weights(defaults: Sequence[float], places: Sequence[str]) -> list[Weight]:
    """Return a weight per delta from the numbers behind their names and the --where options."""
    from svdiff_delta.ops.weights import Weight

    where: list[dict[str, float]] = [{} for _ in defaults]
    for place in places:
        selector, _, numbers = place.rpartition("=")
        try:
            factors = [float(number) for number in numbers.split(",")]
        except ValueError:
            factors = []
        if not selector or len(factors) != len(defaults):
            raise InputError(
                f"--where {place}: must give {len(defaults)} weights",
                fix="write SELECTOR=W,W with one W per DELTA",
            )
        for mapping, factor in zip(where, factors, strict=True):
            mapping[selector] = factor
    return [Weight(default, mapping) for default, mapping in zip(defaults, where, strict=True)]


@click.command(cls=options.LightCommand)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--alpha", type=float, required=True, help="From 0 (all B) to 1 (all A).")
@options.stored_dtype
@writes_delta
def interpolate(a: str, b: str, alpha: float, dtype: str | None, writing: Writing) -> None:
    """Interpolate between two deltas: α δ_A + (1 − α) δ_B.

    This is Eq. 5 of the paper.

    \b
        svdiff interpolate dog.safetensors cat.safetensors --alpha 0.25 -o between.safetensors
    """
    from svdiff_delta.ops import arithmetic

    (first, second), weights = open_deltas([a, b])
    if weights != [1.0, 1.0]:
        raise InputError("interpolate takes no weights", fix="use --alpha, or `svdiff add` with weights")
    result = arithmetic.interpolate(first, second, alpha, dtype=_dtype(dtype))
    _report_gaps([a, b], [len(first), len(second)], len(result), quiet=writing.silent)
    writing.finish(result)


@click.command(cls=options.LightCommand)
@click.argument("delta", metavar="DELTA")
@click.option("--factor", type=float, required=True, help="What to multiply δ by; it may be negative.")
@options.stored_dtype
@writes_delta
def scale(delta: str, factor: float, dtype: str | None, writing: Writing) -> None:
    """Multiply a delta by a factor.

    \b
        svdiff scale dog.safetensors --factor 0.5 -o half.safetensors
    """
    from svdiff_delta import load
    from svdiff_delta.ops import arithmetic

    writing.finish(arithmetic.scale(load(delta), factor, dtype=_dtype(dtype)))


@click.command("slice", cls=options.LightCommand)
@click.argument("delta", metavar="DELTA")
@click.argument("selectors", metavar="SELECTOR...", nargs=-1, required=True)
@options.sample_size
@writes_delta
def slice_(delta: str, selectors: tuple[str, ...], sample_size: int | None, writing: Writing) -> None:
    """Keep the part of a delta that a SELECTOR names.

    Values and number formats stay as they are. A SELECTOR is

    \b
        a subset      unet, unet-ca, unet-ca-kv, unet-1d, unet-2d, unet-4d, up, down, mid, up-ca, down-ca, mid-ca
                      (the paper's twelve); attn, ca (cross-attention), kv (keys and values), ca-kv, mlp, 1D, 2D,
                      4D, conv, each in all components, or behind unet-, transformer-, text-, text-1- or the name
                      of a component; transformer (both, where there are two), text, text-1, text-2, text-3
        a block       down.1, up.0; block.3, block.3-7, transformer-block.3
        an address    (16,down,1), or a range (16,down,1)-(8,down,0), as in Fig. 10 of the paper
        a glob        'unet.mid_block.*'
        a name        unet.conv_in.weight
        the rest      any of these with ! in front takes away what it names

    \b
        svdiff slice dog.safetensors unet-ca -o attention.safetensors
        svdiff slice dog.safetensors '(16,down,1)-(8,down,0)' -o geometry.safetensors
        svdiff slice cat.safetensors '!(16,down,1)-(8,down,0)' -o appearance.safetensors
    """
    from svdiff_delta.io import load
    from svdiff_delta.ops.select import select

    writing.finish(select(load(delta), *selectors, sample_size=sample_size))


@click.command(cls=options.LightCommand)
@click.argument("delta", metavar="DELTA")
@click.option("--rank", type=int, help="How many shifts each spectral parameter keeps.")
@click.option("--energy", type=float, help="The share of the sum of squares that each spectral parameter keeps.")
@writes_delta
def truncate(delta: str, rank: int | None, energy: float | None, writing: Writing) -> None:
    """Keep only the largest |δ| of each weight.

    Norm weights stay as they are. What counts is |δ|, not the change max(δ, −σ) of the singular value.

    \b
        svdiff truncate dog.safetensors --rank 16 -o rank16.safetensors
    """
    from svdiff_delta import load
    from svdiff_delta.ops.truncate import truncate as run

    writing.finish(run(load(delta), rank=rank, energy=energy))


@click.command(cls=options.LightCommand)
@click.argument("delta", metavar="DELTA")
@click.option(
    "--dtype",
    type=click.Choice(["I8", "F16", "BF16", "F32"], case_sensitive=False),
    default="I8",
    show_default=True,
    help="The number format to round to; F32 converts back.",
)
@click.option(
    "--max-error",
    default=0.02,
    show_default=True,
    help="A parameter that would lose more than this share of its norm gets the next wider format.",
)
@writes_delta
def quantize(delta: str, dtype: str, max_error: float, writing: Writing) -> None:
    """Round a delta to a smaller number format, and say what it loses.

    I8 counts in steps that 64 neighbours share.

    \b
        svdiff quantize dog.safetensors -o small.safetensors
    """
    from svdiff_delta import load
    from svdiff_delta.ops.quantize import quantize as run
    from svdiff_delta.ops.stats import relative_difference

    original = load(delta)
    result = run(original, cast("StoredDtype", dtype.upper()), max_error=max_error)
    whole, worst, name = relative_difference(original, result)
    wider = sum(result.dtype_of(key) not in (dtype.upper(), original.dtype_of(key)) for key in result)
    say(f"relative error {whole:.2%} in all, at most {worst:.2%} ({name})", quiet=writing.silent)
    if wider:
        say(f"{wider} of {len(result)} parameters got a wider format than {dtype.upper()}", quiet=writing.silent)
    writing.finish(result, error=whole, worst={"parameter": name, "error": worst}, wider=wider)


def _dtype(name: str | None) -> StoredDtype:
    return cast("StoredDtype", name.upper() if name else "F32")


def _report_gaps(references: Sequence[str], sizes: Sequence[int], count: int, *, quiet: bool) -> None:
    """Say which inputs lack parameters, which count as zeros there."""
    for reference, size in zip(references, sizes, strict=True):
        if lacking := count - size:
            say(f"note: {reference} lacks {lacking} of {count} parameters; they count as zeros", quiet=quiet)
