"""The one place where pictures' files are opened: a few formats, a bounded number of pixels, one kind of error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from PIL import Image, UnidentifiedImageError

from svdiff_delta._util.interrupted import interruptions_kept
from svdiff_delta._util.limits import MOST_PIXELS, PICTURE, PIXELS, PIXELS_PER_BYTE
from svdiff_delta._util.reading import regular_file
from svdiff_delta.errors import DeltaError, InputError

FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP")
"""What is opened, by Pillow's names: of the others one starts a program, and none is needed.

A JPEG with a preview beside it is an MPO, which Pillow finds out when it opens it as JPEG.
"""


ANIMATIONS: Final = ("GIF",)
"""What is opened as a clip."""


@contextmanager
def opened_picture(path: Path, fix: str = "remove or replace it") -> Iterator[Image.Image]:
    """Open a picture; whatever Pillow raises while it is read within the block is one line.

    Args:
        path: the file.
        fix: the mend of a picture that cannot be read.

    Raises:
        InputError: it is no regular file, of none of the formats, broken, or has more pixels than fit its size.
    """
    with regular_file(path) as stream:
        size = path.stat().st_size
        if size > PICTURE:
            raise InputError(f"{path}: has more than {PICTURE:,} bytes", fix="save it smaller")
        try:
            with interruptions_kept(), Image.open(stream, formats=FORMATS) as image:
                _check_pixels(path, image, size)
                yield image
        except (DeltaError, MemoryError):
            raise
        except UnidentifiedImageError:
            raise InputError(
                f"{path}: could not be read as a picture (it is broken, or none of {', '.join(FORMATS)})", fix=fix
            ) from None
        except Exception as error:  # noqa: BLE001 - of broken files Pillow raises whatever it happens to
            raise InputError(f"{path}: could not be read as a picture ({error})", fix=fix) from None


@contextmanager
def opened_animation(path: Path, stream: BinaryIO) -> Iterator[Image.Image]:
    """Open a GIF; the caller makes one line of whatever Pillow raises while it is read within the block.

    Args:
        path: the file.
        stream: of it.

    Raises:
        InputError: its frames have more pixels than a picture of any file may have.
    """
    with Image.open(stream, formats=ANIMATIONS) as image:
        if image.width * image.height > PIXELS:
            raise InputError(f"{path}: has frames of {image.width * image.height:,} pixels", fix="save it smaller")
        yield image


def _check_pixels(path: Path, image: Image.Image, size: int) -> None:
    pixels = image.width * image.height
    if pixels > MOST_PIXELS or pixels > max(PIXELS, PIXELS_PER_BYTE * size):
        raise InputError(f"{path}: has {pixels:,} pixels in {size:,} bytes", fix="save it smaller")
