"""LoRA on stacked experts: what PEFT puts on parameters becomes a change of each expert, as PEFT itself merges it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.adapters import read_changes
from support.checkpoints import bert
from support.experts import OWN, SIZES, mixture
from support.models import base_delta
from support.weights import normal, relative
from support.zoo.registry import DENOISERS
from support.zoo.trial import build
from torch import Tensor
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from svdiff_delta import Delta, convert, open_base, select
from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion import convert_directly
from svdiff_delta.conversion.dialect import WeightChange
from svdiff_delta.conversion.respell import respell
from svdiff_delta.errors import BaseMismatchError, DeltaError, InputError
from svdiff_delta.format.stacked import slice_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    # PEFT matches patterns with parameters, and then looks for them among modules alone.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
]

WHERE = {"Llama4": "feed_forward.experts", "JetMoe": "mlp", "NemotronH": "mixer.experts"}
BOTH = {"JetMoe": ("input_linear.weight", "output_linear.weight"), "NemotronH": ("up_proj", "down_proj")}
NAMES = ("Qwen3Moe", "Mixtral", "GptOss", "Llama4", "NemotronH", "JetMoe", "LongcatFlash")


def targets(name: str) -> list[str]:
    place = WHERE.get(name, "mlp.experts")
    return [f"{place}.{each}" for each in BOTH.get(name, ("gate_up_proj", "down_proj"))]


def saved(folder: Path, name: str, *, stacked: bool = True) -> Base:
    mixture(name).save_pretrained(folder, save_original_format=not stacked)
    return open_base(folder)


def adapter(folder: Path, name: str, chosen: Sequence[str], **config: Any) -> Path:
    """Let PEFT save a LoRA with random factors on parameters of a small mixture of experts."""
    fields = {"r": 2, "lora_alpha": 3, "target_modules": [], "target_parameters": [*chosen], **config}
    wrapped: Any = get_peft_model(mixture(name), LoraConfig(**fields))
    for index, (key, value) in enumerate(wrapped.named_parameters()):
        if "lora_" in key:
            value.data.copy_(normal(*value.shape, seed=index))
    wrapped.save_pretrained(folder)
    return folder


def merged(folder: Path, name: str) -> dict[str, Tensor]:
    """Return what PEFT's own merge changes, by the keys of the class."""
    before = {key: value.double() for key, value in mixture(name).state_dict().items()}
    model: Any = PeftModel.from_pretrained(mixture(name).double(), str(folder))
    for key, value in model.named_parameters():
        if "lora_" in key:
            value.data = value.data.double()
    after = model.merge_and_unload().state_dict()
    found = {key: after[key].double() - value for key, value in before.items()}
    return {key: change for key, change in found.items() if change.any()}


def found(base: Base, folder: Path) -> dict[str, Tensor]:
    """Return ΔW of each parameter, by our reader."""
    changes = read_changes(folder, "peft", base)
    assert not changes.left_out
    result = {}
    for key in changes.kinds:
        change = changes.read(key)
        assert isinstance(change, WeightChange)
        result[key] = change.values
    return result


def check(base: Base, changes: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """See to it that each expert changes as its slice does, and nothing else."""
    (slot,) = base.components
    left = {**changes}
    for key, whole in expected.items():
        for number, change in enumerate(whole if whole.dim() == 3 else whole[None]):
            if change.any():
                parts = base.components[slot].stored_parts(f"{key}[{number}]" if whole.dim() == 3 else key)
                own = torch.cat([left.pop(f"{slot}.{part}") for part in parts])
                assert relative(own, change) < 1e-6, (key, number)
    assert not any(change.any() for change in left.values())


@pytest.mark.parametrize("which", ["first", "last", "both"])
@pytest.mark.parametrize("name", NAMES)
def test_each_expert_changes_as_peft_merges_it(tmp_path: Path, name: str, which: str) -> None:
    base, pair = saved(tmp_path / "base", name), targets(name)
    chosen = {"first": pair[:1], "last": pair[1:], "both": pair}[which]
    folder = adapter(tmp_path / "x", name, chosen)
    check(base, found(base, folder), merged(folder, name))


@pytest.mark.parametrize("name", ["Qwen3Moe", "Mixtral"])
def test_files_with_one_tensor_for_each_expert_have_their_share_of_the_rows(tmp_path: Path, name: str) -> None:
    base = saved(tmp_path / "base", name, stacked=False)
    folder = adapter(tmp_path / "x", name, targets(name))
    changes = found(base, folder)
    assert not any(slice_of(key) for key in changes)
    check(base, changes, merged(folder, name))


CONFIGS: dict[str, dict[str, Any]] = {
    "ranks of their own": {"rank_pattern": {"gate_up_proj": 3}},
    "alphas of their own": {"alpha_pattern": {r"experts\.down_proj": 7}, "use_rslora": True},
    "layers beside": {"target_modules": ["q_proj", "o_proj"]},
    "the router beside": {"target_parameters": ["mlp.gate.weight", *targets("Qwen3Moe")]},
    "a layer's weight by its name": {"target_parameters": ["q_proj.weight", "0.mlp.experts.down_proj"]},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_ranks_scales_and_neighbours(tmp_path: Path, case: str) -> None:
    base = saved(tmp_path / "base", "Qwen3Moe")
    fields = {"chosen": targets("Qwen3Moe"), **CONFIGS[case]}
    folder = adapter(tmp_path / "x", "Qwen3Moe", fields.pop("target_parameters", fields.pop("chosen")), **fields)
    expected = merged(folder, "Qwen3Moe")
    if expected.pop("model.layers.0.mlp.gate.weight", None) is not None:
        left_out = read_changes(folder, "peft", base).left_out
        assert left_out == {"model.model.layers.0.mlp.gate.weight": "changes, and is of no kind that can be shifted"}
        return
    check(base, found(base, folder), expected)


# --- What PEFT itself cannot tell ---

SQUARE = "experts.down_proj"


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Path]:
    """A base whose experts have square matrices, and PEFT's LoRA on them."""
    config = Qwen3MoeConfig(**{**SIZES, **OWN["Qwen3Moe"], "moe_intermediate_size": 16})
    torch.manual_seed(0)
    model: Any = Qwen3MoeForCausalLM(config)
    folder = tmp_path_factory.mktemp("square")
    model.save_pretrained(folder / "base", save_original_format=False)
    wrapped: Any = get_peft_model(model, LoraConfig(r=2, target_modules=[], target_parameters=[SQUARE]))
    for key, value in wrapped.named_parameters():
        if "lora_" in key:
            value.data.normal_()
    wrapped.save_pretrained(folder / "x")
    return open_base(folder / "base"), folder / "x"


def rewritten(source: Path, folder: Path, **fields: Any) -> Path:
    """Copy PEFT's folder, with other fields in its configuration."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    return folder


@pytest.mark.parametrize(("version", "turned"), [("0.18.1", True), ("0.19.0", False), ("0.21.2@UNKNOWN", False)])
def test_square_matrices_lie_as_the_peft_that_wrote_them_had_them(
    tmp_path: Path, square: tuple[Base, Path], version: str, turned: bool
) -> None:
    base, source = square
    changes = found(base, rewritten(source, tmp_path / "x", peft_version=version))
    tensors = load_file(source / "adapter_model.safetensors")
    a, b = (next(value.double() for key, value in tensors.items() if side in key) for side in ("lora_A", "lora_B"))
    key = "model.model.layers.0.mlp.experts.down_proj"
    for number in range(3):
        change = b.reshape(16, 2, 3)[:, :, number] @ a.reshape(3, 2, 16)[number] * 4
        assert relative(changes[f"{key}[{number}]"], change.T if turned else change) < 1e-14


@pytest.mark.parametrize("version", [None, "0.18.2.dev0@abc", "?"])
def test_square_matrices_of_an_unknown_peft_are_refused(
    tmp_path: Path, square: tuple[Base, Path], version: str | None
) -> None:
    base, source = square
    with pytest.raises(BaseMismatchError, match=r"nothing says which side is which: PEFT has read it otherwise since"):
        convert(rewritten(source, tmp_path / "x", peft_version=version), base=base, min_energy=0)


def damaged(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    file = folder / "adapter_model.safetensors"
    save_file({key: value.contiguous() for key, value in change(load_file(file)).items()}, file)
    return folder


DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "one of two": (
        lambda tensors: {key: value for key, value in tensors.items() if "base_layer" not in key},
        r"has factors for 1 of the parameters of .*\.experts, and .* names 2 \(gate_up_proj, down_proj\): nothing says",
    ),
    "rows lost": (
        lambda tensors: {key: value[:5] if "lora_A" in key else value for key, value in tensors.items()},
        r"has 5 rows for 3 experts, not rank 2",
    ),
    "half a pair": (
        lambda tensors: {key: value for key, value in tensors.items() if "lora_B" not in key},
        r"is not one lora_A and one lora_B",
    ),
    "another base": (
        lambda tensors: {key: value[:, :7] if "lora_A" in key else value for key, value in tensors.items()},
        r"has shape \[\d+, 7\], the base has",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_factors_that_do_not_say_whose_they_are_are_refused(tmp_path: Path, case: str) -> None:
    base = saved(tmp_path / "base", "Qwen3Moe")
    change, message = DAMAGES[case]
    folder = damaged(adapter(tmp_path / "x", "Qwen3Moe", targets("Qwen3Moe")), change)
    with pytest.raises(DeltaError, match=message):
        convert(folder, base=base, min_energy=0)


# --- And back ---


def true_changes(base: Base, delta: Delta) -> dict[str, Tensor]:
    """Return ΔW of each weight by NumPy's SVD of the weights rounded to float16; signs do not depend on the axis."""
    found = {}
    for name, shift in delta.items():
        U, sigma, Vt = np.linalg.svd(base.read(name).half().double().numpy(), full_matrices=False)
        found[name] = torch.from_numpy(U * np.maximum(shift.astype("f8"), -sigma) @ Vt)
    return found


@pytest.mark.parametrize("chosen", ["*", "*gate_up*", "*down*", "*experts*", "*[[]1[]]"])
@pytest.mark.parametrize("name", ["Qwen3Moe", "GptOss", "Llama4"])
def test_peft_merges_what_a_delta_becomes(tmp_path: Path, name: str, chosen: str) -> None:
    base = saved(tmp_path / "base", name)
    delta = base_delta(base, size=0.1)
    delta = select(delta, *(each for each in delta if len(base.shape(each)) > 1 and fnmatchcase(each, chosen)))
    done = convert(delta, to="peft", base=base, output=tmp_path / "x", rank=100)
    assert not done.left_out
    check(base, true_changes(base, delta), merged(tmp_path / "x", name))
    again = convert(tmp_path / "x", base=base).delta
    assert again.keys() == delta.keys()
    for each, shift in again.items():
        sigma = torch.linalg.svdvals(base.read(each).double()).numpy()
        assert abs(shift - delta[each].clip(-sigma)).max() < 1e-5


@pytest.mark.parametrize("name", ["Qwen3Moe", "Mixtral"])
def test_experts_that_the_file_has_one_by_one_are_put_together(tmp_path: Path, name: str) -> None:
    base = saved(tmp_path / "base", name, stacked=False)
    delta = base_delta(base, "experts", size=0.1)
    some = select(delta, *[each for index, each in enumerate(delta) if index % 3])
    convert(some, to="peft", base=base, output=tmp_path / "x", rank=100)
    changes = {each: torch.zeros(base.shape(each)).double() for each in delta} | true_changes(base, some)
    check(base, changes, merged(tmp_path / "x", name))


@pytest.mark.parametrize("name", ["Qwen3Moe", "GptOss", "JetMoe"])
def test_directly_factors_stay_what_they_are(tmp_path: Path, name: str) -> None:
    base, folder = saved(tmp_path / "base", name), adapter(tmp_path / "x", name, targets(name))
    done = convert_directly(folder, to="peft", base=base, rank=2, output=tmp_path / "y")
    assert done.captured > 1 - 1e-12
    check(base, found(base, folder), merged(tmp_path / "y", name))


def test_of_two_parameters_one_may_be_without_a_change(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "Qwen3Moe")
    folder = damaged(
        adapter(tmp_path / "x", "Qwen3Moe", targets("Qwen3Moe")),
        lambda tensors: {key: value if "base_layer" in key else value * 0 for key, value in tensors.items()},
    )
    convert_directly(folder, to="peft", base=base, rank=2, output=tmp_path / "y")
    expected = merged(folder, "Qwen3Moe")
    assert [key.rpartition(".")[2] for key in expected] == ["gate_up_proj"]
    again = merged(tmp_path / "y", "Qwen3Moe")
    assert again.keys() == expected.keys()
    assert all(relative(again[key], change) < 1e-6 for key, change in expected.items())


def test_they_become_a_full_difference(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "GptOss")
    folder = adapter(tmp_path / "x", "GptOss", targets("GptOss"))
    convert_directly(folder, to="full", base=base, output=tmp_path / "full")
    whole = load_file(tmp_path / "full")
    check(base, {key: value.double() for key, value in whole.items()}, merged(folder, "GptOss"))


def test_no_dialect_spells_them_anew(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "x", "Qwen3Moe", targets("Qwen3Moe"))
    with pytest.raises(InputError, match="target_parameters: the factors are for parameters that their keys do not"):
        respell(folder, to="kohya", base=saved(tmp_path / "base", "Qwen3Moe"))


def test_the_component_of_a_pipeline_that_has_the_experts_is_found(tmp_path: Path) -> None:
    """A small text encoder stands before it, and no key is that of a layer's weight."""
    kind = "NucleusMoEImageTransformer2DModel"
    model: Any = build(kind, DENOISERS[kind])
    model.save_pretrained(tmp_path / "base/transformer")
    bert(tmp_path / "base/text_encoder")
    index = {"_class_name": "DiffusionPipeline", "transformer": ["diffusers", kind]}
    index["text_encoder"] = ["transformers", "BertModel"]
    (tmp_path / "base/model_index.json").write_text(json.dumps(index))
    before = {key: value.double() for key, value in model.state_dict().items() if "experts." in key}
    config = LoraConfig(r=2, target_modules=[], target_parameters=["experts.gate_up_proj"], init_lora_weights=False)
    wrapped: Any = get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path / "x")
    after = wrapped.merge_and_unload().state_dict()
    changes = found(open_base(tmp_path / "base"), tmp_path / "x")
    stacks = [key for key in before if key.endswith("gate_up_proj")]
    assert len(changes) == 2 * len(stacks) > 0
    for key in stacks:
        for number in range(2):
            change = after[key][number].double() - before[key][number]
            assert relative(changes[f"transformer.{key}[{number}]"], change) < 1e-5  # W + ΔW is rounded to float32
