"""Bad input: what no rule explains, other architectures, missing and broken tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import save_peft, save_tensors
from support.files import listing
from support.models import base_delta
from support.weights import normal

from svdiff_delta import convert
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import BaseMismatchError, HeaderError, InputError, MetadataError, TensorError
from svdiff_train.tiny import open_tiny

Writer = Callable[[Path, dict[str, torch.Tensor]], Path]

Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
WIDE = open_tiny().shape(f"unet.{Q}.weight")[0]
FLAT = f"lora_unet_{Q.replace('.', '_')}"


def pair(module: str = FLAT, rows: int = WIDE, columns: int = WIDE, rank: int = 2) -> dict[str, torch.Tensor]:
    return {
        f"{module}.lora_up.weight": normal(rows, rank),
        f"{module}.lora_down.weight": normal(rank, columns),
        f"{module}.alpha": torch.tensor(float(rank)),
    }


def refused(path: Path, base: Base, error: type[Exception], message: str, **how: object) -> None:
    """It is refused, and nothing is written."""
    before = listing(path.parent)
    with pytest.raises(error, match=message):
        convert(path, base=base, min_energy=0.0, output=path.parent / "out", **how)  # type: ignore[arg-type]
    assert listing(path.parent) == before


UNEXPLAINED = {
    f"{FLAT.replace('to_q', 'to_k')}.oft_blocks": "is of OFT, which is not read here",
    "lora_unet_nowhere.lora_down.weight": "the base has no such layer",
    "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": "the base has no such layer",
    "something.else": "no rule explains this key",
}


@pytest.mark.parametrize("key", UNEXPLAINED)
def test_a_key_that_no_rule_explains_is_listed_and_fails(tiny: Base, tmp_path: Path, key: str) -> None:
    path = save_tensors(tmp_path / "x.safetensors", {**pair(), key: normal(2, 2)})
    refused(path, tiny, InputError, rf"1 weight cannot be carried over.*: {key} \({UNEXPLAINED[key]}\): .*`allow_unm")
    found = convert(path, base=tiny, min_energy=0.0, allow_unmatched=True)
    assert found.left_out == {key: UNEXPLAINED[key]}
    assert [*found.delta] == [f"unet.{Q}.weight"]


@pytest.mark.parametrize("missing", ["lora_up.weight", "lora_down.weight"])
def test_half_a_pair_is_listed(tiny: Base, tmp_path: Path, missing: str) -> None:
    tensors = pair() | pair(FLAT.replace("to_q", "to_k"))
    del tensors[f"{FLAT}.{missing}"]
    path = save_tensors(tmp_path / "x.safetensors", tensors)
    left = rf"{FLAT}\.alpha \(lacks its other half\), {FLAT}\.lora_(up|down)\.weight \(lacks its other half\)"
    refused(path, tiny, InputError, rf"2 weights cannot be carried over: {left}")


def test_an_alpha_of_nothing_is_listed(tiny: Base, tmp_path: Path) -> None:
    alone = FLAT.replace("to_q", "to_k")
    path = save_tensors(tmp_path / "x.safetensors", pair() | {f"{alone}.alpha": torch.tensor(2.0)})
    refused(path, tiny, InputError, rf"1 weight cannot be carried over: {alone}\.alpha \(no rule")


def test_half_a_pair_of_diffusers_is_listed(tiny: Base, tmp_path: Path) -> None:
    k = Q.replace("to_q", "to_k")
    tensors = {f"unet.{Q}.lora_A.weight": normal(2, WIDE), f"unet.{k}.lora_A.weight": normal(2, WIDE)}
    tensors[f"unet.{k}.lora_B.weight"] = normal(WIDE, 2)
    refused(
        save_tensors(tmp_path / "x.safetensors", tensors), tiny, InputError, r"lora_A\.weight \(lacks its other half"
    )


def test_nothing_that_matches_is_an_error_whatever_is_allowed(tiny: Base, tmp_path: Path) -> None:
    path = save_tensors(tmp_path / "x.safetensors", pair("lora_unet_nowhere"))
    message = r"x\.safetensors: nothing in it fits the base.*; lora_unet_nowhere\.alpha: the base has no such layer"
    refused(path, tiny, BaseMismatchError, message)
    refused(path, tiny, BaseMismatchError, message, allow_unmatched=True)


LIKE = {
    "SDXL": pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 640, 2048),
    "Stable Diffusion 1.x": pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 320, 768),
    "Stable Diffusion 2.x": pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 320, 1024),
    "Stable Diffusion 3": pair("lora_unet_joint_blocks_0_context_block_attn_qkv", 4608, 1536),
    "Flux": pair("lora_unet_double_blocks_0_img_attn_proj", 3072, 3072),
}


@pytest.mark.parametrize("architecture", LIKE)
def test_an_adapter_of_another_architecture_is_called_by_its_name(
    tiny: Base, tmp_path: Path, architecture: str
) -> None:
    path = save_tensors(tmp_path / "x.safetensors", LIKE[architecture])
    refused(
        path, tiny, BaseMismatchError, rf"looks like an adapter of {architecture}, the base like a UNet of diffusers"
    )


def test_a_language_model_s_adapter_is_called_so(tiny: Base, tmp_path: Path) -> None:
    path = "model.layers.0.self_attn.q_proj"
    tensors = {f"{path}.lora_A.weight": normal(2, 8), f"{path}.lora_B.weight": normal(8, 2)}
    folder = save_peft(tmp_path / "x", tensors, r=2, lora_alpha=2)
    refused(folder, tiny, BaseMismatchError, "looks like an adapter of a language model or text encoder, the base like")


def test_the_same_architecture_at_another_width_is_listed(tiny: Base, tmp_path: Path) -> None:
    path = save_tensors(tmp_path / "x.safetensors", pair() | pair(FLAT.replace("to_q", "to_k"), 320, 320))
    key = Q.replace("to_q", "to_k")
    refused(path, tiny, InputError, rf"unet\.{key}\.weight \(has shape \[320, 320\], the base has \[{WIDE}, {WIDE}\]\)")


def kohya(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    return save_tensors(path, {**pair(FLAT.replace("to_q", "to_k")), **tensors})


def peft(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    return save_peft(path, tensors, r=2, lora_alpha=2)


UP, DOWN = normal(WIDE, 2), normal(2, WIDE)
SIZE = f"{Q}.lora_magnitude_vector"
LORA_A, LORA_B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
LOHA = {f"{FLAT}.hada_w{n}_{side}": UP if side == "a" else DOWN for n in "12" for side in "ab"}
LOKR = {
    f"{FLAT}.lokr_w1": normal(2, 2),
    f"{FLAT}.lokr_w2_a": UP[: WIDE // 2],
    f"{FLAT}.lokr_w2_b": DOWN[:, : WIDE // 2],
}
DORA = {**pair(), f"{FLAT}.dora_scale": normal(WIDE, 1)}
FORMS = {
    "kohya": (kohya, pair(), f"{FLAT}.lora_up.weight"),
    "kohya's alpha": (kohya, pair(), f"{FLAT}.alpha"),
    "LoHa": (kohya, LOHA, f"{FLAT}.hada_w2_b"),
    "LoKr": (kohya, LOKR, f"{FLAT}.lokr_w1"),
    "DoRA": (kohya, DORA, f"{FLAT}.dora_scale"),
    "a full difference": (kohya, {f"{FLAT}.diff": normal(WIDE, WIDE)}, f"{FLAT}.diff"),
    "PEFT": (peft, {LORA_A: DOWN, LORA_B: UP}, LORA_A),
    "PEFT's DoRA": (
        peft,
        {LORA_A: DOWN, LORA_B: UP, f"{Q}.lora_magnitude_vector": UP[:, 0]},
        f"{Q}.lora_magnitude_vector",
    ),
    "diffusers": (save_tensors, {f"unet.{LORA_A}": DOWN, f"unet.{LORA_B}": UP}, f"unet.{LORA_B}"),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("write", "tensors", "key"), FORMS.values(), ids=FORMS)
def test_nan_and_infinity_are_refused_by_key_and_file(
    tiny: Base, tmp_path: Path, write: Writer, tensors: dict[str, torch.Tensor], key: str, value: float
) -> None:
    broken = tensors[key].clone()
    broken.view(-1)[0] = value
    path = write(tmp_path / "x.safetensors", {**tensors, key: broken})
    message = rf"^(base_model\.model\.)?{key} in .*x\.safetensors.*: (holds NaN or infinity|must be one finite)"
    refused(path, tiny, TensorError, message)


RANKS = {
    "kohya": (kohya, {**pair(), f"{FLAT}.lora_up.weight": normal(WIDE, 3)}, "lora_up"),
    "a core": (kohya, {**pair(), f"{FLAT}.lora_mid.weight": normal(3, 2, 1, 1)}, "lora_mid"),
    "a core's other side": (kohya, {**pair(), f"{FLAT}.lora_mid.weight": normal(2, 3, 1, 1)}, "lora_mid"),
    "DoRA": (kohya, {**DORA, f"{FLAT}.lora_up.weight": normal(WIDE, 3)}, "lora_up"),
    "LoHa": (kohya, {**LOHA, f"{FLAT}.hada_w2_a": normal(WIDE, 3)}, "hada_w2_a"),
    "LoHa's core": (
        kohya,
        {**{key: value.T for key, value in LOHA.items()}, f"{FLAT}.hada_t1": normal(1, 2, 1, 1), f"{FLAT}.hada_t2": UP},
        "hada_t1|hada_w1_a",
    ),
    "LoKr": (kohya, {**LOKR, f"{FLAT}.lokr_w2_a": normal(WIDE // 2, 1)}, "lokr_w2_a"),
    "PEFT": (peft, {LORA_A: DOWN, LORA_B: normal(WIDE, 3)}, "lora_B"),
    "diffusers": (save_tensors, {f"unet.{LORA_A}": DOWN, f"unet.{LORA_B}": normal(WIDE, 3)}, "lora_B"),
}


@pytest.mark.parametrize(("write", "tensors", "key"), RANKS.values(), ids=RANKS)
def test_ranks_that_differ_are_refused(
    tiny: Base, tmp_path: Path, write: Writer, tensors: dict[str, torch.Tensor], key: str
) -> None:
    path = write(tmp_path / "x.safetensors", tensors)
    refused(path, tiny, TensorError, r"in .*x\.safetensors.* has shape .*: ranks differ")
    refused(path, tiny, TensorError, key)


SHAPES = {
    "a number": (pair(), f"{FLAT}.lora_down.weight", ()),
    "a vector": (pair(), f"{FLAT}.lora_up.weight", (2,)),
    "a kernel on both sides": (pair(), f"{FLAT}.lora_up.weight", (WIDE, 2, 3, 3)),
    "LoHa with a number": (LOHA, f"{FLAT}.hada_w1_b", ()),
    "LoKr with a vector": (LOKR, f"{FLAT}.lokr_w1", (2,)),
    "an alpha of two": (pair(), f"{FLAT}.alpha", (2,)),
}


@pytest.mark.parametrize(("tensors", "key", "shape"), SHAPES.values(), ids=SHAPES)
def test_a_factor_of_an_impossible_shape_is_named(
    tiny: Base, tmp_path: Path, tensors: dict[str, torch.Tensor], key: str, shape: tuple[int, ...]
) -> None:
    path = kohya(tmp_path / "x.safetensors", {**tensors, key: torch.ones(shape)})
    refused(path, tiny, TensorError, f"has shape .*{(shape and list(shape)) or ''}".replace("[", r"\["))
    refused(path, tiny, TensorError, key)


def test_a_magnitude_without_a_direction_is_refused(tiny: Base, tmp_path: Path) -> None:
    W = tiny.read(f"unet.{Q}.weight").float()
    tensors = {f"{FLAT}.diff": -W, f"{FLAT}.dora_scale": torch.ones(WIDE, 1)}
    refused(kohya(tmp_path / "x.safetensors", tensors), tiny, TensorError, r"dora_scale in .*W \+ ΔW is 0")


def test_two_keys_for_one_factor_are_refused(tiny: Base, tmp_path: Path) -> None:
    tensors = {f"unet.{LORA_A}": DOWN, f"unet.{LORA_B}": UP, f"unet.{Q}.lora.down.weight": DOWN}
    path = save_tensors(tmp_path / "x.safetensors", tensors)
    refused(
        path, tiny, InputError, r"lora_A\.weight in .* says the same as .*lora.*: keep one|lora\.down.* says the same"
    )
    folder = peft(tmp_path / "x", {LORA_A: DOWN, LORA_B: UP})
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({**weights, LORA_A: DOWN}, folder / "adapter_model.safetensors")  # without PEFT's prefix
    refused(folder, tiny, InputError, "lora_A.* says the same as .*lora_A.*: keep one of them")


def test_integers_are_no_weights(tiny: Base, tmp_path: Path) -> None:
    tensors = pair() | {f"{FLAT}.lora_up.weight": torch.ones(WIDE, 2, dtype=torch.int8)}
    refused(save_tensors(tmp_path / "x.safetensors", tensors), tiny, TensorError, "is int8, not floating-point")


def test_two_spellings_of_one_layer_are_refused(tiny: Base, tmp_path: Path) -> None:
    flat = "lora_te_text_model_encoder_layers_1_mlp_fc1"
    tensors = pair(flat, 512, 128) | pair(flat.replace("lora_te_", "lora_te1_"), 512, 128)
    path = save_tensors(tmp_path / "x.safetensors", tensors)
    refused(path, tiny, InputError, r"two sets of keys change text_encoder\.encoder\.layers\.1\.mlp\.fc1\.weight")


def test_little_energy_is_explained_and_refused_by_default(tiny: Base, tmp_path: Path) -> None:
    path = save_tensors(tmp_path / "x.safetensors", pair())
    with pytest.raises(InputError, match=r"^only .* less than the least share of 10\.00%: a shift can only stretch"):
        convert(path, base=tiny)
    found = convert(path, base=tiny, min_energy=0.0)
    assert 0 < found.captured < 0.1


def test_a_broken_file_is_named(tiny: Base, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 40)
    refused(tmp_path / "x.safetensors", tiny, HeaderError, r"x\.safetensors: this is not a safetensors file")


def test_a_file_of_something_else_does_not_say_what_it_is(tiny: Base, tmp_path: Path) -> None:
    path = save_tensors(tmp_path / "x.safetensors", {"a": normal(2, 2)})
    refused(path, tiny, InputError, r"does not say what it is: give `from_`, one of full, peft, flux, lycoris, kohya")
    refused(path, tiny, BaseMismatchError, "nothing in it fits the base", from_="kohya")


# --- PEFT's configuration ---


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"peft_type": "LOHA"}, TensorError, r"PEFT's method LOHA: .*: PEFT takes no tensor .*\.lora_A\.weight"),
        ({"lora_alpha": "8"}, MetadataError, "lora_alpha: must be a number, is '8'"),
        ({"alpha_pattern": {"query": None}}, MetadataError, r"alpha_pattern\.query: must be a number, is None"),
        ({"r": 3, "lora_alpha": 3}, TensorError, r"lora_A\.weight in .* has rank 2, adapter_config\.json says 3"),
        ({"rank_pattern": [4]}, MetadataError, "rank_pattern: must be a mapping, is a list"),
        ({"lora_alpha": 8, "alpha_pattern": {"(": 4}}, InputError, r"'\(': is no pattern of a layer's name"),
    ],
)
def test_a_broken_configuration(
    model: Base, tmp_path: Path, config: dict[str, object], error: type[Exception], message: str
) -> None:
    path = "encoder.layer.0.attention.self.query"
    tensors = {f"{path}.lora_A.weight": normal(2, 16), f"{path}.lora_B.weight": normal(16, 2)}
    folder = save_peft(tmp_path / "x", tensors)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    refused(folder, model, error, message)


def test_a_folder_without_weights_or_configuration(model: Base, tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "x", {"a": normal(2)})
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, model, InputError, r"adapter_model\.safetensors: could not be read")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", model, InputError, "has no adapter_config.json", from_="peft")


# --- The document ---


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "is not valid JSON"),
        ("{}", "names: must be a list of strings"),
        ('{"names":["a"],"format":"svdiff-delta"}', "format: must be 'svdiff-adapter'"),
    ],
)
def test_a_broken_document_is_refused(tiny: Base, tmp_path: Path, document: str, message: str) -> None:
    delta = base_delta(tiny, f"unet.{Q}.weight")
    convert(delta, to="kohya", base=tiny, rank=1, output=tmp_path / "x.safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    save_file(tensors, tmp_path / "y.safetensors", metadata={"svdiff.adapter": document})
    refused(tmp_path / "y.safetensors", tiny, MetadataError, rf"y\.safetensors: .*{message}")
