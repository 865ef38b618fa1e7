"""Pictures that exist already, and the prompts that they come with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.scenes import CAT, portraits, save_all

from svdiff_delta.errors import InputError
from svdiff_train.evaluate import read_candidates, read_prompted, read_references
from svdiff_train.tiny import pictures_path


def with_prompt(folder: Path, name: str, prompt: str, key: str = "prompt") -> None:
    folder.mkdir(exist_ok=True)
    text = PngInfo()
    text.add_itxt(key, prompt)
    portraits(CAT)[0].save(folder / name, pnginfo=text)


def test_a_prompt_stands_in_the_picture_or_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "painted"
    with_prompt(folder, "a.png", "a photo of a σ cat")
    portraits(CAT)[1].save(folder / "b.jpg")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "b.jpg", "text": "a cat"}))
    with_prompt(folder, "c.png", "a black cat")
    (folder / "c.txt").write_text("a black cat")
    pictures, remarks = read_prompted(folder)
    assert [(each.name, each.prompt) for each in pictures] == [
        ("a.png", "a photo of a σ cat"),
        ("b.jpg", "a cat"),
        ("c.png", "a black cat"),
    ]
    assert remarks == []
    np.testing.assert_array_equal(np.asarray(pictures[0].image), np.asarray(portraits(CAT)[0]))


def test_a_picture_without_a_prompt_is_refused(tmp_path: Path) -> None:
    with_prompt(tmp_path / "painted", "a.png", "a cat")
    with_prompt(tmp_path / "painted", "b.png", "a cat", key="Title")
    with pytest.raises(InputError, match=r"b\.png: has no prompt"):
        read_prompted(tmp_path / "painted")


def test_two_prompts_that_differ_are_refused(tmp_path: Path) -> None:
    with_prompt(tmp_path / "painted", "a.png", "a cat")
    (tmp_path / "painted" / "a.txt").write_text("a dog")
    with pytest.raises(InputError, match="has two prompts, 'a cat' in itself and 'a dog' beside it"):
        read_prompted(tmp_path / "painted")


def test_pictures_that_cannot_be_read_are_named_or_passed_over(tmp_path: Path) -> None:
    folder = save_all(portraits(CAT)[:2], tmp_path / "cats")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    (folder / "more").mkdir()
    with pytest.raises(InputError, match=r"broken\.png: could not be read"):
        read_references([folder])
    images, remarks = read_references([folder, pictures_path(CAT)], skip_bad=True)
    assert len(images) == 7
    assert len(remarks) == 2
    assert "broken.png" in remarks[0]
    assert remarks[1] == "sub-folders, not read: more"


def test_references_are_upright_and_on_white(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "cats" / "clear.png")
    turned = Image.new("RGB", (4, 2))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "cats" / "turned.jpg", exif=exif)
    clear, upright = read_references([tmp_path / "cats"])[0]
    assert (clear.mode, clear.getpixel((0, 0))) == ("RGB", (255, 255, 255))
    assert upright.size == (2, 4)


def test_folders_of_one_name_keep_their_paths_apart(tmp_path: Path) -> None:
    for place in ("x/dog", "y/dog", "y/cat"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        with_prompt(tmp_path / place, "a.png", "a cat")
    folders = [tmp_path / place for place in ("x/dog", "y/dog", "y/cat")]
    found, _ = read_candidates(folders)
    assert [candidate.label for candidate in found] == [str(folders[0]), str(folders[1]), "cat"]
    assert found[2].about == [{"prompt": "a cat", "file": "a.png"}]
