"""The memory that a run is told to need: each part by its own formula, and the whole beside what a step takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from support.commands import svdiff
from support.pipelines import PIPELINES
from support.recorded_pipelines import BUILDERS, VIDEOS, VOCABULARY
from support.seeing_pipelines import SEEING
from support.zoo.language import GROUPED
from torch import nn

from svdiff_delta import attach, zero_delta
from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.errors import TrainError
from svdiff_train.families import family_of
from svdiff_train.memory import plan as plan_module
from svdiff_train.memory.known_values import known_values, let_known
from svdiff_train.memory.plan import MemoryPlan, plan_memory, weight_bytes
from svdiff_train.memory.storages import Storages
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.loop import train
from svdiff_train.training.meaning import settle_family

CPU = torch.device("cpu")
RECORDED = {**BUILDERS, **{name: make for name, make in SEEING.items() if name != "Qwen-Image-Edit"}}
"""Families by recording, and those that see a second picture; the processor of one does not come back from a folder."""
QUICK = ("Z-Image", "Flux.1 Kontext", "Lumina 2")
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RECORDED]
CONFIG = TrainConfig(prompt="a cat", batch_size=2)


LOADABLE = [pytest.param(name, marks=() if name in ("flux", "sd2") else pytest.mark.slow) for name in sorted(PIPELINES)]
"""The families, as they come back from a folder."""


@pytest.fixture(scope="module", params=LOADABLE)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A pipeline of every family."""
    path = tmp_path_factory.mktemp("base")
    PIPELINES[request.param]().save_pretrained(path)
    return open_base(path)


def planned(base: Base, config: TrainConfig = CONFIG, dtype: str = "F32", **more: Any) -> tuple[Any, MemoryPlan]:
    family = family_of(load_pipeline(base, dtype=dtype))
    size = (2 * family.unit, 2 * family.unit)
    found = plan_memory(family, base, config, (family.slot,), size, CPU, **more)
    assert found is not None
    return family, found


def taken(family: Any, handle: Any, samples: int) -> int:
    """The most that a forward and its way back take beside what is there, by tensors with values."""
    with torch.no_grad():
        told = {name: each.repeat_interleave(samples, 0) for name, each in family.encode_prompts(["a cat"]).items()}
    shape = (samples, *family.latent_shape(2 * family.unit, 2 * family.unit))
    noised, timesteps = torch.zeros(shape), torch.full((samples,), 500.0)
    told["sizes"] = torch.zeros(samples, 6)
    model: nn.Module = family.denoiser
    leaves = [each for _, each in handle.parameters()]
    known = [*model.parameters(), *model.buffers(), *leaves, *told.values(), noised, timesteps]
    with torch.autograd.set_multithreading_enabled(False), Storages(known) as storages:
        family.predict(model, noised, timesteps, told).float().square().mean().backward()
    return storages.most


@pytest.mark.parametrize("dtype", [pytest.param("F32", marks=pytest.mark.slow), "BF16"])
def test_parts_are_what_attaching_and_a_step_take(base: Base, dtype: str) -> None:
    """Factors but for what tails add; activations to a tenth, and eight float32 for each number of δ.

    A model's gains are made together there, of arrays as long as all of δ, which is next to nothing in larger models.
    """
    family, plan = planned(base, dtype=dtype)
    before = weight_bytes(family.denoiser)
    assert plan.model == sum(weight_bytes(part) for part in family.pipeline.components.values()
                             if isinstance(part, nn.Module))  # fmt: skip
    family.denoiser.requires_grad_(False)
    zero = zero_delta(base, family.slot)
    assert plan.trained == 4 * 7 * zero.metadata.numbers
    with attach(family.pipeline, zero, base=base, trainable=True) as handle:
        shifts = [module for module in family.denoiser.modules() if hasattr(module, "response")]
        held = [each for shift in shifts for name in ("square", "inner", "outer", "left", "right")
                if (each := shift._buffers.get(name)) is not None]  # fmt: skip
        dropped = sum(weight.nbytes for weight in family.denoiser.parameters() if 0 in weight.stride())
        factors = sum(each.nbytes for each in held) - dropped
        assert plan.factors == pytest.approx(factors, abs=0.1 * before)
        found = taken(family, handle, 2)
        assert plan.activations == pytest.approx(found, abs=0.1 * found + 32 * zero.metadata.numbers)


def test_what_lets_memory_go_is_in_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "step_bytes", lambda *_: 0)
    base = open_tiny()
    _, plain = planned(base)
    family, lean = planned(base, replace(CONFIG, cache_latents=True, pre_compute_text_embeddings=True))
    pipeline = family.pipeline
    assert plain.model - lean.model == weight_bytes(pipeline.vae) + weight_bytes(pipeline.text_encoder)
    _, mean = planned(base, replace(CONFIG, use_ema=True))
    assert mean.trained == plain.trained * 9 / 7
    _, shared = planned(base, processes=2)
    assert plain.model - shared.model == weight_bytes(pipeline.unet) - weight_bytes(pipeline.unet) // 2
    assert shared.factors > plain.factors  # weights that are shared out are not dropped


def test_checkpoints_need_less_and_a_plan_leaves_the_model_as_it_is(base: Base) -> None:
    (_, plain), (family, checkpointed) = planned(base), planned(base, replace(CONFIG, gradient_checkpointing=True))
    assert (checkpointed.activations or 0) < (plain.activations or 0)
    assert not family.denoiser.is_gradient_checkpointing
    assert all(type(weight) is nn.Parameter for weight in family.denoiser.parameters())
    assert not [module for module in family.denoiser.modules() if "forward" in module.__dict__]


def test_more_than_there_is_is_said_with_what_to_set() -> None:
    plan = MemoryPlan("cpu", 5 * 10**9, 10**9, 10**8, 2 * 10**9, 0, 8 * 10**9)
    line, note = plan.lines("set gradient_checkpointing")
    assert line == (
        "memory: 8.10 GB at the peak of a step (model 5.00, factors 1.00, δ and optimizer 0.10, activations 2.00) "
        "of 8.00 GB on the CPU"
    )
    assert note == "note: that is more than there is: set gradient_checkpointing"
    (only,) = MemoryPlan("cpu", 1, 0, 0, None, 0, None, "no such thing").lines("")
    assert only.endswith("; activations cannot be told (no such thing)")


def test_a_model_that_cannot_be_tried_has_a_plan_without_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise NotImplementedError("reads a number")

    monkeypatch.setattr(plan_module, "step_bytes", refuse)
    _, found = planned(open_tiny())
    assert (found.activations, found.unknown) == (None, "NotImplementedError: reads a number")


def test_checkpoints_of_a_class_without_them_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers.UNet2DConditionModel, "_supports_gradient_checkpointing", False)
    config = replace(CONFIG, prompt="a sks cat", steps=1, selectors=("unet-ca-kv",), gradient_checkpointing=True)
    with pytest.raises(TrainError, match=r"UNet2DConditionModel: diffusers does not.*leave out gradient_checkpointing"):
        train(open_tiny(), pictures_path("black_cat"), config)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' scheduler of SANA
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # of diffusers, by its own Chroma
@pytest.mark.parametrize("name", CASES)
def test_families_by_recording_have_a_plan(name: str, tmp_path: Path) -> None:
    _, plan = recorded_plan(name, tmp_path)
    assert not plan.unknown
    assert (plan.activations or 0) > 0


def recorded_plan(name: str, folder: Path) -> tuple[Any, MemoryPlan]:
    """A family by recording, and what a step of two samples is told to take."""
    RECORDED[name]().save_pretrained(folder / "base")
    base = open_base(folder / "base")
    family: Any = family_of(load_pipeline(base))
    frames = 1 + 2 * family.frame_unit if name in VIDEOS else None
    config = TrainConfig(prompt="a cat", num_frames=frames, batch_size=2)
    settle_family(family, config)
    side = 16 if name == "AuraFlow" else 2 * family.unit
    plan = plan_memory(family, base, config, family.slots, (side, side), CPU)
    assert plan is not None
    return family, plan


READING = ("Lumina 2", "HiDream", "Wan 2.2")
"""Families whose denoisers read masks or where tokens went, and where timesteps choose the denoiser."""


@pytest.mark.parametrize("name", [READING[0], *(pytest.param(each, marks=pytest.mark.slow) for each in READING[1:])])
def test_what_reads_values_is_told_to_a_tenth(name: str, tmp_path: Path) -> None:
    """Beside eight float32 for each number of δ, as above."""
    family, plan = recorded_plan(name, tmp_path)
    assert not plan.unknown
    for slot in family.slots:
        getattr(family.pipeline, slot).requires_grad_(False)
    zero = zero_delta(open_base(tmp_path / "base"), *family.slots)
    assert plan.trained == 4 * 7 * zero.metadata.numbers
    with attach(family.pipeline, zero, base=open_base(tmp_path / "base"), trainable=True) as handle:
        found = taken(family, handle, 2)
    assert plan.activations == pytest.approx(found, abs=0.1 * found + 32 * zero.metadata.numbers)


def test_stacked_experts_are_in_the_plan(tmp_path: Path) -> None:
    """Each is held as any matrix of its size, in left and right vectors; its weight stays in the stack."""
    pipeline = BUILDERS["Z-Image"]()
    torch.manual_seed(0)
    pipeline.text_encoder = transformers.Qwen3MoeModel(
        transformers.Qwen3MoeConfig(
            **{**GROUPED, **VOCABULARY, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
        )
    )
    pipeline.save_pretrained(tmp_path / "base")
    base = open_base(tmp_path / "base")
    family = family_of(load_pipeline(base))
    selectors = ("text", "transformer")
    plan = plan_memory(family, base, CONFIG, selectors, (2 * family.unit, 2 * family.unit), CPU)
    assert plan is not None
    assert not plan.unknown
    zero = zero_delta(base, *selectors)
    experts = [name for name in zero if ".experts." in name]
    assert len(experts) >= 8
    assert plan.trained == 4 * 7 * zero.metadata.numbers
    models = [family.pipeline.text_encoder, family.pipeline.transformer]
    for model in models:
        model.requires_grad_(False)
    before = sum(map(weight_bytes, models))
    with attach(family.pipeline, zero, base=base, trainable=True):
        shifts = [module for model in models for module in model.modules() if hasattr(module, "response")]
        held = [each for shift in shifts for name in ("square", "inner", "outer", "left", "right")
                if (each := shift._buffers.get(name)) is not None]  # fmt: skip
        dropped = sum(weight.nbytes for model in models for weight in model.parameters() if 0 in weight.stride())
        assert plan.factors == pytest.approx(sum(each.nbytes for each in held) - dropped, abs=0.1 * before)


def test_values_are_known_of_what_is_made_of_known_ones_alone() -> None:
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    mask = torch.tensor([[True, False, True]])
    with FakeTensorMode(allow_non_fake_inputs=True):
        known, other = let_known(torch.empty(1, 3, dtype=torch.bool), mask), torch.empty(3, 4)
        with known_values(CPU):
            assert known.sum(dim=1).tolist() == [2]
            assert other[known[0]].shape == (2, 4)
            written = torch.zeros(3)
            written[1:] = 5
            assert written.tolist() == [0, 5, 5]
            written[:1] = other[0, 0]
            with pytest.raises(DataDependentOutputException):
                written.tolist()
            chosen = other.topk(2, dim=-1).indices
            assert chosen.flatten().bincount().cpu().numpy().tolist() == [2, 2, 1, 1]


def test_other_methods_have_no_plan() -> None:
    family = family_of(load_pipeline(open_tiny()))
    assert plan_memory(family, open_tiny(), replace(CONFIG, method="lora"), ("unet",), (64, 64), CPU) is None


def test_a_dry_run_tells_the_memory(tmp_path: Path) -> None:
    what = ("train", "tiny", str(pictures_path("black_cat")), "--prompt", "a sks cat", "-o", str(tmp_path / "a"))
    assert [line for line in svdiff(*what, "--dry-run").out.splitlines() if line.startswith("memory: ")]
