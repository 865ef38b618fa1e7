"""LoRA becomes LoRA in another dialect: the numbers stay, there and back, for every family and pair of dialects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from itertools import permutations
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.adapters import taken, true_changes
from support.models import base_delta
from torch import Tensor

from svdiff_delta import Delta, convert, open_base, select
from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion.respell import respell
from svdiff_delta.conversion.respell.standard_layers import UNETS, unet_layers
from svdiff_delta.conversion.respell.unflatten import dotted
from svdiff_delta.errors import InputError, TensorError

from .test_real_programs import check, delta_weights, live
from .test_spellings import FAMILIES, folder_of

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # Chroma's own

DIALECTS = ("diffusers", "comfyui", "kohya", "lycoris", "peft")

Made = Callable[[str, str], tuple[Base, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return what makes a LoRA of a family in a dialect: random factors in F16 with alphas that are not the rank."""
    root = tmp_path_factory.mktemp("families")

    @cache
    def base_of(family: str) -> tuple[Base, Delta]:
        base = open_base(folder_of(family, root))
        delta = base_delta(base, size=0.1)
        return base, select(delta, *(name for name in delta if len(base.shape(name)) == 2))

    @cache
    def make(family: str, dialect: str) -> tuple[Base, Path]:
        base, delta = base_of(family)
        path = root / f"{family}-{dialect}"
        convert(delta, to=dialect, base=base, output=path, rank=4, dtype="F16", allow_unmatched=True)
        return base, path

    return make


def tensors_of(path: Path) -> dict[str, Tensor]:
    return load_file(path / "adapter_model.safetensors" if path.is_dir() else path)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert {*one} == {*other}
    for key, value in one.items():
        assert (value.dtype, value.shape) == (other[key].dtype, other[key].shape), key
        assert torch.equal(value.view(torch.uint8), other[key].view(torch.uint8)) if value.dim() else True, key
        assert torch.equal(value, other[key]), key


def lora(module: str, rows: int, columns: int, rank: int = 4, alpha: float | None = 2.0) -> dict[str, Tensor]:
    tensors = {
        f"{module}.lora_down.weight": torch.randn(rank, columns).half(),
        f"{module}.lora_up.weight": torch.randn(rows, rank).half(),
    }
    return tensors if alpha is None else {**tensors, f"{module}.alpha": torch.tensor(alpha)}


@pytest.mark.parametrize(("source", "target"), [*permutations(DIALECTS, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_comes_back_bit_for_bit(tmp_path: Path, made: Made, family: str, source: str, target: str) -> None:
    base, path = made(family, source)
    there, back = tmp_path / "there", tmp_path / "back"
    done = respell(path, to=target, base=base, output=there)
    respell(there, to=source, base=base, output=back)
    assert not done.left_out
    assert_same(tensors_of(path), tensors_of(back))


# --- Without a base ---

TOLD = ("Flux", "Chroma", "Flux2", "QwenImage", "ZImage", "Wan", "HiDreamImage", "AuraFlow", "Krea2")
"""Families that names alone tell, whatever the widths."""


@pytest.mark.parametrize("target", ["diffusers", "comfyui", "lycoris", "peft"])
@pytest.mark.parametrize("family", TOLD)
def test_keys_tell_the_family_so_that_no_base_is_needed(tmp_path: Path, made: Made, family: str, target: str) -> None:
    base, path = made(family, "kohya")
    respell(path, to=target, base=base, output=tmp_path / "with")
    respell(path, to=target, output=tmp_path / "without")
    assert_same(tensors_of(tmp_path / "with"), tensors_of(tmp_path / "without"))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_base_nothing_is_guessed(tmp_path: Path, made: Made, family: str) -> None:
    base, path = made(family, "diffusers")
    respell(path, to="kohya", base=base, output=tmp_path / "with")
    if family not in TOLD:
        with suppress(InputError):
            respell(path, to="kohya", output=tmp_path / "without")
        assert not (tmp_path / "without").exists() or same_names(tmp_path / "with", tmp_path / "without")
        return
    respell(path, to="kohya", output=tmp_path / "without")
    assert_same(tensors_of(tmp_path / "with"), tensors_of(tmp_path / "without"))


def same_names(one: Path, other: Path) -> bool:
    return {*tensors_of(one)} == {*tensors_of(other)}


@pytest.mark.parametrize("family", FAMILIES)
def test_dots_come_back_where_they_were_or_not_at_all(made: Made, family: str) -> None:
    base, _ = made(family, "kohya")
    kind = base.components["transformer"].class_name
    entries = {key: entry for key, (_, entry) in base.components["transformer"].location.items()}
    paths = {key.removesuffix(".weight") for key in entries if key.endswith(".weight")}
    found = {path: dotted(kind, path.replace(".", "_")) for path in paths}
    assert {path for path, name in found.items() if name not in (path, None)} == set()
    if family in TOLD:
        assert all(found[path] for path in paths if "blocks." in path and len(entries[f"{path}.weight"].shape) == 2)


SIZES = {
    "Stable Diffusion 1.x": {"cross_attention_dim": 768},
    "SDXL": {
        "cross_attention_dim": 2048,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.mark.parametrize("family", SIZES)
def test_the_standard_layers_are_those_of_the_model(family: str) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(**SIZES[family])
    paths = {key.removesuffix(".weight") for key in model.state_dict() if key.endswith(".weight")}
    known = {*unet_layers(UNETS[family])}
    assert paths <= known
    assert {path.rpartition(".")[2] for path in known - paths} <= {"conv_shortcut"}


def test_an_sdxl_file_needs_no_base(tmp_path: Path) -> None:
    block = "input_blocks.4.1.transformer_blocks.0.attn2.to_k"
    layer = "self_attn.q_proj"
    save_file(
        {
            **lora(f"lora_unet_{block.replace('.', '_')}", 640, 2048),
            **lora("lora_te1_text_model_encoder_layers_3_self_attn_q_proj", 768, 768),
            **lora("lora_te2_text_model_encoder_layers_3_self_attn_q_proj", 1280, 1280),
        },
        tmp_path / "kohya",
    )
    names = {
        "diffusers": (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
            f"text_encoder.text_model.encoder.layers.3.{layer}",
            f"text_encoder_2.text_model.encoder.layers.3.{layer}",
        ),
        "comfyui": (
            f"diffusion_model.{block}",
            f"text_encoders.clip_l.transformer.text_model.encoder.layers.3.{layer}",
            f"text_encoders.clip_g.transformer.text_model.encoder.layers.3.{layer}",
        ),
    }
    for target, expected in names.items():
        respell(tmp_path / "kohya", to=target, output=tmp_path / target)
        found = tensors_of(tmp_path / target)
        assert {key.rpartition(".lora_")[0] for key in found if ".lora_" in key} == {*expected}
        respell(tmp_path / target, to="kohya", output=tmp_path / "back", overwrite=True)
        assert_same(tensors_of(tmp_path / "kohya"), tensors_of(tmp_path / "back"))


def test_the_same_file_gives_the_same_bytes(tmp_path: Path, made: Made) -> None:
    _, path = made("Flux", "kohya")
    for name in ("one", "two"):
        respell(path, to="diffusers", output=tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


# --- Real programs ---

WITNESSED = {"Flux": 30, "QwenImage": 20, "ZImage": 29, "Wan": 17, "Flux2": 25, "Krea2": 32}


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Base, Path, dict[str, Tensor]]]:
    """Return what makes a file in ComfyUI's names at full rank, all alphas half the rank, and ΔW of each weight."""
    root = tmp_path_factory.mktemp("scaled")

    @cache
    def make(family: str) -> tuple[Base, Path, dict[str, Tensor]]:
        base = open_base(folder_of(family, root))
        delta = base_delta(base, size=0.1)
        delta = select(delta, *(name for name in delta if len(base.shape(name)) > 1))
        path = root / f"{family}.safetensors"
        convert(delta, to="comfyui", base=base, output=path, rank=100_000)
        tensors = load_file(path)
        for key, value in load_file(path).items():
            if key.endswith("lora_A.weight"):
                tensors[key.replace("lora_A.weight", "alpha")] = torch.tensor(value.shape[0] / 2)
        save_file(tensors, path)
        return base, path, {name: change / 2 for name, change in true_changes(base, delta).items()}

    return make


@pytest.mark.parametrize("family", WITNESSED)
def test_peft_and_diffusers_and_lycoris_take_every_layer_at_its_scale(
    tmp_path: Path, scaled: Callable[[str], tuple[Base, Path, dict[str, Tensor]]], family: str
) -> None:
    from lycoris import create_lycoris_from_weights

    base, path, changes = scaled(family)
    for target in ("peft", "diffusers", "lycoris"):
        respell(path, to=target, base=base, output=tmp_path / target)
    model = PeftModel.from_pretrained(live(base), str(tmp_path / "peft"))
    assert taken(model) == len(changes) == WITNESSED[family]
    check(delta_weights(model), changes)
    model = live(base)
    (tmp_path / "diffusers").rename(tmp_path / "d.safetensors")
    model.load_lora_adapter(str(tmp_path / "d.safetensors"), prefix="transformer", use_safetensors=True)
    assert taken(model) == WITNESSED[family]
    check({name: change.detach() for name, change in delta_weights(model).items()}, changes)
    (tmp_path / "lycoris").rename(tmp_path / "l.safetensors")
    network, _ = create_lycoris_from_weights(1.0, str(tmp_path / "l.safetensors"), live(base))
    assert len(network.loras) == WITNESSED[family]
    flat = {f"lycoris_{name[12:-7].replace('.', '_')}": name for name in changes}
    check({flat[layer.lora_name]: layer.get_diff_weight(1.0)[0].detach() for layer in network.loras}, changes)


def test_dora_of_peft_goes_and_comes_back(tmp_path: Path, made: Made) -> None:
    base, _ = made("Flux", "kohya")
    targets = ["to_q", "to_k", "to_v", "proj_mlp", "proj_out", "ff.net.2"]
    model = get_peft_model(live(base), LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=targets))
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = torch.randn_like(value) if "magnitude" not in name else value.data * 1.5
    model.save_pretrained(str(tmp_path / "peft"))
    with pytest.raises(InputError, match="its parts share no factors"):
        respell(tmp_path / "peft", to="kohya", base=base, output=tmp_path / "kohya")
    respell(tmp_path / "peft", to="lycoris", base=base, output=tmp_path / "lycoris")
    respell(tmp_path / "lycoris", to="peft", base=base, output=tmp_path / "back")
    assert_same(tensors_of(tmp_path / "peft"), tensors_of(tmp_path / "back"))
    merged = model.merge_and_unload().state_dict()
    again = PeftModel.from_pretrained(live(base), str(tmp_path / "back")).merge_and_unload().state_dict()
    assert all(torch.equal(value, again[key]) for key, value in merged.items())


def test_an_adapter_of_another_family_is_told(tmp_path: Path, made: Made) -> None:
    _, path = made("Wan", "kohya")
    base, _ = made("QwenImage", "kohya")
    with pytest.raises(InputError, match=r"cannot be carried over \(it looks like an adapter of Wan\): "):
        respell(path, to="comfyui", base=base, output=tmp_path / "x")


def test_factors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    name = "lora_unet_double_blocks_0_img_attn_proj"
    save_file(
        {f"{name}.lora_down.weight": torch.ones(4, 8), f"{name}.lora_up.weight": torch.ones(8, 2)}, tmp_path / "x"
    )
    with pytest.raises(TensorError, match=r"\[8, 2\] and \[4, 8\] do not fit"):
        respell(tmp_path / "x", to="comfyui", output=tmp_path / "out")


def test_alphas_that_are_divided_by_the_root_of_the_rank_stay_the_scale(tmp_path: Path, made: Made) -> None:
    base, _ = made("Flux", "kohya")
    config = LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["proj_out"], init_lora_weights=False)
    get_peft_model(live(base), config).save_pretrained(str(tmp_path / "peft"))
    done = respell(tmp_path / "peft", to="kohya", base=base, output=tmp_path / "kohya")
    assert "use_rslora" in done.remarks[0]
    alphas = [float(value) for key, value in tensors_of(tmp_path / "kohya").items() if key.endswith(".alpha")]
    assert alphas
    assert {*alphas} == {6.0}  # 3 √4, and 6 / 4 = 3 / √4
