"""The stages: each trains a few steps, stops anywhere and goes on bit for bit; the parts make a pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tools.build_tiny.bank import Bank, build_bank
from tools.build_tiny.clip import ClipTask, crops, image_features, new_clip, text_features
from tools.build_tiny.loop import Recipe, Run, Task
from tools.build_tiny.tokenizer import LENGTH, build_tokenizer, token_ids
from tools.build_tiny.unet import UNetTask, new_unet
from tools.build_tiny.vae import LATENTS, VaeTask, encode_bank, new_vae, psnr, spread, standardize

from .pictures import write_packages

RECIPE = Recipe(steps=6, rate=1e-3, warmup=2, decay=2, measure_every=100, log_every=2)
SMALL_CLIP = {"width": 32, "text_layers": 1, "image_layers": 1}
SMALL_VAE = {"channels": (8, 8, 16)}
SMALL_UNET = {"block_out_channels": (16, 16, 32), "attention_head_dim": (1, 1, 2)}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    folder = tmp_path_factory.mktemp("work")
    return build_bank(folder / "bank", write_packages(folder / "npm"), seed=5, count=48)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, bank: Bank) -> Path:
    """A work folder with an untrained CLIP and latents, as the UNet's stage finds it."""
    folder = tmp_path_factory.mktemp("work")
    for part in ("runs", "latents"):
        (folder / part).mkdir()
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    torch.save({"average": new_clip(tokenizer).state_dict()}, folder / "runs" / "clip.pt")
    encode_bank(new_vae(**SMALL_VAE), bank, folder / "latents" / "latents.npy")
    np.save(folder / "latents" / "ids.npy", token_ids(tokenizer, bank.captions).numpy().astype(np.int16))
    return folder


@pytest.fixture(params=["vae", "clip", "unet"])
def task(request: pytest.FixtureRequest, bank: Bank, work: Path) -> Task:
    if request.param == "vae":
        return VaeTask(bank, bank, size=4, **SMALL_VAE)
    if request.param == "clip":
        return ClipTask(bank, bank, build_tokenizer(), size=8, cut=4, **SMALL_CLIP)
    return UNetTask(work, size=8, **SMALL_UNET)


def weights(run: Run) -> list[torch.Tensor]:
    return [*run.model.parameters(), *run.average.parameters()]


@pytest.mark.slow
def test_a_stage_goes_on_bit_for_bit(task: Task, tmp_path: Path) -> None:
    whole = Run(task, RECIPE, tmp_path / "whole")
    whole.go()
    Run(task, RECIPE, tmp_path / "cut").go(until=3)
    rest = Run(task, RECIPE, tmp_path / "cut")
    assert rest.step == 3
    rest.go()
    assert rest.step == whole.step == RECIPE.steps
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(rest), strict=True))


def test_a_stage_measures_and_logs(task: Task, tmp_path: Path) -> None:
    Run(task, replace(RECIPE, steps=2, measure_every=2), tmp_path).go()
    rows = [json.loads(line) for line in (tmp_path / f"{task.name}.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 2]
    assert np.isfinite(rows[1]["loss"])


@pytest.mark.slow
def test_a_longer_run_goes_on_from_before_the_rate_fell(bank: Bank, tmp_path: Path) -> None:
    task = VaeTask(bank, bank, size=4, **SMALL_VAE)
    Run(task, RECIPE, tmp_path / "short").go()
    longer = Run(task, replace(RECIPE, steps=9), tmp_path / "short")
    assert longer.step == RECIPE.steps - RECIPE.decay
    longer.go()
    once = Run(task, replace(RECIPE, steps=9), tmp_path / "once")
    once.go()
    assert all(torch.equal(a, b) for a, b in zip(weights(longer), weights(once), strict=True))


def test_the_rate_rises_stays_and_falls() -> None:
    recipe = Recipe(steps=10, rate=1.0, warmup=2, decay=4)
    assert [recipe.rate_at(i) for i in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(work: Path, tmp_path: Path) -> None:
    alone = Run(UNetTask(work, size=8, **SMALL_UNET), RECIPE, tmp_path / "alone")
    shared = Run(UNetTask(work, size=8, **SMALL_UNET), RECIPE, tmp_path / "shared")
    shared.share(partial(UNetTask, work, size=8, **SMALL_UNET))
    for run in (alone, shared):
        run.advance()
    assert shared.partner is not None
    shared.partner.close()
    for one, two in zip(alone.weights, shared.weights, strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-5, rtol=1e-3)


def test_the_autoencoder_has_the_latents_it_should(bank: Bank) -> None:
    vae = new_vae(**SMALL_VAE)
    pictures = torch.zeros(2, 3, 64, 64)
    assert vae.encode(pictures).latent_dist.mode().shape == (2, LATENTS, 16, 16)
    assert psnr(vae, bank.pictures[:3]).shape == (3,)


def test_standardized_latents_decode_to_the_same_pictures(bank: Bank) -> None:
    torch.manual_seed(0)
    vae = new_vae(**SMALL_VAE).eval()
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = vae.encode(pictures).latent_dist
        shown = vae.decode(before.mode()).sample
        numbers = spread(vae, bank)
        standardize(vae, **numbers)
        after = vae.encode(pictures).latent_dist
        torch.testing.assert_close(vae.decode(after.mode()).sample, shown, atol=1e-4, rtol=1e-3)
    std = torch.tensor(numbers["std"]).view(1, -1, 1, 1)
    torch.testing.assert_close(after.std * std, before.std, atol=1e-4, rtol=1e-3)
    again = spread(vae, bank)
    assert np.allclose(again["mean"], 0, atol=1e-3)
    assert np.allclose(again["std"], 1, atol=1e-3)


def test_the_unet_attends_to_the_text_at_every_resolution() -> None:
    unet = new_unet()
    crossed = [name for name, _ in unet.named_modules() if name.endswith("attn2")]
    for block in ("down_blocks.0", "down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.2"):
        assert any(name.startswith(block) for name in crossed)


def test_the_shipped_parts_fit_in_24_megabytes() -> None:
    clip = new_clip(build_tokenizer())
    parts: list[nn.Module] = [clip, clip.text_model, new_vae(), new_unet()]
    assert 2 * sum(p.numel() for part in parts for p in part.parameters()) < 23.7e6


def test_a_tower_ignores_the_common_padding() -> None:
    clip, tokenizer = new_clip(build_tokenizer(), **SMALL_CLIP).eval(), build_tokenizer()
    short = text_features(clip, token_ids(tokenizer, ["a dog"]))
    among = text_features(clip, token_ids(tokenizer, ["a dog", "a flat dog on the left on a red background"]))
    torch.testing.assert_close(short[0], among[0])
    assert short.shape[1] == image_features(clip, torch.zeros(1, 3, 64, 64)).shape[1]
    assert clip.config.text_config.max_position_embeddings == LENGTH


def test_a_crop_shows_what_is_at_its_centre() -> None:
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, :, 8:24, 40:56] = 1.0
    cut = crops(picture, torch.tensor([[48.0, 16.0]]), torch.tensor([16.0]))
    assert cut[:, :, 4:-4, 4:-4].min() == 1
    assert crops(picture, torch.tensor([[16.0, 48.0]]), torch.tensor([16.0])).max() == 0
