"""Which pictures are opened at all: a few formats, by their bytes, and no more pixels than a picture needs."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from svdiff_delta._util.limits import PIXELS
from svdiff_delta.errors import InputError
from svdiff_train.data.picture import inspect_image, load_image, open_image
from svdiff_train.data.picture_file import FORMATS, opened_picture
from svdiff_train.evaluate.pictures import read_prompted
from svdiff_train.sampling.png import read_facts

SOURCES = Path(__file__).parents[3]
READERS: dict[str, Callable[[Path], object]] = {
    "inspect_image": inspect_image,
    "open_image": open_image,
    "load_image": lambda path: load_image(path, 8),
    "read_facts": read_facts,
    "read_prompted": lambda path: read_prompted(path.parent),
}


def picture(path: Path, form: str) -> Path:
    Image.new("RGB", (8, 8), "red").save(path, form)
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_what_is_on_the_list_is_opened_whatever_its_name(tmp_path: Path, form: str, mode: str) -> None:
    Image.new("RGB", (8, 8), "white").convert("L" if (form, mode) == ("JPEG", "P") else mode).save(tmp_path / "a", form)
    assert open_image(tmp_path / "a").getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("form", ["EPS", "GIF", "TIFF", "PPM", "TGA", "ICO", "PCX", "PDF", "DDS", "SGI"])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_is_not_on_the_list_is_refused_though_it_is_called_a_png(
    tmp_path: Path, read: Callable[[Path], object], form: str
) -> None:
    with pytest.raises(InputError, match=r"a\.png: could not be read as a picture \(it is broken, or none of PNG"):
        read(picture(tmp_path / "a.png", form))


def test_no_other_place_opens_pictures() -> None:
    found = [
        path.name
        for folder in ("svdiff_delta", "svdiff_train", "svdiff_serve", "cli")
        for path in (SOURCES / folder).rglob("*.py")
        if re.search(r"\bImage\.open\(|\bImageFile\.", path.read_text())
    ]
    assert found == ["picture_file.py"]


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG whose header promises so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(("width", "height"), [(4096, 4097), (8192, 8192), (1, PIXELS + 1)])
def test_more_pixels_than_fit_a_file_are_refused_before_they_are_made(tmp_path: Path, width: int, height: int) -> None:
    with pytest.raises(InputError, match=rf"a\.png: has {width * height:,} pixels in \d+ bytes: save it smaller"):
        inspect_image(bomb(tmp_path / "a.png", width, height))


def test_a_large_picture_that_is_as_large_a_file_is_no_bomb(tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.png", 4096, 4097)
    with path.open("ab") as stream:
        stream.truncate(4096 * 4097 // 64 + 1)
    with pytest.raises(InputError, match="could not be read as a picture"):  # its pixels are looked for, and lack
        inspect_image(path)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: could not be read \(is a pipe, not a file\): save its content"):
        read(tmp_path / "a.png")


def test_what_lies_on_white_is_as_it_was_wherever_strips_end(tmp_path: Path) -> None:
    whole = Image.effect_noise((5, 600), 80).convert("RGBA")
    whole.putalpha(Image.effect_noise((5, 600), 90))
    whole.save(tmp_path / "a.png")
    expected = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    assert open_image(tmp_path / "a.png").tobytes() == expected.tobytes()


def test_an_error_of_one_s_own_passes(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"^mine$"),
        opened_picture(picture(tmp_path / "a.png", "PNG")),
    ):
        raise InputError("mine")
