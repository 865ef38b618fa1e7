"""Options and arguments that several commands share, and how they are written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .progress import hush

Command = TypeVar("Command", bound=Callable[..., Any])


class LightCommand(click.Command):
    """A command without linear algebra, for which NumPy need not start threads: that takes as long as a small sum."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy reads it when it is imported
        return super().invoke(ctx)


def output(what: str, *, required: bool = True) -> Callable[[Command], Command]:
    """Return the option -o/--output."""
    return click.option("-o", "--output", required=required, type=click.Path(path_type=Path), help=what)


force = click.option(
    "--force", is_flag=True, help="Overwrite the output if it exists; a folder only if it was written so."
)
quiet = click.option("-q", "--quiet", is_flag=True, callback=hush, help="Print nothing but errors.")
as_json = click.option("--json", "as_json", is_flag=True, callback=hush, help="Print JSON for machines.")
dry_run = click.option("--dry-run", is_flag=True, help="Check everything and say what would be written.")
title = click.option("--title", help="A title for model browsers and lineages.")
dtype = click.option(
    "--dtype",
    type=click.Choice(["F32", "F16", "BF16"], case_sensitive=False),
    help="Number format of the output.",
)
stored_dtype = click.option(
    "--dtype",
    type=click.Choice(["F32", "F16", "BF16", "I8"], case_sensitive=False),
    help="Number format of the output [default: F32].",
)
sample_size = click.option(
    "--sample-size",
    type=click.IntRange(1),
    help="The width of the latents that addresses count from [default: what the file says].",
)
seed = click.option("--seed", type=click.IntRange(0, 2**53 - 1), default=0, show_default=True, help="Of all draws.")

allow_missing = click.option(
    "--allow-missing",
    is_flag=True,
    help="Leave out weights that BASE's files name otherwise than its model's class.",
)


def _kept(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep a value for `references.open_reference`, which opens every BASE of the command."""
    context.meta[f"svdiff_cli.{parameter.name}"] = value


def single_files(command: Command) -> Command:
    """Add the options that say how a BASE is read that is a single file."""
    config = click.option(
        "--base-config",
        metavar="CONFIG",
        expose_value=False,
        callback=_kept,
        help="Where the configuration of a BASE is that is a single file: a folder, or owner/repo on the Hub.",
    )
    dequantize = click.option(
        "--dequantize",
        is_flag=True,
        expose_value=False,
        callback=_kept,
        help="Read a BASE that is a quantized single file (GGUF, fp8) as float32 numbers.",
    )
    return config(dequantize(command))


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height of WIDTHxHEIGHT; raise BadParameter if it is written otherwise."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() for side in sides):
        raise click.BadParameter(f"{text!r} is not WIDTHxHEIGHT, such as 512x768.")
    return int(sides[0]), int(sides[1])


SEED = click.IntRange(0, 2**53 - 1)

steps = click.option("--steps", default=50, show_default=True, type=click.IntRange(1), help="Denoising steps.")
guidance = click.option("--guidance", default=7.5, show_default=True, help="Classifier-free guidance scale.")
own_guidance = click.option(
    "--guidance",
    type=float,
    help="Guidance scale, classifier-free or distilled as BASE has it "
    "[default: 7.5 of Stable Diffusion and Flux.1, else the pipeline's own].",
)
negative_prompt = click.option("--negative-prompt", help="What not to paint.")
eta = click.option(
    "--eta", default=0.0, show_default=True, type=click.FloatRange(0, 1), help="η of DDIM: 0 adds no noise on the way."
)
size = click.option("--size", type=parse_size, metavar="WxH", help="Of each picture, in pixels [default: the model's].")
batch_size = click.option(
    "--batch-size", default=4, show_default=True, type=click.IntRange(1), help="Pictures painted at a time."
)
no_cuda_graphs = click.option(
    "--no-cuda-graphs", is_flag=True, help="Launch every operation of the denoiser by itself on a GPU."
)
scheduler = click.option(
    "--scheduler", metavar="NAME", help="A scheduler of diffusers, such as EulerDiscrete [default: DDIM]."
)
