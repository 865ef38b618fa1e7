"""Sample pictures without what cameras and programs write into them: places, times, names, prompts.

Only whole blocks are left out, so the picture stays as it is to the bit and no codec is needed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from svdiff_delta._util.reading import read_bytes
from svdiff_delta.errors import InputError

LARGEST: Final = 20 * 2**20
"""Bytes of a picture beyond which it is no sample."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8"
_PNG_KEPT: Final = frozenset(
    {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"cHRM", b"gAMA", b"iCCP", b"sBIT", b"sRGB", b"cICP", b"bKGD"}
)
"""What a PNG needs to be shown; not text, EXIF, times, nor what programs keep for themselves."""

_APP0, _APP1, _APP2, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_SCAN, _END = 0xDA, 0xD9
_ORIENTATION: Final = 0x0112


def clean_picture(path: Path) -> tuple[str, bytes]:
    """Return the suffix and the bytes of a PNG or JPEG file, without text, EXIF, thumbnails and what follows its end.

    Raises:
        InputError: it cannot be read, is neither or broken, is larger than 20 MB, or EXIF turns it.
    """
    raw = read_bytes(path, LARGEST)
    if not raw.startswith((_PNG, _JPEG)):
        raise InputError(f"{path}: is neither PNG nor JPEG", fix="save it as PNG")
    try:
        if raw.startswith(_PNG):
            return ".png", _PNG + b"".join(_png_chunks(raw))
        return ".jpg", _JPEG + b"".join(_jpeg_segments(raw))
    except (IndexError, ValueError) as error:
        reason = f" ({error})" if isinstance(error, ValueError) else ""
        raise InputError(f"{path}: is broken, or not as a picture should be{reason}", fix="save it as PNG") from None


def _png_chunks(raw: bytes) -> Iterator[bytes]:
    """Yield the chunks of a PNG that are kept; raise ValueError if it is broken."""
    position = len(_PNG)
    while True:
        size, kind = int.from_bytes(raw[position : position + 4]), raw[position + 4 : position + 8]
        end = position + 12 + size
        if end > len(raw) or int.from_bytes(raw[end - 4 : end]) != zlib.crc32(raw[position + 4 : end - 4]):
            raise ValueError(f"it is damaged at byte {position}")
        if kind in _PNG_KEPT:
            yield raw[position:end]
        if kind == b"IEND":
            return
        position = end


def _jpeg_segments(raw: bytes) -> Iterator[bytes]:
    """Yield the segments of a JPEG that are kept; raise ValueError or IndexError if it is broken."""
    position = len(_JPEG)
    while True:
        if raw[position] != 0xFF:
            raise ValueError(f"it is damaged at byte {position}")
        marker = raw[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker == _END:
            yield raw[position : position + 2]
            return
        end = position + 2 + int.from_bytes(raw[position + 2 : position + 4])
        if marker == _APP1 and raw[position + 4 : position + 10] == b"Exif\0\0" and _turned(raw[position + 10 : end]):
            raise ValueError("its EXIF data turn it")
        if marker == _SCAN:
            end = _end_of_scan(raw, end)
        if _is_kept(marker, raw[position + 4 : end]):
            yield raw[position:end]
        position = end


def _is_kept(marker: int, content: bytes) -> bool:
    if _APP0 <= marker <= _APP15:
        return (
            (marker == _APP0 and content.startswith(b"JFIF\0"))
            or (marker == _APP2 and content.startswith(b"ICC_PROFILE\0"))
            or (marker == _APP14 and content.startswith(b"Adobe"))
        )
    return marker != _COMMENT


def _end_of_scan(raw: bytes, position: int) -> int:
    """Return where the marker behind compressed data stands; in these, FF is followed by 00 or is a restart."""
    while (position := raw.find(b"\xff", position)) >= 0:
        if (following := raw[position + 1]) != 0 and not 0xD0 <= following <= 0xD7:
            return position
        position += 2
    raise ValueError("it has no end")


def _turned(tiff: bytes) -> bool:
    """Tell whether EXIF data say that a picture is shown turned or mirrored."""
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"
    start = int.from_bytes(tiff[4:8], order)
    for entry in range(int.from_bytes(tiff[start : start + 2], order)):
        field = tiff[start + 2 + 12 * entry :][:12]
        if int.from_bytes(field[:2], order) == _ORIENTATION:
            return int.from_bytes(field[8:10], order) > 1
    return False
