"""Runs on the two experts of Wan 2.2: both or one of them, by shifts or LoRA, with activations computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from support.recorded_pipelines import BUILDERS, shared
from support.recorded_runs import shown
from support.recorded_truth import shape_of
from support.weights import normal

from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.errors import TrainError
from svdiff_train.data import seeded_random
from svdiff_train.families import family_of
from svdiff_train.families.experts import draw_for
from svdiff_train.settings.config import TrainConfig
from svdiff_train.training.callbacks import Watch
from svdiff_train.training.loop import train

SLOTS = ("transformer", "transformer_2")
WEIGHTS = "pytorch_lora_weights.safetensors"
CONFIG: dict[str, Any] = {"prompt": "a cat", "steps": 2, "resolution": 16, "num_frames": 5, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Path]:
    """Wan 2.2, and a folder of clips."""
    place = tmp_path_factory.mktemp("wan")
    BUILDERS["Wan 2.2"]().save_pretrained(place / "base")
    return open_base(place / "base"), shown(place, 16, 5)


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("method", ["svdiff", "lora"])
def test_an_expert_is_trained_alone(slot: str, method: str, wan: tuple[Base, Path], tmp_path: Path) -> None:
    """Every step changes it: timesteps are drawn that it sees."""
    base, clips = wan
    config = TrainConfig(**CONFIG, method=method, selectors=(f"{slot}.blocks.0.attn1.to_q.weight",))
    losses = list[float]()
    done = train(base, clips, config, watch=Watch(step=lambda report: losses.append(report.loss)))
    assert len(losses) == 2
    if method == "svdiff":
        assert [*done.delta] == [f"{slot}.blocks.0.attn1.to_q.weight"]
        assert any(value.any() for value in done.delta.values())
        return
    done.result.save(tmp_path / "lora")
    other = next(each for each in SLOTS if each != slot)
    places = {"transformer": tmp_path / "lora", "transformer_2": tmp_path / "lora" / "transformer_2"}
    assert not (places[other] / WEIGHTS).exists()
    found = load_file(places[slot] / WEIGHTS)
    assert any(value.any() for key, value in found.items() if "lora_B" in key or "lora.up" in key)


def test_timesteps_are_drawn_on_the_side_of_the_expert_that_is_trained() -> None:
    family: Any = family_of(shared("Wan 2.2"))
    for slot, side in (("transformer", True), ("transformer_2", False)):
        draw_for(family, {slot})
        drawn = [float(family.draw_timestep(seeded_random.generator(0, 0, each, "t"))) for each in range(30)]
        assert all((each >= 875) is side for each in drawn)
        assert len(set(drawn)) > 10
    draw_for(family, {"text_encoder"})
    both = {float(family.draw_timestep(seeded_random.generator(0, 0, each, "t"))) >= 875 for each in range(30)}
    assert both == {True, False}


def test_a_side_that_nothing_is_drawn_on_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from svdiff_train.families import videos

    monkeypatch.setattr(videos, "DRAWS", 3)
    pipeline = BUILDERS["Wan 2.2"]()
    pipeline.register_to_config(boundary_ratio=1.0)
    family: Any = family_of(pipeline)
    draw_for(family, {"transformer"})
    with pytest.raises(TrainError, match=r"transformer: none of 3 timesteps .* boundary 1.0: train both experts"):
        family.draw_timestep(seeded_random.generator(0, 0, 1, "t"))


def test_lora_on_both_is_a_file_for_each_that_diffusers_loads_where_it_belongs(
    wan: tuple[Base, Path], tmp_path: Path
) -> None:
    base, clips = wan
    done = train(base, clips, TrainConfig(**{**CONFIG, "steps": 4, "batch_size": 2}, method="lora", lora_rank=2))
    done.result.save(tmp_path / "lora")
    pipeline = diffusers.WanPipeline.from_pretrained(base.path)
    pipeline.load_lora_weights(tmp_path / "lora")
    pipeline.load_lora_weights(tmp_path / "lora", subfolder="transformer_2", load_into_transformer_2=True)
    family: Any = family_of(pipeline)
    shape = shape_of("Wan 2.2", family)
    told = family.encode_prompts(["a cat"])
    for slot, time in zip(SLOTS, (950.0, 300.0), strict=True):
        model = getattr(pipeline, slot)
        found = []
        for on in (True, False):
            (model.enable_adapters if on else model.disable_adapters)()
            with torch.no_grad():
                found.append(family.predict(family.denoiser, normal(1, *shape), torch.tensor([time]), told))
        assert not torch.equal(*found), slot
    folder = tmp_path / "lora"
    first, second = (load_file(place / WEIGHTS) for place in (folder, folder / "transformer_2"))
    assert first.keys() == second.keys()
    assert any(not torch.equal(value, second[key]) for key, value in first.items())


def test_lora_on_anything_but_the_experts_is_refused(wan: tuple[Base, Path]) -> None:
    base, clips = wan
    config = TrainConfig(**CONFIG, method="lora", selectors=("text",))
    with pytest.raises(TrainError, match="lora trains transformer and transformer_2, and the selectors name text_enc"):
        train(base, clips, config)


def test_activations_of_both_are_computed_again_and_give_the_same_shifts(wan: tuple[Base, Path]) -> None:
    """One step: the gradient is the same but for rounding, and Adam's first step is its sign."""
    base, clips = wan
    found = []
    for again in (False, True):
        config = TrainConfig(**{**CONFIG, "steps": 1}, batch_size=2, gradient_checkpointing=again)
        losses = list[float]()
        train(base, clips, config, watch=Watch(step=lambda report: losses.append(report.loss)))  # noqa: B023
        found.append(losses[0])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
