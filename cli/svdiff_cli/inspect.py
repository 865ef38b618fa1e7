"""Commands that look at a delta: info, verify."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svdiff_delta._text.printable import counted, plain, printable

from . import options
from .printing import echo, echo_json
from .progress import Bar
from .references import local_file, open_reference, sole_component

if TYPE_CHECKING:
    from svdiff_delta import Delta


@click.command(cls=options.LightCommand)
@click.argument("delta", metavar="DELTA")
@click.option("--layers", is_flag=True, help="List every parameter.")
@options.as_json
def info(delta: str, layers: bool, as_json: bool) -> None:
    """Say what is in a delta file.

    Its base, its size, its layers, how it was made.
    """
    from svdiff_delta.io import load

    facts = _facts(load(delta), layers=layers or as_json)
    if as_json:
        echo_json(facts, indent=2)
        return
    for key, value in facts.items():
        if key not in ("layers", "blocks") and value not in (None, {}, ""):
            echo(f"{key:<11} {plain(value)}")
    _print_blocks(facts["blocks"])
    if layers:
        echo()
        for name, layer in facts["layers"].items():
            shape = "×".join(map(str, layer["shape"]))
            echo(f"{name}  {layer['kind']} {shape}, {layer['numbers']} numbers, norm {layer['norm']:.4g}")


def _print_blocks(blocks: dict[str, dict[str, float]]) -> None:
    width = max(map(len, blocks))
    echo(f"\n{'block':<{width}}{'parameters':>12}{'numbers':>10}{'norm':>12}{'largest |δ|':>13}")
    for block, row in blocks.items():
        numbers = f"{row['parameters']:>12,}{row['numbers']:>10,}"
        echo(f"{printable(block):<{width}}{numbers}{row['norm']:>12.4g}{row['largest']:>13.4g}")


@click.command(cls=options.LightCommand)
@click.argument("delta", metavar="DELTA")
@options.as_json
def lineage(delta: str, as_json: bool) -> None:
    """Draw how a delta was made, as a tree of operations down to trained files."""
    from svdiff_delta.format.lineage import dump_lineage
    from svdiff_delta.io import load
    from svdiff_delta.ops.lineage_tree import draw

    metadata = load(delta).metadata
    if as_json:
        echo_json(dump_lineage(metadata.lineage) if metadata.lineage else None)
        return
    for line in draw(metadata, title=delta):
        echo(line)


@click.command()
@click.argument("delta", metavar="DELTA")
@click.option("--base", metavar="BASE", help="Also check that it fits this base: fingerprints, tied and null runs.")
@click.option(
    "--replay",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Also do again what its lineage says, from inputs in DIR, and compare the bytes.",
)
@options.as_json
@options.single_files
@options.quiet
def verify(delta: str, base: str | None, folder: Path | None, as_json: bool, quiet: bool) -> None:
    """Check a delta file.

    Every byte of it by the rules of the format, with --base that it fits the base, and with --replay that it is what
    its lineage says: the operation is done again, from inputs that are found in DIR by their SHA-256, and has to give
    the same bytes.

    \b
        svdiff verify both.safetensors --replay deltas/
    """
    from svdiff_delta.io import load

    opened = load(delta)
    for name in opened:
        opened[name]  # reading checks it
    if base is not None:
        _check_fit(opened, base, quiet=quiet or as_json)
    facts: dict[str, Any] = {"valid": True, "fits": base is not None or None, "parameters": len(opened)}
    if folder is not None:
        facts["replayed"] = _replayed(delta, folder)
    if as_json:
        echo_json(facts)
    elif not quiet:
        said = [f"{delta}: valid, {counted(len(opened), 'parameter')}"]
        said += [f"fits {base}"] if base else []
        said += [_replay_line(facts["replayed"])] if folder is not None else []
        echo(", ".join(said))


def _replayed(delta: str, folder: Path) -> dict[str, Any]:
    """Return which inputs were found and which made again; raise InputError if the file comes out different."""
    from svdiff_delta.errors import InputError
    from svdiff_delta.ops.replay import replay

    outcome = replay(Path(local_file(delta)), folder)
    if not outcome.same:
        raise InputError(f"{delta}: what its lineage says gives another file ({outcome.difference})")
    return {"inputs": {sha256: str(path) for sha256, path in outcome.found.items()}, "made": list(outcome.made)}


def _replay_line(replayed: dict[str, Any]) -> str:
    found, made = len(replayed["inputs"]), len(replayed["made"])
    between = f", {made} files between made again" if made else ""
    return f"the same bytes when replayed from {found} inputs{between}"


def _check_fit(delta: Delta, reference: str, *, quiet: bool) -> None:
    base = open_reference(reference, sole_component([delta]))
    from svdiff_delta.svd.cache import BasisCache
    from svdiff_delta.svd.verify import prepare_base

    with Bar("checking against the base", quiet=quiet) as bar:
        prepare_base(base, [delta], BasisCache(), bar)


def _facts(delta: Delta, *, layers: bool) -> dict[str, Any]:
    import numpy as np

    from svdiff_delta.ops.stats import by_block

    metadata = delta.metadata
    norms = {name: float(np.linalg.norm(delta[name].astype("f8"))) for name in delta}
    parameters = metadata.parameters
    dims = {f"{dim}D": 0 for dim in (1, 2, 3, 4, 5)}
    for parameter in parameters.values():
        dims[f"{len(parameter.shape)}D"] = dims.get(f"{len(parameter.shape)}D", 0) + parameter.size
    facts: dict[str, Any] = {
        "title": metadata.title,
        "base": " ".join(filter(None, [metadata.base.repository, metadata.base.revision])) or "not named",
        "components": dict(metadata.base.components),
        "parameters": len(delta),
        "numbers": sum(parameter.size for parameter in parameters.values()),
        "by kind": {dim: count for dim, count in dims.items() if count},
        "dtype": ", ".join(sorted({delta.dtype_of(name) for name in delta})),
        "norm": float(np.linalg.norm(list(norms.values()))),
        "largest": max((float(np.abs(delta[name]).max(initial=0)) for name in delta), default=0.0),
        "made by": metadata.lineage.record.operation if metadata.lineage else None,
        "training": dict(metadata.training) if metadata.training else None,
    }
    facts["blocks"] = {block: asdict(summary) for block, summary in by_block(delta).items()}
    if layers:
        facts["layers"] = {
            name: {
                "kind": parameter.kind,
                "shape": list(parameter.shape),
                "numbers": parameter.size,
                "norm": norms[name],
                "dtype": delta.dtype_of(name),
                "fingerprint": parameter.fingerprint,
                "tied": [list(run) for run in parameter.tied],
                "null": parameter.null,
            }
            for name, parameter in parameters.items()
        }
    return facts
