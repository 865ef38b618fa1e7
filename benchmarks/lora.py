"""How much of a LoRA a delta captures: of random factors, of LoRA that was trained, and of what was a delta before.

    python benchmarks/lora.py [--json FILE] [--steps 60] [--rank 4]

On the embedded base, on the linear layers and convolutions of its UNet.

- *random*: both factors are independent normal numbers, of the rank and size of LoRA. Expected: 1/max(M, N) on average,
  M and N the sides of the weight.
- *trained*: PEFT's own LoRA at its own start, trained with AdamW on the pictures of one of the demo's subjects, on the
  UNet's attention (PEFT's usual choice for diffusion) and on all its layers.
- *cut from a delta*: a delta trained on the same pictures, cut to the rank by `convert --to peft`; its share of the
  delta, and what comes back of that.
- *delta with noise*: the same with a random LoRA added that has as much energy as itself.

The default of `--min-energy` for adapters is a share that tells what was trained as LoRA from what is half a delta or
more: at least three times the one, and at most a third of the other.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from svdiff_delta import convert, select
from svdiff_delta.conversion.energy_limits import LEAST
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.data import find_images, load_image
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.loop import train

PROMPT = "a photo of a sks cat"
SUBJECT = "black_cat"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def save_peft(folder: Path, tensors: dict[str, torch.Tensor], rank: int) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def random_like(like: Path, folder: Path, rank: int, size: dict[str, float] | None = None) -> Path:
    """Random factors in the shapes of another adapter's, each layer of the given norm if one is given."""
    draw, tensors = torch.Generator().manual_seed(0), {}
    for key, value in sorted(load_file(like / "adapter_model.safetensors").items()):
        tensors[key] = torch.randn(value.shape, generator=draw)
    if size is not None:
        for layer, norm in size.items():
            up, down = f"{layer}.lora_B.weight", f"{layer}.lora_A.weight"
            tensors[up] *= norm / float((tensors[up].flatten(1) @ tensors[down].flatten(1)).norm())
    return save_peft(folder, tensors, rank)


def both(a: Path, b: Path, folder: Path, rank: int) -> Path:
    """The sum of two adapters, exactly: their factors beside each other."""
    x, y = (load_file(path / "adapter_model.safetensors") for path in (a, b))
    tensors = {key: torch.cat([x[key], y[key]], dim=1 if ".lora_B." in key else 0) for key in x}
    path = save_peft(folder, tensors, rank)
    # Each layer's alpha is its rank, twice what it was: the scale is 1.
    config = {"peft_type": "LORA", "r": 2 * rank, "lora_alpha": 2 * rank, "alpha_pattern": _alphas(tensors)}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def _alphas(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    return {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): len(value)
        for key, value in tensors.items()
        if ".lora_A." in key
    }


def trained(base: Any, folder: Path, rank: int, steps: int, layers: list[str]) -> Path:
    """LoRA by PEFT on the denoiser, trained on noise prediction with the base's own schedule."""
    torch.manual_seed(0)
    pipeline: Any = load_pipeline(base)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
    model: Any = get_peft_model(pipeline.unet, config)
    found = find_images(pictures_path(SUBJECT)).pictures
    pictures = torch.stack([load_image(picture.path, 64).pixels for picture in found])
    with torch.no_grad():
        latents = pipeline.vae.encode(pictures).latent_dist.mean * pipeline.vae.config.scaling_factor
        tokens = pipeline.tokenizer(PROMPT, padding="max_length", truncation=True, return_tensors="pt").input_ids
        text = pipeline.text_encoder(tokens)[0].expand(len(latents), -1, -1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    schedule = pipeline.scheduler
    for _ in range(steps):
        noise = torch.randn_like(latents)
        times = torch.randint(0, schedule.config.num_train_timesteps, (len(latents),))
        noisy = schedule.add_noise(latents, noise, times)
        wanted = noise if schedule.config.prediction_type == "epsilon" else schedule.get_velocity(latents, noise, times)
        loss = F.mse_loss(model(noisy, times, text).sample, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"  trained {len(layers)} kinds of layers, {steps} steps, last loss {loss.item():.4f}", file=sys.stderr)
    return save_peft(folder, get_peft_model_state_dict(model), rank)


def share(path: Path, base: Any, cache: BasisCache) -> float:
    return convert(path, base=base, min_energy=0.0, cache=cache).captured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rank", type=int, default=4)
    arguments = parser.parse_args()
    base, rank, found = open_tiny(), arguments.rank, {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        cache = BasisCache(work / "cache")
        config = TrainConfig(
            prompt=PROMPT, steps=arguments.steps, batch_size=4, learning_rate=5e-2, learning_rate_1d=1e-2
        )
        delta = select(train(base, pictures_path(SUBJECT), config, cache=cache).delta, "2d", "4d")
        cut = convert(delta, to="peft", base=base, rank=rank, output=work / "cut", cache=cache)
        found["a delta's share at this rank"] = cut.captured
        found["random"] = share(random_like(work / "cut", work / "random", rank), base, cache)
        names = sorted({name.partition(".")[2].removesuffix(".weight") for name in delta})
        found["trained, attention"] = share(
            trained(base, work / "attention", rank, arguments.steps, list(ATTENTION)), base, cache
        )
        found["trained, all layers"] = share(trained(base, work / "all", rank, arguments.steps, names), base, cache)
        found["cut from a delta"] = share(work / "cut", base, cache)
        norms = {
            f"base_model.model.{name.partition('.')[2].removesuffix('.weight')}": energy.kept**0.5
            for name, energy in cut.layers.items()
        }
        random_like(work / "cut", work / "noise", rank, norms)
        found["delta with as much noise"] = share(both(work / "cut", work / "noise", work / "both", rank), base, cache)
    sides = [max(np.prod(p.shape[1:]), p.shape[0]) for p in delta.metadata.parameters.values()]
    expected = np.mean(1 / np.array(sides))
    print(f"rank {rank}, {arguments.steps} steps, {len(delta)} weights; 1/max(M, N) is {expected:.2%} on average")
    for name, value in found.items():
        print(f"{name:<32}{value:>10.2%}")
    print(f"{'the default of --min-energy':<32}{LEAST:>10.2%}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    lower = max(found[name] for name in ("random", "trained, attention", "trained, all layers"))
    upper = min(found["cut from a delta"], found["delta with as much noise"])
    print(f"{'three times the most of LoRA':<32}{3 * lower:>10.2%}")
    print(f"{'a third of the least of deltas':<32}{upper / 3:>10.2%}")
    sys.exit(0 if 3 * lower <= LEAST <= upper / 3 else 1)


if __name__ == "__main__":
    main()
