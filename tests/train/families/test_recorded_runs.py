"""Whole runs on tiny bases of the recorded families, from a folder of pictures or clips to a delta that paints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.adapters import true_changes
from support.models import base_delta
from support.recorded_pipelines import BUILDERS, VIDEOS
from support.recorded_runs import loss_of, shown
from support.recorded_truth import PROMPT, shape_of
from support.weights import normal
from torch import Tensor

from svdiff_delta import attach, bake
from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.errors import TrainError
from svdiff_delta.format.delta import Delta
from svdiff_train.data.batches import Batches
from svdiff_train.families import family_of
from svdiff_train.families.experts import Experts
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import Sampling, generate
from svdiff_train.settings.config import TrainConfig
from svdiff_train.training.callbacks import Watch
from svdiff_train.training.loop import train

pytestmark = [  # what diffusers itself does: SANA's solver with numpy 2, Chroma's places
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed:FutureWarning"),
]

FAST = ("Z-Image",)
NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in BUILDERS]

STEPS, RATE = 40, 0.1
SHARE = 0.8
"""What is left of the loss on the noise and timesteps that each step sees, after so many steps at this rate."""


def saved(name: str, folder: Path) -> Base:
    BUILDERS[name]().save_pretrained(folder / "base")
    return open_base(folder / "base")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_lowers_the_loss_on_fixed_noise_and_its_delta_paints(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step sees the noise and the timesteps of the first."""
    own = Batches.batch
    monkeypatch.setattr(Batches, "batch", lambda batches, step, samples: own(batches, 0, samples))
    base = saved(name, tmp_path)
    pipeline: Any = load_pipeline(base)
    family: Any = family_of(pipeline)
    side = 4 * family.unit if name != "HiDream" else 8
    frames = 1 + 2 * family.frame_unit if name in VIDEOS else 1
    config = TrainConfig(
        prompt=PROMPT,
        steps=STEPS,
        batch_size=2,
        learning_rate=RATE,
        learning_rate_1d=RATE / 10,
        resolution=side,
        num_frames=frames if name in VIDEOS else None,
    )
    place = shown(tmp_path, side, frames if name in VIDEOS else None)
    delta = train(base, place, config).delta
    from svdiff_train.training.setup import prepare_run

    opened = prepare_run(base, place, config, torch.device("cpu"), skip_bad=False)
    batch = opened.batches({}).batch(0, [0, 1])
    before = loss_of(opened.family, batch)
    with attach(opened.family.pipeline, delta, base=base):
        after = loss_of(opened.family, batch)
        sampling = Sampling(steps=2, height=side, width=side, num_frames=config.num_frames, guidance=None)
        if name == "HiDream":
            opened.family.pipeline.default_sample_size = 8
        (painted,) = generate(opened.family.pipeline, [(PROMPT, 0)], sampling)
    assert after <= SHARE * before
    assert len(painted) == frames if name in VIDEOS else isinstance(painted, Image.Image)
    slots = {key.partition(".")[0] for key in delta}
    assert slots == set(family.slots)


@pytest.mark.slow
def test_an_expert_whose_turn_has_not_come_is_not_said_to_stay_as_it_is(tmp_path: Path) -> None:
    base, lines = saved("Wan 2.2", tmp_path), list[str]()
    config = TrainConfig(prompt=PROMPT, steps=1, resolution=64, num_frames=3)
    train(base, shown(tmp_path, 64, 3), config, watch=Watch(say=lines.append))
    assert not [line for line in lines if "no gradient reaches" in line]


def told_of(family: Any) -> Any:
    return family.join([family.encode_prompts([prompt]) for prompt in (PROMPT, "a long red dog")])


def predicted(family: Any, denoiser: Any, told: Any, shape: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        found: Tensor = family.predict(denoiser, normal(2, *shape, seed=4), torch.tensor([950.0, 300.0]), told)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_live_and_baked_are_the_float64_formula_and_detach_leaves_no_trace(name: str, tmp_path: Path) -> None:
    """Within 1e-4 of what δ changes, or twice what float32 makes of the moved weights, as in the table of families."""
    base = saved(name, tmp_path)
    pipeline: Any = load_pipeline(base)
    family: Any = family_of(pipeline)
    shape, told = shape_of(name, family), told_of(family)
    delta: Delta = base_delta(base, *family.slots, size=0.2)
    before = predicted(family, family.denoiser, told, shape)
    state = {slot: copy.deepcopy(getattr(pipeline, slot).state_dict()) for slot in family.slots}
    truth, rounded = (moved(base, family, delta, told, shape, dtype) for dtype in (torch.float64, torch.float32))
    with attach(pipeline, delta, base=base, check=True):
        live = predicted(family, family.denoiser, told, shape)
    bake(base, [delta], tmp_path / "baked")
    other: Any = family_of(load_pipeline(open_base(tmp_path / "baked")))
    baked = predicted(other, other.denoiser, told, shape)
    change = float((truth - before.double()).norm())
    assert change > 1e-3 * float(before.norm())
    limit = max(1e-4 * change, 2 * float((rounded.double() - truth).norm()))
    assert limit < 0.5 * change
    for found in (live, baked):
        assert float((found.double() - truth).norm()) < limit
    assert torch.equal(predicted(family, family.denoiser, told, shape), before)
    for slot in family.slots:
        after = getattr(pipeline, slot).state_dict()
        assert all(torch.equal(after[key], value) for key, value in state[slot].items()), slot


def moved(base: Base, family: Any, delta: Delta, told: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What models with W + ΔW predict, added in float64 and then in a dtype."""
    models = [copy.deepcopy(getattr(family.pipeline, slot)).double() for slot in family.slots]
    places = dict(zip(family.slots, models, strict=True))
    for name, change in true_changes(base, delta).items():
        slot, _, key = name.partition(".")
        weight = places[slot].get_parameter(base.components[slot].live(key))
        weight.data += change.reshape(weight.shape)
    models = [model.to(dtype) for model in models]
    family.dtype = dtype
    try:
        return predicted(family, models[0] if len(models) == 1 else Experts(models), told, shape)
    finally:
        family.dtype = torch.float32


# --- What has no meaning, and what does not fit ---


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        (
            "Z-Image",
            {"num_frames": 5},
            r"ZImagePipeline: num_frames is for models of moving pictures: leave out num_fr",
        ),
        ("Z-Image", {"snr_gamma": 5.0}, r"ZImagePipeline: min-SNR .* not for flow matching: leave out snr_gamma"),
        (
            "Wan 2.1",
            {"class_prompt": "cat"},
            r"WanPipeline: prior preservation paints pictures, no clips: leave out cla",
        ),
    ],
)
def test_settings_without_a_meaning_are_named(name: str, settings: Any, match: str, tmp_path: Path) -> None:
    from svdiff_train.training.meaning import settle_family

    with pytest.raises(TrainError, match=match):
        settle_family(family_of(BUILDERS[name]()), TrainConfig(**{"prompt": "a sks cat", **settings}))
