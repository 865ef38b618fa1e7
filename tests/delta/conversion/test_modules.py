"""A module is taken whole or not at all: beside a key that is not understood its others may mean another change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.adapters import read_changes, save_peft, save_tensors
from support.bytes import container
from support.readers import WIDE, Q, factors, only
from support.weights import normal, relative
from torch import Tensor

from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import TensorError

from .test_families import small_flux

K = Q.replace("to_q", "to_k")
FLAT_Q, FLAT_K = (path.replace(".", "_") for path in (Q, K))
UP, DOWN = factors(WIDE, 2, WIDE)
FOUR = torch.tensor(4.0)
LOHA = {f"hada_w{n}_{side}": UP if side == "a" else DOWN for n in "12" for side in "ab"}
LOKR = {"lokr_w1": normal(2, 2), "lokr_w2": normal(WIDE // 2, WIDE // 2, seed=1)}
KOHYA = {"lora_up.weight": UP, "lora_down.weight": DOWN, "alpha": FOUR}


def under(module: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{module}.{part}": value for part, value in parts.items()}


def tensors_file(path: Path, tensors: dict[str, Tensor]) -> Path:
    return save_tensors(path / "x.safetensors", tensors)


def peft_folder(path: Path, tensors: dict[str, Tensor]) -> Path:
    return save_peft(path / "x", tensors, r=2, lora_alpha=2)


Spelling = tuple[str, Callable[[Path, dict[str, Tensor]], Path], str, dict[str, Tensor], str, dict[str, Tensor]]
SPELLINGS: dict[str, Spelling] = {
    name: (dialect, tensors_file, f"{prefix}_{FLAT_Q}", parts, f"{prefix}_{FLAT_K}", KOHYA)
    for name, dialect, prefix, parts in [
        ("kohya", "kohya", "lora_unet", KOHYA),
        ("kohya's DoRA", "kohya", "lora_unet", {**KOHYA, "dora_scale": normal(WIDE, 1)}),
        ("LoHa", "lycoris", "lycoris", {**LOHA, "alpha": FOUR}),
        ("LoKr", "lycoris", "lycoris", LOKR),
        ("a full difference", "lycoris", "lycoris", {"diff": normal(WIDE, WIDE)}),
    ]
}
NEW = {"lora_A.weight": DOWN, "lora_B.weight": UP}
SPELLINGS |= {
    "diffusers": ("diffusers", tensors_file, f"unet.{Q}", NEW, f"unet.{K}", NEW),
    "diffusers' DoRA": (
        "diffusers", tensors_file, f"unet.{Q}", {**NEW, "dora_scale": normal(WIDE, 1)}, f"unet.{K}", NEW,
    ),
    "an older diffusers": (
        "diffusers", tensors_file, f"unet.{Q}", {"lora.down.weight": DOWN, "lora.up.weight": UP}, f"unet.{K}", NEW,
    ),
    "no component": ("diffusers", tensors_file, Q, NEW, K, NEW),
    "PEFT": ("peft", peft_folder, Q, NEW, K, NEW),
    "PEFT's DoRA": ("peft", peft_folder, Q, {**NEW, "lora_magnitude_vector": normal(WIDE)}, K, NEW),
}  # fmt: skip
UNKNOWN = ["scalar", "rescale", "oft_blocks", "lora_E", "lora_diag.default", "lora_up.weight_scale", "future.weight"]


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_key_that_is_not_understood_takes_its_module_out(
    tiny: Base, tmp_path: Path, spelling: str, unknown: str
) -> None:
    dialect, write, module, parts, other, plain = SPELLINGS[spelling]
    both = under(module, parts) | under(other, plain)
    (tmp_path / "whole").mkdir()
    whole = read_changes(write(tmp_path / "whole", both), dialect, tiny)
    assert [*whole.kinds] == [f"unet.{K}.weight", f"unet.{Q}.weight"]
    found = read_changes(write(tmp_path, both | {f"{module}.{unknown}": normal(2, 2)}), dialect, tiny)
    assert [*found.kinds] == [f"unet.{K}.weight"]
    prefix = "base_model.model." if dialect == "peft" else ""
    assert found.left_out.keys() == {f"{prefix}{module}.{part}" for part in (*parts, unknown)}
    beside = f"its module also has {prefix}{module}.{unknown}, which is not understood"
    assert {reason for key, reason in found.left_out.items() if not key.endswith(unknown)} == {beside}


@pytest.mark.parametrize("part", ["dora_scale", "scalar"])
def test_the_key_may_stand_under_another_spelling_of_the_layer(tiny: Base, tmp_path: Path, part: str) -> None:
    tensors = under(f"unet.{Q}", NEW) | under(f"unet.{K}", NEW) | {f"{Q}.{part}.more": normal(WIDE, 1)}
    found = read_changes(tensors_file(tmp_path, tensors), "diffusers", tiny)
    assert [*found.kinds] == [f"unet.{K}.weight"]


PARTLY = {
    "one core of two": {**{key: value.T for key, value in LOHA.items()}, "hada_t1": normal(2, 2, 1, 1)},
    "a core without factors": {**LOKR, "lokr_t2": normal(2, 2, 1, 1)},
    "half of LoKr": {"lokr_w1": LOKR["lokr_w1"], "alpha": FOUR},
    "a factor too many": {**LOKR, "lokr_w1_a": normal(2, 1)},
    "LoRA and a difference": {**KOHYA, "diff": normal(WIDE, WIDE)},
    "magnitudes alone": {"dora_scale": normal(WIDE, 1)},
}


@pytest.mark.parametrize("parts", PARTLY.values(), ids=PARTLY)
def test_parts_that_make_no_whole_are_left_out_together(tiny: Base, tmp_path: Path, parts: dict[str, Tensor]) -> None:
    tensors = under(f"lycoris_{FLAT_Q}", parts) | under(f"lycoris_{FLAT_K}", KOHYA)
    found = read_changes(tensors_file(tmp_path, tensors), "lycoris", tiny)
    assert [*found.kinds] == [f"unet.{K}.weight"]
    assert found.left_out.keys() == under(f"lycoris_{FLAT_Q}", parts).keys()


def true_dora(W: Tensor, update: Tensor, magnitude: Tensor, axis: int) -> Tensor:
    """DoRA (arXiv 2402.09353, equation 5): rows (axis 1) or columns (axis 0) of W + BA have these norms."""
    whole = W.double() + update
    return magnitude.double() * whole / whole.norm(dim=axis, keepdim=True) - W.double()


@pytest.mark.parametrize(("shape", "axis"), [((WIDE, 1), 1), ((1, WIDE), 0)])
def test_diffusers_dora_scale_has_the_axis_of_its_shape(
    tiny: Base, tmp_path: Path, shape: tuple[int, int], axis: int
) -> None:
    W, scale = tiny.read(f"unet.{Q}.weight"), normal(*shape, seed=7).abs() + 1
    path = tensors_file(tmp_path, under(f"unet.{Q}", {**NEW, "dora_scale": scale}))
    expected = true_dora(W, UP.double() @ DOWN.double(), scale, axis)
    assert relative(only(path, "diffusers", tiny, f"unet.{Q}.weight"), expected) < 1e-13


# --- Flux ---

TO_K = "transformer_blocks.0.attn.to_k"
ONE, OTHER = "double_blocks.0.img_attn.proj", "double_blocks.0.txt_attn.proj"


@pytest.mark.parametrize(("shape", "axis"), [((16, 1), 1), ((1, 16), 0)])
def test_onetrainer_s_dora_for_flux(tmp_path: Path, shape: tuple[int, int], axis: int) -> None:
    base, (up, down) = small_flux(tmp_path / "flux"), factors(16, 4, 16)
    scale = normal(*shape, seed=7).abs() + 1
    parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(2.0), "dora_scale": scale}
    path = tensors_file(tmp_path, under(f"lora_transformer_{TO_K.replace('.', '_')}", parts))
    expected = true_dora(base.read(f"transformer.{TO_K}.weight"), 0.5 * up.double() @ down.double(), scale, axis)
    assert relative(only(path, "flux", base, f"transformer.{TO_K}.weight"), expected) < 1e-13


@pytest.mark.parametrize("unknown", ["boft_s", "rescale", "lokr_w1", "scalar"])
@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
def test_original_names_of_flux_are_taken_by_whole_modules(tmp_path: Path, prefix: str, unknown: str) -> None:
    base, (up, down) = small_flux(tmp_path / "flux"), factors(16, 4, 16)
    one, other = (f"{prefix}{path if '.' in prefix else path.replace('.', '_')}" for path in (ONE, OTHER))
    parts = {"lora_up.weight": up, "lora_down.weight": down}
    tensors = under(one, {**parts, unknown: normal(16, 1)}) | under(other, parts)
    found = read_changes(tensors_file(tmp_path, tensors), "flux", base)
    assert [*found.kinds] == ["transformer.transformer_blocks.0.attn.to_add_out.weight"]
    assert found.left_out.keys() == under(one, {**parts, unknown: up}).keys()


@pytest.mark.parametrize("alpha", [0.0, None])
def test_an_alpha_of_0_is_none_given_for_flux_too(tmp_path: Path, alpha: float | None) -> None:
    base, (up, down) = small_flux(tmp_path / "flux"), factors(16, 4, 16)
    parts = {"lora_up.weight": up, "lora_down.weight": down} | ({} if alpha is None else {"alpha": torch.tensor(alpha)})
    path = tensors_file(tmp_path, under(f"lora_unet_{ONE.replace('.', '_')}", parts))
    name = "transformer.transformer_blocks.0.attn.to_out.0.weight"
    assert relative(only(path, "flux", base, name), up.double() @ down.double()) < 1e-14
    assert len(read_changes(path, "flux", base).remarks) == 1


# --- float8 ---


@pytest.mark.parametrize("dtype", ["e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu"])
@pytest.mark.parametrize("spelling", ["kohya", "LoHa", "diffusers", "PEFT"])
def test_float8_is_read_exactly(tiny: Base, tmp_path: Path, spelling: str, dtype: str) -> None:
    dialect, write, module, parts, _, _ = SPELLINGS[spelling]
    small = {part: value.abs().to(getattr(torch, f"float8_{dtype}")) for part, value in parts.items()}
    (tmp_path / "wide").mkdir()
    wide = write(tmp_path / "wide", under(module, {part: value.float() for part, value in small.items()}))
    found = only(write(tmp_path, under(module, small)), dialect, tiny, f"unet.{Q}.weight")
    assert torch.equal(found, only(wide, dialect, tiny, f"unet.{Q}.weight"))


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F9"])
def test_a_packed_number_format_is_refused_by_its_name(tiny: Base, tmp_path: Path, dtype: str) -> None:
    key, other = f"lora_unet_{FLAT_Q}.lora_up.weight", f"lora_unet_{FLAT_Q}.lora_down.weight"
    bits = {"F4": 4, "F6_E2M3": 6, "F9": 9}[dtype]
    size, rest = WIDE * 8 * bits // 8, WIDE * 8 * 4
    header = {
        key: {"dtype": dtype, "shape": [WIDE, 8], "data_offsets": [0, size]},
        other: {"dtype": "F32", "shape": [8, WIDE], "data_offsets": [size, size + rest]},
    }
    (tmp_path / "x.safetensors").write_bytes(container(header, bytes(size + rest)))
    found = read_changes(tmp_path / "x.safetensors", "kohya", tiny)
    with pytest.raises(
        TensorError, match=rf"{key}: .*has it as {dtype}, which has no values that can be read one by one"
    ):
        found.read(f"unet.{Q}.weight")
