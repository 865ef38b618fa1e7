"""The command that paints pictures."""

from __future__ import annotations

from pathlib import Path

import click

from . import options
from .progress import Bar
from .references import needs, open_deltas, open_reference


@click.command()
@click.argument("base", metavar="BASE")
@click.argument("deltas", metavar="[DELTA[:WEIGHT]]...", nargs=-1)
@click.option("--prompt", "prompts", multiple=True, required=True, help="What to paint; may be given several times.")
@click.option("--negative-prompt", help="What not to paint.")
@click.option("--seed", "seeds", multiple=True, type=int, default=[0], show_default=True, help="One picture per seed.")
@click.option("--steps", default=50, show_default=True, help="Denoising steps.")
@click.option("--guidance", default=7.5, show_default=True, help="Classifier-free guidance scale.")
@options.device
@options.output("The PNG to write; a labelled sheet if there are several pictures.")
@options.force
@options.quiet
def generate(
    base: str,
    deltas: tuple[str, ...],
    prompts: tuple[str, ...],
    negative_prompt: str | None,
    seeds: tuple[int, ...],
    steps: int,
    guidance: float,
    device: str,
    output: Path,
    force: bool,
    quiet: bool,
) -> None:
    """Paint pictures with BASE and a sum of deltas.

    \b
        svdiff generate tiny dog.safetensors --prompt 'a photo of a sks dog' --seed 0 --seed 1 -o dog.png
    """
    from svdiff_delta._atomic import check_output, replace_file

    check_output(output, overwrite=force)
    needs("diffusers", "train")
    opened, weights = open_deltas(deltas)
    model = open_reference(base)
    from svdiff_delta.ops import add
    from svdiff_delta.runtime import attach
    from svdiff_train.pipelines import load_pipeline
    from svdiff_train.sample import Sampling, sheet
    from svdiff_train.sample import generate as paint

    sampling = Sampling(steps=steps, guidance=guidance, negative_prompt=negative_prompt)
    pipeline = load_pipeline(model, device=device)
    if opened:
        attach(pipeline, add(*opened, weights=weights), base=model)
    with Bar("painting", quiet=quiet) as bar:
        images = paint(pipeline, [(prompt, seed) for prompt in prompts for seed in seeds], sampling, bar)
    rows = [(prompt, images[row * len(seeds) :][: len(seeds)]) for row, prompt in enumerate(prompts)]
    picture = images[0] if len(images) == 1 else sheet(rows, [f"seed {seed}" for seed in seeds])
    with replace_file(output, overwrite=force) as stream:
        picture.save(stream, "PNG")
    if not quiet:
        click.echo(f"wrote {output}: {len(images)} pictures")
