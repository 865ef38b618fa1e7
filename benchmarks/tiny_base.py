"""The embedded base, measured: every figure that it must reach, as a table and as JSON.

    python benchmarks/tiny_base.py --npm FOLDER [--base DIR] [--clip DIR] [--device cuda] [--json FILE] [--sheet FILE]

`--npm` is the folder that `python -m tools.build_tiny.build` unpacked the two emoji packages into:
the autoencoder and the CLIP are measured on scenes that no training has seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svdiff_train.tiny import base_path
from tools.build_tiny.assemble import draw, figures, sheet
from tools.build_tiny.bank import UNSEEN_SCENES, Bank, build_bank
from tools.build_tiny.card import table
from tools.build_tiny.judge import AMONG, Judge, pair_prompts, single_prompts
from tools.build_tiny.scenes import UNSEEN_SEED
from tools.build_tiny.vae import psnr

MUST = {
    "vae_psnr_db": (32.0, ">="),
    "clip_subject": (0.97, ">="),
    "pipeline_subject": (0.97, ">="),
    "pipeline_ground": (0.97, ">="),
    "pipeline_pair": (0.85, ">="),
    "seconds_per_picture": (3.0, "<="),
    "megabytes": (24.0, "<="),
}
"""Figure to its bound and the bound's direction."""


def open_parts(base: Path, clip: Path) -> tuple[Any, Judge]:
    """The pipeline in float32 and the judge."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

    pipe: Any = StableDiffusionPipeline.from_pretrained(str(base), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)
    model = CLIPModel.from_pretrained(str(clip), dtype=torch.float32)
    return pipe, Judge(model.eval(), CLIPTokenizer.from_pretrained(str(clip)))


def megabytes(*folders: Path) -> float:
    """All weight files under the folders, each counted once, in units of 1,000,000 bytes."""
    files = {path.resolve() for folder in folders for path in folder.rglob("*.safetensors")}
    return sum(path.stat().st_size for path in files) / 1e6


def clip_accuracy(judge: Judge, bank: Bank, count: int) -> float:
    """The share of unseen single-subject scenes whose subject wins against 99 others."""
    rows = np.flatnonzero(bank.layout[:, 1, 0] < 0)[:count]
    return float(judge.named(bank.pictures[rows], bank.layout[rows, 0, 0].tolist()).mean())


def seconds_per_picture(pipe: Any, runs: int = 5) -> float:
    """The median time of one picture in 30 steps with guidance, two threads, after a warm-up."""
    torch.set_num_threads(2)
    draw(pipe, ["a photo of a dog"])
    taken = []
    for run in range(runs):
        start = time.perf_counter()
        draw(pipe, ["a photo of a dog"], seed=run)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure(args: argparse.Namespace) -> dict[str, float]:
    """All figures; the pictures of the prompts go to `args.sheet`."""
    pipe, judge = open_parts(args.base, args.clip)
    found = {"megabytes": megabytes(args.base, args.clip)}
    if args.device == "cpu":
        found["seconds_per_picture"] = seconds_per_picture(pipe)
    pipe.to(args.device)
    bank = build_bank(args.npm.parent / "bank-unseen", args.npm, UNSEEN_SEED, UNSEEN_SCENES)
    found["vae_psnr_db"] = float(psnr(pipe.vae, bank.pictures[: args.scenes]).mean())
    found["clip_subject"] = clip_accuracy(judge, bank, args.scenes)
    singles, pairs = single_prompts(args.prompts), pair_prompts(args.pairs)
    obeyed, pictures = figures(pipe, judge, singles, pairs, seed=1000)
    if args.sheet:
        sheet(pictures, across=20).save(args.sheet)
    return found | {f"pipeline_{key}": value for key, value in obeyed.items()}


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npm", type=Path, required=True, help="folder of the two unpacked emoji packages")
    parser.add_argument("--base", type=Path, default=base_path(), help="the pipeline's folder")
    parser.add_argument("--clip", type=Path, help="the whole CLIP's folder (default: BASE/clip)")
    parser.add_argument("--prompts", type=int, default=200, help="single-subject prompts")
    parser.add_argument("--pairs", type=int, default=100, help="two-subject prompts")
    parser.add_argument("--scenes", type=int, default=1000, help="unseen scenes for the autoencoder and the CLIP")
    parser.add_argument("--device", default="cpu", help="where to paint; the time is only taken on a CPU")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--sheet", type=Path, help="file for all the pictures")
    args = parser.parse_args()
    args.clip = args.clip or args.base / "clip"
    found = measure(args)
    print(f"{args.prompts} single prompts, {args.pairs} pairs, DDIM 30 steps, guidance 4, {AMONG} names\n")
    must = {name: bound for name, bound in MUST.items() if name in found}
    print(table(found, must))
    if args.json:
        args.json.write_text(json.dumps({"figures": found, "must": must}, indent=2) + "\n")


if __name__ == "__main__":
    main()
