"""Training on the embedded base: what is learned, recorded, repeated and refused."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from svdiff_delta import Delta, attach, save
from svdiff_delta.errors import InputError, SelectionError, TrainError
from svdiff_train.families import family_of
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.callbacks import Report, Watch
from svdiff_train.training.loop import train
from svdiff_train.training.loss import denoising_loss
from svdiff_train.training.outcome import Outcome

pytestmark = pytest.mark.usefixtures("rough_class_pictures")

PICTURES = pictures_path("black_cat")
CONFIG = TrainConfig(prompt="a photo of a sks cat", steps=6, batch_size=2, learning_rate=5e-2, learning_rate_1d=1e-2)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return train(open_tiny(), PICTURES, CONFIG)


def loss_on_pictures(delta: Delta | None) -> float:
    """Eq. 1 on the subject's pictures with fixed noise, written out with the pipeline's own parts."""
    from svdiff_train.data import find_images, load_image

    pipeline = load_pipeline(open_tiny())
    family = family_of(pipeline)
    images = torch.stack([load_image(picture.path, 64).pixels for picture in find_images(PICTURES).pictures])
    generator = torch.Generator().manual_seed(7)
    shape = (5, pipeline.vae.config.latent_channels, 16, 16)  # type: ignore[attr-defined]
    latents = family.sample_latents(family.encode_images(images), torch.randn(shape, generator=generator))
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.tensor([100, 300, 500, 700, 900])
    noised, target = family.noised(latents, noise, timesteps)

    def loss() -> float:
        with torch.no_grad():
            conditioning = family.encode_prompts([CONFIG.prompt] * 5)
            prediction = family.predict(family.denoiser, noised, timesteps, conditioning)
        return float(denoising_loss(prediction, target).mean())

    if delta is None:
        return loss()
    with attach(pipeline, delta):
        return loss()


@pytest.mark.slow
def test_training_lowers_the_loss_on_the_subject(outcome: Outcome) -> None:
    longer = train(open_tiny(), PICTURES, replace(CONFIG, steps=60))
    assert loss_on_pictures(longer.delta) < 0.9 * loss_on_pictures(None)


def test_every_shift_is_trained(outcome: Outcome) -> None:
    still = [name for name in outcome.delta if not outcome.delta[name].any()]
    assert not still


def test_the_run_is_recorded_without_paths_or_times(outcome: Outcome) -> None:
    training = dict(outcome.delta.metadata.training or {})
    assert training == {
        "method": "svdiff",
        "prompt": "a photo of a sks cat",
        "selectors": ["unet"],
        "steps": 6,
        "batch_size": 2,
        "learning_rate": 5e-2,
        "learning_rate_1d": 1e-2,
        "weight_decay": 1e-2,
        "max_grad_norm": 1.0,
        "seed": 0,
        "resolution": 64,
        "images": 5,
        "mixed_precision": "no",
    }
    assert outcome.delta.metadata.base.repository == "tiny"


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from svdiff_delta import save
from svdiff_train.settings.config import TrainConfig
from svdiff_train.training import class_images
from svdiff_train.training.loop import train
from svdiff_train.tiny import open_tiny, pictures_path
config = TrainConfig(prompt="a photo of a sks cat", class_prompt="a photo of a cat", steps=2,
                     class_images=2, selectors=("unet-ca",), resolution=32)
class_images.SAMPLING = replace(class_images.SAMPLING, steps=2)
save(train(open_tiny(), pictures_path("black_cat"), config).delta, sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_with_different_hash_seeds_train_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.safetensors"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT, str(path)], check=True, env=environment)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_prior_preservation_changes_what_is_learned_and_is_recorded() -> None:
    config = replace(CONFIG, steps=2, class_prompt="a photo of a cat", class_images=2, prior_weight=0.5)
    seen: list[tuple[int, int]] = []
    with_prior = train(open_tiny(), PICTURES, config, watch=Watch(class_images=lambda *done: seen.append(done)))
    without = train(open_tiny(), PICTURES, replace(config, prior_weight=0.0))
    assert seen[-1] == (2, 2)
    training = with_prior.delta.metadata.training or {}
    assert (training["class_prompt"], training["prior_weight"]) == ("a photo of a cat", 0.5)
    assert any(not np.array_equal(with_prior.delta[name], without.delta[name]) for name in without.delta)


def test_a_selector_restricts_what_is_trained() -> None:
    outcome = train(open_tiny(), PICTURES, replace(CONFIG, steps=1, selectors=("unet-ca-kv",)))
    assert outcome.delta
    assert all(name.endswith((".to_k.weight", ".to_v.weight")) for name in outcome.delta)


def test_the_text_encoder_is_trained_on_request() -> None:
    selectors = ("text_encoder.encoder.layers.0.mlp.*",)
    outcome = train(open_tiny(), PICTURES, replace(CONFIG, steps=1, selectors=selectors))
    assert set(outcome.delta) == {f"text_encoder.encoder.layers.0.mlp.fc{n}.weight" for n in (1, 2)}
    assert all(outcome.delta[name].any() for name in outcome.delta)


def test_norm_weights_have_a_learning_rate_of_their_own() -> None:
    outcome = train(open_tiny(), PICTURES, replace(CONFIG, steps=1, learning_rate_1d=0.0))
    moved = {outcome.delta.metadata.parameters[name].kind for name in outcome.delta if outcome.delta[name].any()}
    assert moved == {"spectral"}


def test_ctrl_c_ends_the_run_with_what_it_has() -> None:
    def interrupt(report: Report) -> None:
        if report.step == 2:
            signal.raise_signal(signal.SIGINT)

    outcome = train(open_tiny(), PICTURES, CONFIG, watch=Watch(step=interrupt))
    assert (outcome.steps, outcome.interrupted) == (2, True)
    assert (outcome.delta.metadata.training or {})["steps"] == 2
    assert any(outcome.delta[name].any() for name in outcome.delta)


def test_an_interrupted_run_equals_a_run_of_as_many_steps(outcome: Outcome, tmp_path: Path) -> None:
    def interrupt(report: Report) -> None:
        if report.step == 6:
            signal.raise_signal(signal.SIGINT)

    longer = train(open_tiny(), PICTURES, replace(CONFIG, steps=50), watch=Watch(step=interrupt))
    save(longer.delta, tmp_path / "a.safetensors")
    save(outcome.delta, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(TrainError, match="the loss is nan at step 2"):
        train(open_tiny(), PICTURES, replace(CONFIG, learning_rate=1e30))


def test_a_selector_that_matches_nothing_is_refused() -> None:
    with pytest.raises(SelectionError, match="matches none"):
        train(open_tiny(), PICTURES, replace(CONFIG, selectors=("unet.nothing.*",)))


def test_a_resolution_that_the_model_cannot_take_is_refused() -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        train(open_tiny(), PICTURES, replace(CONFIG, resolution=40))


def test_a_pipeline_that_no_family_knows_is_refused() -> None:
    with pytest.raises(TrainError, match=r"object.*StableDiffusionPipeline"):
        family_of(object())


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("batch_size", 0), ("learning_rate", -1.0), ("prior_weight", float("nan"))]
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        replace(CONFIG, **{field: value})


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        replace(CONFIG, prompt=" ")
