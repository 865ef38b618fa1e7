"""Commands that carry changes over: to and from other dialects, and to another base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from svdiff_delta._text.printable import counted, printable

from . import devices, options
from .conversion_output import finish
from .convert_manifest import TwoForms
from .delta_output import Writing, writes, writes_delta
from .printing import echo, echo_json
from .progress import Bar
from .references import keep_apart, local_file, needs, open_reference, say, sole_component
from .wording import spelled

if TYPE_CHECKING:
    from svdiff_delta import Base, Conversion
    from svdiff_delta.conversion.result import DirectConversion
    from svdiff_delta.format.dtypes import StoredDtype
    from svdiff_delta.svd.calibration import Calibration

WRITTEN = "full, peft, diffusers, kohya, comfyui or lycoris"
READ = "full, peft, diffusers, kohya, comfyui, lycoris, flux, svdiff-pytorch, svdiff-author, transformer2 or svf"
"""Dialects as the help names them; a test compares them with the registry, which is too heavy to import for a help."""

SPELLED = ("peft", "diffusers", "kohya", "comfyui", "lycoris")
"""Dialects that an adapter can be spelled in without a delta in between."""

allow_unmatched = click.option(
    "--allow-unmatched", is_flag=True, help="Leave out what cannot be carried over, and list it."
)
layers_too = click.option("--layers", is_flag=True, help="List every parameter.")


@click.command(cls=TwoForms)
@click.argument("source", metavar="IN")
@click.option("--to", default="delta", show_default=True, metavar="DIALECT", help=f"delta, {WRITTEN}.")
@click.option("--from", "from_", metavar="DIALECT", help=f"delta, {READ} [default: what IN says it is].")
@click.option(
    "--base",
    metavar="BASE",
    help="The base that the change is a change of; from LoRA to LoRA only where names need it.",
)
@click.option("--rank", type=int, help="The rank of a low-rank copy.")
@click.option("--energy", type=float, help="Or the share of each weight's change that it must retain.")
@click.option("--max-rank", type=int, help="The most ranks for --energy.")
@click.option(
    "--min-energy", type=float, help="Fail if less of the change is captured [default: 0.1 from an adapter, else 0]."
)
@allow_unmatched
@click.option(
    "--component",
    metavar="NAME",
    help="The component of BASE that keys mean which name none, such as transformer_2 [default: the denoiser].",
)
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
@click.option(
    "--direct",
    is_flag=True,
    help="With --to full or a LoRA: make new factors of the change itself, or write all of it; no delta in between.",
)
@click.option(
    "--made-on",
    metavar="BASE",
    help="The base that an adapter was made on, if its file lacks what its program takes out of that base anew (PSOFT, "
    "OSF, FRoD, T-LoRA; a LoRA that began as PiSSA or OLoRA).",
)
@devices.device("convert", "Where --calibrate runs BASE")
@options.single_files
@layers_too
@options.stored_dtype
@writes("The file to write; with --to peft a folder.")
def convert(
    source: str,
    to: str,
    from_: str | None,
    base: str | None,
    rank: int | None,
    energy: float | None,
    max_rank: int | None,
    min_energy: float | None,
    allow_unmatched: bool,
    component: str | None,
    embeddings: bool,
    calibrate: Path | None,
    calibrate_steps: int,
    direct: bool,
    made_on: str | None,
    device: str | None,
    layers: bool,
    dtype: str | None,
    writing: Writing,
) -> None:
    """Convert a delta to LoRA or full weights, these or shifts of other programs to a delta, or LoRA to other LoRA.

    IN is a delta file, an adapter (a file, or PEFT's folder), a file that --to full wrote, or, with --from full, a
    tuned model: a pipeline's folder, a model's folder, or a safetensors file. A file may be owner/repo[/file] on the
    Hub.

    --to peft, diffusers, kohya, comfyui or lycoris keeps of each weight's change the part of the largest --rank, which
    is the best copy of that rank, and says how much of the change it retains. --to full writes all of it, computed
    before it is added to BASE. Web UIs (AUTOMATIC1111, Forge, ComfyUI) read --to kohya, and ComfyUI --to comfyui; of a
    UNet they do not read --to diffusers, which is for diffusers' own pipelines.

    From an adapter to another of these dialects there are three ways. It is spelled anew, unless an option asks for
    another way: names change, factors, alphas, ranks and number formats do not. LoHa, LoKr and DoRA too, where both
    dialects have them. --base is needed only where the keys do not tell what the base's layers are called. With
    --direct it gets new factors, the best ones of its change at --rank or --energy; so can any method, and a tuned
    model. With --rank or --energy alone it goes through a delta, which keeps what stretches BASE.

    To a delta it takes for each singular value of BASE the shift that is nearest to the change, and says how much of
    the change all of them capture. That is little where the change is not a stretching of what BASE has: of a random
    change about 1/max(M, N) for a weight of M rows and N columns. From an adapter less than a tenth is refused,
    unless --min-energy says otherwise.

    Of adapters LoRA, LoHa, LoKr and whole weights are read by their formulas, all other methods of PEFT and LyCORIS by
    these libraries' own layers, one weight of BASE at a time. --direct --to full writes the whole change.

    Shifts that other programs trained are taken over as they are: those of svdiff-pytorch (a file, or the folder of
    spectral_shifts.safetensors and spectral_shifts_te.safetensors), of the paper's author, and of Transformer².

    What cannot be carried over, such as biases, norms in most dialects and keys that no rule explains, is listed and
    fails the command, unless --allow-unmatched leaves it out.

    \b
        svdiff convert dog.safetensors --to kohya --rank 32 --base tiny -o dog-lora.safetensors
        svdiff convert dog-lora.safetensors --base tiny -o dog.safetensors
        svdiff convert kohya.safetensors --to comfyui -o comfyui.safetensors
        svdiff convert dog-model --from full --base tiny --min-energy 0.9 -o dog.safetensors
        svdiff convert spectral_shifts.safetensors --base sd15 -o old-dog.safetensors
        svdiff convert dog-loha.safetensors --to kohya --direct --rank 16 --base tiny -o dog-lora.safetensors
        svdiff convert dog-model --from full --base tiny --calibrate prompts.txt -o dog.safetensors
        svdiff convert dog-model --from full --base tiny --calibrate pictures -o dog.safetensors

    Many files, side by side, where each row of the manifest has input, output, base and options:

    \b
        svdiff convert --manifest all.yaml --jobs 4 [--report REPORT] [--force] [--dry-run] [--json] [--quiet]
    """
    through = (rank, energy, max_rank, min_energy, calibrate, made_on, embeddings or direct or None)
    if to in SPELLED and all(value is None for value in through):
        needs("torch", "torch")
        from svdiff_delta.conversion.respell import is_respelling

        if is_respelling(given := local_file(source), to, from_):
            _respell(given, source, to, base, component, writing, allow_unmatched=allow_unmatched, dtype=dtype)
            return
    if base is None:
        raise click.UsageError("Missing option '--base'.")
    model = open_reference(base)
    given = local_file(source)
    _check_output(writing, model, Path(given), calibrate, folder=to == "peft")
    shared: dict[str, Any] = {
        "to": to,
        "base": model,
        "from_": from_,
        "output": None if to == "delta" or writing.dry_run else writing.output,
        "dtype": dtype.upper() if dtype else "F32",
        "rank": rank,
        "energy": energy,
        "max_rank": max_rank,
        "allow_unmatched": allow_unmatched,
        "component": component,
        "embeddings": embeddings,
        "made_on": None if made_on is None else open_reference(made_on),
        "title": writing.title,
        "overwrite": writing.force,
    }
    found: Conversion | DirectConversion
    with Bar("converting", quiet=writing.silent) as bar:
        if direct:
            found = _directly(given, shared, min_energy, calibrate, bar)
        else:
            from svdiff_delta.conversion import convert as run

            calibration = None if calibrate is None else _calibration(model, calibrate, calibrate_steps, device)
            found = run(given, **shared, min_energy=min_energy, calibration=calibration, progress=bar)
    finish(found, source, writing, layers=layers)


def _respell(
    given: str,
    source: str,
    to: str,
    base: str | None,
    component: str | None,
    writing: Writing,
    *,
    allow_unmatched: bool,
    dtype: str | None,
) -> None:
    """Spell an adapter anew, and say what was written."""
    from svdiff_delta.conversion.respell import KEEPS_FORMATS, respell
    from svdiff_delta.errors import InputError

    if dtype is not None:
        raise InputError(KEEPS_FORMATS[0], fix=KEEPS_FORMATS[1])
    model = None if base is None else open_reference(base)
    _check_output(writing, model, Path(given), folder=to == "peft")
    found = respell(
        given,
        to=to,
        base=model,
        output=None if writing.dry_run else writing.output,
        component=component,
        title=writing.title,
        allow_unmatched=allow_unmatched,
        overwrite=writing.force,
    )
    for remark in found.remarks:
        say(f"note: {source}: {remark}", quiet=writing.silent)
    if writing.as_json:
        counts = {"modules": found.modules, "layers": found.layers, "tensors": found.tensors, "bytes": found.size}
        left = {"left_out": dict(found.left_out), "remarks": [spelled(remark) for remark in found.remarks]}
        echo_json({"output": str(writing.output), **counts, **left, "written": found.output is not None})
    elif not writing.quiet:
        for name, reason in found.left_out.items():
            echo(f"left out: {printable(name)}: {printable(reason)}")
        verb = "would write" if found.output is None else "wrote"
        layers = f"{counted(found.modules, 'module')} as {found.layers:,}" if found.modules != found.layers else ""
        what = layers or counted(found.layers, "module")
        echo(f"{verb} {writing.output}: {what}, {counted(found.tensors, 'tensor')}, {found.size:,} bytes")


@click.command()
@click.argument("delta", metavar="DELTA")
@click.option("--base", "old", required=True, metavar="OLD", help="The base that DELTA was made for.")
@click.option("--to", "new", required=True, metavar="NEW", help="The base that the result is for.")
@click.option(
    "--min-energy", type=float, default=0.0, show_default=True, help="Fail if less than this share is captured."
)
@allow_unmatched
@options.single_files
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
    finish(found, delta, writing, layers=layers)


def _directly(
    given: str, shared: dict[str, Any], min_energy: float | None, calibrate: Path | None, bar: Bar
) -> DirectConversion:
    """Convert a change without a delta in between."""
    if calibrate is not None:
        raise click.UsageError("--calibrate chooses shifts, and with --direct there are none.")
    from svdiff_delta.conversion import convert_directly

    return convert_directly(given, **shared, min_energy=min_energy or 0.0, progress=bar)


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
