"""Two blocks of Flux at its real widths with random weights, on disk, and the same quantized to four bits."""

from __future__ import annotations

from math import prod, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svdiff_delta import build_basis, open_base
from svdiff_delta.format.container import header_bytes
from svdiff_delta.svd.cache import BasisCache

WEIGHTS = "diffusion_pytorch_model.safetensors"


def skeleton() -> Any:
    """A block of two streams and one of a single stream, 24 heads of 128, between small ends; without weights."""
    from diffusers import FluxTransformer2DModel

    ends = {"in_channels": 64, "joint_attention_dim": 64, "pooled_projection_dim": 64}
    with torch.device("meta"):
        return FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=False, **ends)


def write(folder: Path, seed: int = 0) -> None:
    """Write configuration and bfloat16 weights in a stream, unless they are there."""
    if (folder / WEIGHTS).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    model = skeleton()
    model.save_config(folder)
    shapes = {key: tuple(value.shape) for key, value in sorted(model.state_dict().items())}
    with (folder / "part").open("wb") as stream:
        stream.write(header_bytes([(key, "BF16", shape) for key, shape in shapes.items()], {"format": "pt"}))
        for index, (key, shape) in enumerate(shapes.items()):
            stream.write(_values(key, shape, seed + index).bfloat16().view(torch.uint8).numpy().tobytes())
    (folder / "part").rename(folder / WEIGHTS)


def _values(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    if key.endswith(".bias"):
        return 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if len(shape) == 1:  # of a norm
        return torch.ones(shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / sqrt(prod(shape[1:]))


def prepare(folder: Path) -> None:
    """Write weights, and bases of all matrices, that are not there."""
    write(folder)
    build_basis(open_base(folder), "2d", cache=BasisCache(folder / "cache"))


def load(folder: Path, quantize: str) -> Any:
    """Return the frozen model in bfloat16, in memory of its own, its linear layers quantized one by one as named.

    Args:
        folder: what `write` has written.
        quantize: "GGUF Q4_0" makes diffusers' layers; "none" leaves them as they are.
    """
    from safetensors import safe_open

    model = skeleton()
    with safe_open(folder / WEIGHTS, "pt") as weights:
        for path, module in list(model.named_modules()):
            if any(module.children()) or not module._parameters:
                continue
            for name in [name for name, value in module._parameters.items() if value is not None]:
                found = weights.get_tensor(f"{path}.{name}").clone()
                module._parameters[name] = nn.Parameter(found, requires_grad=False)
            if isinstance(module, nn.Linear):
                model.set_submodule(path, QUANTIZE[quantize](module))
    return model.requires_grad_(False)


def _as_it_is(layer: nn.Linear) -> nn.Linear:
    return layer


def _gguf(layer: nn.Linear) -> nn.Linear:
    """Return what diffusers makes of a linear layer of a GGUF file that is loaded to compute in bfloat16."""
    import gguf
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    with torch.device("meta"):
        made = GGUFLinear(layer.in_features, layer.out_features, compute_dtype=layer.weight.dtype)
    made.weight = GGUFParameter(_packed(layer.weight.detach()), quant_type=gguf.GGMLQuantizationType.Q4_0)
    made.bias = layer.bias
    return made


def _packed(weight: Tensor) -> Tensor:
    """Return the bytes of a weight as Q4_0: what gguf makes of it too, which takes minutes for a model like this."""
    blocks = weight.float().reshape(-1, 32)
    step = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -8
    inverse = torch.where(step == 0, 0, 1 / step)
    levels = (blocks * inverse + 8.5).clamp(0, 15).to(torch.uint8)
    halves = levels[:, :16] | levels[:, 16:] << 4
    return torch.cat([step.half().view(torch.uint8), halves], 1).reshape(weight.shape[0], -1)


QUANTIZE = {"none": _as_it_is, "GGUF Q4_0": _gguf}
"""What makes a layer's quantized one, by scheme."""


def inputs(tokens: int) -> dict[str, Tensor]:
    """Return one sample in bfloat16, half of its tokens a picture's and half of them a text's."""
    generator = torch.Generator().manual_seed(0)
    half, side = tokens // 2, 32
    places = torch.stack([torch.zeros(half), torch.arange(half) // side, torch.arange(half) % side], 1)
    return {
        "hidden_states": torch.randn(1, half, 64, generator=generator).bfloat16(),
        "encoder_hidden_states": torch.randn(1, half, 64, generator=generator).bfloat16(),
        "pooled_projections": torch.randn(1, 64, generator=generator).bfloat16(),
        "timestep": torch.tensor([0.5]).bfloat16(),
        "img_ids": places,
        "txt_ids": torch.zeros(half, 3),
    }
