"""Full-weight results on a live pipeline: W + Σ wᵢ ΔWᵢ, and W again, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import save_tensors
from support.models import base_delta
from support.tuned import FILE, KEYS, tuned_base, unet_weights
from torch import Tensor

from svdiff_delta import convert, save
from svdiff_delta.base_model.base import open_base
from svdiff_delta.errors import AttachError, BaseError, InputError
from svdiff_train.sampling.adapter_stack import AdapterStack, part_facts
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.weight_difference import Difference, open_difference, tuned_weights
from svdiff_train.tiny import base_path, open_tiny

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tuned")
    return tuned_base(folder / "a", 1), tuned_base(folder / "b", 2, keys=KEYS[1:])


@pytest.fixture(scope="module")
def pair(folders: tuple[Path, Path]) -> tuple[Difference, Difference]:
    a, b = (open_difference(folder, open_tiny()) for folder in folders)
    return a, b


@pytest.fixture
def pipeline() -> Iterator[Any]:
    """The live base; it must be the base again when the test is over."""
    pipeline: Any = load_pipeline(open_tiny())
    before = live(pipeline)
    yield pipeline
    assert same(live(pipeline), before)


def live(pipeline: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in pipeline.unet.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_every_weight_that_differs_is_there_biases_too(
    folders: tuple[Path, Path], pair: tuple[Difference, ...]
) -> None:
    assert [*pair[0]] == sorted(f"unet.{key}" for key in KEYS)
    new, old = unet_weights(folders[0]), unet_weights(base_path())
    for key in KEYS:
        assert torch.equal(pair[0][f"unet.{key}"], new[key].double() - old[key].double())


def test_with_weight_1_the_pipeline_is_the_tuned_one_bit_for_bit(
    pipeline: Any, folders: tuple[Path, Path], pair: tuple[Difference, ...]
) -> None:
    with tuned_weights(pipeline, [(pair[0], 1.0), (pair[1], 0.0)]):
        assert same(live(pipeline), live(load_pipeline(open_base(folders[0]))))


def test_several_are_summed_in_float64_and_rounded_once(
    pipeline: Any, folders: tuple[Path, Path], pair: tuple[Difference, ...]
) -> None:
    old, *new = (unet_weights(folder) for folder in (base_path(), *folders))
    with tuned_weights(pipeline, [(pair[0], 0.7), (pair[1], -0.4)]):
        found = live(pipeline)
    for key, value in found.items():
        w, a, b = (weights[key].double() for weights in (old, *new))
        assert torch.equal(value, (w + 0.7 * (a - w) - 0.4 * (b - w)).float())


def test_the_weights_come_back_after_an_error(pipeline: Any, pair: tuple[Difference, ...]) -> None:
    with pytest.raises(KeyboardInterrupt), tuned_weights(pipeline, [(pair[0], 1.0)]):
        raise KeyboardInterrupt


def test_a_weight_that_is_not_there_is_refused_before_any_changes(pipeline: Any, pair: tuple[Difference, ...]) -> None:
    with (
        AdapterStack(pipeline, open_tiny(), [base_delta(open_tiny(), "mid-ca")]) as stage,
        stage.active([1.0]),
        pytest.raises(AttachError, match=r"unet\.mid_block\S+to_k\.weight: a delta is on it live"),
        tuned_weights(pipeline, [(pair[0], 1.0)]),
    ):
        raise AssertionError("must not be reached")


def test_a_pipeline_without_the_component_is_refused(pipeline: Any, pair: tuple[Difference, ...]) -> None:
    unet, pipeline.unet = pipeline.unet, None
    with pytest.raises(AttachError, match=r"unet\.conv_in\.bias: is not on the live pipeline"):
        tuned_weights(pipeline, [(pair[0], 1.0)]).__enter__()
    pipeline.unet = unet


def test_a_folder_with_the_base_s_own_weights_is_refused() -> None:
    with pytest.raises(InputError, match="has the same weights as the base"):
        open_difference(base_path(), open_tiny())


def test_a_folder_of_another_architecture_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = tuned_base(tmp_path / "other", 3)
    weights = load_file(other / FILE)
    weights["conv_in.weight"] = weights["conv_in.weight"][:32].contiguous()
    save_file(weights, other / FILE)
    with pytest.raises(InputError, match=r"unet\.conv_in\.weight \(has shape \[32, 8, 3, 3\]"):
        open_difference(other, open_tiny())


def test_a_tuned_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    other = tuned_base(tmp_path / "other", 3, size=float("nan"), keys=KEYS[1:2])
    with pytest.raises(BaseError, match="holds NaN or infinity"):
        open_difference(other, open_tiny())


def test_a_lora_is_read_as_what_it_adds(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    width = unet_weights(base_path())[f"{QUERY}.weight"].shape[1]
    down, up = torch.randn(2, width, generator=generator), torch.randn(width, 2, generator=generator)
    tensors = {f"unet.{QUERY}.lora_A.weight": down, f"unet.{QUERY}.lora_B.weight": up}
    path = save_tensors(tmp_path / "pytorch_lora_weights.safetensors", tensors)
    found = open_difference(path, open_tiny())
    assert [*found] == [f"unet.{QUERY}.weight"]
    torch.testing.assert_close(found[f"unet.{QUERY}.weight"], up.double() @ down.double())
    assert part_facts(found, 1.0)["sha256"] == found.identify()


def test_a_file_of_full_differences_and_a_delta_give_the_same_weights(pipeline: Any, tmp_path: Path) -> None:
    base = open_tiny()
    delta = base_delta(base, "mid-ca")
    convert(delta, to="full", base=base, output=tmp_path / "full.safetensors")
    found = open_difference(tmp_path / "full.safetensors", base)
    assert found.keys() == delta.keys()
    with tuned_weights(pipeline, [(found, 1.0)]):
        one = live(pipeline)
    tuned = open_difference(tuned_base(tmp_path / "tuned", 1, keys=KEYS[:1]), base)
    with AdapterStack(pipeline, base, [delta, tuned]) as stage:
        with stage.active([1.0, 0.0]):
            two = live(pipeline)
        with stage.active([1.0, 1.0]):
            both = live(pipeline)
    for key in one:
        # The file's ΔW is rounded to float32, of which it is at most an ulp of W.
        torch.testing.assert_close(one[key], two[key], rtol=2e-7, atol=1e-7)
    assert torch.equal(both[KEYS[0]], unet_weights(tmp_path / "tuned")[KEYS[0]])
    assert same({key: both[key] for key in both if key != KEYS[0]}, {key: two[key] for key in two if key != KEYS[0]})


def test_a_delta_is_no_difference(tmp_path: Path) -> None:
    save(base_delta(open_tiny(), "mid-ca"), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="is a delta"):
        open_difference(tmp_path / "a.safetensors", open_tiny())


def test_each_is_told_from_the_other_by_its_content(pair: tuple[Difference, ...]) -> None:
    facts = [part_facts(part, 0.5) for part in pair]
    assert facts[0]["sha256"] != facts[1]["sha256"]
    assert json.dumps(facts[0]) == json.dumps({"kind": "difference", "sha256": pair[0].identify(), "weight": 0.5})


def test_a_file_that_does_not_say_what_it_is_has_a_mend_that_painting_knows(tmp_path: Path) -> None:
    path = save_tensors(tmp_path / "x.safetensors", {"conv_in.weight": torch.ones(2, 2)})
    with pytest.raises(InputError, match="does not say what it is: name the folder of a tuned model, or make a delta"):
        open_difference(path, open_tiny())


def test_what_is_left_over_of_a_tuned_model_is_asked_about_in_words(tmp_path: Path) -> None:
    folder = tuned_base(tmp_path / "a", 1)
    save_file({**unet_weights(folder), "conv_in.extra": torch.ones(2)}, folder / FILE)
    with pytest.raises(InputError, match=r"1 weight cannot be carried over \(is it tuned from another base\?\): unet"):
        open_difference(folder, open_tiny())


def test_an_index_in_only_one_model_is_remarked(tmp_path: Path) -> None:
    folder = tuned_base(tmp_path / "a", 1)
    save_file({**unet_weights(folder), "position_ids": torch.arange(4)}, folder / FILE)
    (remark,) = open_difference(folder, open_tiny()).remarks
    assert remark.startswith("1 tensor of whole numbers, which are no weights")


def test_a_stage_takes_a_weight_for_each_part(pipeline: Any, pair: tuple[Difference, ...]) -> None:
    with pytest.raises(InputError, match="2 parts need as many weights, 1 were given"):
        AdapterStack(pipeline, open_tiny(), pair).active([1.0]).__enter__()
