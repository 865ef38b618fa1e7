"""What may stand for a BASE on the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from support.hub import fill_cache, folder_files

from svdiff_cli.references import open_reference, split_variant
from svdiff_delta.errors import BaseError
from svdiff_train.tiny import base_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/repo", ("owner/repo", None)),
        ("owner/repo:fp16", ("owner/repo", "fp16")),
        ("owner/repo@v1/unet:non_ema", ("owner/repo@v1/unet", "non_ema")),
        ("hf://owner/repo", ("hf://owner/repo", None)),
        ("hf://owner/repo:fp16", ("hf://owner/repo", "fp16")),
        ("folder/model:bf16", ("folder/model", "bf16")),
        ("C:\\models\\sd", ("C:\\models\\sd", None)),
        ("tiny", ("tiny", None)),
    ],
)
def test_a_variant_may_stand_behind_a_base(text: str, expected: tuple[str, str | None]) -> None:
    assert split_variant(text) == expected


def test_a_path_that_exists_with_a_colon_has_no_variant(tmp_path: Path) -> None:
    (tmp_path / "model:fp16").mkdir()
    assert split_variant(str(tmp_path / "model:fp16")) == (str(tmp_path / "model:fp16"), None)


@pytest.mark.parametrize("written", [True, False])
def test_a_variant_is_opened(tmp_path: Path, written: bool) -> None:
    shutil.copytree(base_path() / "unet", tmp_path / "unet")
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    folder = str(tmp_path / "unet")
    base = open_reference(f"{folder}:fp16") if written else open_reference(folder, variant="fp16")
    assert base.read("unet.conv_in.weight").dtype == torch.float16
    with pytest.raises(BaseError, match="only as the variant fp16"):
        open_reference(folder)


def test_a_repository_is_opened_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = fill_cache(tmp_path, "owner/tiny", folder_files(base_path()))
    base = open_reference("owner/tiny@main")
    assert (base.repository, base.revision) == ("owner/tiny", commit)


def test_the_word_tiny_is_the_embedded_base() -> None:
    assert open_reference("tiny").repository == "tiny"
