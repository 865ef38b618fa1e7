"""Adapters of every method of PEFT and LyCORIS, built, drawn at random and saved by these libraries."""

from __future__ import annotations

import json
import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from svdiff_delta.base_model.base import Base, open_base

WIDE: Final = 32
LAYERS: Final = ("q_proj", "v_proj")
PATHS: Final = tuple(f"layers.0.self_attn.{layer}" for layer in LAYERS)

OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10},
    "C3A": {"block_size": 8},
    "DELORA": {"delora_lambda": 2},
    "FOURIERFT": {"n_frequency": 40, "scaling": 10.0},
    "FROD": {"progressbar": False},
    "GRALORA": {"r": 8},
    "IA3": {"feedforward_modules": ["v_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "LORA": {"r": 4},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 8},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [1, 3]},
    "VBLORA": {"r": 2, "num_vectors": 8, "vector_length": 8},
    "WAVEFT": {"n_frequency": 64, "scaling": 10.0},
}
"""What each method of PEFT needs for layers of 32 × 32."""

METHODS: Final = sorted(str(method.value) for method in PEFT_TYPE_TO_CONFIG_MAPPING)


def llama(folder: Path, seed: int = 0) -> Base:
    """Return a transformers model of one layer, whose attention has weights of 32 × 32 and no biases."""
    config = LlamaConfig(
        vocab_size=WIDE,
        hidden_size=WIDE,
        intermediate_size=WIDE,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)
    return open_base(folder)


@contextmanager
def unwarned() -> Iterator[None]:
    """Let PEFT warn of what it likes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save_peft_method(method: str, base: Base, folder: Path, **more: Any) -> bool:
    """Save an adapter of a method with random values by PEFT; return whether PEFT can build it on linear layers.

    Of what it cannot, the folder has the configuration and a tensor.
    """
    options = {"target_modules": list(LAYERS), **OPTIONS.get(method, {}), **more}
    with unwarned():
        try:
            config = PEFT_TYPE_TO_CONFIG_MAPPING[method](**options)
            model: Any = get_peft_model(LlamaModel.from_pretrained(base.path), config)
        except (AttributeError, ImportError, TypeError, ValueError):
            folder.mkdir()
            (folder / "adapter_config.json").write_text(json.dumps({"peft_type": method}))
            save_file({f"base_model.model.{PATHS[0]}.x": torch.ones(2)}, folder / "adapter_model.safetensors")
            return False
        draw(model)
        model.save_pretrained(folder)
    return True


def draw(model: nn.Module, size: float = 0.05) -> None:
    """Move all trained parameters of a model at random."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def merged_by_peft(base: Base, folder: Path) -> dict[str, Tensor]:
    """Return what PEFT's own merge changes in a whole model, by parameter, in float64."""
    with unwarned():
        live: Any = LlamaModel.from_pretrained(base.path)
        before = {key: value.clone().double() for key, value in live.state_dict().items()}
        merged = PeftModel.from_pretrained(live, str(folder)).merge_and_unload().state_dict()
    changes = {f"model.{key}": merged[key].double() - value for key, value in before.items()}
    return {name: change for name, change in changes.items() if change.any()}


def lycoris_methods() -> dict[str, Any]:
    """Return LyCORIS' layers by the names of their methods."""
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)  # it prints to stdout
    from lycoris.modules import MODULE_LIST

    return {getattr(cls, "name", cls.__name__).removesuffix("Module").lower(): cls for cls in MODULE_LIST}


def save_lycoris_method(cls: Any, base: Base, path: Path, **options: Any) -> Tensor | None:
    """Save an adapter of LyCORIS with random values; return what its own merge changes in the first of `PATHS`.

    None if it is not for linear layers.
    """
    weight = base.read(f"model.{PATHS[0]}.weight")
    layer = nn.Linear(WIDE, WIDE, bias=False)
    layer.weight.data.copy_(weight)
    arguments = {"lora_dim": 4, "alpha": 2.0, **options}
    made = cls("x", layer, 1.0, **arguments)
    if made.not_supported:
        return None
    if cls.__name__ == "FullModule":
        made.apply_to()  # its weight is no difference before
    draw(made)
    tensors = {key: value.detach().clone().contiguous() for key, value in made.state_dict().items()}
    metadata = {}
    if cls.__name__ == "DyLoraModule":
        metadata["ss_network_args"] = json.dumps({"algo": "dylora", "block_size": made.block_size})
        random.seed(0)
        change = made.get_diff_weight(1.0, rank=made.lora_dim - made.block_size)[0].detach()
    elif cls.__name__ == "LohaModule":
        # Its merge multiplies by alpha / rank twice (LyCORIS 4.1.3); its forward, which is trained, once.
        with torch.no_grad():
            change = made.get_weight(weight.shape)
    else:
        with torch.no_grad():
            change = made.get_merged_weight(1.0, weight.shape)[0] - weight
    flat = f"lycoris_{PATHS[0].replace('.', '_')}"
    save_file({f"{flat}.{key}": value for key, value in tensors.items()}, path, metadata=metadata or None)
    return change.double()
