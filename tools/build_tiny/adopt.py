"""Going on from a finished base where its checkpoints are lost: a work folder made of the published weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from .vae import LATENTS

LOGS: Final = "training"
"""The folder of a base in which the logs of its stages lie."""

PLAIN: Final = {"mean": [0.0] * LATENTS, "std": [1.0] * LATENTS}
"""The latents of a published autoencoder are standardized already."""


class AdoptionError(ValueError):
    """A work folder has checkpoints of its own, or the base lacks what would be adopted."""


def keep_logs(runs: Path, out: Path) -> None:
    """Put the measurements of every stage, and its last line, into the base: its curve outlives the checkpoints."""
    (out / LOGS).mkdir(exist_ok=True)
    for log in sorted(runs.glob("*.jsonl")):
        lines = log.read_text().splitlines()
        kept = [line for line in lines[:-1] if "loss" not in json.loads(line)] + lines[-1:]
        (out / LOGS / log.name).write_text("".join(f"{line}\n" for line in kept))


def adopt(base: Path, work: Path) -> None:
    """Make checkpoints of a base's weights; training goes on from them with a fresh optimizer.

    The published weights are averages in float16. Steps, hours and curves are taken from the base's logs.

    Raises:
        AdoptionError: the work folder has checkpoints, or the base has no logs.
    """
    runs = work / "runs"
    if [*runs.glob("*.pt")]:
        raise AdoptionError(f"{runs}: has checkpoints already; name an empty work folder")
    if not (base / LOGS).is_dir():
        raise AdoptionError(f"{base}: has no folder {LOGS}, so nothing says how far it was trained")
    runs.mkdir(parents=True, exist_ok=True)
    for log in sorted((base / LOGS).glob("*.jsonl")):
        shutil.copyfile(log, runs / log.name)
        _checkpoint(runs, log.stem, _weights(base, log.stem))
    (work / "latents").mkdir(exist_ok=True)
    (work / "latents" / "spread.json").write_text(json.dumps(PLAIN))


def _weights(base: Path, stage: str) -> Mapping[str, Tensor]:
    """Return a stage's weights as its model holds them, in float32."""
    from safetensors.torch import load_file

    folder = {"clip": "clip", "clip_image": "clip", "vae": "vae", "decoder": "vae", "unet": "unet"}[stage]
    name = "model" if folder == "clip" else "diffusion_pytorch_model"
    prefix = "vae." if folder == "vae" else ""
    found = load_file(base / folder / f"{name}.safetensors")
    return {prefix + key: value.float() if value.is_floating_point() else value for key, value in found.items()}


def _checkpoint(runs: Path, stage: str, weights: Mapping[str, Tensor]) -> None:
    last: dict[str, Any] = json.loads((runs / f"{stage}.jsonl").read_text().splitlines()[-1])
    state = {
        "model": dict(weights),
        "average": dict(weights),
        "optimizer": None,
        "step": last["step"],
        "seconds": last["hours"] * 3600,
        "target": last["step"],
    }
    torch.save(state, runs / f"{stage}.pt")
