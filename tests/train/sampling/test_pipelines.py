"""Pipelines of bases that lack a part."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.pipelines import small_sd3

from svdiff_delta import open_base
from svdiff_delta.errors import BaseError
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.tiny import base_path


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",)])
def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path: Path, kept: tuple[str, ...]) -> None:
    base = shutil.copytree(base_path(), tmp_path / "base")
    for path in (base / "tokenizer").iterdir():
        if path.name not in kept:
            path.unlink()
    with pytest.raises(
        BaseError, match=r"tokenizer: holds no vocabulary \(merges\.txt, tokenizer\.json, vocab\.json\)"
    ):
        load_pipeline(open_base(base))


def test_a_pipeline_is_loaded_without_what_its_index_switches_off(tmp_path: Path) -> None:
    small_sd3(t5=False).save_pretrained(tmp_path / "base")
    loaded = load_pipeline(open_base(tmp_path / "base"))
    assert loaded.text_encoder_3 is None
    assert loaded.text_encoder_2 is not None
