"""Sample pictures: what is taken out of them, what stays, and what is refused."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from svdiff_delta.errors import InputError
from svdiff_delta.publish.clean_images import clean_picture

SECRET = "Anna Kowalska 52.2297N"
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
ORIENTATION, DESCRIPTION = 0x0112, 0x010E


def saved(path: Path, image: Image.Image | None = None, **how: Any) -> Path:
    (image or Image.fromarray(PIXELS)).save(path, **how)
    return path


def exif(orientation: int | None = None) -> bytes:
    data = Image.Exif()
    data[DESCRIPTION] = SECRET
    if orientation is not None:
        data[ORIENTATION] = orientation
    return data.tobytes()


def pixels(raw: bytes) -> np.ndarray:
    with Image.open(BytesIO(raw)) as image:
        return np.asarray(image.convert("RGBA"))


def full_png(path: Path) -> Path:
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", SECRET)
    text.add_itxt("Comment", SECRET)
    text.add_text("long", SECRET * 100, zip=True)
    return saved(path, pnginfo=text, exif=exif(), dpi=(300, 300))


def full_jpeg(path: Path, **how: Any) -> Path:
    return saved(path, exif=exif(), comment=SECRET.encode(), xmp=f"<x>{SECRET}</x>".encode(), **how)


@pytest.mark.parametrize("write", [full_png, full_jpeg])
def test_text_and_exif_are_taken_out_and_pixels_stay(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / f"a{'.png' if write is full_png else '.jpg'}")
    suffix, raw = clean_picture(path)
    assert suffix == path.suffix
    assert SECRET.encode() in path.read_bytes()
    assert SECRET.encode() not in raw
    with Image.open(BytesIO(raw)) as image:
        assert not image.getexif()
        assert not set(image.info) & {"parameters", "Comment", "long", "comment", "xmp", "exif"}
    assert np.array_equal(pixels(raw), pixels(path.read_bytes()))


@pytest.mark.parametrize("how", [{"progressive": True}, {"quality": 100, "subsampling": 0}, {"restart_marker_rows": 1}])
def test_every_kind_of_jpeg_keeps_its_pixels(tmp_path: Path, how: dict[str, Any]) -> None:
    path = full_jpeg(tmp_path / "a.jpg", **how)
    assert np.array_equal(pixels(clean_picture(path)[1]), pixels(path.read_bytes()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "I;16"])
def test_every_kind_of_png_keeps_its_pixels(tmp_path: Path, mode: str) -> None:
    image = (
        Image.fromarray(PIXELS[..., 0].astype("u2") * 257) if mode == "I;16" else Image.fromarray(PIXELS).convert(mode)
    )
    path = saved(tmp_path / "a.png", image)
    assert np.array_equal(pixels(clean_picture(path)[1]), pixels(path.read_bytes()))


def test_colour_profiles_stay(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        path = saved(tmp_path / name, icc_profile=b"profile" * 20)
        with Image.open(BytesIO(clean_picture(path)[1])) as image:
            assert image.info["icc_profile"] == b"profile" * 20


def test_cmyk_keeps_its_colours(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(PIXELS).convert("CMYK"))
    assert np.array_equal(pixels(clean_picture(path)[1]), pixels(path.read_bytes()))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_what_follows_the_end_is_taken_out(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name)
    clean = clean_picture(path)[1]
    path.write_bytes(path.read_bytes() + SECRET.encode())
    assert clean_picture(path)[1] == clean


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_clean_picture_stays_as_it_is(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name)
    clean = clean_picture(path)[1]
    path.write_bytes(clean)
    assert clean_picture(path)[1] == clean


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_a_jpeg_that_exif_turns_is_refused(tmp_path: Path, orientation: int) -> None:
    with pytest.raises(InputError, match=r"a\.jpg: .*its EXIF data turn it.*: save it as PNG"):
        clean_picture(saved(tmp_path / "a.jpg", exif=exif(orientation)))


def test_a_jpeg_that_stands_upright_is_not(tmp_path: Path) -> None:
    assert clean_picture(saved(tmp_path / "a.jpg", exif=exif(1)))[0] == ".jpg"


def test_what_is_neither_png_nor_jpeg_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.webp: is neither PNG nor JPEG: save it as PNG"):
        clean_picture(saved(tmp_path / "a.webp"))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be read"):
        clean_picture(tmp_path / "a.png")


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as stream:
        stream.truncate(21 * 2**20)
    with pytest.raises(InputError, match="has more than 20,971,520 bytes"):
        clean_picture(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_picture_cut_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, Image.fromarray(PIXELS[:4, :4]))
    raw = clean_picture(path)[1]
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(InputError, match=r"is broken|is neither"):
            clean_picture(path)


def test_a_damaged_png_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"IDAT") + 6] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match="it is damaged at byte 33"):
        clean_picture(path)


def test_a_chunk_that_nobody_knows_is_taken_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png")
    raw = path.read_bytes()
    chunk = b"caBX" + SECRET.encode()
    length = len(SECRET.encode()).to_bytes(4)
    path.write_bytes(raw[:33] + length + chunk + zlib.crc32(chunk).to_bytes(4) + raw[33:])
    assert SECRET.encode() not in clean_picture(path)[1]
