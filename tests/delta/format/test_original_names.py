"""The original names of layers: diffusers' own converters of checkpoints read what is put together by the tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as library
from support.zoo.registry import DENOISERS
from torch import Tensor

from svdiff_delta.format import original_names
from svdiff_delta.format.original_layers import ORIGINALS
from svdiff_delta.format.original_names import original_of, parts_of

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # Chroma's own

BFL_WIDE: dict[str, Any] = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
}
CONFIGS: dict[str, dict[str, Any]] = {
    # Widths that the converters have written into them.
    "FluxTransformer2DModel": {
        **BFL_WIDE,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 8,
        "guidance_embeds": True,
    },
    "ChromaTransformer2DModel": {**BFL_WIDE, "joint_attention_dim": 16, "approximator_layers": 2},
    "SanaTransformer2DModel": {**DENOISERS["SanaTransformer2DModel"].config, "guidance_embeds": False, "qk_norm": None},
    "Lumina2Transformer2DModel": {"num_layers": 1, "num_refiner_layers": 1, "cap_feat_dim": 16},
}
CONVERTERS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "FluxTransformer2DModel": library.convert_flux_transformer_checkpoint_to_diffusers,
    "ChromaTransformer2DModel": library.convert_chroma_transformer_checkpoint_to_diffusers,
    "Flux2Transformer2DModel": library.convert_flux2_transformer_checkpoint_to_diffusers,
    "SD3Transformer2DModel": library.convert_sd3_transformer_checkpoint_to_diffusers,
    "ZImageTransformer2DModel": library.convert_z_image_transformer_checkpoint_to_diffusers,
    "Lumina2Transformer2DModel": library.convert_lumina2_to_diffusers,
    "WanTransformer3DModel": library.convert_wan_transformer_to_diffusers,
    "LTXVideoTransformer3DModel": library.convert_ltx_transformer_checkpoint_to_diffusers,
    "AuraFlowTransformer2DModel": library.convert_auraflow_transformer_checkpoint_to_diffusers,
    "Krea2Transformer2DModel": library.convert_krea2_transformer_checkpoint_to_diffusers,
    "SanaTransformer2DModel": library.convert_sana_transformer_to_diffusers,
}
EXTRA: dict[str, tuple[str, ...]] = {
    "SD3Transformer2DModel": ("pos_embed",),
    "AuraFlowTransformer2DModel": ("positional_encoding", "register_tokens"),
    "SanaTransformer2DModel": (
        *("pos_embed", "y_embedder.y_embedding", "blocks.0.scale_shift_table", "final_layer.scale_shift_table"),
    ),
}
"""Tensors of a checkpoint that are no layers, and that its converter looks for."""

SCALES = ("FluxTransformer2DModel", "ChromaTransformer2DModel", "Flux2Transformer2DModel")
"""Families whose original code calls the weight of a norm its scale."""


def numbered(kind: str) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """Return a state dict of a family and its true shapes; row is another number, a weight has one column."""
    with torch.device("meta"):
        model = getattr(diffusers, kind)(**CONFIGS.get(kind) or DENOISERS[kind].config)
    found, start = {}, 1
    for key, value in model.state_dict().items():
        rows = value.shape[0] if value.dim() else 1
        found[key] = torch.arange(start, start + rows).reshape(rows, *[1] * (value.dim() - 1))
        start += rows
    return found, {key: tuple(value.shape) for key, value in model.state_dict().items()}


def put_together(kind: str, state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the checkpoint of the original code, by the table."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        path, _, leaf = key.rpartition(".")
        layer = original_of(kind, path)
        if layer is None:
            found[key] = value
            continue
        whole = torch.cat([state[f"{part}.{leaf}"] for part in layer.parts])
        shape = shapes[f"{path}.weight"]
        if layer.swap == "always" or (layer.swap == "continuous" and shape[0] == 2 * shape[1]):
            whole = torch.cat([*reversed(whole.chunk(2))])
        is_scale = kind in SCALES and layer.name.rpartition(".")[2].endswith("_norm")
        found[f"{layer.name}.{'scale' if is_scale else leaf}"] = whole
    return {re.sub(r"(_layer\.norms\.\d+)\.weight", r"\1.scale", key): value for key, value in found.items()}


def test_every_table_has_a_witness() -> None:
    assert CONVERTERS.keys() == ORIGINALS.keys()


@pytest.mark.parametrize("kind", CONVERTERS)
def test_diffusers_converter_takes_a_checkpoint_apart_as_the_table_put_it_together(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if all(layer.reads for layer in ORIGINALS[kind]):
        monkeypatch.setitem(
            original_names.ORIGINALS, kind, tuple(replace(layer, reads=False) for layer in ORIGINALS[kind])
        )
    state, shapes = numbered(kind)
    checkpoint = put_together(kind, state, shapes)
    for name in EXTRA.get(kind, ()):
        checkpoint[name] = torch.zeros(1)
    found = CONVERTERS[kind](dict(checkpoint))
    weights = [key for key in state if key.endswith(".weight")]
    assert len(weights) > 15
    for key in weights:
        assert torch.equal(found[key], state[key]), key


@pytest.mark.parametrize("kind", ORIGINALS)
def test_a_name_leads_to_the_layer_and_back(kind: str) -> None:
    for layer in ORIGINALS[kind]:
        name = layer.name.replace("{}", "7")
        found = parts_of(kind, name)
        assert found is not None
        assert found == parts_of(kind, name.replace(".", "_"), flat=True)
        assert [part.replace("{}", "7") for part in layer.parts] == [*found.parts]
        if not layer.reads:
            assert all(original_of(kind, part) == found for part in found.parts)


def test_what_has_no_other_name_has_none() -> None:
    assert original_of("QwenImageTransformer2DModel", "transformer_blocks.0.attn.to_q") is None
    assert original_of("FluxTransformer2DModel", "transformer_blocks.0.nothing") is None
    assert parts_of("FluxTransformer2DModel", "double_blocks.x.img_attn.qkv") is None
