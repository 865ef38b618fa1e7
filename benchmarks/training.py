"""How long one optimizer step takes and how much memory, for spectral shifts and for what else one would do.

    python benchmarks/training.py [--json FILE] [--folder FOLDER] [--steps N]

SD 1.5's UNet with random float32 weights, latents of 32 by 32, batch 1, AdamW, on the CPU with 2 threads. Every way has
a process of its own, and its step is prediction, backward pass and optimizer: spectral shifts on all layers through
`attach`; PEFT's LoRA of rank 4 on the same Linear layers and convolutions; all weights; and shifts whose weights
`U diag(ReLU(σ+δ)) Vᵀ` are put together in every forward pass, as older programs do it. Bases are in the cache. The
folder (by default a temporary one) needs 5 GB, the computer 20 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import process, sd15

THREADS, WAYS = 2, ("svdiff", "lora", "full", "rematerialized")
LIMITS = {
    "step, of LoRA's": 1.10,
    "step, of full fine-tuning's": 0.50,
    "step, of re-materializing's": 1 / 14,
    "memory, of LoRA's": 1.35,
    "memory, of full fine-tuning's": 1 / 2.5,
}


def measure(way: str, folder: Path, steps: int) -> dict[str, float]:
    """Take some steps one way; return the median time after the first, the most memory resident, and operations."""
    import gc
    import statistics
    import time

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(THREADS)
    model, parameters = WAY[way](folder)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 1, 4, 32, 32, generator=generator)
    states = torch.randn(1, 77, 768, generator=generator)

    def step() -> None:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(latents, torch.tensor([500]), states).sample, noise)
        loss.backward()
        optimizer.step()

    gc.collect()
    process.restart_peak()
    with FlopCounterMode(display=False) as counter:
        step()
    taken = []
    for _ in range(steps):
        begun = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begun)
    return {
        "seconds": statistics.median(taken),
        "memory": process.resident("VmHWM"),
        "trained": sum(parameter.numel() for parameter in parameters),
        "operations": counter.get_total_flops(),
    }


def load(folder: Path) -> Any:
    """The UNet, frozen, in memory of its own: dropped pages of a mapped file count as long as it is mapped."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_pretrained(folder).requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def svdiff(folder: Path) -> tuple[Any, list[Any]]:
    """Shifts on all layers."""
    from svdiff_delta import attach, open_base, zero_delta
    from svdiff_delta.svd.cache import BasisCache

    base, cache = open_base(folder), BasisCache(folder / "cache")
    model = load(folder)
    handle = attach(model, zero_delta(base, cache=cache), base=base, trainable=True, cache=cache)
    return model, [parameter for _, parameter in handle.parameters()]


def lora(folder: Path) -> tuple[Any, list[Any]]:
    """Rank 4 on the same Linear layers and convolutions."""
    from peft import LoraConfig

    model = load(folder)
    names = [key.removesuffix(".weight") for key, kind, _ in sd15.shiftable(sd15.skeleton()) if kind == "spectral"]
    model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=names))
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def full(folder: Path) -> tuple[Any, list[Any]]:
    """All weights."""
    model = load(folder).requires_grad_(True)
    return model, list(model.parameters())


def rematerialized(folder: Path) -> tuple[Any, list[Any]]:
    """A plain module: every weight is `U diag(ReLU(σ+δ)) Vᵀ` anew in every forward pass."""
    import torch
    from torch import nn
    from torch.nn.utils import parametrize

    from svdiff_delta import open_base, zero_delta
    from svdiff_delta.svd.cache import BasisCache
    from svdiff_delta.svd.decomposition import matricize, unmatricize

    class Shifted(nn.Module):
        """The paper's formula."""

        left: torch.Tensor
        right: torch.Tensor
        sigma: torch.Tensor

        def __init__(self, basis: Any, matrix: Any, shape: tuple[int, ...], axis: int) -> None:
            super().__init__()
            long = basis.long_rows(matrix).float()
            left, right = (basis.factor.float().T, long) if basis.left else (long.T, basis.factor.float())
            for name, value in (("left", left), ("right", right), ("sigma", basis.sigma.float())):
                self.register_buffer(name, value.clone())
            self.delta = nn.Parameter(torch.zeros(basis.sigma.numel()))
            self.shape, self.axis = shape, axis

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            del weight
            matrix = (self.left * torch.relu(self.sigma + self.delta)) @ self.right
            return unmatricize(matrix, self.shape, self.axis)

    model, cache = load(folder), BasisCache(folder / "cache")
    zero = zero_delta(open_base(folder), cache=cache)
    trained = []
    for name, parameter in zero.metadata.parameters.items():
        module = model.get_submodule(name.removeprefix("unet.").removesuffix(".weight"))
        if parameter.kind == "elementwise":
            module.weight.requires_grad_(True)
            trained.append(module.weight)
            continue
        basis = cache.get(parameter.fingerprint)
        shifted = Shifted(
            basis, matricize(module.weight.detach(), parameter.axis), tuple(parameter.shape), parameter.axis
        )
        parametrize.register_parametrization(module, "weight", shifted, unsafe=True)
        trained.append(shifted.delta)
    return model, trained


WAY = {"svdiff": svdiff, "lora": lora, "full": full, "rematerialized": rematerialized}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where weights and cache lie or are made")
    parser.add_argument("--steps", type=int, default=5, help="steps that count")
    parser.add_argument("--way", choices=WAYS, help="measure only this, and print JSON")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.folder, arguments.steps)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = sd15.folder_of(arguments.folder, Path(temporary))
        found = {way: run(way, folder, arguments.steps) for way in prepared(folder)}
    sys.exit(0 if report(found, arguments.json) else 1)


def prepared(folder: Path) -> tuple[str, ...]:
    """Write bases that are not there; return what is to be measured."""
    import torch

    from svdiff_delta import build_basis, open_base
    from svdiff_delta.svd.cache import BasisCache

    torch.set_num_threads(THREADS)
    build_basis(open_base(folder), cache=BasisCache(folder / "cache"))
    return WAYS


def run(way: str, folder: Path, steps: int) -> dict[str, float]:
    """Measure one way in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder), "--steps", str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result: dict[str, float] = json.loads(done.stdout)
    print(
        f"{way:<16}{result['seconds']:>8.2f} s/step {result['memory'] / 1e9:>8.2f} GB {result['trained']:>14,} trained"
        f"{result['operations'] / 1e12:>8.3f} T operations"
    )
    return result


def report(found: dict[str, dict[str, float]], path: Path | None) -> bool:
    """Print the ratios beside their limits; tell whether all are met."""
    own = found["svdiff"]
    ratios = [own["seconds"] / found[way]["seconds"] for way in WAYS[1:]]
    ratios += [own["memory"] / found[way]["memory"] for way in ("lora", "full")]
    print(f"\n{THREADS} threads\n{'':<40}{'limit':>10}{'measured':>10}")
    for (name, limit), ratio in zip(LIMITS.items(), ratios, strict=True):
        print(f"{name:<40}{limit:>10.3f}{ratio:>10.3f}")
    print("\nfor comparison, operations of products and convolutions in a step, which no program with this form avoids")
    for way in WAYS[1:]:
        print(f"{'of ' + way:<40}{'':>10}{own['operations'] / found[way]['operations']:>10.3f}")
    sd15.save_figures(path, {"threads": THREADS, **found, "ratios": dict(zip(LIMITS, ratios, strict=True))})
    return all(ratio <= limit for ratio, limit in zip(ratios, LIMITS.values(), strict=True))


if __name__ == "__main__":
    main()
