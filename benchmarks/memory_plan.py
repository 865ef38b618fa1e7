"""Whether the memory that a run is told to need beforehand is what it takes.

    python benchmarks/memory_plan.py [--json FILE] [--folder FOLDER] [--side 256] [--settings ,gradient_checkpointing]

A Flux of two blocks of two streams and four of a single one at its real widths (3072, 24 heads of 128), between small
ends, with small text encoders and a small autoencoder; random weights, in bfloat16, on the CPU with 2 threads. All of
its layers are trained by `svdiff train`'s own loop on a picture of 256 by 256, beside 512 tokens of text. Bases are
stand-ins of the right shapes, since only their memory counts: real ones would take a quarter of an hour.

One process makes the plan (`plan`, as `--dry-run` does), another one trains; what counts is the most that this has
during its second step, all pages that are resident. The limit is 10 % of that, either way. With settings, each is
measured as well, several of one run are joined by "+".

The folder (by default a temporary one) needs 5 GB, the computer 10 GB of memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import sd15
from common.process import resident, restart_peak

from svdiff_delta import open_base
from svdiff_delta.runtime.memory import give_back
from svdiff_delta.svd import cache as bases
from svdiff_delta.svd.decomposition import Basis, matricize

THREADS, LIMIT = 2, 0.1
WIDTH = 64
"""Of the text encoders' states."""


def write(folder: Path) -> None:
    """Write the pipeline and a picture, unless they are there."""
    import diffusers
    from PIL import Image
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

    from tools.build_tiny.tokenizer import build_tokenizer

    if (folder / "base/model_index.json").exists():
        return
    words, letters = build_tokenizer(), "abcdefghijklmnopqrstuvwxyz"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((each, -3.0) for each in letters)]
    clip: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    ends = {"in_channels": 64, "joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    transformer = diffusers.FluxTransformer2DModel(num_layers=2, num_single_layers=4, guidance_embeds=False, **ends)
    torch.set_default_dtype(dtype)
    pipeline: Any = diffusers.FluxPipeline(
        transformer=transformer,
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), norm_num_groups=2, latent_channels=16, shift_factor=0.1, **blocks
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=len(words), **clip)),
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=30, d_model=WIDTH, d_kv=8, d_ff=8, num_layers=1, num_heads=2)
        ),
        tokenizer=words,
        tokenizer_2=T5Tokenizer(vocab=pieces, extra_ids=0),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").convert("RGB").save(folder / "pictures/one.png")
    pipeline.save_pretrained(folder / "base")


def stand_in(rounded: torch.Tensor, axis: int) -> Basis:
    """Return a basis of the shapes that a weight's own has."""
    matrix = matricize(rounded, axis)
    short, long = sorted(matrix.shape)
    sigma = torch.linspace(2.0, 1.0, short, dtype=torch.float64)
    return Basis(sigma, torch.eye(short), torch.zeros(0, long), 0, matrix.shape[0] <= matrix.shape[1])


def config_of(side: int, settings: str) -> Any:
    """Return the run with the settings that are switched on."""
    from svdiff_train.settings.config import TrainConfig

    on: dict[str, Any] = {name: True for name in settings.split("+") if name}
    return TrainConfig(prompt="a sks cat", steps=2, mixed_precision="bf16", resolution=side, learning_rate=1e-6, **on)


def planned(folder: Path, side: int, settings: str) -> dict[str, Any]:
    """Return the plan."""
    from svdiff_train.training.loop import plan

    found: dict[str, Any] = plan(open_base(folder / "base"), folder / "pictures", config_of(side, settings))["memory"]
    return found


def measured(folder: Path, side: int, settings: str) -> dict[str, Any]:
    """Train for two steps; return the most memory of the second."""
    from svdiff_train.memory.output_cache import OutputCache
    from svdiff_train.training.callbacks import Report, Watch
    from svdiff_train.training.loop import train

    bases.compute_basis = lambda rounded, axis, **_: stand_in(rounded, axis)  # type: ignore[attr-defined]
    bases.compute_bases = lambda weights, **_: [stand_in(*each) for each in weights]  # type: ignore[attr-defined]
    found: dict[str, Any] = {}

    def step(report: Report) -> None:
        if report.step == 1:
            gc.collect()
            give_back()
            found["rest"] = resident()
            restart_peak()
        else:
            found["peak"] = resident("VmHWM")

    cache = bases.BasisCache(folder / "cache")
    outputs = OutputCache(folder / "outputs")
    base, config = open_base(folder / "base"), config_of(side, settings)
    train(base, folder / "pictures", config, cache=cache, watch=Watch(step=step), outputs=outputs)
    return found


WAYS = {"plan": planned, "run": measured}


def child(way: str, folder: Path, side: int, settings: str) -> dict[str, Any]:
    """Return what one way finds in a process of its own."""
    what = ["--folder", str(folder), "--side", str(side), "--settings", settings, "--way", way]
    command = [sys.executable, "-W", "ignore", __file__, *what]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where weights and cache lie or are made")
    parser.add_argument("--side", type=int, default=256, help="of the picture")
    parser.add_argument("--settings", default=",gradient_checkpointing", help="of each run, with commas")
    parser.add_argument("--way", choices=WAYS, help="be one of the two processes")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    if given.way:
        print(json.dumps(WAYS[given.way](given.folder, given.side, given.settings)))
        return
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="svdiff-memory-plan-") as temporary:
        folder = given.folder or Path(temporary)
        write(folder)
        for settings in given.settings.split(","):
            told, taken = (child(way, folder, given.side, settings) for way in WAYS)
            off = told["total"] / taken["peak"] - 1
            rows[settings or "as it is"] = {"told": told, "measured": taken, "off": off}
            print("\n".join(told["lines"]))
            print(
                f"{settings or 'as it is':<28}measured {taken['peak'] / 1e9:.2f} GB, {taken['rest'] / 1e9:.2f} at rest"
            )
    print(f"\n{THREADS} threads\n{'':<68}{'limit':>8}{'measured':>10}")
    for name, row in rows.items():
        print(f"{'what was told, beside what was measured: ' + name:<68}{LIMIT:>8.2f}{row['off']:>10.3f}")
    sd15.save_figures(given.json, {"threads": THREADS, "side": given.side, "rows": rows})
    sys.exit(0 if all(abs(row["off"]) <= LIMIT for row in rows.values()) else 1)


if __name__ == "__main__":
    main()
