"""Runs as TOML files."""

from __future__ import annotations

from pathlib import Path

import pytest

from svdiff_delta.errors import InputError
from svdiff_train.settings.config import TrainConfig
from svdiff_train.settings.runfile import read_run, write_run

CONFIG = TrainConfig(prompt="a photo of a V1 dog", steps=7, selectors=("unet-ca", "unet.mid_block.*"))


def test_a_run_file_describes_the_run_again(tmp_path: Path) -> None:
    write_run(tmp_path / "dog.toml", CONFIG.facts(), "owner/base@v1", tmp_path / "dog")
    found = read_run(tmp_path / "dog.toml")
    assert (found.pop("base"), found.pop("images")) == ("owner/base@v1", str(tmp_path / "dog"))
    assert TrainConfig.from_facts(found).facts() == CONFIG.facts()


def test_its_paths_start_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_run(tmp_path / "dog.toml", CONFIG.facts(), str(tmp_path / "model"), tmp_path / "pictures" / "dog")
    text = (tmp_path / "dog.toml").read_text()
    assert 'base = "model"' in text
    assert 'images = "pictures/dog"' in text
    assert str(tmp_path) not in text
    assert read_run(tmp_path / "dog.toml")["base"] == str(tmp_path / "model")


def test_the_same_run_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, CONFIG.facts(), "tiny", tmp_path)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_key_that_is_no_setting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('promt = "x"\n')
    with pytest.raises(InputError, match="'promt' is no setting: known are"):
        read_run(tmp_path / "run.toml")


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("prompt: x\n")
    with pytest.raises(InputError, match="could not be read as TOML"):
        read_run(tmp_path / "run.toml")
