"""Pictures as PNG files that say how they were painted; the same picture and facts give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from svdiff_delta._util.atomic import replace_file
from svdiff_delta._util.json import JSON, canonical_json
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import InputError
from svdiff_train.data.picture_file import opened_picture

from .guidance import scale_of
from .sample import Sampling
from .schedulers import make_scheduler

Facts = Mapping[str, JSON]
"""What is known of a picture; text stands in the file as it is, anything else as canonical JSON."""

ONE_OF: Final = {"prompts": "prompt", "seeds": "seed"}
"""What is said of several pictures, and of one."""


def sampling_facts(
    pipeline: Any, base: Base, sampling: Sampling, prompts: Sequence[str], seeds: Sequence[int], **more: JSON
) -> dict[str, JSON]:
    """Return what a PNG says of how it was painted; never a local path.

    Args:
        pipeline: the live pipeline.
        base: where it is from; its repository is named if it is known by one.
        sampling: how it was sampled.
        prompts: what was painted; a list of them for a sheet of several.
        seeds: of the noise, likewise.
        more: other facts, such as `deltas`; None is left out.

    Raises:
        InputError: a prompt is no Unicode text that a file can hold.
    """
    for text in (*prompts, sampling.negative_prompt or ""):
        check_text(text)
    facts: dict[str, JSON] = {
        "prompts": list(prompts),
        "negative_prompt": sampling.negative_prompt,
        "seeds": list(seeds),
        "steps": sampling.steps,
        "guidance": scale_of(pipeline, sampling),
        "true_cfg_scale": sampling.true_cfg_scale,
        "scheduler": type(make_scheduler(pipeline, sampling.scheduler)).__name__,
        "eta": sampling.eta,
        "base": base.info.repository,
        "revision": base.info.revision,
        **more,
    }
    for many, one in ONE_OF.items():
        if len(facts[many]) == 1:
            facts[one] = facts.pop(many)[0]
    return {name: value for name, value in facts.items() if value is not None}


def check_text(text: str) -> None:
    """Raise InputError if a PNG cannot hold a text: it has half of a surrogate pair, or a NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{text!r}: is not Unicode text", fix="write it in UTF-8") from None
    if "\0" in text:
        raise InputError(f"{text!r}: has a NUL in it", fix="leave that out")


def png_bytes(image: Image.Image, facts: Facts) -> bytes:
    """Return a picture as a PNG with facts in text chunks, sorted by name; its size, as WIDTHxHEIGHT, is one of them.

    Args:
        image: the picture.
        facts: what to say of it.
    """
    info = PngInfo()
    said = {**facts, "size": facts.get("size", f"{image.width}x{image.height}")}
    for name, value in sorted(said.items()):
        info.add_text(name, value if isinstance(value, str) else canonical_json(value).decode())
    stream = BytesIO()
    image.save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def save_png(image: Image.Image, path: Path, facts: Facts, *, overwrite: bool = False) -> None:
    """Write a picture with facts, atomically.

    Raises:
        OutputError: it exists, or the disk refused.
    """
    raw = png_bytes(image, facts)
    with replace_file(path, overwrite=overwrite) as stream:
        stream.write(raw)


def read_facts(path: Path) -> dict[str, str]:
    """Return what a PNG says of itself, by name; what was not text is JSON.

    Raises:
        InputError: it cannot be read as a picture.
    """
    with opened_picture(path) as image:
        image.load()
        return {name: str(value) for name, value in getattr(image, "text", {}).items()}
