"""The stages that train, by the clock on one device: in the seconds that they are given, as far as they get."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from .assemble import Watch
from .bank import CALM_SCENES, both_banks
from .device import ClipStage, DecoderStage, UNetStage, VaeStage
from .pace import PACES
from .sprint import Device, Sprint

BANKS = ("bank-train/captions.json", "bank-unseen/captions.json")
_LEAST = {"cuda": 15.0}
"""Seconds that a stage gets which was started again too late: on a GPU more than compiling takes."""


def add_options(parser: argparse._ArgumentGroup) -> None:
    """Add what only these stages know."""
    parser.add_argument("--device", type=torch.device, help="train there, such as cuda [default: by steps on the CPU]")
    parser.add_argument("--seconds", type=float, help="time of a stage")
    parser.add_argument("--until", type=float, help="instead of --seconds: its end, in seconds since 1970")
    parser.add_argument("--wait", action="store_true", help="wait for what other stages, run at once, still make")
    parser.add_argument("--plain", type=int, default=0, help="1: do not compile; 2: do not capture graphs either")
    parser.add_argument("--rate", type=float, help="highest learning rate [default: the stage's]")
    parser.add_argument("--judged", type=int, default=60, help="single prompts of each measurement (stage unet)")
    parser.add_argument("--batch", type=int, default=0, help="rows of a batch [default: the stage's]")


def _clip(args: argparse.Namespace) -> None:
    _await(args, BANKS)
    train, unseen = both_banks(args.work, args.threads, args.scenes)
    sizes = _size(args) | ({"cut": max(1, args.batch // 2)} if args.batch else {})
    _sprint(args, ClipStage(train, unseen, args.device, **sizes))


def _vae(args: argparse.Namespace) -> None:
    _await(args, BANKS)
    train, unseen = both_banks(args.work, args.threads, args.scenes)
    _sprint(args, VaeStage(train, unseen, args.device, **_size(args)))


def _decoder(args: argparse.Namespace) -> None:
    _await(args, ("runs/vae.done",))
    train, unseen = both_banks(args.work, args.threads, args.scenes)
    _sprint(args, DecoderStage(train, unseen, args.device, args.work / "runs", **_size(args)))


def _unet(args: argparse.Namespace) -> None:
    task = UNetStage(args.work, min(args.scenes, CALM_SCENES), args.device, **_size(args))

    def fill() -> None:
        task.fill()
        task.judge = Watch(args.work, args.judged, max(1, args.judged // 3))

    _sprint(args, task, ("runs/clip.done", "runs/vae.done", "bank-calm/captions.json", "latents/ids.npy"), fill)


BY_CLOCK: dict[str, Callable[[argparse.Namespace], None]] = {
    "clip": _clip,
    "vae": _vae,
    "unet": _unet,
    "decoder": _decoder,
}
"""What takes the place of the stages of these names."""


def _size(args: argparse.Namespace) -> dict[str, int]:
    return {"size": args.batch} if args.batch else {}


def _await(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Wait for what other stages make, where they run beside this one."""
    while args.wait and not all((args.work / name).exists() for name in names):
        time.sleep(0.1)


def _sprint(
    args: argparse.Namespace, task: Device, wait: Sequence[str] = (), fill: Callable[[], None] | None = None
) -> None:
    """Train a stage; it is compiled before it waits for what `fill` reads. Empty files say how far it is."""
    runs, pace = args.work / "runs", PACES[task.name]
    sprint = Sprint(task, replace(pace, rate=args.rate or pace.rate), runs, args.plain)
    sprint.note(sprint.ready())
    (runs / f"{task.name}.ready").touch()
    if fill:
        _await(args, wait)
        fill()
        sprint.note("encoded")
    sprint.go(_seconds(args))
    (runs / f"{task.name}.done").touch()


def _seconds(args: argparse.Namespace) -> float:
    if args.seconds is not None:
        return float(args.seconds)
    if args.until is None:
        raise SystemExit("a stage by the clock needs --seconds, or --until")
    left: float = args.until - time.time()
    return max(_LEAST.get(args.device.type, 1.0), left)
