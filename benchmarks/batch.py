"""What a batch costs in which every sample has its own delta, beside PEFT's batch with a LoRA for each.

    python benchmarks/batch.py [--json FILE] [--folder FOLDER] [--side 16] [--rank 16]

SD 1.5's UNet with random float32 weights; eight samples of latents of `side`². Deltas and LoRA shift the same layers:
all Linear layers and convolutions of the UNet. Seconds are those of the processor, on one thread, the least of several
runs by turns. Each batch is compared with the same batch with one adapter in the same form. The folder (by default a
temporary one) needs 5 GB; `bake.py` makes and takes the same.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import sd15
from peft import LoraConfig, get_peft_model
from torch import Tensor

from svdiff_delta import Delta, attach, open_base, select, zero_delta
from svdiff_delta.svd.cache import BasisCache

TIMES, TOLERANCE, COUNT = 1.10, 1e-5, 8


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Processor time of one call, and its result."""
    begun = time.process_time()
    result = run()
    return time.process_time() - begun, result


def deltas_of(base: Any, cache: BasisCache) -> dict[str, Delta]:
    """Eight random deltas on matrices and convolutions."""
    zero, random = select(zero_delta(base, cache=cache), "2d", "4d"), np.random.default_rng(0)
    return {
        f"delta{index}": Delta(
            {name: 0.01 * random.standard_normal(shift.size) for name, shift in zero.items()}, zero.metadata
        )
        for index in range(COUNT)
    }


def measure_deltas(model: Any, base: Any, cache: BasisCache, inputs: Any, rounds: int) -> dict[str, float]:
    """Seconds with one delta and with eight, and how far its samples are from runs of their own, relative."""
    deltas = deltas_of(base, cache)
    names, ones, eights = list(deltas), [], []
    with torch.no_grad(), attach(model, deltas, base=base, cache=cache) as handle:
        handle.set_adapters(names[0])
        for _ in range(rounds):
            ones.append(timed(lambda: model(*inputs).sample)[0])
            with handle.per_sample(names):
                taken, together = timed(lambda: model(*inputs).sample)
            eights.append(taken)
        error = 0.0
        for index, name in enumerate(names):
            handle.set_adapters(name)
            latents, step, states = inputs
            alone = model(latents[index : index + 1], step, states[index : index + 1]).sample[0]
            error = max(error, float((together[index] - alone).norm() / alone.norm()))
    return {"one": min(ones), "eight": min(eights), "error": error}


def measure_lora(model: Any, inputs: Any, rank: int, rounds: int) -> dict[str, float]:
    """Seconds with one LoRA and with eight on the same layers, mixed in the batch by PEFT."""
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and not hasattr(module, "base_layer")
    ]
    config = LoraConfig(r=rank, target_modules=targets, init_lora_weights=False)
    wrapped: Any = get_peft_model(model, config, adapter_name="lora0")
    for index in range(1, COUNT):
        wrapped.add_adapter(f"lora{index}", config)
    wrapped.set_adapter("lora0")
    wrapped.eval()
    names, ones, eights = [f"lora{index}" for index in range(COUNT)], [], []
    with torch.no_grad():
        timed(lambda: wrapped(*inputs).sample)
        for _ in range(rounds):
            ones.append(timed(lambda: wrapped(*inputs).sample)[0])
            eights.append(timed(lambda: wrapped(*inputs, adapter_names=names).sample)[0])
    return {"one": min(ones), "eight": min(eights)}


def main() -> None:
    from diffusers import UNet2DConditionModel

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where weights and cache lie or are made")
    parser.add_argument("--side", type=int, default=16, help="of the latents")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["SVDIFF_HOME"] = temporary  # fingerprints are remembered there
        folder = arguments.folder or Path(temporary) / "unet"
        folder.mkdir(exist_ok=True)
        if not (folder / "diffusion_pytorch_model.safetensors").exists():
            sd15.write(folder)
        base, cache = open_base(folder), BasisCache(folder / "cache")
        model: Any = UNet2DConditionModel.from_pretrained(folder).requires_grad_(False).eval()
        inputs = torch.randn(COUNT, 4, arguments.side, arguments.side), 10, torch.randn(COUNT, 77, 768)
        with torch.no_grad():
            model(*inputs)
            plain = min(timed(lambda: model(*inputs).sample)[0] for _ in range(arguments.rounds))
        ours = measure_deltas(model, base, cache, inputs, arguments.rounds)
        theirs = measure_lora(model, inputs, arguments.rank, arguments.rounds)
    print(f"the base alone: {plain:.1f} s; one thread; {COUNT} samples of {arguments.side}×{arguments.side}")
    print(f"{'':<48}{'limit':>10}{'delta':>10}{f'LoRA {arguments.rank}':>10}")
    ratios = ours["eight"] / ours["one"], theirs["eight"] / theirs["one"]
    print(f"{'eight adapters, of the batch with one':<48}{TIMES:>10.2f}{ratios[0]:>10.2f}{ratios[1]:>10.2f}")
    print(f"{'one adapter, of the base alone':<48}{'':>10}{ours['one'] / plain:>10.2f}{theirs['one'] / plain:>10.2f}")
    mixed = ours["eight"] / plain, theirs["eight"] / plain
    print(f"{'eight adapters, of the base alone':<48}{'':>10}{mixed[0]:>10.2f}{mixed[1]:>10.2f}")
    print(f"{'difference from eight single runs, relative':<48}{TOLERANCE:>10.0e}{ours['error']:>10.0e}")
    sd15.save_figures(arguments.json, {"plain": plain, "delta": ours, "lora": theirs})
    sys.exit(0 if ratios[0] <= TIMES and ours["error"] <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
