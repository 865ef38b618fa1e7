"""Files have the keys of programs that cannot be installed here: ComfyUI, kohya's sd-scripts and musubi-tuner.

The layers below are those of ComfyUI's own models with a small configuration, after `comfy/ldm` and the key maps in
`comfy/lora.py` and `comfy/utils.py` (main branch of Comfy-Org/ComfyUI, November 2026). A file's key is a layer's name
behind `diffusion_model.`, and in kohya's spelling its flat name behind `lora_unet_` (`networks/lora_flux.py` and others
of sd-scripts 0.9, `networks/lora.py` of musubi-tuner). A name is followed by its rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from svdiff_delta import Delta, convert
from svdiff_delta.base_model.base import Base

from .test_spellings import bases  # noqa: F401 - a fixture


def layers(text: str, stem: str = "") -> dict[str, tuple[int, int]]:
    """Return layers with their shapes, of a list with semicolons between them, each below a stem."""
    found = {}
    for entry in text.split(";"):
        name, rows, columns = entry.split()
        found[f"{stem}{name}"] = (int(rows), int(columns))
    return found


pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # Chroma's own

DOUBLE = "{0}_attn.qkv 96 32; {0}_attn.proj 32 32; {0}_mlp.0 {1} 32; {0}_mlp.2 32 {2}"
BLOCK = "attn.qkv 96 32; attn.proj 32 32; mlp.fc1 128 32; mlp.fc2 32 128; adaLN_modulation.1 {} 32"
WAN = "self_attn.q 24 24; self_attn.k 24 24; self_attn.v 24 24; self_attn.o 24 24; cross_attn.q 24 24;"
WAN += "cross_attn.k 24 24; cross_attn.v 24 24; cross_attn.o 24 24; ffn.0 16 24; ffn.2 24 16"
LUMINA = (
    "attention.qkv 64 32; attention.out 32 32; feed_forward.w1 128 32; feed_forward.w2 32 128; feed_forward.w3 128 32"
)
ATTENTION = "{0}to_q 32 32; {0}to_k 32 32; {0}to_v 32 32; {0}to_out.0 32 32"

TABLES: dict[str, dict[str, tuple[int, int]]] = {
    "Flux": {
        **layers(DOUBLE.format("img", 128, 128), "double_blocks.0."),
        **layers(DOUBLE.format("txt", 128, 128), "double_blocks.0."),
        **layers("img_mod.lin 192 32; txt_mod.lin 192 32", "double_blocks.0."),
        **layers("linear1 224 32; linear2 32 160; modulation.lin 96 32", "single_blocks.0."),
    },
    "Flux2": {
        **layers(DOUBLE.format("img", 192, 96), "double_blocks.0."),
        **layers(DOUBLE.format("txt", 192, 96), "double_blocks.0."),
        **layers("linear1 288 32; linear2 32 128", "single_blocks.0."),
        **layers("double_stream_modulation_img.lin 192 32; double_stream_modulation_txt.lin 192 32"),
        **layers("single_stream_modulation.lin 96 32; final_layer.linear 4 32; final_layer.adaLN_modulation.1 64 32"),
    },
    "Chroma": {
        **layers(DOUBLE.format("img", 128, 128), "double_blocks.0."),
        **layers(DOUBLE.format("txt", 128, 128), "double_blocks.0."),
        **layers("linear1 224 32; linear2 32 160", "single_blocks.0."),
        **layers("in_proj 16 16; out_proj 32 16; layers.0.in_layer 16 16", "distilled_guidance_layer."),
    },
    "SD3": {
        **layers(BLOCK.format(288), "joint_blocks.0.x_block."),
        **layers("attn2.qkv 96 32; attn2.proj 32 32", "joint_blocks.0.x_block."),
        **layers(BLOCK.format(192), "joint_blocks.0.context_block."),
        **layers("final_layer.linear 16 32; final_layer.adaLN_modulation.1 64 32"),
        **layers("t_embedder.mlp.0 32 256; t_embedder.mlp.2 32 32; y_embedder.mlp.0 32 10; y_embedder.mlp.2 32 32"),
    },
    "QwenImage": {
        **layers(ATTENTION.format("attn."), "transformer_blocks.0."),
        **layers("img_mlp.net.0.proj 128 32; txt_mlp.net.2 32 128; img_mod.1 192 32", "transformer_blocks.0."),
    },
    "Wan": {
        **layers(WAN, "blocks.0."),
        **layers("text_embedding.0 24 16; time_embedding.2 24 24; time_projection.1 144 24; head.head 16 24"),
    },
    "Lumina2": {
        **layers(LUMINA, "layers.0."),
        **layers(LUMINA, "noise_refiner.0."),
        **layers(LUMINA, "context_refiner.0."),
        **layers("layers.0.adaLN_modulation.1 128 32; t_embedder.mlp.0 32 256; cap_embedder.1 32 16"),
        **layers("final_layer.adaLN_modulation.1 32 32; final_layer.linear 16 32"),
    },
    "LTX": {
        **layers("patchify_proj 16 4; adaln_single.linear 96 16; adaln_single.emb.timestep_embedder.linear_1 16 256"),
        **layers("attn1.to_q 16 16; attn2.to_out.0 16 16; ff.net.0.proj 64 16", "transformer_blocks.0."),
    },
    "AuraFlow": {
        **layers(
            "attn.w1q 16 16; attn.w2o 16 16; mlpX.c_fc1 256 16; mlpC.c_proj 16 256; modX.1 96 16", "double_layers.0."
        ),
        **layers("attn.w1q 16 16; attn.w1o 16 16; mlp.c_fc2 256 16; modCX.1 96 16", "single_layers.0."),
        **layers("init_x_linear 16 16; cond_seq_linear 16 16; final_linear 16 16; modF.1 32 16"),
    },
    "Krea2": {
        **layers("attn.wq 32 32; attn.wk 16 32; attn.gate 32 32; attn.wo 32 32; mlp.up 32 32", "blocks.0."),
        **layers("attn.wv 16 16; mlp.down 16 16", "txtfusion.refiner_blocks.0."),
        **layers("first 32 4; last.linear 4 32; tmlp.0 32 16; tproj.1 192 32; txtmlp.3 32 32; txtfusion.projector 1 2"),
    },
}
Z_IMAGE = {
    "comfyui": layers("attention.to_q 32 32; attention.to_k 32 32; attention.to_v 32 32; attention.to_out.0 32 32"),
    "kohya": layers("attention.qkv 96 32; attention.out 32 32"),
}


def written(path: Path, base: Base, delta: Delta, dialect: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the two factors' product of each module of a file, by the module's name in it."""
    convert(delta, to=dialect, base=base, rank=2, output=path, allow_unmatched=True)
    tensors = load_file(path)
    up, down = ("lora_B.weight", "lora_A.weight") if dialect == "comfyui" else ("lora_up.weight", "lora_down.weight")
    modules = [key.removesuffix(f".{up}") for key in tensors if key.endswith(f".{up}")]
    return {name: (len(tensors[f"{name}.{up}"]), tensors[f"{name}.{down}"].shape[1]) for name in modules}


@pytest.mark.parametrize("dialect", ["comfyui", "kohya"])
@pytest.mark.parametrize("family", TABLES)
def test_a_file_has_the_keys_of_the_program(
    tmp_path: Path,
    bases: Callable[[str], tuple[Base, Delta]],  # noqa: F811 - the fixture
    family: str,
    dialect: str,
) -> None:
    found = written(tmp_path / "x.safetensors", *bases(family), dialect)
    for name, shape in TABLES[family].items():
        key = f"diffusion_model.{name}" if dialect == "comfyui" else f"lora_unet_{name.replace('.', '_')}"
        assert found.get(key) == shape, key


@pytest.mark.parametrize("dialect", Z_IMAGE)
def test_z_image_has_the_names_that_most_programs_take(
    tmp_path: Path,
    bases: Callable[[str], tuple[Base, Delta]],  # noqa: F811 - the fixture
    dialect: str,
) -> None:
    found = written(tmp_path / "x.safetensors", *bases("ZImage"), dialect)
    for name, shape in Z_IMAGE[dialect].items():
        whole = f"layers.0.{name}"
        key = f"diffusion_model.{whole}" if dialect == "comfyui" else f"lora_unet_{whole.replace('.', '_')}"
        assert found.get(key) == shape, key
