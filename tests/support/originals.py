"""Single files in original layouts, made of tiny models by taking the names and arrangements of diffusers back."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors.torch import save_file
from torch import Tensor, nn

from svdiff_delta.format.original_names import original_of

from .weights import normal

Tensors = dict[str, Tensor]
COMFY = "model.diffusion_model."

UNET_LAYERS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def randomized(model: nn.Module, dtype: torch.dtype = torch.float32) -> Any:
    """Return a model with other random values in every tensor."""
    for index, (_, tensor) in enumerate(sorted(model.state_dict().items())):
        if tensor.is_floating_point():
            tensor.copy_(normal(*tensor.shape, seed=index) * 0.3)
    return model.to(dtype)


def unet_file(model: Any) -> Tensors:
    """Return a UNet of Stable Diffusion as its makers name it."""
    deep = model.config.layers_per_block + 1

    def name(key: str) -> str:
        path, leaf = key.rsplit(".", 1)
        if path in UNET_LAYERS:
            return f"{UNET_LAYERS[path]}.{leaf}"
        if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", path):
            place = 1 if found[1] == "attentions" else 2 * int(found[2])
            return f"middle_block.{place}.{_resnet(found[1], found[3])}.{leaf}"
        found = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", path)
        assert found
        down, kind = found[1] == "down", found[3]
        layer = deep - 1 if "samplers" in kind else int(found[4])
        number = int(found[2]) * deep + layer + down
        block = f"{'input' if down else 'output'}_blocks.{number}"
        if kind == "downsamplers":
            return f"{block}.0.op.{leaf}"
        if kind == "upsamplers":
            attended = "CrossAttn" in model.config.up_block_types[int(found[2])]
            return f"{block}.{1 + attended}.conv.{leaf}"
        return f"{block}.{int(kind == 'attentions')}.{_resnet(kind, found[5])}.{leaf}"

    return {COMFY + name(key): tensor for key, tensor in model.state_dict().items()}


def _resnet(kind: str, path: str) -> str:
    return RESNET.get(path, path) if kind == "resnets" else path


def vae_file(model: Any) -> Tensors:
    """Return an autoencoder of Stable Diffusion as its makers name it: attention as convolutions of one pixel."""
    blocks = len(model.config.up_block_types)

    def name(key: str) -> str:
        key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if found := re.match(r"(\w+)\.mid_block\.attentions\.0\.(.*)\.(\w+)$", key):
            return f"{found[1]}.mid.attn_1.{VAE_ATTENTION[found[2]]}.{found[3]}"
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", key)
        key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
        key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(r"up_blocks\.(\d)\.resnets", lambda match: f"up.{blocks - 1 - int(match[1])}.block", key)
        return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)

    return {
        "first_stage_model." + name(key): value[:, :, None, None] if "attn" in name(key) and value.ndim == 2 else value
        for key, value in model.state_dict().items()
    }


def clip_file(model: nn.Module, front: str) -> Tensors:
    """Return a text encoder of CLIP as its makers name it."""
    return {
        front + ("" if key.startswith(("text_model.", "text_projection")) else "text_model.") + key: value
        for key, value in model.state_dict().items()
    }


def open_clip_file(model: nn.Module, front: str) -> Tensors:
    """Return a text encoder of OpenCLIP as its makers name it: q, k and v in one, the projection turned."""
    state = {key.removeprefix("text_model."): value for key, value in model.state_dict().items()}
    made = {
        "token_embedding.weight": state.pop("embeddings.token_embedding.weight"),
        "positional_embedding": state.pop("embeddings.position_embedding.weight"),
    }
    state.pop("embeddings.position_ids", None)
    for leaf in ("weight", "bias"):
        made[f"ln_final.{leaf}"] = state.pop(f"final_layer_norm.{leaf}")
    if "text_projection.weight" in state:
        made["text_projection"] = state.pop("text_projection.weight").T.contiguous()
    for key in [*state]:
        _, _, number, path = key.split(".", 3)
        layer, leaf = path.rsplit(".", 1)
        place = f"transformer.resblocks.{number}"
        if layer in OPEN_CLIP:
            made[f"{place}.{OPEN_CLIP[layer]}.{leaf}"] = state[key]
        elif layer == "self_attn.q_proj":
            parts = [state[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            made[f"{place}.attn.in_proj_{leaf}"] = torch.cat(parts)
    return {front + key: value for key, value in made.items()}


EXACT = {
    "WanTransformer3DModel": (
        (r"blocks\.(\d+)\.scale_shift_table", r"blocks.\1.modulation"),
        (r"scale_shift_table", "head.modulation"),
    ),
    "SD3Transformer2DModel": ((r"pos_embed\.pos_embed", "pos_embed"),),
}


def transformer_file(model: Any, front: str = COMFY) -> Tensors:
    """Return a transformer under the names of its makers, by the tables of layers that LoRA are converted by."""
    kind, state = type(model).__name__, model.state_dict()
    made: Tensors = {}
    for key, value in state.items():
        path, _, leaf = key.rpartition(".")
        exact = next((re.sub(old, new, key) for old, new in EXACT.get(kind, ()) if re.fullmatch(old, key)), None)
        found = original_of(kind, path)
        if exact or found is None:
            made[exact or key] = value
        elif path == found.parts[0]:
            whole = torch.cat([state[f"{part}.{leaf}"] for part in found.parts])
            swapped = found.swap == "always" or (found.swap == "continuous" and _last(model, path))
            scale = "scale" if "_norm" in found.name and kind.startswith("Flux") else leaf
            made[f"{found.name}.{scale}"] = torch.cat(whole.chunk(2)[::-1]) if swapped else whole
    return {front + key: value.clone() for key, value in made.items()}


def _last(model: Any, path: str) -> bool:
    return f".{model.config.num_layers - 1}." in path


def write(path: Path, *groups: Iterable[tuple[str, Tensor]], **metadata: str) -> Path:
    """Write a single file."""
    save_file({key: value.contiguous() for group in groups for key, value in group}, path, metadata or None)
    return path


def narrow_flux(patch: pytest.MonkeyPatch, width: int = 32) -> None:
    """Let diffusers' converter of Flux take tiny models: it has the width of the real one, 3072, written into it."""
    name = "FluxTransformer2DModel"
    own = SINGLE_FILE_LOADABLE_CLASSES[name]["checkpoint_mapping_fn"]
    constants = tuple(width if value == 3072 else value for value in own.__code__.co_consts)
    assert constants != own.__code__.co_consts
    narrow = FunctionType(own.__code__.replace(co_consts=constants), own.__globals__, own.__name__)
    patch.setitem(SINGLE_FILE_LOADABLE_CLASSES[name], "checkpoint_mapping_fn", narrow)
