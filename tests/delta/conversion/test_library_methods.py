"""Every method of PEFT and LyCORIS becomes a change of weights as its own library merges it, or is refused by name."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file
from support.adapters import save_peft
from support.checkpoints import bert
from support.library_adapters import METHODS, PATHS, draw, llama, lycoris_methods, save_peft_method, unwarned
from support.method_table import WITH_BASE, listed, of_lycoris, of_peft, read_changes
from support.readers import CONV, FLAT, Q, changes
from support.weights import normal, relative
from torch import Tensor, nn

from svdiff_delta import convert
from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion.library_methods import lycoris as of_lycoris_files
from svdiff_delta.conversion.library_methods import peft_method
from svdiff_delta.conversion.library_methods.library_update import LibraryUpdate
from svdiff_delta.conversion.library_methods.peft_methods import (
    DECOMPOSED,
    DROPPED,
    FIELDS,
    LAYERS,
    NO_WEIGHT,
    REFUSED_FIELDS,
)
from svdiff_delta.conversion.peft_fields import REFUSED
from svdiff_delta.errors import BaseMismatchError, DeltaError, InputError

NAME = f"model.{PATHS[0]}.weight"
SHARED = ("TINYLORA", "UNILORA", "VBLORA", "VERA", "PVERA", "RANDLORA")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return llama(tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base in whose attention all singular values are equal: any decomposition of it is as good as another."""
    folder = tmp_path_factory.mktemp("tied") / "base"
    llama(folder)
    weights = load_file(folder / "model.safetensors")
    for key, value in weights.items():
        if "self_attn" in key:
            weights[key] = torch.linalg.qr(value.double())[0].float().contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    from svdiff_delta import open_base

    return open_base(folder)


# --- All of them ---


@pytest.mark.parametrize("method", METHODS)
def test_a_method_of_peft_becomes_what_the_list_says(base: Base, tmp_path: Path, method: str) -> None:
    assert of_peft(method, base, tmp_path / method) == listed().get(("PEFT", method))


@pytest.mark.parametrize("method", lycoris_methods())
def test_a_method_of_lycoris_becomes_what_the_list_says(base: Base, tmp_path: Path, method: str) -> None:
    said = of_lycoris(lycoris_methods()[method], base, tmp_path / "x.safetensors")
    assert said == listed().get(("LyCORIS", method))


def test_the_list_names_no_other_method() -> None:
    assert {*listed()} == {("PEFT", method) for method in METHODS} | {("LyCORIS", each) for each in lycoris_methods()}


def test_every_field_of_every_configuration_of_peft_is_known() -> None:
    for method, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if method.value not in NO_WEIGHT:
            known = {*FIELDS[method.value], *DROPPED, *LAYERS, *REFUSED_FIELDS, *REFUSED, "use_dora", "lora_bias"}
            unknown = {field.name for field in fields(cls)} - known - SCHEDULES.get(method.value, set())
            assert not unknown, method


SCHEDULES = {
    "ADAMSS": {
        *("asa_target_subspaces", "init_warmup", "final_warmup", "mask_interval", "asa_importance_beta"),
        *("asa_uncertainty_beta", "asa_schedule_exponent"),
    }
}
"""Fields of a schedule that is refused by another field."""


# --- What the file does not hold ---


@pytest.mark.parametrize("method", [*DECOMPOSED, "T-LoRA"])
def test_only_methods_that_decompose_the_base_depend_on_its_vectors(
    tied: Base, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peft_method, "DECOMPOSED", {})
    monkeypatch.setattr(of_lycoris_files, "DECOMPOSED", {})
    if method == "T-LoRA":
        of_lycoris(lycoris_methods()["tlora"], tied, tmp_path / "x.safetensors")
        path, dialect = tmp_path / "x.safetensors", "lycoris"
    else:
        save_peft_method(method, tied, tmp_path / "x")
        path, dialect = tmp_path / "x", "peft"
    with pytest.raises(InputError, match=r"depends on something that the file does not hold|scikit-learn is required"):
        read_changes(path, dialect, tied)


@pytest.mark.parametrize("method", [each for each in FIELDS if each not in DECOMPOSED])
def test_all_others_are_taken_where_no_decomposition_says_which_vector_is_which(
    tied: Base, tmp_path: Path, method: str
) -> None:
    save_peft_method(method, tied, tmp_path / "x")
    assert len(read_changes(tmp_path / "x", "peft", tied)) == (1 if method in ("LN_TUNING", "TRAINABLE_TOKENS") else 2)


@pytest.mark.parametrize("method", ["PSOFT", "OSF", "FROD"])
def test_a_base_that_is_named_is_decomposed_and_a_remark_tells_how_far_a_rounded_one_is(
    base: Base, tmp_path: Path, method: str
) -> None:
    save_peft_method(method, base, tmp_path / "x")
    found = convert(tmp_path / "x", base=base, made_on=base, min_energy=0.0)
    assert any("on a copy of that in bfloat16 the change of model.layers." in remark for remark in found.remarks)
    other = llama(tmp_path / "other", seed=3)
    there = read_changes(tmp_path / "x", "peft", base, made_on=other)
    assert relative(there[NAME], read_changes(tmp_path / "x", "peft", base, made_on=base)[NAME]) > 0.1


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_lora_that_peft_takes_out_of_the_base_at_each_load_is_taken_from_the_base_that_is_named(
    base: Base, tmp_path: Path, start: str
) -> None:
    save_peft_method("LORA", base, tmp_path / "x", init_lora_weights=start)
    with pytest.raises(InputError, match=f"init_lora_weights is {start}.* or name the base that it was made on as"):
        read_changes(tmp_path / "x", "peft", base)
    from support.library_adapters import merged_by_peft

    true, found = merged_by_peft(base, tmp_path / "x"), read_changes(tmp_path / "x", "peft", base, made_on=base)
    assert found.keys() == true.keys()
    assert all(relative(found[name], true[name]) < 1e-5 for name in true)


@pytest.mark.parametrize("method", ["HRA", "LORA", "LOHA"])
def test_a_base_that_is_named_for_nothing_is_refused(base: Base, tmp_path: Path, method: str) -> None:
    save_peft_method(method, base, tmp_path / "x")
    with pytest.raises(InputError, match="holds all that its change is made of: leave `made_on` away"):
        read_changes(tmp_path / "x", "peft", base, made_on=base)


@dataclass(frozen=True)
class Random:
    """A layer that adds what is drawn, or what depends on how its weight was rounded."""

    rounds: bool = False
    where: str = "a layer"

    def merged(self, weight: Tensor, bias: Tensor | None, seed: int, *, rounded: bool = False) -> nn.Module:
        made = nn.Module()
        added = torch.sign(torch.sin(weight * 1e8)) if self.rounds else torch.rand(weight.shape)
        made.register_parameter("weight", nn.Parameter(weight + 0.01 * added, requires_grad=False))
        return made


@pytest.mark.parametrize("rounds", [False, True])
def test_what_two_builds_do_not_agree_on_is_refused(rounds: bool) -> None:
    weight = normal(8, 8)
    with pytest.raises(
        InputError, match="a layer: what it makes of w depends on something that the file does not hold"
    ):
        LibraryUpdate("w", Random(rounds), (8, 8)).change(weight)


class Biased:
    """A layer that gets a bias when it is merged."""

    where = "a layer"

    def merged(self, weight: Tensor, bias: Tensor | None, seed: int, *, rounded: bool = False) -> nn.Module:
        made = nn.Linear(*weight.shape, dtype=weight.dtype)
        made.weight.data.copy_(2 * weight)
        made.bias.data.fill_(1)
        return made


def test_a_bias_that_the_base_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match="a layer: gives w a bias, which the base does not have"):
        LibraryUpdate("w", Biased(), (8, 8)).change(normal(8, 8))


def test_reading_leaves_random_numbers_as_they_were(base: Base, tmp_path: Path) -> None:
    save_peft_method("RANDLORA", base, tmp_path / "x")
    before = torch.get_rng_state()
    first = read_changes(tmp_path / "x", "peft", base)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(first[NAME], read_changes(tmp_path / "x", "peft", base)[NAME])


# --- Tensors and fields ---


def rewritten(folder: Path, change: dict[str, Tensor | None]) -> Path:
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    for key, value in change.items():
        weights.pop(key, None)
        if value is not None:
            weights[key] = value
    save_file(weights, path)
    return folder


TENSORS = {
    "DELORA": "delora_lambda",
    "BOFT": "boft_s",
    "VERA": "vera_lambda_b",
    "DEFT": "deft_P",
    "SHIRA": "shira_weight",
}


@pytest.mark.parametrize(("method", "tensor"), TENSORS.items())
def test_a_tensor_that_is_missing_is_refused_by_name(base: Base, tmp_path: Path, method: str, tensor: str) -> None:
    save_peft_method(method, base, tmp_path / "x")
    folder = rewritten(tmp_path / "x", {f"base_model.model.{PATHS[0]}.{tensor}": None})
    with pytest.raises(DeltaError, match=rf"lacks base_model\.model\.{PATHS[0]}.*|{method}: .*cannot be made a change"):
        read_changes(folder, "peft", base)


@pytest.mark.parametrize("method", ["HRA", "VERA", "C3A"])
def test_a_tensor_that_peft_does_not_take_is_refused_by_name(base: Base, tmp_path: Path, method: str) -> None:
    save_peft_method(method, base, tmp_path / "x")
    folder = rewritten(tmp_path / "x", {f"base_model.model.{PATHS[0]}.hra_v": normal(32, 8)})
    with pytest.raises(DeltaError, match=r"PEFT takes no tensor base_model\.model\..*\.q_proj\.hra_v"):
        read_changes(folder, "peft", base)


def test_a_layer_that_the_base_does_not_have_is_listed(base: Base, tmp_path: Path) -> None:
    save_peft_method("HRA", base, tmp_path / "x")
    folder = rewritten(tmp_path / "x", {"base_model.model.layers.7.self_attn.q_proj.hra_u": normal(32, 8)})
    found = changes(folder, "peft", base)
    assert found.left_out == {
        "base_model.model.layers.7.self_attn.q_proj.hra_u": "the base has no such layer",
    }


@pytest.mark.parametrize(("field", "value"), [("new_thing", 1), ("megatron_config", {"a": 1}), ("apply_gs", "x")])
def test_a_field_that_is_not_in_the_list_is_refused_by_name(
    base: Base, tmp_path: Path, field: str, value: object
) -> None:
    save_peft_method("HRA", base, tmp_path / "x")
    path = tmp_path / "x" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(InputError, match=f"{field}: this program does not know what it means"):
        read_changes(tmp_path / "x", "peft", base)


@pytest.mark.parametrize(
    ("fields_", "message"),
    [
        ({"peft_type": "NEWLORA"}, "is of PEFT's method NEWLORA, which this program does not know: merge it with PEFT"),
        ({"peft_type": "LILY"}, "changes no weight: what its layers add depends on the input.*: use it with PEFT"),
        ({"peft_type": "PVERA", "sample_at_inference": True}, "sample_at_inference: the factors are sampled anew"),
        ({"peft_type": "HRA", "r": "four"}, "PEFT's method HRA"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(
    base: Base, tmp_path: Path, fields_: dict[str, object], message: str
) -> None:
    folder = save_peft(tmp_path / "x", {f"{PATHS[0]}.hra_u": normal(32, 8)}, **fields_)
    with pytest.raises(InputError, match=message):
        read_changes(folder, "peft", base)


# --- Biases, whole weights, embeddings, convolutions ---


def test_a_bias_that_is_scaled_with_its_weight_is_listed(tmp_path: Path) -> None:
    base, peft_type = bert(tmp_path / "bert"), {"peft_type": "IA3", "feedforward_modules": []}
    query = "encoder.layer.0.attention.self.query"
    folder = save_peft(tmp_path / "x", {f"{query}.ia3_l": normal(16, 1)}, **peft_type, target_modules=["query"])
    found = changes(folder, "peft", base)
    assert found.left_out == {f"model.{query}.bias": "is a bias"}
    weight, factor = base.read(f"model.{query}.weight").double(), normal(16, 1).double()
    assert relative(read_changes(folder, "peft", base)[f"model.{query}.weight"], (factor - 1) * weight) < 1e-6


def test_a_weight_that_was_trained_beside_is_taken_whole(base: Base, tmp_path: Path) -> None:
    save_peft_method("HRA", base, tmp_path / "x")
    norm = normal(32)
    folder = rewritten(tmp_path / "x", {"base_model.model.norm.weight": norm})
    found = read_changes(folder, "peft", base)
    assert torch.equal(found["model.norm.weight"], norm.double() - base.read("model.norm.weight").double())
    assert NAME in found


def of_unet(tiny: Base, config: Any, folder: Path) -> dict[str, Tensor]:
    """Let PEFT save an adapter of the embedded UNet; return what its own merge changes."""
    from diffusers import UNet2DConditionModel
    from peft import PeftModel, get_peft_model

    def load() -> Any:
        return UNet2DConditionModel.from_pretrained(tiny.path, subfolder="unet")

    with unwarned():
        model: Any = get_peft_model(load(), config)
        draw(model, 0.3)
        model.save_pretrained(folder)
        fresh = load()
        before = {key: value.clone().double() for key, value in fresh.state_dict().items()}
        merged = PeftModel.from_pretrained(fresh, str(folder)).merge_and_unload().state_dict()
    return {f"unet.{key}": merged[key].double() - value for key, value in before.items()}


@pytest.mark.parametrize("method", ["HRA", "OFT", "BOFT", "LOHA", "LOKR"])
def test_methods_that_take_convolutions_are_taken_on_them(tiny: Base, tmp_path: Path, method: str) -> None:
    options = {"OFT": {"oft_block_size": 4}, "BOFT": {"boft_block_size": 4}}.get(method, {"r": 4})
    config = PEFT_TYPE_TO_CONFIG_MAPPING[method](target_modules=[CONV], **options)  # type: ignore[index]
    true = of_unet(tiny, config, tmp_path / "x")
    found = read_changes(tmp_path / "x", "peft", tiny)
    name = f"unet.{CONV}.weight"
    assert [*found] == [name]
    assert relative(found[name], true[name]) < 1e-5


@pytest.mark.parametrize("path", [CONV, Q])
@pytest.mark.parametrize("method", ["diag-oft", "boft", "glora", "ia3"])
def test_lycoris_methods_are_taken_on_the_embedded_base(tiny: Base, tmp_path: Path, method: str, path: str) -> None:
    weight = tiny.read(f"unet.{path}.weight")
    rows, inputs, *kernel = weight.shape
    layer: nn.Module = (
        nn.Conv2d(inputs, rows, 3, padding=1, bias=False) if kernel else nn.Linear(inputs, rows, bias=False)
    )
    layer.weight.data.copy_(weight)  # type: ignore[union-attr, operator]
    made = lycoris_methods()[method]("x", layer, 1.0, lora_dim=4, alpha=2.0, rescaled=True, train_on_input=True)
    draw(made)
    tensors = {f"lycoris_{FLAT[path]}.{key}": value.detach().clone() for key, value in made.state_dict().items()}
    save_file(tensors, tmp_path / "x.safetensors")
    with torch.no_grad():
        true = made.get_merged_weight(1.0, weight.shape)[0].double() - weight.double()
    found = changes(tmp_path / "x.safetensors", "lycoris", tiny)
    assert found.left_out == {}
    name = f"unet.{path}.weight"
    assert relative(read_changes(tmp_path / "x.safetensors", "lycoris", tiny)[name], true) < 1e-5


def test_a_tensor_that_lycoris_does_not_take_is_refused_by_name(tiny: Base, tmp_path: Path) -> None:
    rows = tiny.shape(f"unet.{Q}.weight")[0]
    module = f"lycoris_{FLAT[Q]}"
    tensors = {f"{module}.oft_blocks": normal(rows // 4, 4, 4), f"{module}.alpha": torch.tensor(0.0)}
    save_file({**tensors, f"{module}.scalar": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(DeltaError, match="LyCORIS takes no tensor scalar: merge it with LyCORIS"):
        read_changes(tmp_path / "x.safetensors", "lycoris", tiny)


def test_a_layer_of_another_width_is_refused(base: Base, tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "x", {f"{PATHS[0]}.hra_u": normal(16, 8)}, peft_type="HRA", r=8)
    with pytest.raises(InputError, match=r"method HRA: layers\.0\.self_attn\.q_proj: cannot be made a change"):
        read_changes(folder, "peft", base)


def test_the_base_that_it_was_made_on_must_have_weights_of_the_same_shape(base: Base, tmp_path: Path) -> None:
    save_peft_method("OSF", base, tmp_path / "x")
    other = bert(tmp_path / "bert")
    with pytest.raises((BaseMismatchError, DeltaError)):
        read_changes(tmp_path / "x", "peft", base, made_on=other)


def test_the_list_says_which_need_their_base() -> None:
    said = {name for (_, name), what in listed().items() if what == WITH_BASE}
    assert said == {*DECOMPOSED, "tlora"} - {"ADAMSS"}
