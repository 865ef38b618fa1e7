"""The judge: prompts say what must be seen, and what is counted as seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from tools.build_tiny.adopt import PLAIN
from tools.build_tiny.assemble import draw, pipeline, save_halved, sheet
from tools.build_tiny.clip import new_clip
from tools.build_tiny.judge import Judge, border_colour, correct_among, pair_prompts, single_prompts
from tools.build_tiny.subjects import TRAINED
from tools.build_tiny.tokenizer import build_tokenizer
from tools.build_tiny.unet import new_unet
from tools.build_tiny.vae import Reconstruct, new_vae


def test_single_prompts_say_subject_and_ground() -> None:
    prompts = single_prompts(200)
    assert {p.subjects[0] for p in prompts} == set(range(len(TRAINED)))
    for prompt in prompts:
        assert TRAINED[prompt.subjects[0]].name in prompt.text
        assert prompt.text.endswith(f" {prompt.colour} background")


def test_pair_prompts_say_left_and_right() -> None:
    for prompt in pair_prompts(50):
        left, right = (TRAINED[i].name for i in prompt.subjects)
        assert f"{left} on the left and" in prompt.text
        assert f"{right} on the right" in prompt.text


def test_the_border_counts_and_the_middle_does_not() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:] = (70, 105, 210)
    picture[8:56, 8:56] = (214, 48, 49)
    assert border_colour(picture) == "blue"


def test_right_means_above_all_the_others_drawn() -> None:
    scores = np.array([[0.1, 0.9, 0.2], [0.8, 0.7, 0.1]], np.float32)
    assert correct_among(scores, np.array([1, 1]), 3, seed=0).tolist() == [True, False]


def test_the_judge_names_single_and_paired_subjects() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    judge = Judge(new_clip(tokenizer, width=32, text_layers=1, image_layers=1).eval(), tokenizer)
    pictures = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    best = judge.scores(torch.from_numpy(pictures.transpose(0, 3, 1, 2) / np.float32(127.5) - 1)).argmax(1)
    assert judge.named(pictures, best.tolist()).all()
    assert judge.both_named(pictures, [(0, 1)] * 5).shape == (5,)


def test_the_parts_make_a_pipeline_that_draws(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "spread.json").write_text(json.dumps(PLAIN))
    torch.manual_seed(0)
    torch.save({"average": new_clip(build_tokenizer()).state_dict()}, runs / "clip.pt")
    torch.save({"average": Reconstruct(new_vae()).state_dict()}, runs / "vae.pt")
    pipe = pipeline(tmp_path, new_unet(block_out_channels=(16, 16, 32), attention_head_dim=1).eval())
    first = draw(pipe, ["a dog", "a cat", "a V1 dog"], steps=2, size=2)
    assert first.shape == (3, 64, 64, 3)
    again = draw(pipe, ["a dog"], steps=2).astype(int)
    assert np.abs(again - first[:1]).max() <= 1
    assert pipe.vae.config.scaling_factor == 1
    save_halved(pipe.unet, tmp_path / "unet")
    assert pipe.unet.dtype == torch.float32
    assert sheet(first, across=2, zoom=1).size == (128, 128)
