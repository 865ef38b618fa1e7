"""A bake writes below its output and copies from below its base, whatever names and links the base has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.files import parts, tree, written
from support.models import base_delta

from svdiff_delta import Delta, bake, open_base
from svdiff_delta._util.atomic import MARKER, replace_folder
from svdiff_delta.errors import BaseError, InputError, OutputError
from svdiff_train.tiny import base_path, open_tiny

PART = ["transformers", "CLIPTokenizer"]


@pytest.fixture(scope="module")
def delta() -> Delta:
    return base_delta(open_tiny(), "mid")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base of a stranger, with something of the user's beside it."""
    shutil.copytree(base_path(), tmp_path / "base")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "secret.json").write_text("{}")
    return tmp_path / "base"


def with_part(base: Path, name: str, value: object = PART) -> None:
    index: dict[str, Any] = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps({**index, name: value}))


@pytest.mark.parametrize("name", ["..", "../mine", "a/../../mine", "/etc", "..\\mine", "C:", "a\0b", "nul", "x" * 300])
def test_a_part_that_is_no_folder_of_the_pipeline_is_refused_when_it_is_opened(base: Path, name: str) -> None:
    with_part(base, name)
    with pytest.raises(BaseError, match=r"model_index\.json: .* is no name of a file in"):
        open_base(base)


@pytest.mark.parametrize("name", ["..", "../mine", "{folder}/mine"])
@pytest.mark.parametrize("value", [PART, [None, None], "text", 3, None])
def test_nothing_outside_is_written_or_copied(
    base: Path, tmp_path: Path, delta: Delta, name: str, value: object
) -> None:
    opened = open_base(base)  # and then the index changes
    with_part(base, name.format(folder=tmp_path), value)
    before = tree(tmp_path / "mine"), tree(base)
    if isinstance(value, list):
        with pytest.raises(BaseError):
            bake(opened, [delta], tmp_path / "out")
        assert not (tmp_path / "out").exists()
    else:
        bake(opened, [delta], tmp_path / "out")
        assert written(tmp_path / "out").keys() == parts(base_path()).keys()
    assert (tree(tmp_path / "mine"), tree(base)) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"base", "mine", "out"}


@pytest.mark.parametrize("place", ["unet/link.json", "tokenizer/link.json", "LICENSE.link", "scheduler"])
def test_a_link_that_leaves_the_base_is_not_copied(base: Path, tmp_path: Path, delta: Delta, place: str) -> None:
    target = tmp_path / "mine"
    if place == "scheduler":
        shutil.rmtree(base / place)
    (base / place).symlink_to(target if place == "scheduler" else target / "secret.json")
    with pytest.raises(BaseError, match=r"is a link that leads out of .*base, to .*mine.*cp -rL"):
        bake(open_base(base), [delta], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_weight_file_that_is_a_link_out_of_the_base_is_not_copied(base: Path, tmp_path: Path, delta: Delta) -> None:
    weights = base / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "mine" / "weights.safetensors")
    weights.symlink_to(tmp_path / "mine" / "weights.safetensors")
    with pytest.raises(BaseError, match="is a link that leads out of"):
        bake(open_base(base), [delta], tmp_path / "out")


def test_a_link_within_the_base_is_copied_as_what_it_leads_to(base: Path, tmp_path: Path, delta: Delta) -> None:
    (base / "unet" / "again.json").symlink_to("config.json")
    bake(open_base(base), [delta], tmp_path / "out")
    copy = tmp_path / "out" / "unet" / "again.json"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (base / "unet" / "config.json").read_bytes()


def test_a_base_that_is_itself_named_by_a_link_is_baked(base: Path, tmp_path: Path, delta: Delta) -> None:
    (tmp_path / "name").symlink_to("base")
    bake(open_base(tmp_path / "name"), [delta], tmp_path / "out")
    assert written(tmp_path / "out").keys() == parts(base_path()).keys()


@pytest.mark.parametrize("output", ["own", "own/base", "own/base/out", "own/base/unet"])
def test_an_output_in_or_around_the_base_is_refused_also_where_it_may_be_replaced(
    tmp_path: Path, delta: Delta, output: str
) -> None:
    with replace_folder(tmp_path / "own", overwrite=False) as folder:
        shutil.copytree(base_path(), folder / "base")
    for place in (tmp_path / "own" / "base", tmp_path / "own" / "base" / "unet"):
        (place / MARKER).write_text(json.dumps({"files": [*tree(place)]}))
    before = tree(tmp_path)
    with pytest.raises((InputError, OutputError), match=r"what it would be made of|did not write there"):
        bake(open_base(tmp_path / "own" / "base"), [delta], tmp_path / output, overwrite=True)
    assert tree(tmp_path) == before
