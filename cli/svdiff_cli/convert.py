"""Commands that carry changes over: to and from other dialects, and to another base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from svdiff_delta._text.printable import counted, printable

from . import devices, options
from .convert_manifest import TwoForms
from .delta_output import Writing, writes, writes_delta
from .printing import echo, echo_json
from .progress import Bar
from .references import keep_apart, local_file, needs, open_reference, say, sole_component
from .wording import spelled

if TYPE_CHECKING:
    from svdiff_delta import Base, Conversion
    from svdiff_delta.format.dtypes import StoredDtype
    from svdiff_delta.svd.calibration import Calibration
    from svdiff_delta.svd.energy import Energy, OutputEnergy

WRITTEN = "full, peft, diffusers, kohya or lycoris"
READ = "full, peft, diffusers, kohya, lycoris, flux, svdiff-pytorch, svdiff-author, transformer2 or svf"
"""Dialects as the help names them; a test compares them with the registry, which is too heavy to import for a help."""

POOR = 0.5
"""A share of the change below which a remark says that the result is a poor copy."""

allow_unmatched = click.option(
    "--allow-unmatched", is_flag=True, help="Leave out what cannot be carried over, and list it."
)
layers_too = click.option("--layers", is_flag=True, help="List every parameter.")


@click.command(cls=TwoForms)
@click.argument("source", metavar="IN")
@click.option("--to", default="delta", show_default=True, metavar="DIALECT", help=f"delta, {WRITTEN}.")
@click.option("--from", "from_", metavar="DIALECT", help=f"delta, {READ} [default: what IN says it is].")
@click.option("--base", required=True, metavar="BASE", help="The base that the change is a change of.")
@click.option("--rank", type=int, help="The rank of a low-rank copy.")
@click.option("--energy", type=float, help="Or the share of each weight's change that it must retain.")
@click.option("--max-rank", type=int, help="The most ranks for --energy.")
@click.option(
    "--min-energy", type=float, help="Fail if less of the change is captured [default: 0.1 from an adapter, else 0]."
)
@allow_unmatched
@click.option("--embeddings", is_flag=True, help="Shift embeddings too, where they changed.")
@click.option(
    "--calibrate",
    metavar="PROMPTS.txt|FOLDER",
    type=click.Path(path_type=Path),
    help="Choose shifts that do to the layers' inputs what the change does, measured while BASE paints these prompts, "
    "one per line, or sees the noised pictures of a folder with their captions, as svdiff train reads it. A language "
    "model reads the lines.",
)
@click.option(
    "--calibrate-steps",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Denoising steps of each prompt, or timesteps of each picture.",
)
@devices.device("convert", "Where --calibrate runs BASE")
@layers_too
@options.stored_dtype
@writes("The file to write; with --to peft a folder.")
def convert(
    source: str,
    to: str,
    from_: str | None,
    base: str,
    rank: int | None,
    energy: float | None,
    max_rank: int | None,
    min_energy: float | None,
    allow_unmatched: bool,
    embeddings: bool,
    calibrate: Path | None,
    calibrate_steps: int,
    device: str | None,
    layers: bool,
    dtype: str | None,
    writing: Writing,
) -> None:
    """Convert a delta to LoRA or full weights, or these or shifts of other programs to a delta.

    IN is a delta file, an adapter (a file, or PEFT's folder), a file that --to full wrote, or, with --from full, a
    tuned model: a pipeline's folder, a model's folder, or a safetensors file. A file may be owner/repo[/file] on the
    Hub.

    --to peft, diffusers, kohya or lycoris keeps of each weight's change the part of the largest --rank, which is the
    best copy of that rank, and says how much of the change it retains. --to full writes all of it, computed before it
    is added to BASE. Web UIs (AUTOMATIC1111, Forge, ComfyUI) read --to kohya; of a UNet they do not read --to
    diffusers, which is for diffusers' own pipelines.

    To a delta it takes for each singular value of BASE the shift that is nearest to the change, and says how much of
    the change all of them capture. That is little where the change is not a stretching of what BASE has: of a random
    change about 1/max(M, N) for a weight of M rows and N columns. From an adapter less than a tenth is refused,
    unless --min-energy says otherwise.

    Shifts that other programs trained are taken over as they are: those of svdiff-pytorch (a file, or the folder of
    spectral_shifts.safetensors and spectral_shifts_te.safetensors), of the paper's author, and of Transformer².

    What cannot be carried over, such as biases, norms in most dialects and keys that no rule explains, is listed and
    fails the command, unless --allow-unmatched leaves it out.

    \b
        svdiff convert dog.safetensors --to kohya --rank 32 --base tiny -o dog-lora.safetensors
        svdiff convert dog-lora.safetensors --base tiny -o dog.safetensors
        svdiff convert dog-model --from full --base tiny --min-energy 0.9 -o dog.safetensors
        svdiff convert spectral_shifts.safetensors --base sd15 -o old-dog.safetensors
        svdiff convert dog-model --from full --base tiny --calibrate prompts.txt -o dog.safetensors
        svdiff convert dog-model --from full --base tiny --calibrate pictures -o dog.safetensors

    Many files, side by side, where each row of the manifest has input, output, base and options:

    \b
        svdiff convert --manifest all.yaml --jobs 4 [--report REPORT] [--force] [--dry-run] [--json] [--quiet]
    """
    model = open_reference(base)
    given = local_file(source)
    _check_output(writing, model, Path(given), calibrate, folder=to == "peft")
    from svdiff_delta.conversion import convert as run

    with Bar("converting", quiet=writing.silent) as bar:
        found = run(
            given,
            to=to,
            base=model,
            from_=from_,
            output=None if to == "delta" or writing.dry_run else writing.output,
            dtype=cast("StoredDtype", dtype.upper() if dtype else "F32"),
            rank=rank,
            energy=energy,
            max_rank=max_rank,
            min_energy=min_energy,
            allow_unmatched=allow_unmatched,
            embeddings=embeddings,
            calibration=None if calibrate is None else _calibration(model, calibrate, calibrate_steps, device),
            title=writing.title,
            overwrite=writing.force,
            progress=bar,
        )
    _finish(found, source, writing, layers=layers)


@click.command()
@click.argument("delta", metavar="DELTA")
@click.option("--base", "old", required=True, metavar="OLD", help="The base that DELTA was made for.")
@click.option("--to", "new", required=True, metavar="NEW", help="The base that the result is for.")
@click.option(
    "--min-energy", type=float, default=0.0, show_default=True, help="Fail if less than this share is captured."
)
@allow_unmatched
@layers_too
@options.stored_dtype
@writes_delta
def rebase(
    delta: str,
    old: str,
    new: str,
    min_energy: float,
    allow_unmatched: bool,
    layers: bool,
    dtype: str | None,
    writing: Writing,
) -> None:
    """Carry a delta over to another base, such as a newer revision of its own.

    For each singular value of NEW it takes the shift that is nearest to what DELTA changes in OLD, and says how much
    of the change all of them capture. Where both have the same weight the shift stays as it is, bit for bit.

    \b
        svdiff rebase dog.safetensors --base sd15 --to sd15-inpainting --allow-unmatched -o dog-inpainting.safetensors
    """
    from svdiff_delta.io import load

    opened = load(delta)
    component = sole_component([opened])
    bases = [open_reference(old, component), open_reference(new, component)]
    _check_output(writing, *bases)
    from svdiff_delta.conversion.rebase import rebase as run

    with Bar("rebasing", quiet=writing.silent) as bar:
        found = run(
            opened,
            *bases,
            dtype=cast("StoredDtype", dtype.upper() if dtype else "F32"),
            min_energy=min_energy,
            allow_unmatched=allow_unmatched,
            progress=bar,
        )
    _finish(found, delta, writing, layers=layers)


def _calibration(model: Base, path: Path, steps: int, device: str | None) -> Calibration:
    """Return what runs BASE on prompts or pictures; it is loaded when the input is found to be one to calibrate."""
    needs("diffusers", "train")
    from svdiff_train.calibrate import calibration_from

    return calibration_from(path, model, steps=steps, device=devices.device_for("convert", device))


def _check_output(writing: Writing, *inputs: Base | Path | None, folder: bool = False) -> None:
    """Refuse an output that exists, or is what it would be made of, before anything is calculated."""
    from svdiff_delta._util.atomic import check_output

    check_output(writing.output, overwrite=writing.force, folder=folder)
    keep_apart(writing.output, *inputs)


def _finish(found: Conversion, source: str, writing: Writing, *, layers: bool) -> None:
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
    if found.size is None:
        writing.finish(found.delta, **facts)
    elif writing.as_json:
        about = {"output": str(writing.output), "parameters": len(written), "bytes": found.size}
        echo_json({**about, **facts, "written": found.output is not None})
    elif not writing.quiet:
        verb = "would write" if found.output is None else "wrote"
        echo(f"{verb} {writing.output}: {counted(len(written), 'parameter')}, {found.size:,} bytes")


def _facts(found: Conversion, name: str) -> dict[str, float]:
    energy = found.layers[name]
    facts = {"norm": energy.whole**0.5, "captured": energy.captured}
    if name in found.retained:
        facts["retained"] = found.retained[name].captured
    return facts | ({"rank": found.ranks[name]} if name in found.ranks else {})


def _output_facts(output: OutputEnergy) -> dict[str, float]:
    plain, calibrated = output.shares
    return {"plain": plain, "calibrated": calibrated}


def _print_captured(found: Conversion, *, layers: bool) -> None:
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


def _columns(found: Conversion) -> dict[str, Mapping[str, Energy]]:
    """Return the shares to print: what a delta captured, what a low-rank copy retained of it, or both."""
    if found.retained:
        return {"captured": found.layers, "retained": found.retained}
    return {"retained" if found.ranks else "captured": found.layers}


def _together(energies: Mapping[str, Energy], names: Sequence[str]) -> Energy:
    """Return the energy of some parameters together; those that were left out have none."""
    from svdiff_delta.svd.energy import total_energy

    return total_energy(energies[name] for name in names if name in energies)
