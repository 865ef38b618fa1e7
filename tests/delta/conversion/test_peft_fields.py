"""PEFT's configuration by an allow-list: what changes the factors' meaning is refused, all else PEFT merges alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.adapters import save_peft, save_tensors
from support.readers import WIDE, Q, changes, factors, only
from support.weights import normal, relative
from transformers import AutoModel

from svdiff_delta import convert
from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion.peft_fields import (
    CHANGING,
    MEANINGLESS,
    PARAMETERS,
    PLAIN,
    REFUSED,
    UNDERSTOOD,
    check_fields,
)
from svdiff_delta.errors import BaseMismatchError, InputError

QUERY = "encoder.layer.0.attention.self.query"
WORDS = "embeddings.word_embeddings"
UP, DOWN = factors(16, 2, 16)
PAIR = {f"{QUERY}.lora_B.weight": UP, f"{QUERY}.lora_A.weight": DOWN}
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def test_every_field_of_peft_s_configuration_is_known() -> None:
    fields = LoraConfig().to_dict()
    assert fields.keys() <= {*UNDERSTOOD, *MEANINGLESS, *REFUSED}
    check_fields(json.loads(json.dumps(fields, default=str)), "x")


VALUES = {"alora_invocation_tokens": [1, 2], "layer_replication": [[0, 2]], "megatron_config": {"tp": 2}}
VALUES |= {"trainable_token_indices": [3], "use_qalora": True}


@pytest.mark.parametrize("field", sorted(REFUSED.keys() - {PARAMETERS}))
def test_a_field_that_changes_what_the_factors_mean_is_refused(model: Base, tmp_path: Path, field: str) -> None:
    path = save_peft(tmp_path / "x", PAIR, r=2, lora_alpha=2, **{field: VALUES.get(field, {"a": 1})})
    with pytest.raises(InputError, match=rf"adapter_config\.json: {field}: .*: (merge it with PEFT|use it with PEFT)"):
        convert(path, base=model, min_energy=0.0, allow_unmatched=True)


@pytest.mark.parametrize("value", [True, 3, "some", {"a": 0}, [0]])
def test_an_unknown_field_is_refused_by_name_unless_it_is_empty(model: Base, tmp_path: Path, value: object) -> None:
    path = save_peft(tmp_path / "x", PAIR, r=2, lora_alpha=2, use_newlora=value)
    with pytest.raises(
        InputError, match=r"does not know what use_newlora means .*: merge it with PEFT, then `from_=.ful"
    ):
        changes(path, "peft", model)
    empty = save_peft(tmp_path / "y", PAIR, r=2, lora_alpha=2, a=None, b=False, c=0, d="", e=[], f={})
    assert relative(only(empty, "peft", model, f"model.{QUERY}.weight"), UP.double() @ DOWN.double()) < 1e-14


@pytest.mark.parametrize("start", [*CHANGING, "pissa_niter_16", "PiSSA", "something_new", {"a": 1}])
def test_an_initialization_that_changes_the_base_or_is_unknown_is_refused(
    model: Base, tmp_path: Path, start: object
) -> None:
    path = save_peft(tmp_path / "x", PAIR, r=2, lora_alpha=2, init_lora_weights=start)
    with pytest.raises(InputError, match=r"init_lora_weights .*: merge it with PEFT.*, then `from_=.full.`"):
        changes(path, "peft", model)


def of_peft(model: Base, folder: Path, **config: Any) -> dict[str, torch.Tensor]:
    """Let PEFT save an adapter with random factors, load and merge it; return what it changes."""
    live: Any = AutoModel.from_pretrained(model.path)
    wrapped: Any = get_peft_model(live, LoraConfig(target_modules=["query"], r=4, lora_alpha=6, **config))
    for index, (name, value) in enumerate(wrapped.named_parameters()):
        if "lora_" in name:
            value.data.copy_(normal(*value.shape, seed=index))
    wrapped.save_pretrained(folder)
    fresh: Any = AutoModel.from_pretrained(model.path)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    merged = PeftModel.from_pretrained(fresh, str(folder)).merge_and_unload().state_dict()
    return {key: merged[key].double() - value.double() for key, value in before.items()}


def velora() -> Any:
    from peft import VeloraConfig

    return VeloraConfig()


@pytest.mark.parametrize("config", [*({"init_lora_weights": each} for each in (False, *sorted(PLAIN - {"eva"}))), None])
def test_what_says_nothing_of_the_change_is_merged_alike_by_peft(
    model: Base, tmp_path: Path, config: dict[str, Any] | None
) -> None:
    true = of_peft(model, tmp_path / "x", **({"velora_config": velora()} if config is None else config))
    found = only(tmp_path / "x", "peft", model, f"model.{QUERY}.weight")
    assert relative(found, true[f"{QUERY}.weight"]) < 1e-5  # PEFT merges in float32


def test_a_pissa_that_was_saved_as_a_plain_lora_is_read(model: Base, tmp_path: Path) -> None:
    live: Any = AutoModel.from_pretrained(model.path)
    config = LoraConfig(target_modules=["query"], r=2, lora_alpha=2, init_lora_weights="pissa")
    wrapped: Any = get_peft_model(live, config)
    wrapped.peft_config["default"].init_lora_weights = True  # as PEFT's guide says, or it would take it out twice
    wrapped.save_pretrained(tmp_path / "start")
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            value.data.mul_(1.5)
    merged_now = {key: value.clone() for key, value in wrapped.merge_adapter() or wrapped.state_dict().items()}
    wrapped.unmerge_adapter()
    wrapped.save_pretrained(tmp_path / "x", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    key = next(name for name in merged_now if name.endswith(f"{QUERY}.base_layer.weight"))
    true = merged_now[key].double() - model.read(f"model.{QUERY}.weight").double()
    assert relative(only(tmp_path / "x", "peft", model, f"model.{QUERY}.weight"), true) < 1e-5


def test_dora_without_magnitudes_is_left_out_as_a_whole(model: Base, tmp_path: Path) -> None:
    path = save_peft(tmp_path / "x", PAIR, r=2, lora_alpha=2, use_dora=True)
    with pytest.raises(BaseMismatchError, match="lacks the magnitudes that its configuration speaks of"):
        changes(path, "peft", model)


# --- diffusers' metadata ---


def diffusers(path: Path, **fields: object) -> Path:
    up, down = factors(WIDE, 3, WIDE)
    tensors = {f"unet.{Q}.lora_A.weight": down, f"unet.{Q}.lora_B.weight": up}
    return save_tensors(path, tensors, lora_adapter_metadata=json.dumps(fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unet.init_lora_weights": "olora"}, "unet: init_lora_weights is olora"),
        ({"unet.layer_replication": [[0, 1]]}, "unet: layer_replication: layers of the base stand several times"),
        ({"unet.shiny": 1}, "does not know what shiny means"),
        ({"shiny": 1}, "does not know what shiny means"),
    ],
)
def test_diffusers_metadata_is_read_by_the_same_list(
    tiny: Base, tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        changes(diffusers(tmp_path / "x.safetensors", **fields), "diffusers", tiny)


def test_metadata_without_components_are_of_the_main_one(tiny: Base, tmp_path: Path) -> None:
    # So does diffusers' save_lora_adapter write them.
    up, down = factors(WIDE, 3, WIDE)
    path = diffusers(tmp_path / "x.safetensors", r=3, lora_alpha=6, bias="none")
    assert relative(only(path, "diffusers", tiny, f"unet.{Q}.weight"), 2 * up.double() @ down.double()) < 1e-14


# --- Layers of the base that are saved beside the factors ---

COPIES = {
    "a layer": (QUERY, "base_layer.weight"),
    "embeddings": (WORDS, "base_layer.weight"),
    "no wrapper": (WORDS, "weight"),
}


def copied(model: Base, folder: Path, path: str, leaf: str, scale: float = 1.0) -> Path:
    a, b = normal(2, 40), normal(16, 2, seed=1)
    lora = {**PAIR, f"{WORDS}.lora_embedding_A": a, f"{WORDS}.lora_embedding_B": b}
    return save_peft(
        folder, lora | {f"{path}.{leaf}": scale * model.read(f"model.{path}.weight").bfloat16()}, r=2, lora_alpha=2
    )


@pytest.mark.parametrize(("path", "leaf"), COPIES.values(), ids=COPIES)
def test_the_base_s_own_layer_beside_a_lora_is_no_change(model: Base, tmp_path: Path, path: str, leaf: str) -> None:
    found = convert(copied(model, tmp_path / "x", path, leaf), base=model, min_energy=0.0, embeddings=True)
    assert [*found.delta] == [f"model.{WORDS}.weight", f"model.{QUERY}.weight"]
    assert found.remarks == (
        f"base_model.model.{path}.{leaf} is the base's own layer, saved beside the LoRA on it, and no change",
    )


@pytest.mark.parametrize(("path", "leaf"), COPIES.values(), ids=COPIES)
def test_another_layer_beside_a_lora_is_refused(model: Base, tmp_path: Path, path: str, leaf: str) -> None:
    folder = copied(model, tmp_path / "x", path, leaf, 1.1)
    with pytest.raises(BaseMismatchError, match=r"is the layer that a LoRA was put on, and it is not .*: name"):
        convert(folder, base=model, min_energy=0.0, embeddings=True, allow_unmatched=True)


def test_a_whole_weight_that_is_the_base_s_own_is_no_change(model: Base, tmp_path: Path) -> None:
    own = model.read(f"model.{WORDS}.weight")
    found = changes(save_peft(tmp_path / "x", PAIR | {f"{WORDS}.weight": own}, r=2, lora_alpha=2), "peft", model)
    assert ([*found.kinds], found.left_out) == ([f"model.{QUERY}.weight"], {})
    assert found.remarks == (f"base_model.model.{WORDS}.weight is the base's own, and no change",)


def test_weights_in_a_pickle_say_how_they_are_converted(model: Base, tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "x", PAIR, r=2, lora_alpha=2)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"only as a pickle \(adapter_model.bin\), which is never opened: convert it"):
        changes(folder, "peft", model)
