"""Every family in every spelling: δ becomes a LoRA and δ again, and real programs take all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.adapters import read_changes, save_tensors
from support.checkpoints import bert
from support.models import base_delta
from support.readers import change_of, only
from support.weights import normal, relative
from support.zoo.registry import DENOISERS
from support.zoo.trial import build
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from svdiff_delta import Delta, convert, open_base, select
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import DeltaError, InputError
from svdiff_delta.format.adapter_keys import PREFIXES, spell

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # Chroma's own

FAMILIES = {
    "Flux": "FluxTransformer2DModel",
    "Flux2": "Flux2Transformer2DModel",
    "Chroma": "ChromaTransformer2DModel",
    "SD3": "SD3Transformer2DModel",
    "QwenImage": "QwenImageTransformer2DModel",
    "ZImage": "ZImageTransformer2DModel",
    "Wan": "WanTransformer3DModel",
    "Lumina2": "Lumina2Transformer2DModel",
    "HiDreamImage": "HiDreamImageTransformer2DModel",
    "LTX": "LTXVideoTransformer3DModel",
    "AuraFlow": "AuraFlowTransformer2DModel",
    "Sana": "SanaTransformer2DModel",
    "Krea2": "Krea2Transformer2DModel",
}

LOST = {
    ("Sana", dialect): ["transformer.transformer_blocks.0.ff.conv_depth.weight"] for dialect in ("diffusers", "kohya")
}
"""A depthwise convolution, of which not all readers of these take the same shape."""


def folder_of(family: str, root: Path) -> Path:
    kind = FAMILIES[family]
    folder = root / family
    build(kind, DENOISERS[kind]).save_pretrained(folder / "transformer")
    index = {"_class_name": f"{family}Pipeline", "transformer": ["diffusers", kind]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Base, Delta]]:
    """Return what makes a small model of a family, with a random δ on each of its matrices."""
    root = tmp_path_factory.mktemp("families")

    @cache
    def made(family: str) -> tuple[Base, Delta]:
        base = open_base(folder_of(family, root))
        delta = base_delta(base, size=0.1)
        matrices = select(delta, *(name for name in delta if len(base.shape(name)) > 1))
        # None is below −σ: a δ that comes back is clipped there.
        return base, Delta({name: abs(shift) for name, shift in matrices.items()}, matrices.metadata)

    return made


@pytest.mark.parametrize("dialect", ["diffusers", "comfyui", "kohya", "lycoris", "peft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_delta_comes_back_from_every_dialect(
    tmp_path: Path, bases: Callable[[str], tuple[Base, Delta]], family: str, dialect: str
) -> None:
    base, delta = bases(family)
    path = tmp_path / "x.safetensors"
    done = convert(delta, to=dialect, base=base, output=path, rank=100_000, allow_unmatched=True)
    back = convert(path, base=base)
    assert [*done.left_out] == LOST.get((family, dialect), [])
    assert {*done.left_out} | {*back.delta} == {*delta}
    for name in back.delta:
        change, expected = back.delta[name].astype("f8"), delta[name].astype("f8")
        assert np.linalg.norm(change - expected) <= 1e-6 * np.linalg.norm(expected), name


# --- Reading: any beginning with any end ---

PATH = "transformer_blocks.0.attn.to_k"
BEGINNINGS = {
    "diffusers": "transformer.",
    "bare": "",
    "ComfyUI, ai-toolkit": "diffusion_model.",
    "extractions": "model.diffusion_model.",
    "DiffSynth": "pipe.dit.",
    "PEFT": "base_model.model.",
    "both": "transformer.base_model.model.",
    "kohya, musubi-tuner": "lora_unet_",
    "OneTrainer": "lora_transformer_",
    "SimpleTuner": "lycoris_",
    "Wan Fun": "lora_unet__",
}
ENDS = {
    "kohya": ("lora_down.weight", "lora_up.weight"),
    "PEFT": ("lora_A.weight", "lora_B.weight"),
    "DiffSynth": ("lora_A.default.weight", "lora_B.default.weight"),
    "diffusers before PEFT": ("lora.down.weight", "lora.up.weight"),
    "Genmo": ("lora_A", "lora_B"),
}


def spelled(beginning: str, path: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a module's tensors under a program's keys."""
    flat = beginning in {prefix.text for prefix in PREFIXES if prefix.flat}
    return {f"{beginning}{path.replace('.', '_') if flat else path}.{end}": value for end, value in parts.items()}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_any_beginning_goes_with_any_end(
    tmp_path: Path, bases: Callable[[str], tuple[Base, Delta]], beginning: str, end: str
) -> None:
    base, _ = bases("QwenImage")
    down, up = normal(4, 32), normal(32, 4, seed=1)
    parts = {**dict(zip(ENDS[end], (down, up), strict=True)), "alpha": torch.tensor(2.0)}
    path = save_tensors(tmp_path / "x.safetensors", spelled(BEGINNINGS[beginning], PATH, parts))
    found = convert(path, base=base, min_energy=0.0)
    assert [*found.delta] == [f"transformer.{PATH}.weight"]
    dialect = "kohya" if beginning != "SimpleTuner" else "lycoris"
    assert relative(only(path, dialect, base, f"transformer.{PATH}.weight"), 0.5 * up.double() @ down.double()) < 1e-13


# --- Fused layers, in every method ---

FUSED = "double_blocks.0.img_attn.qkv"
PARTS = [f"transformer.transformer_blocks.0.attn.to_{x}.weight" for x in "qkv"]
Method = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]
"""Makes a module's tensors, and its ΔW beside the fused weight."""
METHODS: dict[str, Method] = {}


def method(make: Method) -> Method:
    METHODS[make.__name__] = make
    return make


@method
def lora(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    up, down = normal(96, 4), normal(4, 32, seed=1)
    parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(2.0)}
    return parts, 0.5 * up.double() @ down.double()


@method
def loha(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    a, b, c, d = normal(96, 4), normal(4, 32, seed=1), normal(96, 4, seed=2), normal(4, 32, seed=3)
    parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(4.0)}
    return parts, (a.double() @ b.double()) * (c.double() @ d.double())


@method
def lokr(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    first, second = normal(8, 8), normal(12, 4, seed=1)  # its rows do not fall in with q, k and v
    parts = {"lokr_w1": first, "lokr_w2": second, "alpha": torch.tensor(4.0)}
    return parts, torch.kron(first.double(), second.double())


@method
def dora(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    (parts, change), scale = lora(weight), normal(96, 1, seed=5).abs() + 1
    whole = weight.double() + change
    return {**parts, "dora_scale": scale}, scale.double() * whole / whole.norm(dim=1, keepdim=True) - weight.double()


@method
def dora_per_input(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    (parts, change), scale = lora(weight), normal(1, 32, seed=5).abs() + 1
    whole = weight.double() + change
    return {**parts, "dora_scale": scale}, scale.double() * whole / whole.norm(dim=0, keepdim=True) - weight.double()


@method
def difference(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    return {"diff": (change := normal(96, 32))}, change.double()


@pytest.mark.parametrize("beginning", ["diffusion_model.", "lora_unet_"])
@pytest.mark.parametrize("name", METHODS)
def test_a_fused_layer_is_taken_apart_whatever_the_method(
    tmp_path: Path, bases: Callable[[str], tuple[Base, Delta]], beginning: str, name: str
) -> None:
    base, _ = bases("Flux")
    parts, expected = METHODS[name](torch.cat([base.read(part) for part in PARTS]))
    found = read_changes(save_tensors(tmp_path / "x.safetensors", spelled(beginning, FUSED, parts)), "comfyui", base)
    assert [*found.kinds] == sorted(PARTS)
    assert found.left_out == {}
    for part, change in zip(PARTS, expected.chunk(3), strict=True):
        assert relative(change_of(found, part), change) < 1e-13


def test_a_layer_with_shift_before_scale_is_turned(tmp_path: Path, bases: Callable[[str], tuple[Base, Delta]]) -> None:
    base, _ = bases("Flux")
    up, down = normal(64, 4), normal(4, 32, seed=1)
    parts = {"lora_B.weight": up, "lora_A.weight": down}
    path = save_tensors(
        tmp_path / "x.safetensors", spelled("diffusion_model.", "final_layer.adaLN_modulation.1", parts)
    )
    shift, scale = (up.double() @ down.double()).chunk(2)
    change = only(path, "comfyui", base, "transformer.norm_out.linear.weight")
    assert relative(change, torch.cat([scale, shift])) < 1e-13


def test_xlabs_names_of_flux_are_read(tmp_path: Path, bases: Callable[[str], tuple[Base, Delta]]) -> None:
    base, _ = bases("Flux")
    up, down = normal(96, 4), normal(4, 32, seed=1)
    keys = ("double_blocks.0.processor.qkv_lora1", "single_blocks.0.processor.qkv_lora")
    tensors = {f"{key}.{side}.weight": value for key in keys for side, value in (("up", up), ("down", down))}
    found = read_changes(save_tensors(tmp_path / "x.safetensors", tensors), "flux", base)
    assert found.left_out == {}
    assert len(found.kinds) == 6
    single = [f"transformer.single_transformer_blocks.0.attn.to_{x}.weight" for x in "qkv"]
    for part, change in zip(PARTS + single, [*(up.double() @ down.double()).chunk(3)] * 2, strict=True):
        assert relative(change_of(found, part), change) < 1e-13


def test_a_rank_of_a_fused_layer_is_that_of_its_parts_together(
    tmp_path: Path, bases: Callable[[str], tuple[Base, Delta]]
) -> None:
    base, delta = bases("Flux")
    some = select(delta, *PARTS[:2])  # v stays as it is
    convert(some, to="comfyui", base=base, rank=3, output=tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        up = file.get_tensor(f"diffusion_model.{FUSED}.lora_B.weight")
        assert [*file.keys()] == [f"diffusion_model.{FUSED}.lora_{side}.weight" for side in "AB"]
    assert up.shape == (96, 6)
    assert not up[64:].any()
    assert not up[:32, :3].any()  # k is first by name, and second by its rows
    assert not up[32:64, 3:].any()


# --- Names that only diffusers' converters know ---


@pytest.mark.parametrize("spelling", ["diffusion_model.", "lora_unet_"])
def test_what_only_a_pipeline_s_converter_knows_is_read_through_it(tmp_path: Path, spelling: str) -> None:
    kind = "Ideogram4Transformer2DModel"
    build(kind, DENOISERS[kind]).save_pretrained(tmp_path / "base/transformer")
    index = {"_class_name": "Ideogram4Pipeline", "transformer": ["diffusers", kind]}
    (tmp_path / "base/model_index.json").write_text(json.dumps(index))
    base = open_base(tmp_path / "base")
    up, down = normal(96, 4), normal(4, 32, seed=1)
    parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(-2.0)}
    tensors = spelled("diffusion_model.", "layers.0.attention.qkv", parts) | spelled(
        "diffusion_model.", "layers.0.attention.nothing", parts
    )
    found = read_changes(save_tensors(tmp_path / "x.safetensors", tensors), "comfyui", base)
    names = [f"transformer.layers.0.attention.to_{x}.weight" for x in "qkv"]
    assert [*found.kinds] == sorted(names)
    for name, change in zip(names, (-0.5 * up.double() @ down.double()).chunk(3), strict=True):
        assert relative(change_of(found, name), change) < 1e-13
    assert found.left_out == {key: "the base has no such layer" for key in tensors if "nothing" in key}


# --- Bad input ---


def test_two_spellings_of_one_layer_are_refused(tmp_path: Path, bases: Callable[[str], tuple[Base, Delta]]) -> None:
    base, _ = bases("Flux")
    down, up = normal(4, 32), normal(32, 4, seed=1)
    parts = {"lora_A.weight": down, "lora_B.weight": up}
    one = spelled("transformer.", "transformer_blocks.0.attn.to_out.0", parts)
    for beginning, path in (
        ("", "transformer_blocks.0.attn.to_out.0"),
        ("lora_unet_", "double_blocks.0.img_attn.proj"),
    ):
        file = save_tensors(tmp_path / "x.safetensors", one | spelled(beginning, path, parts))
        with pytest.raises(InputError, match=r"two sets of keys change transformer\.transformer_blocks\.0"):
            convert(file, base=base, min_energy=0.0, allow_unmatched=True)


@pytest.mark.parametrize("family", ["Wan", "QwenImage", "Lumina2", "AuraFlow", "Krea2"])
def test_a_lora_of_another_family_is_called_by_its_name(
    tmp_path: Path, bases: Callable[[str], tuple[Base, Delta]], family: str
) -> None:
    base, delta = bases(family)
    convert(delta, to="comfyui", base=base, rank=2, output=tmp_path / "x.safetensors", allow_unmatched=True)
    save_tensors(tmp_path / "y.safetensors", load_file(tmp_path / "x.safetensors"))
    name = {"QwenImage": "Qwen-Image", "Lumina2": "Z-Image", "Krea2": "Krea 2"}.get(family, family)
    for other in ("Flux", "HiDreamImage"):
        looks = {"HiDreamImage": "HiDream"}.get(other, other)
        with pytest.raises(DeltaError, match=rf"looks like an adapter of {name}, the base like {looks}"):
            convert(tmp_path / "y.safetensors", base=bases(other)[0], min_energy=0.0)


@pytest.mark.parametrize("start", ["pissa", "PiSSA_niter_4", "olora"])
def test_factors_that_were_taken_out_of_the_base_are_refused(
    tmp_path: Path, bases: Callable[[str], tuple[Base, Delta]], start: str
) -> None:
    base, _ = bases("QwenImage")
    tensors = spelled("lora_unet_", PATH, {"lora_down.weight": normal(4, 32), "lora_up.weight": normal(32, 4)})
    path = save_tensors(
        tmp_path / "x.safetensors", tensors, ss_network_args=json.dumps({"init_weights": start, "conv_dim": 4})
    )
    with pytest.raises(InputError, match=rf"ss_network_args: init_weights is {start}, which takes the"):
        convert(path, base=base, min_energy=0.0)


# --- Text encoders, and what files say of themselves ---


def test_text_encoders_have_the_numbers_of_kohya_and_the_names_of_comfyui(tmp_path: Path) -> None:
    text = {
        "vocab_size": 20,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    folder = tmp_path / "base"
    CLIPTextModel(CLIPTextConfig(**text)).save_pretrained(folder / "text_encoder")
    small = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    T5EncoderModel(small).save_pretrained(folder / "text_encoder_2")
    kind = FAMILIES["Flux"]
    build(kind, DENOISERS[kind]).save_pretrained(folder / "transformer")
    parts = {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"}
    index = {name: ["transformers", found] for name, found in parts.items()}
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "FluxPipeline", "transformer": ["diffusers", kind], **index})
    )
    base = open_base(folder)
    names = (
        "text_encoder.encoder.layers.0.mlp.fc1.weight",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.weight",
    )
    delta = base_delta(base, *names, size=0.1)
    expected = {
        "kohya": ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te3_encoder_block_0_layer_0_SelfAttention_q"),
        "comfyui": (
            "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
            "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
        ),
    }
    for dialect, modules in expected.items():
        path = tmp_path / f"{dialect}.safetensors"
        convert(delta, to=dialect, base=base, rank=8, output=path)
        assert {spell(key).module for key in load_file(path)} == {*modules}  # type: ignore[union-attr]
        assert convert(path, base=base).delta.keys() == {*names}


SAID = {
    "Flux": ("flux1", "flux-1-dev/lora"),
    "Flux2": ("flux_2", "Flux2Transformer2DModel/lora"),
    "Chroma": ("chroma", "chroma/lora"),
    "QwenImage": ("qwen_image", "Qwen-Image/lora"),
    "ZImage": ("z_image", "Z-Image/lora"),
    "Wan": ("wan", "wan2.1/lora"),
    "Lumina2": ("lumina2", "lumina-2/lora"),
    "HiDreamImage": ("hidream", "HiDreamImageTransformer2DModel/lora"),
    "Krea2": ("krea2", "Krea2Transformer2DModel/lora"),
}


@pytest.mark.parametrize("dialect", ["kohya", "comfyui", "lycoris"])
@pytest.mark.parametrize("family", SAID)
def test_a_file_says_which_family_it_is_for(
    tmp_path: Path, bases: Callable[[str], tuple[Base, Delta]], family: str, dialect: str
) -> None:
    base, delta = bases(family)
    one = select(delta, next(iter(delta)))
    convert(one, to=dialect, base=base, rank=1, output=tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        said = file.metadata()
    assert (said["ss_base_model_version"], said["modelspec.architecture"], said["ss_v2"]) == (*SAID[family], "False")


def test_a_transformer_whose_original_names_are_not_known_says_so(
    tmp_path: Path, bases: Callable[[str], tuple[Base, Delta]]
) -> None:
    base, delta = bases("Sana")
    one = select(delta, "transformer.proj_out.weight")
    for dialect in ("kohya", "comfyui"):
        (remark,) = convert(one, to=dialect, base=base, rank=100).remarks
        assert "call the layers of SanaTransformer2DModel is not known here" in remark


def test_a_component_of_any_name_may_stand_before_a_path(tmp_path: Path) -> None:
    base = bert(tmp_path / "base")
    path = "encoder.layer.0.attention.self.query"
    rows, columns = base.shape(f"model.{path}.weight")
    parts = {"lora_A.weight": normal(2, columns), "lora_B.weight": normal(rows, 2, seed=1)}
    for beginning in ("model.", "", "base_model.model."):
        file = save_tensors(tmp_path / "x.safetensors", spelled(beginning, path, parts))
        assert [*convert(file, base=base, min_energy=0.0).delta] == [f"model.{path}.weight"]
