"""The stages with all their data on one device: each learns for a moment on the CPU, at toy sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tools.build_tiny import clip
from tools.build_tiny.bank import CALM, CALM_SINGLE, Bank, both_banks, build_bank
from tools.build_tiny.build import main
from tools.build_tiny.device import ClipStage, UNetStage, model_input, rare_distance
from tools.build_tiny.pace import PACES
from tools.build_tiny.scenes import CALM_SEED, batch
from tools.build_tiny.tokenizer import build_tokenizer, token_ids
from tools.build_tiny.unet import new_scheduler, number

from .pictures import write_packages

CPU = torch.device("cpu")
SCENES = 24
TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def banks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with small banks."""
    folder = tmp_path_factory.mktemp("work")
    write_packages(folder / "npm")
    both_banks(folder, workers=1, most=SCENES)
    return folder


@pytest.fixture(scope="module")
def work(banks: Path) -> Path:
    """The same with all stages trained by the clock in order."""
    folder = banks
    calm = build_bank(folder / "bank-calm", folder / "npm", CALM_SEED, SCENES, CALM, CALM_SINGLE, workers=1)
    number(folder, calm)
    for stage in ("clip", "vae", "decoder"):
        options = ["--seconds", "0.5", "--batch", "4", "--scenes", str(SCENES), "--threads", "1"]
        main(["--work", str(folder), "--stage", stage, "--device", "cpu", *options])
    return folder


@pytest.fixture(scope="module")
def bank(banks: Path) -> Bank:
    return both_banks(banks)[0]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["clip", "vae", "decoder"])
def test_a_stage_trains_measures_and_says_that_it_is_done(work: Path, stage: str) -> None:
    rows = [json.loads(line) for line in (work / "runs" / f"{stage}.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] >= 1
    assert np.isfinite(rows[-1]["loss"])
    assert any(key in row for row in rows for key in ("psnr", "named"))
    assert (work / "runs" / f"{stage}.done").exists()
    assert (work / "runs" / f"{stage}.pt").exists()


@pytest.mark.slow
def test_the_decoder_leaves_the_encoder_as_it_was(work: Path) -> None:
    before, after = (torch.load(work / "runs" / f"{name}.pt", weights_only=True) for name in ("vae", "decoder"))
    began, ended = before["average"], after["model"]
    changed = {key.split(".")[1] for key in began if not torch.equal(began[key], ended[key])}
    assert changed == {"decoder", "post_quant_conv"}


@pytest.mark.slow
def test_the_unet_learns_from_encoded_scenes_and_the_empty_caption(work: Path) -> None:
    task = UNetStage(work, SCENES, CPU, size=4)
    assert not task.latents.any()
    task.fill()
    assert task.latents.std().item() == pytest.approx(1, abs=0.3)
    text = clip.trained_clip(work / "runs", TOKENIZER).text_model
    empty = text(input_ids=token_ids(TOKENIZER, [""])).last_hidden_state[0]
    torch.testing.assert_close(task.states[-1], empty, atol=1e-5, rtol=1e-4)
    model = task.model()
    loss = task.loss(model)
    loss.backward()
    assert torch.isfinite(loss)
    assert sum(p.grad is not None for p in model.parameters()) > 100
    assert task.alphas.shape == new_scheduler().alphas_cumprod.shape


def test_a_stage_without_a_time_is_refused(banks: Path) -> None:
    with pytest.raises(SystemExit, match="needs --seconds, or --until"):
        main(["--work", str(banks), "--stage", "vae", "--device", "cpu", "--batch", "2", "--threads", "1"])


def test_pictures_on_a_device_are_what_they_are_elsewhere(bank: Bank) -> None:
    pictures = np.array(bank.pictures[:3])
    torch.testing.assert_close(model_input(torch.from_numpy(pictures)), torch.from_numpy(batch(pictures)))


def test_every_stage_by_the_clock_has_its_pace() -> None:
    assert set(PACES) == {"clip", "vae", "decoder", "unet"}


def test_tokens_are_told_apart_by_the_words_own_vectors() -> None:
    torch.manual_seed(0)
    model = clip.new_clip(TOKENIZER, width=32, text_layers=1, image_layers=1).double()
    ids = token_ids(TOKENIZER, ["a sks cat", "a dog"])
    words = model.text_model.get_input_embeddings().weight.detach()
    states = torch.randn(2, ids.shape[1], 32, dtype=torch.float64)
    odds = np.exp(np.einsum("btw,vw->btv", states.float().numpy(), words.float().numpy()).astype(np.float64))
    right = np.take_along_axis(odds / odds.sum(-1, keepdims=True), ids.numpy()[..., None], -1)
    model = model.float()
    assert float(clip.told_apart(model, states, ids).detach()) == pytest.approx(-np.log(right).mean(), rel=1e-4)
    exact = 50 * F.normalize(model.text_model.get_input_embeddings().weight.detach(), dim=-1)[ids]
    assert clip.told_apart(model, exact, ids) < clip.told_apart(model, states, ids)


def test_a_state_that_forgets_its_word_costs_more_than_one_that_keeps_it() -> None:
    torch.manual_seed(0)
    model = clip.new_clip(TOKENIZER, width=32, text_layers=1, image_layers=1)
    ids = token_ids(TOKENIZER, ["a photo of a sks cat"])
    other = token_ids(TOKENIZER, ["a photo of a zwx cat"])
    words = 100 * model.text_model.get_input_embeddings().weight.detach()
    assert clip.told_apart(model, words[ids], ids) < clip.told_apart(model, words[other], ids)


def test_the_text_tower_learns_to_tell_rare_words_apart(bank: Bank) -> None:
    """The loss that keeps states apart reaches every word, those of the first layer's input as well."""
    task = ClipStage(bank, bank, CPU, size=4, cut=2)
    model = task.model()
    task.loss(model).backward()
    grad = model.text_model.get_input_embeddings().weight.grad  # type: ignore[union-attr, operator]
    rare = int(token_ids(TOKENIZER, ["sks"])[0, 1])
    assert grad[rare].abs().sum() > 0


def test_rare_words_that_have_one_state_have_no_distance() -> None:
    torch.manual_seed(0)
    model = clip.new_clip(TOKENIZER, width=32, text_layers=1, image_layers=1).eval()
    apart = rare_distance(model, TOKENIZER)
    assert apart > 0
    with torch.no_grad():
        words = model.text_model.get_input_embeddings().weight
        rows = [int(token_ids(TOKENIZER, [word])[0, 1]) for word in ("sks", "v1", "v2", "zwx")]
        words[rows] = words[rows[0]].clone()
    assert rare_distance(model, TOKENIZER) == pytest.approx(0, abs=1e-5)
