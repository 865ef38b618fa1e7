"""The command that goes from one subject to another in steps."""

from __future__ import annotations

from pathlib import Path

import click

from svdiff_delta._text.printable import counted
from svdiff_delta.errors import InputError

from . import devices, options
from .image_inputs import check_painting, open_given, say_cut
from .printing import echo, echo_json
from .progress import Bar
from .references import keep_apart, needs, open_to_paint, say

GIF = ".gif"


@click.command()
@click.argument("base", metavar="BASE")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--prompt", required=True, help="What to paint.")
@options.negative_prompt
@click.option("--seed", type=options.SEED, default=0, show_default=True, help="Of the noise of all pictures.")
@click.option("--count", type=click.IntRange(2), default=7, show_default=True, help="Pictures on the way.")
@options.steps
@options.guidance
@options.scheduler
@options.size
@devices.device("morph")
@options.no_cuda_graphs
@options.output("The strip to write, as PNG; an animation if it ends in .gif.")
@options.force
@options.as_json
@options.quiet
def morph(
    base: str,
    a: str,
    b: str,
    prompt: str,
    negative_prompt: str | None,
    seed: int,
    count: int,
    steps: int,
    guidance: float,
    scheduler: str | None,
    size: tuple[int, int] | None,
    device: str | None,
    no_cuda_graphs: bool,
    output: Path,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Go from B (α = 0) to A (α = 1) in steps, always from the same noise.

    Two deltas are interpolated by Eq. 5 of the paper, two tuned models as W + α ΔW_A + (1 - α) ΔW_B (Fig. 11).

    \b
        svdiff morph sd15 dog.safetensors cat.safetensors --prompt 'a photo of a sks thing' -o strip.png
    """
    from svdiff_delta._util.atomic import replace_file

    check_painting(output, overwrite=force, allowed=GIF)
    needs("diffusers", "train")
    silent = quiet or as_json
    given = open_given([a, b])
    if any(each.weight != 1 for each in given):
        raise InputError("morph takes no weights: α is the weight", fix="scale a delta with `svdiff scale` first")
    model = open_to_paint(base)
    keep_apart(output, model, a, b)
    from svdiff_train.sampling.adapter_stack import part_facts
    from svdiff_train.sampling.graphed_denoiser import GraphedDenoiser
    from svdiff_train.sampling.morph import gif_bytes, strip
    from svdiff_train.sampling.morph import morph as paint
    from svdiff_train.sampling.pipelines import load_pipeline
    from svdiff_train.sampling.png import png_bytes, sampling_facts
    from svdiff_train.sampling.sample import Sampling, check_sampling

    width, height = size or (None, None)
    sampling = Sampling(
        steps=steps,
        guidance=guidance,
        negative_prompt=negative_prompt,
        scheduler=scheduler,
        height=height,
        width=width,
    )
    pipeline = load_pipeline(model, device=devices.device_for("morph", device))
    check_sampling(pipeline, sampling)
    facts = sampling_facts(pipeline, model, sampling, [prompt], [seed])
    cut = say_cut(pipeline, [prompt], quiet=silent)
    first, second = (each.part(model, quiet=silent) for each in given)
    graphs = None if no_cuda_graphs else GraphedDenoiser(pipeline, say=None if silent else say)
    with Bar("painting", quiet=silent) as bar:
        frames = paint(
            pipeline,
            model,
            first,
            second,
            prompt,
            seed=seed,
            count=count,
            sampling=sampling,
            progress=bar,
            graphs=graphs,
        )
    image = frames[0].image
    facts |= {
        "deltas": [part_facts(first, 1.0), part_facts(second, 1.0)],
        "alphas": [frame.alpha for frame in frames],
        "size": f"{image.width}x{image.height}",
    }
    label = f"{given[1].name} → {given[0].name}"
    moving = output.suffix.lower() == GIF
    raw = gif_bytes(frames, facts, label=label) if moving else png_bytes(strip(frames, label), facts)
    with replace_file(output, overwrite=force) as stream:
        stream.write(raw)
    if as_json:
        echo_json({"output": str(output), "pictures": len(frames), "cut": cut, **facts})
    elif not quiet:
        echo(f"wrote {output}: {counted(len(frames), 'picture')}")
