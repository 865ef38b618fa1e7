"""A folder: pictures, captions, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from svdiff_delta.errors import InputError
from svdiff_train.data import Found, choose_buckets, count, find_images, make_buckets


def picture(path: Path, width: int = 8, height: int = 8) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (width, height)).save(path)
    return path


def broken(path: Path) -> Path:
    path.write_bytes(b"not a picture")
    return path


def metadata(folder: Path, *lines: str | dict[str, Any]) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metadata.jsonl").write_text("".join(f"{text}\n" for text in texts))


def names(found: Found) -> list[str]:
    return [picture.path.name for picture in found.pictures]


def captions(found: Found) -> dict[str, str | None]:
    return {picture.path.name: picture.caption for picture in found.pictures}


def refusal(folder: Path, **how: bool) -> str:
    with pytest.raises(InputError) as found:
        find_images(folder, **how)
    return str(found.value).replace(f"{folder}/", "")


# --- Pictures ---


def test_pictures_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.jpeg", "d.webp", "e.bmp"):
        picture(tmp_path / name)
    (tmp_path / "notes.md").touch()
    assert names(find_images(tmp_path)) == ["a.JPG", "b.png", "c.jpeg", "d.webp", "e.bmp"]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_images(tmp_path / "nothing")


def test_a_folder_without_pictures_is_refused_with_what_is_in_it(tmp_path: Path) -> None:
    picture(tmp_path / "sub" / "a.png")
    (tmp_path / "b.heic").touch()
    assert "holds no pictures (1 other files, 1 sub-folders): put a few there (.bmp, .jpeg" in refusal(tmp_path)


def test_what_is_not_taken_is_listed_and_hidden_files_are_not(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "sub" / "b.png")
    for name in ("c.heic", "README.md", ".DS_Store"):
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    assert names(found) == ["a.png"]
    assert found.ignored == ("README.md", "c.heic")
    assert found.folders == ("sub",)


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    for name in ("a.png", "c.png", "d.png", "e.png"):
        broken(tmp_path / name)
    said = refusal(tmp_path)
    assert said.startswith("a.png: could not be read as a picture (")
    assert said.endswith("(and c.png, d.png, …): remove or replace it, or go on without (`skip_bad=True`)")


def test_unreadable_pictures_are_left_out_on_request_and_listed(tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    broken(tmp_path / "a.png")
    found = find_images(tmp_path, skip_bad=True)
    assert names(found) == ["b.png"]
    assert [*found.skipped] == ["a.png"]
    assert found.skipped["a.png"].startswith(f"{tmp_path / 'a.png'}: could not be read as a picture")


def test_a_folder_of_unreadable_pictures_is_refused_even_on_request(tmp_path: Path) -> None:
    broken(tmp_path / "a.png")
    assert refusal(tmp_path, skip_bad=True).endswith(": remove or replace it")
    broken(tmp_path / "b.png")
    assert "none of its 2 pictures can be used; " in refusal(tmp_path, skip_bad=True)


# --- Captions ---


def test_a_text_file_is_the_caption_of_the_picture_of_its_name(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    (tmp_path / "a.txt").write_bytes("\ufeff  ein V1 Kätzchen \r\n".encode())
    assert captions(find_images(tmp_path)) == {"a.png": "ein V1 Kätzchen", "b.png": None}


def test_captions_are_read_from_metadata_as_imagefolder_has_it(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    metadata(tmp_path, {"file_name": "b.png", "text": "a V1 cat", "width": 8}, "", {"file_name": "a.png", "text": "b"})
    found = find_images(tmp_path)
    assert captions(found) == {"a.png": "b", "b.png": "a V1 cat"}
    assert found.ignored == ()


def test_two_captions_that_agree_are_one(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a V1 cat")
    metadata(tmp_path, {"file_name": "a.png", "text": "a V1 cat"})
    assert captions(find_images(tmp_path)) == {"a.png": "a V1 cat"}


def test_two_captions_that_disagree_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a V1 cat")
    metadata(tmp_path, "", {"file_name": "a.png", "text": "a V1 dog"})
    assert refusal(tmp_path) == (
        "a.png: has two captions, 'a V1 cat' in a.txt and 'a V1 dog' in line 2 of metadata.jsonl: keep one of them"
    )


def test_a_caption_without_its_picture_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.txt").write_text("a V1 cat")
    assert refusal(tmp_path) == (
        "b.txt: is the caption of a picture that is not there: give it its picture's name, or take it out of the folder"
    )


@pytest.mark.parametrize(("content", "why"), [(" \n", "is empty"), ("a\n\nb\n", "has 2 lines")])
def test_a_text_file_that_is_not_one_line_is_refused(tmp_path: Path, content: str, why: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(content)
    assert refusal(tmp_path) == f"a.txt: {why}: write the caption on one line, or remove the file"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "is not valid JSON"),
        ('{"file_name": "a.png", "text": "a", "text": "b"}', "text"),
        ("[]", "must be a mapping"),
        ('{"text": "a"}', "has no file_name"),
        ('{"file_name": "a.png"}', "has no text"),
        ('{"file_name": "a.png", "text": " "}', "has no text"),
        ('{"file_name": "a.png", "text": 3}', "text: must be a text, is 3"),
        ('{"file_name": "c.png", "text": "a"}', "c.png is not there"),
        ('{"file_name": "sub/b.png", "text": "a"}', "sub/b.png lies in a sub-folder, and those are not read"),
        ('{"file_name": "b.png", "text": "a"}', "b.png stands in line 1 of metadata.jsonl already"),
    ],
)
def test_a_line_of_metadata_that_is_wrong_is_refused_by_its_number(tmp_path: Path, line: str, why: str) -> None:
    for name in ("a.png", "b.png", "sub/b.png"):
        picture(tmp_path / name)
    metadata(tmp_path, {"file_name": "b.png", "text": "a V1 cat"}, "", line)
    said = refusal(tmp_path)
    assert said.startswith("metadata.jsonl: line 3")
    assert why in said


@pytest.mark.parametrize("name", ["metadata.jsonl", "a.txt"])
def test_captions_that_are_not_utf_8_are_refused(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / name).write_bytes(b"caf\xe9")
    assert refusal(tmp_path) == f"{name}: is not UTF-8 (byte 3): save it as UTF-8"


@pytest.mark.parametrize("char", ["\x00", "\x1b", "\x7f", "\x85"])
def test_control_characters_in_captions_are_refused(tmp_path: Path, char: str) -> None:
    picture(tmp_path / "a.png")
    metadata(tmp_path, {"file_name": "a.png", "text": f"a{char}dog"})
    assert f"metadata.jsonl: line 1: the caption holds the control character {char!r}" in refusal(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "a.txt").write_text("a\tdog", "utf-8")
    assert captions(find_images(tmp_path)) == {"a.png": "a\tdog"}


@pytest.mark.parametrize("name", ["a.txt", "b.png", "c.JPG"])
def test_a_folder_under_the_name_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / name).mkdir()
    assert refusal(tmp_path) == f"{name}: is a folder under the name of a file: rename it, or take it away"


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.parquet"])
def test_captions_in_another_form_are_refused(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / name).touch()
    assert refusal(tmp_path) == f"{name}: captions are not read from it: write them to metadata.jsonl"


def test_captions_are_checked_before_pictures_are_read(tmp_path: Path) -> None:
    broken(tmp_path / "a.png")
    (tmp_path / "b.txt").write_text("a V1 cat")
    assert refusal(tmp_path).startswith("b.txt: ")


# --- Counts ---


def test_what_was_found_is_counted(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 64, 64)
    picture(tmp_path / "b.png", 100, 50)
    picture(tmp_path / "c.png", 20, 10)
    broken(tmp_path / "d.png")
    picture(tmp_path / "sub" / "e.png")
    (tmp_path / "a.txt").write_text("a V1 cat")
    (tmp_path / "f.heic").touch()
    found = find_images(tmp_path, skip_bad=True)
    counts = count(found, choose_buckets(found.pictures, make_buckets(64, 8)))
    assert (counts.pictures, counts.captions, counts.enlarged) == (3, 1, 1)
    assert counts.buckets == {(40, 96): 2, (64, 64): 1}
    why = found.skipped["d.png"]
    assert [*counts.lines()] == [
        "3 pictures: 2 at 96x40, 1 at 64x64; 1 with captions",
        "enlarged, because smaller than that: 1",
        f"skipped: {why}",
        "not read: f.heic",
        "sub-folders, not read: sub",
    ]


def test_a_plain_folder_needs_one_line(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 64, 64)
    found = find_images(tmp_path)
    assert [*count(found, [(64, 64)]).lines()] == ["1 picture: 1 at 64x64; 0 with captions"]
