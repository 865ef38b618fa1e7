"""Tiny models of real classes with random weights, what they compute, and the same in float64 by an SVD of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn

from svdiff_delta.format.delta import Delta

from .models import live_zero, random_delta
from .weights import normal

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model, its inputs for a number of samples, and what of its output counts."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    output: str


def _unet() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def _sd3() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )


def _flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
    )


def _clip() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=40, max_position_embeddings=9, **sizes))


def _t5() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=40, **sizes))


def _gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_positions=9, n_embd=16, n_layer=2, n_head=2)
    )


def _llama() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=40, num_key_value_heads=1, **sizes))


def _ids(samples: int) -> Inputs:
    return {"input_ids": torch.randint(40, (samples, 7), generator=torch.Generator().manual_seed(2))}


def _denoiser(samples: int) -> Inputs:
    return {"sample": normal(samples, 4, 8, 8), "timestep": 7, "encoder_hidden_states": normal(samples, 5, 12, seed=1)}


def _dit(samples: int) -> Inputs:
    return {
        "hidden_states": normal(samples, 4, 8, 8),
        "timestep": torch.full((samples,), 7.0),
        "encoder_hidden_states": normal(samples, 5, 12, seed=1),
        "pooled_projections": normal(samples, 10, seed=2),
    }


def _tokens(samples: int) -> Inputs:
    ids = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3)}
    return {**_dit(samples), "hidden_states": normal(samples, 16, 4), "timestep": torch.full((samples,), 0.7), **ids}


CASES = {
    "UNet": Case(_unet, _denoiser, "sample"),
    "Stable Diffusion 3": Case(_sd3, _dit, "sample"),
    "Flux": Case(_flux, _tokens, "sample"),
    "CLIP's text encoder": Case(_clip, _ids, "last_hidden_state"),
    "T5's encoder": Case(_t5, _ids, "last_hidden_state"),
    "GPT-2": Case(_gpt2, _ids, "logits"),
    "Llama": Case(_llama, _ids, "logits"),
}


@cache
def _original(name: str) -> nn.Module:
    return built(CASES[name])


def built(case: Case) -> Any:
    """Build a model; the same weights every time."""
    torch.manual_seed(0)
    model = case.build().requires_grad_(False).eval()
    for index, parameter in enumerate(model.parameters()):
        # Weights that float16 holds exactly, so that the Z form's ΔW is the protocol's, and no bias is 0.
        parameter.data += 0.05 * normal(*parameter.shape, seed=index)
        parameter.data = parameter.data.half().float()
    return model


def tiny(name: str) -> Any:
    """A new copy of a tiny model; the same weights every time."""
    return copy.deepcopy(_original(name))


@cache
def zero_of(name: str) -> Delta:
    """δ = 0 on all weights of a tiny model that can be shifted."""
    return live_zero(tiny(name))


def delta_of(name: str, *, size: float = 0.3, seed: int = 0) -> Delta:
    """A random δ on all weights of a tiny model that can be shifted."""
    return random_delta(zero_of(name), size=size, seed=seed)


def run(model: nn.Module, name: str, inputs: Inputs | None = None, *, samples: int = 2) -> Tensor:
    """What a tiny model computes, in its own dtype; gradients flow if something takes them."""
    dtype = next(model.parameters()).dtype
    given = CASES[name].inputs(samples) if inputs is None else inputs
    cast = {
        key: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in given.items()
    }
    return torch.as_tensor(getattr(model(**cast), CASES[name].output))


def rows(inputs: Inputs, index: int, samples: int) -> Inputs:
    """The inputs of one sample."""
    return {
        key: value[index : index + 1]
        if isinstance(value, Tensor) and value.ndim and value.shape[0] == samples
        else value
        for key, value in inputs.items()
    }


def double_copy(model: nn.Module, *deltas: Delta) -> Any:
    """The same model in float64 with W + ΔW by a float64 SVD of the weight: the truth. The δ are summed first."""
    result = copy.deepcopy(model).double()
    for name, parameter in deltas[0].metadata.parameters.items():
        weight = parameter_of(result, name.removeprefix("model."))
        shift = sum(torch.from_numpy(delta[name].astype("f8")) for delta in deltas)
        assert isinstance(shift, Tensor)
        if parameter.kind == "elementwise":
            weight.data += shift.reshape(weight.shape)
            continue
        moved = weight.data.half().double().movedim(parameter.axis, 0)  # the basis dtype of normal numbers
        U, sigma, Vt = torch.linalg.svd(moved.flatten(1), full_matrices=False)
        change = U * torch.maximum(shift, -sigma) @ Vt
        weight.data += change.reshape(moved.shape).movedim(0, parameter.axis)
    return result


def parameter_of(model: nn.Module, key: str) -> Tensor:
    """A parameter of a model, or the slice of a stacked one that a key with an index names."""
    stack, _, index = key.removesuffix("]").partition("[")
    return model.get_parameter(key) if not index else model.get_parameter(stack).data[int(index)]


def relative(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())
