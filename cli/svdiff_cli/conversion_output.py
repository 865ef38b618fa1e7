"""What convert and rebase print: how much of a change was captured, what was left out, and what was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from svdiff_delta._text.printable import counted, printable

from .delta_output import Writing
from .printing import echo, echo_json
from .references import say
from .wording import spelled

if TYPE_CHECKING:
    from svdiff_delta import Conversion
    from svdiff_delta.conversion.result import DirectConversion
    from svdiff_delta.svd.energy import Energy, OutputEnergy

POOR = 0.5
"""A share of the change below which a remark says that the result is a poor copy."""


def finish(found: Conversion | DirectConversion, source: str, writing: Writing, *, layers: bool) -> None:
    """Say what was captured and what left out, and write what the library did not write."""
    if not writing.silent:
        _print_captured(found, layers=layers)
    for remark in found.remarks:
        say(f"note: {source}: {remark}", quiet=writing.silent)
    if found.captured < POOR and (found.retained or not found.ranks):
        say(
            f"note: {source}: only {found.captured:.2%} of the change is captured; the rest is no stretching of what "
            "the base has",
            quiet=writing.silent,
        )
    facts = {
        "captured": found.captured,
        "layers": {name: _facts(found, name) for name in found.layers},
        "left_out": dict(found.left_out),
        "unchanged": found.unchanged,
        "remarks": [spelled(remark) for remark in found.remarks],
    }
    if found.retained:
        from svdiff_delta.svd.energy import total_energy

        facts["retained"] = total_energy(found.retained.values()).captured
    if found.outputs:
        from svdiff_delta.svd.energy import total_output

        facts["outputs"] = {name: _output_facts(output) for name, output in found.outputs.items()}
        facts["output"] = _output_facts(total_output(found.outputs.values()))
    written = found.retained or found.layers
    delta = getattr(found, "delta", None)
    if delta is not None and found.size is None:
        writing.finish(delta, **facts)
    elif writing.as_json:
        about = {"output": str(writing.output), "parameters": len(written), "bytes": found.size}
        echo_json({**about, **facts, "written": found.output is not None})
    elif not writing.quiet:
        verb = "would write" if found.output is None else "wrote"
        echo(f"{verb} {writing.output}: {counted(len(written), 'parameter')}, {found.size:,} bytes")


def _facts(found: Conversion | DirectConversion, name: str) -> dict[str, float]:
    energy = found.layers[name]
    facts = {"norm": energy.whole**0.5, "captured": energy.captured}
    if name in found.retained:
        facts["retained"] = found.retained[name].captured
    return facts | ({"rank": found.ranks[name]} if name in found.ranks else {})


def _output_facts(output: OutputEnergy) -> dict[str, float]:
    plain, calibrated = output.shares
    return {"plain": plain, "calibrated": calibrated}


def _print_captured(found: Conversion | DirectConversion, *, layers: bool) -> None:
    """Print a table of blocks, a line for all of them, on request one for each parameter, and what was left out."""
    from svdiff_delta.ops.stats import in_blocks
    from svdiff_delta.svd.energy import total_output

    groups = [*in_blocks(found.layers).items(), ("in all", [*found.layers])]
    width = max(len(block) for block, _ in groups)
    columns = _columns(found)
    head = "".join(f"{column:>12}" for column in columns)
    echo(f"{'block':<{width}}{'parameters':>12}{'‖ΔW‖':>12}{head}")
    for block, names in groups:
        norm = _together(found.layers, names).whole ** 0.5
        shares = "".join(f"{_together(energies, names).captured:>12.2%}" for energies in columns.values())
        echo(f"{printable(block):<{width}}{len(names):>12,}{norm:>12.4g}{shares}")
    if found.outputs:
        plain, calibrated = total_output(found.outputs.values()).shares
        echo(
            f"of what the change does to the inputs of {counted(len(found.outputs), 'layer')} {calibrated:.2%} is "
            f"captured; uncalibrated it would be {plain:.2%}"
        )
    if layers:
        echo()
        for name, energy in found.layers.items():
            shares = "".join(f"{_together(energies, [name]).captured:>8.2%} " for energies in columns.values())
            rank = f"  rank {found.ranks[name]:<5}" if name in found.ranks else ""
            echo(f"{shares}of {energy.whole**0.5:<10.4g}{rank}  {printable(name)}")
    for name, reason in found.left_out.items():
        echo(f"left out: {printable(name)}: {printable(reason)}")


def _columns(found: Conversion | DirectConversion) -> dict[str, Mapping[str, Energy]]:
    """Return the shares to print: what a delta captured, what a low-rank copy retained of it, or both."""
    if found.retained:
        return {"captured": found.layers, "retained": found.retained}
    return {"retained" if found.ranks else "captured": found.layers}


def _together(energies: Mapping[str, Energy], names: Sequence[str]) -> Energy:
    """Return the energy of some parameters together; those that were left out have none."""
    from svdiff_delta.svd.energy import total_energy

    return total_energy(energies[name] for name in names if name in energies)
