"""Going on from a finished base: its weights, steps and hours become checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from svdiff_train.tiny import base_path
from tools.build_tiny.adopt import LOGS, AdoptionError, adopt, keep_logs
from tools.build_tiny.assemble import trained_unet
from tools.build_tiny.clip import trained_clip
from tools.build_tiny.loop import Recipe
from tools.build_tiny.tokenizer import build_tokenizer
from tools.build_tiny.vae import best_vae


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    adopt(base_path(), folder)
    return folder


def test_every_part_is_the_published_one(work: Path) -> None:
    parts = {
        "unet": trained_unet(work / "runs"),
        "vae": best_vae(work),
        "clip": trained_clip(work / "runs", build_tokenizer()),
    }
    for name, part in parts.items():
        stem = "model" if name == "clip" else "diffusion_pytorch_model"
        published = load_file(base_path() / name / f"{stem}.safetensors")
        found = part.state_dict()
        assert all(torch.equal(found[key], value.to(found[key].dtype)) for key, value in published.items())


def test_steps_and_hours_go_on_where_the_log_ends(work: Path) -> None:
    last = json.loads((base_path() / LOGS / "unet.jsonl").read_text().splitlines()[-1])
    state = torch.load(work / "runs" / "unet.pt", weights_only=True)
    assert (state["step"], state["optimizer"]) == (last["step"], None)
    assert state["seconds"] == pytest.approx(3600 * last["hours"])


def test_a_fresh_optimizer_warms_up_again() -> None:
    recipe = Recipe(steps=1_000, rate=1.0, warmup=4, decay=10)
    assert [recipe.rate_at(500 + i, fresh=500) for i in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_a_work_folder_with_checkpoints_is_left_alone(work: Path) -> None:
    with pytest.raises(AdoptionError, match="has checkpoints already"):
        adopt(base_path(), work)


def test_a_base_without_logs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(AdoptionError, match=f"has no folder {LOGS}"):
        adopt(tmp_path / "base", tmp_path / "work")


def test_a_base_keeps_what_was_measured_and_the_last_line(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "subject": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 0.5}]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "unet.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "out").mkdir()
    keep_logs(tmp_path / "runs", tmp_path / "out")
    kept = (tmp_path / "out" / LOGS / "unet.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == [rows[1], rows[3]]
