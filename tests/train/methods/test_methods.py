"""Spectral shifts and the baselines in one loop: what each trains, and what comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.descent import ROUNDED, greatest_distance, plain_descent

from svdiff_delta import Delta
from svdiff_delta.errors import InputError, SelectionError, TrainError
from svdiff_train.families import family_of
from svdiff_train.methods import METHODS
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import base_path, open_tiny, pictures_path
from svdiff_train.training.loop import plan, train
from svdiff_train.training.outcome import Outcome

pytestmark = pytest.mark.usefixtures("rough_class_pictures")

PICTURES = pictures_path("black_cat")
CONFIG = TrainConfig(
    prompt="a photo of a sks cat", class_prompt="a photo of a cat", class_images=2, steps=1, learning_rate=1e-2
)
FEW = replace(CONFIG, class_prompt=None, selectors=("unet-ca-kv",))


def run(config: TrainConfig) -> Outcome:
    return train(open_tiny(), PICTURES, config)


def weights(folder: Path, component: str) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted((folder / component).glob("*.safetensors")):
        found |= load_file(path)
    return {key: value.float() for key, value in found.items()}


def changed(folder: Path, component: str) -> set[str]:
    before, after = weights(base_path(), component), weights(folder, component)
    assert before.keys() == after.keys()
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_only_the_largest_singular_values_are_shifted_up_to_the_rank() -> None:
    delta = run(replace(FEW, steps=2, train_rank=3)).delta
    assert all(delta[name][:3].any() and not delta[name][3:].any() for name in delta)


def test_shifts_below_minus_sigma_come_back_with_revive_only() -> None:
    far = replace(FEW, steps=3, learning_rate=3.0, max_grad_norm=1e9, weight_decay=0.0)
    dead, revived = (run(replace(far, steps=6, revive=revive)) for revive in (False, True))
    assert any(not np.array_equal(dead.delta[name], revived.delta[name]) for name in dead.delta)


def test_full_fine_tuning_makes_a_pipeline_of_changed_weights(tmp_path: Path) -> None:
    run(replace(CONFIG, method="full", class_prompt=None)).result.save(tmp_path / "full")
    assert len(changed(tmp_path / "full", "unet")) > 300
    assert changed(tmp_path / "full", "vae") == changed(tmp_path / "full", "text_encoder") == set()
    load_pipeline(open_tiny()).__class__.from_pretrained(tmp_path / "full")


def test_custom_diffusion_changes_keys_values_and_one_row(tmp_path: Path) -> None:
    run(replace(CONFIG, method="kv", batch_size=1)).result.save(tmp_path / "kv")
    unet = changed(tmp_path / "kv", "unet")
    assert unet
    assert all(key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for key in unet)
    (key,) = changed(tmp_path / "kv", "text_encoder")
    before, after = (weights(folder, "text_encoder")[key] for folder in (base_path(), tmp_path / "kv"))
    (row,) = (before != after).any(1).nonzero().flatten().tolist()
    pipeline: Any = load_pipeline(open_tiny())
    assert pipeline.tokenizer.convert_ids_to_tokens(row) in ("sks", "sks</w>")


def test_lora_is_loaded_by_diffusers_and_paints_differently(tmp_path: Path) -> None:
    run(replace(CONFIG, method="lora", class_prompt=None, steps=2)).result.save(tmp_path / "lora")
    pipeline: Any = load_pipeline(open_tiny())
    family = family_of(pipeline)
    states = family.encode_prompts(["a cat"])
    shape = (1, pipeline.unet.config.in_channels, 16, 16)
    noise, times = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    with torch.no_grad():
        before = family.predict(pipeline.unet, noise, times, states)
        pipeline.load_lora_weights(tmp_path / "lora")
        after = family.predict(pipeline.unet, noise, times, states)
    taken = {name for name, module in pipeline.unet.named_modules() if hasattr(module, "lora_A")}
    attention = {name.removeprefix("unet.").removesuffix(".weight") for name in METHODS["lora"].selectors(family)}
    assert {name.replace(".base_layer", "") for name in taken} == {
        name.replace(".base_layer", "") for name in attention
    }
    assert not torch.allclose(before, after)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "svdiff": ({"selectors": ("unet-xa",)}, "unet-xa"),
    "full": ({"selectors": ("unet-ca",)}, r"'unet-ca' is not a component, .*: select unet, text_encoder"),
    "lora": ({"selectors": ("text",)}, "lora trains unet, and the selectors name text_encoder"),
    "kv": (
        {"prompt": "a photo of a xylophonette cat", "batch_size": 1},
        r"'xylophonette' is .* tokens .*: use a word that is a single token",
    ),
}


@pytest.mark.parametrize("method", WRONG)
def test_what_a_method_cannot_train_is_refused_before_a_picture_is_painted(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted: list[object] = []
    monkeypatch.setattr("svdiff_train.training.class_images.generate", lambda *given, **_: painted.append(given))
    settings, message = WRONG[method]
    config = replace(CONFIG, method=method, class_prompt="a photo of a cat", class_images=2, **settings)
    for attempt in (run, lambda config: plan(open_tiny(), PICTURES, config)):
        with pytest.raises((TrainError, SelectionError), match=message):
            attempt(config)
    assert not painted


def test_a_baseline_makes_no_delta() -> None:
    with pytest.raises(TrainError, match="made no delta: use its `result`"):
        run(replace(CONFIG, method="lora", class_prompt=None)).delta  # noqa: B018


def test_two_batches_of_one_equal_one_batch_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_descent(monkeypatch)
    config = replace(FEW, steps=2, learning_rate=0.1, max_grad_norm=1e9)  # a clipped gradient would hide its length
    one, two = (run(replace(config, batch_size=size, accumulate=2 // size)).delta for size in (2, 1))
    assert greatest_distance(two, one) < ROUNDED


@pytest.fixture(scope="module")
def plain() -> Delta:
    return run(replace(FEW, steps=2, batch_size=2)).delta


@pytest.mark.parametrize("setting", [{"snr_gamma": 0.01}, {"flip": True}, {"seed": 1}])
def test_settings_change_what_is_learned(plain: Delta, setting: dict[str, Any]) -> None:
    other = run(replace(FEW, steps=2, batch_size=2, **setting)).delta
    assert any(not np.array_equal(plain[name], other[name]) for name in plain)


def test_checkpointing_of_gradients_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_descent(monkeypatch)
    config = replace(FEW, steps=2, batch_size=2, learning_rate=0.1, max_grad_norm=1e9)
    one, two = (run(replace(config, gradient_checkpointing=checkpointed)).delta for checkpointed in (False, True))
    assert greatest_distance(two, one) < ROUNDED


def test_a_model_in_bfloat16_learns_about_the_same() -> None:
    plain, half = (run(replace(FEW, steps=1, mixed_precision=dtype)).delta for dtype in ("no", "bf16"))
    signs = [np.sign(plain[name]) == np.sign(half[name]) for name in plain]
    assert np.concatenate(signs).mean() > 0.9  # one step of Adam is the gradient's sign


def test_a_method_that_is_unknown_is_refused() -> None:
    with pytest.raises(InputError, match="method 'dora' is unknown: use svdiff, full, lora, kv"):
        replace(CONFIG, method="dora")
