"""A run that was killed in its last step: the next one misses no result, and clears what was left."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.files import listing

from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training import run
from svdiff_train.training.keeping import Keeping
from svdiff_train.training.loop import train

CONFIG = TrainConfig(prompt="a photo of a sks dog", steps=1, selectors=("unet.mid_block.attentions.*",))


class KilledError(Exception):
    """What ends a run at a moment."""


def test_a_result_is_there_before_the_state_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = Keeping(folder=tmp_path / "run", every=1, results_every=1, resume=True)

    def kill(*_: object) -> Path:
        raise KilledError

    with monkeypatch.context() as context:
        context.setattr(run, "save_state", kill)
        with pytest.raises(KilledError):
            train(open_tiny(), pictures_path("poodle"), CONFIG, keeping=keeping)
    first = (tmp_path / "run" / "steps" / "step-000001.safetensors").read_bytes()
    for folder in ("state", "steps", "validation"):
        (tmp_path / "run" / folder).mkdir(exist_ok=True)
        (tmp_path / "run" / folder / ".step-000001.safetensors.0.svdiff-tmp").write_bytes(b"half")
    train(open_tiny(), pictures_path("poodle"), CONFIG, keeping=keeping)
    assert (tmp_path / "run" / "steps" / "step-000001.safetensors").read_bytes() == first
    names = {folder: listing(tmp_path / "run" / folder) for folder in ("state", "steps", "validation")}
    assert names == {"state": ["step-000001.safetensors"], "steps": ["step-000001.safetensors"], "validation": []}
