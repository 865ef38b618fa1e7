"""`python -m tools.build_tiny.build`: make the embedded base from the two emoji packages."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from svdiff_train.tiny import base_path
from svdiff_train.training.threads import computing

from .adopt import adopt
from .assemble import Watch, draw, export, pipeline, sheet, trained_unet
from .bank import CALM_SCENES, both_banks, calm_bank
from .by_clock import BY_CLOCK, add_options
from .card import SAMPLES, write_card
from .clip import ClipImageTask, ClipTask, best_clip
from .fetch import fetch
from .loop import Recipe, Run
from .portraits import paint_portraits
from .scenes import load_sprites
from .tokenizer import build_tokenizer
from .unet import UNetTask, number, prepare
from .vae import DecoderTask, VaeTask

CLIP_RECIPE = Recipe(steps=1_200, rate=1e-3, decay=300, measure_every=200, betas=(0.9, 0.98), ema=0.998)
VAE_RECIPE = Recipe(steps=5_000, rate=2e-3, decay=1_200, measure_every=500)
DECODER_RECIPE = Recipe(steps=4_000, rate=1e-3, decay=2_000, measure_every=500)
IMAGE_RECIPE = Recipe(steps=1_500, rate=6e-4, decay=1_000, measure_every=250, betas=(0.9, 0.98), ema=0.998)
UNET_RECIPE = Recipe(steps=60_000, rate=7e-4, warmup=500, decay=8_000, measure_every=2_000, ema=0.9995)


def _fetch(args: argparse.Namespace) -> None:
    fetch(args.work / "npm")


def _paint(args: argparse.Namespace) -> None:
    both_banks(args.work, args.threads, args.scenes)
    number(args.work, calm_bank(args.work, args.threads, args.scenes))


def _clip(args: argparse.Namespace) -> None:
    task = ClipTask(*both_banks(args.work), build_tokenizer())
    Run(task, CLIP_RECIPE, args.work / "runs").go()


def _vae(args: argparse.Namespace) -> None:
    Run(VaeTask(*both_banks(args.work)), VAE_RECIPE, args.work / "runs").go()


def _decoder(args: argparse.Namespace) -> None:
    runs = args.work / "runs"
    Run(DecoderTask(*both_banks(args.work), runs), DECODER_RECIPE, runs).go()


def _clip_image(args: argparse.Namespace) -> None:
    runs = args.work / "runs"
    Run(ClipImageTask(*both_banks(args.work), build_tokenizer(), runs), IMAGE_RECIPE, runs).go()


def _latents(args: argparse.Namespace) -> None:
    prepare(args.work, calm_bank(args.work))


def _unet(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    changes = {key: getattr(args, key) for key in ("steps", "decay") if getattr(args, key) is not None}
    run = Run(UNetTask(args.work, judge=Watch(args.work)), replace(UNET_RECIPE, **changes), args.work / "runs")
    if args.threads > 1:
        run.share(partial(UNetTask, args.work))
    run.go()


def _portraits(args: argparse.Namespace) -> None:
    paint_portraits(load_sprites(args.work / "npm"), args.out)


def _adopt(args: argparse.Namespace) -> None:
    adopt(args.base or base_path(), args.work)


def _export(args: argparse.Namespace) -> None:
    export(args.work, args.out)


def _card(args: argparse.Namespace) -> None:
    runs = args.work / "runs"
    pipe = pipeline(args.work, trained_unet(runs))
    pipe.to(args.device or "cpu")
    sheet(draw(pipe, SAMPLES), across=5, zoom=3).save(args.out / "samples.png")
    parts = [pipe.unet, pipe.vae, best_clip(runs, pipe.tokenizer)]
    weights = sum(weight.numel() for part in parts for weight in part.parameters())
    write_card(args.out, runs, args.figures, weights)


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "fetch": _fetch,
    "clip": _clip,
    "vae": _vae,
    "latents": _latents,
    "unet": _unet,
    "decoder": _decoder,
    "clip_image": _clip_image,
    "export": _export,
    "card": _card,
}
"""What makes a base from nothing, in order; with a device, four of them go by the clock there (`by_clock`)."""

OTHERS = {"paint": _paint, "adopt": _adopt, "portraits": _portraits}
"""What paints all scenes beforehand, goes on from a finished base, or paints the demo's pictures."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one stage, or all of them in order."""
    args = _parser().parse_args(argv)
    stages = STAGES | OTHERS | (BY_CLOCK if args.device else {})
    with computing(args.threads):
        for name in [args.stage] if args.stage else STAGES:
            stages[name](args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.build_tiny.build", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of downloads, banks and runs")
    parser.add_argument(
        "--out", type=Path, help="folder for the finished base (export, card) or the demo's pictures (portraits)"
    )
    parser.add_argument("--figures", type=Path, help="JSON of benchmarks/tiny_base.py (stage card)")
    parser.add_argument("--base", type=Path, help="a finished base (stage adopt) [default: the embedded one]")
    parser.add_argument("--steps", type=int, help="steps in all (stage unet) [default: the recipe's]")
    parser.add_argument("--decay", type=int, help="of them with a falling rate (stage unet) [default: the recipe's]")
    parser.add_argument("--stage", choices=[*STAGES, *OTHERS], help="only this one")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--scenes", type=int, default=CALM_SCENES, help="at most so many of a bank, for trials")
    add_options(parser.add_argument_group("by the clock"))
    return parser


if __name__ == "__main__":
    main()
