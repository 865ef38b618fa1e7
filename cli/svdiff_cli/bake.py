"""The command that bakes deltas into a full checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from svdiff_delta._text.printable import printable
from svdiff_delta.errors import DeltaError, InputError

from . import devices, options
from .printing import echo, echo_json
from .progress import Bar
from .references import keep_apart, open_deltas, open_reference, say, sole_component, split_weight
from .wording import spelled

if TYPE_CHECKING:
    from svdiff_delta.baking.bake import Loss
    from svdiff_delta.baking.plan import Plan, Unchanged
    from svdiff_delta.format.dtypes import Dtype

MUCH = 1 / 3  # of a ΔW


def check_order(base: str) -> None:
    """Raise InputError if what stands in the place of BASE is a delta, with a weight or without."""
    path, _ = split_weight(base)
    if not Path(path).is_file():
        return
    from svdiff_delta import load

    try:
        load(path)
    except DeltaError:
        return
    raise InputError(f"{base}: is a delta, and BASE stands before the deltas", fix=f"write `svdiff bake BASE {base}`")


@click.command()
@click.argument("base", metavar="BASE")
@click.argument("deltas", metavar="DELTA[:WEIGHT]...", nargs=-1, required=True)
@options.output("The folder (or file, if BASE is a file) to write.")
@options.dtype
@click.option(
    "--unchanged",
    type=click.Choice(["copy", "hardlink", "symlink"]),
    default="copy",
    show_default=True,
    help="What to do with files that are as in BASE.",
)
@devices.device("bake", "Where to compute what is new")
@options.force
@options.dry_run
@options.as_json
@options.single_files
@options.quiet
def bake(
    base: str,
    deltas: tuple[str, ...],
    output: Path,
    dtype: str | None,
    unchanged: str,
    device: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write BASE with deltas in it as a full checkpoint.

    diffusers or transformers loads it as it is. Several deltas are summed first and clipped once (Eq. 4).
    Without --dtype every weight keeps the base's number
    format. Rounding to F16 or BF16 loses a part of small changes; how much is said in the end.

    On a GPU large weights take a part of the time, and some values differ from a CPU's in the last bit.

    \b
        svdiff bake tiny dog.safetensors:0.8 -o dog-model
        svdiff bake sd15 dog.safetensors cat.safetensors:0.5 -o both --dry-run
    """
    check_order(base)
    opened, weights = open_deltas(deltas)
    model = open_reference(base, sole_component(opened))
    keep_apart(output, model, *deltas)
    place = devices.device_for("bake", device)
    from svdiff_delta.baking.bake import write_bake
    from svdiff_delta.baking.plan import plan_bake
    from svdiff_delta.svd.cache import BasisCache

    plan = plan_bake(
        model,
        list(zip(opened, weights, strict=True)),
        output,
        dtype=cast("Dtype | None", dtype.upper() if dtype else None),
        overwrite=force,
        unchanged=cast("Unchanged", unchanged),
        cache=BasisCache.beside(place),
    )
    facts = _facts(plan)
    silent = quiet or as_json
    if dry_run:
        plan.check_identity()
        echo_json({**facts, "written": False}) if as_json else _tell(facts, quiet=quiet)
        return
    with Bar("computing bases", quiet=silent) as bar:
        verified = plan.check_weights(bar).on(place)
    with Bar("baking", quiet=silent) as bar:
        baked = write_bake(plan, verified, overwrite=force, progress=bar)
    losses = {name: loss.share for name, loss in baked.losses.items()}
    if as_json:
        echo_json({**facts, "written": True, "lost": baked.loss.share, "losses": losses})
    elif not quiet:
        echo(f"wrote {output}")
        if baked.loading:
            echo(f"it is loaded with `{printable(baked.loading)}`")
        for remark in baked.remarks:
            say(f"note: {remark}")
        _tell_losses(baked.losses, baked.loss)


def _facts(plan: Plan) -> dict[str, object]:
    return {
        "output": str(plan.output),
        "parameters": len(plan.parameters),
        "files": len(plan.items),
        "rewritten": [str(item.target) for item in plan.items if item.slot],
        "bytes": plan.bytes,
        "free": plan.free,
        "memory": plan.memory,
        "bases_missing": len(plan.missing),
        "loading": plan.loading,
        "remarks": [spelled(remark) for remark in plan.remarks],
    }


def _tell(facts: dict[str, object], *, quiet: bool) -> None:
    if quiet:
        return
    echo(f"would write {facts['output']}: {facts['files']} files")
    for file in cast("list[str]", facts["rewritten"]):
        echo(f"  with new weights: {file}")
    echo(f"shifted weights  {facts['parameters']:>16,}")
    echo(f"disk needed      {facts['bytes']:>16,} bytes of {facts['free']:,} free")
    echo(f"memory, about    {facts['memory']:>16,} bytes")
    echo(f"bases to compute {facts['bases_missing']:>16,}")
    for remark in cast("list[str]", facts["remarks"]):
        say(f"note: {remark}")


def _tell_losses(losses: Mapping[str, Loss], whole: Loss) -> None:
    """Say how much of the change rounding lost, and warn where it is much."""
    if not losses:
        return
    worst = max(losses, key=lambda name: losses[name].share)
    echo(f"rounding lost {whole.share:.1%} of the change; most in {worst}, {losses[worst].share:.1%}")
    if many := sum(loss.share > MUCH for loss in losses.values()):
        say(
            f"warning: {many} of {len(losses)} weights lost more than a third of their change in rounding: "
            "use --dtype F32, or attach the delta instead of baking it"
        )
