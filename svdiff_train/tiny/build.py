"""`python -m svdiff_train.tiny.build`: make the embedded base from the two emoji packages."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from svdiff_train.tiny import base_path
from svdiff_train.tiny.adopt import adopt
from svdiff_train.tiny.assemble import Watch, draw, export, pipeline, sheet, trained_unet
from svdiff_train.tiny.bank import CALM_SCENES, both_banks, calm_bank
from svdiff_train.tiny.card import SAMPLES, write_card
from svdiff_train.tiny.clip import ClipImageTask, ClipTask, best_clip
from svdiff_train.tiny.device import BATCH, ClipStage, DecoderStage, UNetStage, VaeStage
from svdiff_train.tiny.fetch import fetch
from svdiff_train.tiny.loop import Recipe, Run
from svdiff_train.tiny.portraits import paint_portraits
from svdiff_train.tiny.scenes import load_sprites
from svdiff_train.tiny.sprint import Device, Pace, Sprint
from svdiff_train.tiny.tokenizer import build_tokenizer
from svdiff_train.tiny.unet import UNetTask, number, prepare
from svdiff_train.tiny.vae import DecoderTask, VaeTask

CLIP_RECIPE = Recipe(steps=1_200, rate=1e-3, decay=300, measure_every=200, betas=(0.9, 0.98), ema=0.998)
VAE_RECIPE = Recipe(steps=5_000, rate=2e-3, decay=1_200, measure_every=500)
DECODER_RECIPE = Recipe(steps=4_000, rate=1e-3, decay=2_000, measure_every=500)
IMAGE_RECIPE = Recipe(steps=1_500, rate=6e-4, decay=1_000, measure_every=250, betas=(0.9, 0.98), ema=0.998)
UNET_RECIPE = Recipe(steps=60_000, rate=7e-4, warmup=500, decay=8_000, measure_every=2_000, ema=0.9995)

PACES = {
    "clip": Pace(rate=1e-3, warmup=200, falling=0.6, betas=(0.9, 0.98), ema=0.998, measures=2),
    "vae": Pace(rate=2e-3, warmup=200, falling=0.6, ema=0.998, measures=3),
    "decoder": Pace(rate=1e-3, warmup=100, falling=0.9, ema=0.998),
    "unet": Pace(rate=1e-3, warmup=500, falling=0.5, ema=0.9995, measures=5, compiled=True),
}
"""The stages by the clock, on a GPU."""


def _fetch(args: argparse.Namespace) -> None:
    fetch(args.work / "npm")


def _paint(args: argparse.Namespace) -> None:
    both_banks(args.work, args.threads, args.scenes)
    number(args.work, calm_bank(args.work, args.threads, args.scenes))


def _clip(args: argparse.Namespace) -> None:
    if args.device:
        _await(args, "bank-train/captions.json", "bank-unseen/captions.json")
        _sprint(args, ClipStage(*both_banks(args.work), args.device, args.batch or 512, args.batch // 2 or 256))
        return
    task = ClipTask(*both_banks(args.work), build_tokenizer())
    Run(task, CLIP_RECIPE, args.work / "runs").go()


def _vae(args: argparse.Namespace) -> None:
    if args.device:
        _await(args, "bank-train/captions.json", "bank-unseen/captions.json")
        _sprint(args, VaeStage(*both_banks(args.work), args.device, args.batch or 64))
        return
    Run(VaeTask(*both_banks(args.work)), VAE_RECIPE, args.work / "runs").go()


def _decoder(args: argparse.Namespace) -> None:
    runs = args.work / "runs"
    if args.device:
        _await(args, "runs/vae.done")
        _sprint(args, DecoderStage(*both_banks(args.work), args.device, runs, args.batch or 64))
        return
    Run(DecoderTask(*both_banks(args.work), runs), DECODER_RECIPE, runs).go()


def _clip_image(args: argparse.Namespace) -> None:
    runs = args.work / "runs"
    Run(ClipImageTask(*both_banks(args.work), build_tokenizer(), runs), IMAGE_RECIPE, runs).go()


def _await(args: argparse.Namespace, *names: str) -> None:
    """Wait for what other stages make, where they run beside this one."""
    while args.wait and not all((args.work / name).exists() for name in names):
        time.sleep(0.1)


def _sprint(
    args: argparse.Namespace, task: Device, wait: Sequence[str] = (), fill: Callable[[], None] | None = None
) -> None:
    """Train a stage by the clock; it is compiled before it waits for what `fill` reads."""
    runs = args.work / "runs"
    begin = time.time()
    pace = PACES[task.name]
    sprint = Sprint(task, replace(pace, rate=args.rate or pace.rate), runs, args.plain)
    sprint.note(f"{sprint.ready()}; ready after {time.time() - begin:.1f} s")
    (runs / f"{task.name}.ready").touch()
    if fill:
        _await(args, *wait)
        begin = time.time()
        fill()
        sprint.note(f"encoded in {time.time() - begin:.1f} s")
    least = 15.0 if sprint.gpu else 1.0  # for a stage that was started again late
    sprint.go(args.seconds or max(least, args.until - time.time()))
    (runs / f"{task.name}.done").touch()


def _latents(args: argparse.Namespace) -> None:
    prepare(args.work, calm_bank(args.work))


def _unet(args: argparse.Namespace) -> None:
    if args.device:
        task = UNetStage(args.work, min(args.scenes, CALM_SCENES), args.device, args.batch or BATCH)
        wait = ("runs/clip.done", "runs/vae.done", "bank-calm/captions.json", "latents/ids.npy")

        def fill() -> None:
            task.fill()
            task.judge = Watch(args.work, args.judged, max(1, args.judged // 3))

        _sprint(args, task, wait, fill)
        return
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
"""What makes a base from nothing, in order."""

OTHERS = {"paint": _paint, "adopt": _adopt, "portraits": _portraits}
"""What paints all scenes beforehand, goes on from a finished base, or paints the demo's pictures."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one stage, or all of them in order."""
    parser = argparse.ArgumentParser(prog="python -m svdiff_train.tiny.build", description=__doc__)
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
    parser.add_argument(
        "--device", type=torch.device, help="train by the clock there, such as cuda [default: by steps]"
    )
    parser.add_argument("--seconds", type=float, help="time of a stage on a device")
    parser.add_argument("--until", type=float, help="instead of --seconds: its end, in seconds since 1970")
    parser.add_argument("--wait", action="store_true", help="wait for what other stages, run at once, still make")
    parser.add_argument("--plain", type=int, default=0, help="1: do not compile; 2: do not capture graphs either")
    parser.add_argument("--rate", type=float, help="highest learning rate on a device [default: the stage's]")
    parser.add_argument("--judged", type=int, default=60, help="single prompts of each measurement (stage unet)")
    parser.add_argument("--batch", type=int, default=0, help="rows of a batch on a device [default: the stage's]")
    parser.add_argument("--scenes", type=int, default=CALM_SCENES, help="at most so many of a bank, for trials")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    for name in [args.stage] if args.stage else STAGES:
        (STAGES | OTHERS)[name](args)


if __name__ == "__main__":
    main()
