"""Bases on a card: how long those of SD 1.5, SDXL and Flux take there, and that they are what a processor computes.

    python -m benchmarks.gpu.bases [--json FILE] [--folder FOLDER] [--dry]

Of SD 1.5's UNet all that a user waits for, from the file to the cache; beside it a loop of `torch.linalg.svd` in
float32 over matrices of the same shapes, which are on the card already (one of each shape, times how many there are).
Of SDXL's UNet and Flux the decompositions only, several at once as a base's are, of matrices made on the card. Of one
matrix of each shape the CPU's σ and, for a random shift, its change of the weight.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdiff_delta import build_basis, open_base
from svdiff_delta.base_model.kinds import shiftable
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.decomposition import compute_basis
from svdiff_delta.svd.side_by_side import cost, run_costliest_first, workers_for

from .figures import Figures
from .scene import Scene
from .script import main
from .timing import tidy, wait

BUILD, LOOP, SDXL, FLUX = 3.0, 4.0, 8.0, 30.0
SIGMA, CHANGE = 1e-12, 2e-6
LARGEST = 1280
"""Of matrices that are computed on the CPU too, the shorter side."""

Shape = tuple[int, int]


def shapes(model: Any) -> Counter[Shape]:
    """Return the shapes (rows, columns) of a model's matrices, with how many there are of each."""
    weights = model.state_dict()
    found = Counter[Shape]()
    for key, kind, axis in shiftable(model):
        if kind == "spectral":
            shape = tuple(weights[key].shape)
            found[shape[axis], prod(shape) // shape[axis]] += 1
    return found


def sdxl(*, dry: bool) -> Any:
    """Return SDXL's UNet without weights; a narrow one if only the script is tried."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(32, 64, 64) if dry else (320, 640, 1280),
            cross_attention_dim=64 if dry else 2048,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 1) if dry else (1, 2, 10),
            attention_head_dim=(2, 4, 4) if dry else (5, 10, 20),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8 if dry else 256,
            projection_class_embeddings_input_dim=112 if dry else 2816,
        )


def flux(*, dry: bool) -> Any:
    """Return Flux's transformer without weights; a narrow one if only the script is tried."""
    from diffusers import FluxTransformer2DModel

    narrow = {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (8, 12, 12),
    }
    with torch.device("meta"):
        return FluxTransformer2DModel(**(narrow if dry else {}))


def measure(scene: Scene, figures: Figures) -> None:
    """Measure the build first, then what it is compared with, then the larger models."""
    matrix = _matrix((64, 128), scene.device, 0)
    compute_basis(matrix, 0)  # loads what is loaded once
    torch.linalg.svd(matrix)
    taken = _build(scene)
    figures.add("bases of SD 1.5's UNet, from the file to the cache", taken, "s", limit=BUILD)
    counts = shapes(scene.skeleton())
    loop = sum(count * _loop(shape, scene.device) for shape, count in counts.items())
    figures.add("a loop of torch.linalg.svd over the same shapes", loop, "s")
    figures.add("the loop takes so many times as long", loop / taken, "times", limit=LOOP, least=True)
    _same(scene, figures, counts)
    for name, model, limit in (("SDXL's UNet", sdxl, SDXL), ("Flux", flux, FLUX)):
        tidy(scene.device)
        figures.add(
            f"bases of {name}, on matrices made there", _several(scene, shapes(model(dry=scene.dry))), "s", limit=limit
        )


def _build(scene: Scene) -> float:
    """Return the seconds of a build into an empty cache: the one that other sections read, if it is not there yet."""
    own = scene.folder / "cache"
    place = Path(tempfile.mkdtemp(dir=scene.folder)) if own.exists() else own
    begun = time.perf_counter()
    build_basis(open_base(scene.folder), cache=BasisCache(place, device=scene.device))
    wait(scene.device)
    taken = time.perf_counter() - begun
    if place != own:
        shutil.rmtree(place)
    return taken


def _matrix(shape: Shape, device: torch.device, seed: int) -> Tensor:
    """Return a random matrix whose values are exact in float16, as those of a base mostly are."""
    generator = torch.Generator(device).manual_seed(seed)
    drawn: Tensor = torch.randn(shape, generator=generator, device=device) / shape[1] ** 0.5
    return drawn.half().float()


def _loop(shape: Shape, device: torch.device) -> float:
    matrix = _matrix(shape, device, 0)
    wait(device)
    begun = time.perf_counter()
    torch.linalg.svd(matrix, full_matrices=False)
    wait(device)
    return time.perf_counter() - begun


def _same(scene: Scene, figures: Figures, counts: Counter[Shape]) -> None:
    """Compare one matrix of each shape with the CPU's, the change by a shift in float64 on the CPU."""
    apart, error = 0.0, 0.0
    for number, shape in enumerate(sorted(shape for shape in counts if min(shape) <= LARGEST)):
        matrix = _matrix(shape, scene.device, number)
        here, there = matrix.cpu(), compute_basis(matrix, 0).to(torch.device("cpu"))
        own = compute_basis(here, 0)
        apart = max(apart, float((there.sigma - own.sigma).abs().max() / own.sigma[0]))
        shift = 0.05 * torch.randn(min(shape), generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        truth = own.delta_weight(here, shift)
        error = max(error, float((there.delta_weight(here, shift) - truth).norm() / truth.norm()))
    figures.add("σ apart from the CPU's", apart, "of σ₁", limit=SIGMA)
    figures.add("the change by a shift differs from the CPU's by", error, "of it", limit=CHANGE)


def _several(scene: Scene, counts: Counter[Shape]) -> float:
    """Return the seconds of all decompositions, several at once, of matrices made on the device."""
    wanted = {f"{shape} {number}": shape for shape, count in counts.items() for number in range(count)}
    costs = {name: cost(shape, "spectral", 0) for name, shape in wanted.items()}

    def work(name: str, again: bool) -> None:  # noqa: ARG001
        compute_basis(_matrix(wanted[name], scene.device, 0), 0)

    workers = workers_for(BasisCache(scene.folder / "none", device=scene.device))
    begun = time.perf_counter()
    run_costliest_first(costs, work, None, workers)
    wait(scene.device)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main("bases", measure, __doc__)
