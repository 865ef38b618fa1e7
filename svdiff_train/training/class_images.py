"""Pictures of the class from the base itself: z^pr of Eq. 3. Painted once, kept in a folder on request, used again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from PIL import Image

from svdiff_delta._util.atomic import replace_file
from svdiff_delta._util.json import JSON, canonical_json
from svdiff_delta._util.json_files import read_object
from svdiff_delta._util.limits import RECORD as LARGEST_RECORD
from svdiff_delta.errors import InputError, OutputError
from svdiff_train.data.picture_file import opened_picture
from svdiff_train.sampling.graphed_denoiser import GraphedDenoiser
from svdiff_train.sampling.sample import Sampling, generate

from .processes import ALONE, Crew

SAMPLING: Final = Sampling(steps=30, guidance=4.0, batch_size=8)
RECORD: Final = "class.json"
"""Says in the folder what its pictures show."""


def class_pictures(
    pipeline: Any,
    prompt: str,
    count: int,
    seed: int,
    *,
    base: str = "",
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    crew: Crew = ALONE,
    graphs: GraphedDenoiser | None = None,
) -> list[Image.Image]:
    """Return pictures of a class; picture i is painted from seed `seed + i`.

    The processes of a run share out what is painted at a time, so that each picture is what a process alone paints.

    Args:
        pipeline: the live base.
        prompt: describes the class.
        count: how many.
        seed: of the first.
        base: what the base is called, for the folder's record.
        folder: where they are kept; what lies there is not painted again. None keeps nothing.
        progress: called with pictures done and in all, of those that this process paints.
        crew: the processes of the run, which all call this.
        graphs: runs this pipeline's denoiser.

    Raises:
        InputError: the folder has pictures of something else.
        OutputError: a picture cannot be written.
    """
    if folder is not None:
        with crew.first_alone():
            _check_record(folder, {"prompt": prompt, "seed": seed, "base": base})
    have = {} if folder is None else {index: folder / _name(index) for index in range(count)}
    lacking = crew.any([index not in have or not have[index].is_file() for index in range(count)])
    # Those painted together always are: alone, the last bits of one, and sometimes a value of its bytes, would differ.
    whole = [range(at, min(at + SAMPLING.batch_size, count)) for at in range(0, count, SAMPLING.batch_size)]
    chunks = [chunk for chunk in whole if any(lacking[index] for index in chunk)]
    mine = chunks if crew.together else chunks[crew.index :: crew.count]
    total, done = sum(map(len, mine)), 0

    def paint(chunk: int) -> list[Image.Image]:
        nonlocal done
        jobs = [(prompt, seed + index) for index in chunks[chunk]]
        pictures = generate(pipeline, jobs, SAMPLING, graphs=graphs)
        for index, picture in zip(chunks[chunk], pictures, strict=True):
            if folder is not None and lacking[index]:
                with replace_file(folder / _name(index), overwrite=True) as stream:
                    picture.save(stream, "PNG")
        done += len(pictures)
        if progress is not None:
            progress(done, total)
        return pictures

    found = crew.paint(len(chunks), paint)
    indices = (index for chunk in chunks for index in chunk)
    painted = dict(zip(indices, (picture for pictures in found for picture in pictures), strict=True))
    return [painted[index] if lacking[index] else _open(have[index]) for index in range(count)]


def class_folder(folder: Path, prompt: str) -> Path:
    """Return the sub-folder for one of several classes: named by its prompt, and by a digest that sets it apart."""
    words = "-".join(re.findall(r"[a-z0-9]+", prompt.casefold()))[:40]
    return folder / f"{words}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}".lstrip("-")


def _name(index: int) -> str:
    return f"{index:06d}.png"


def _open(path: Path) -> Image.Image:
    with opened_picture(path, fix="delete it") as image:
        return image.convert("RGB")


def _check_record(folder: Path, wanted: dict[str, JSON]) -> None:
    """Check that the folder's pictures, if any, show what is wanted, and write that down."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    if not path.exists():
        try:
            with replace_file(path, overwrite=False) as stream:
                stream.write(canonical_json(wanted))
        except OutputError:
            if not path.exists():
                raise
        else:
            return
    # Another run that begins at the same time may have been first: then this is what it wrote.
    found = read_object(path, LARGEST_RECORD)
    if found != wanted:
        names = [name for name in wanted if found.get(name) != wanted[name]]
        raise InputError(
            f"{folder}: its pictures were painted with another {' and '.join(names)}", fix="name another folder"
        )
