"""Commands that run a model: train, generate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options
from .progress import Bar
from .references import needs, open_deltas, open_reference, say

if TYPE_CHECKING:
    from svdiff_delta import Base
    from svdiff_train.config import TrainConfig
    from svdiff_train.loop import Outcome, Watch

INTERRUPTED = 130


@click.command()
@click.argument("base", metavar="BASE")
@click.argument("images", metavar="IMAGES", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="Describes the pictures, with a rare token: 'a photo of a V1 dog'.")
@click.option("--class-prompt", help="Describes the class, 'a photo of a dog'; turns prior preservation on.")
@click.option("--select", "selectors", multiple=True, default=["unet"], show_default=True, help="What is shifted.")
@click.option("--steps", default=500, show_default=True, help="Optimizer steps.")
@click.option("--batch-size", default=1, show_default=True, help="Pictures of the subject per step.")
@click.option("--learning-rate", default=1e-3, show_default=True, help="Of shifts of singular values.")
@click.option("--learning-rate-1d", default=1e-6, show_default=True, help="Of shifts of norm weights.")
@click.option("--prior-weight", default=1.0, show_default=True, help="λ of Eq. 3.")
@click.option("--class-images", default=200, show_default=True, help="Pictures of the class to generate.")
@click.option("--resolution", type=click.IntRange(8), help="Side of the pictures in pixels [default: the model's].")
@click.option("--mixed-precision", type=click.Choice(["no", "fp16", "bf16"]), default="no", show_default=True)
@options.seed
@options.output("The delta file to write.")
@options.title
@options.force
@options.quiet
def train(base: str, images: Path, output: Path, title: str | None, force: bool, quiet: bool, **settings: Any) -> None:
    """Train a delta from a few pictures in a folder.

    This is DreamBooth on spectral shifts (Eq. 1 and 3 of the paper). Ctrl-C ends the run after the current step
    and saves what it has.

    \b
        svdiff train tiny pictures --prompt 'a photo of a sks dog' --class-prompt 'a photo of a dog' -o dog.safetensors
    """
    from svdiff_delta._atomic import check_output

    check_output(output, overwrite=force)
    needs("diffusers", "train")
    model = open_reference(base)
    from svdiff_delta.file import save
    from svdiff_train.config import TrainConfig

    outcome = run_training(model, images, TrainConfig(**settings), quiet=quiet)
    save(outcome.delta.with_title(title), output, overwrite=force)
    if outcome.interrupted:
        say(f"interrupted: saved the state after {outcome.steps} steps to {output}")
        sys.exit(INTERRUPTED)
    if not quiet:
        click.echo(f"wrote {output}: {outcome.steps} steps, {output.stat().st_size:,} bytes")


def run_training(base: Base, images: Path, config: TrainConfig, *, quiet: bool) -> Outcome:
    """Train with a progress bar."""
    from svdiff_train.loop import train

    with Bar("loading", quiet=quiet) as bar:
        return train(base, images, config, watch=watch_with(bar))


def watch_with(bar: Bar) -> Watch:
    """Let a bar show bases, then pictures of the class, then steps with their loss."""
    from svdiff_train.loop import Watch

    return Watch(
        basis=lambda done, total: bar(done, total, label="computing bases"),
        class_images=lambda done, total: bar(done, total, label="painting the class"),
        step=lambda done, total, loss: bar(done, total, f"loss {loss:.4f}", label="training"),
    )


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
