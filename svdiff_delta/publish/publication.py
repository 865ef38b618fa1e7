"""Check what is published of a delta: the delta itself, pictures, a LoRA copy, and the facts on its card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path

from svdiff_delta.errors import InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps
from svdiff_delta.format.metadata import KEY, Metadata, dump
from svdiff_delta.hub_client.names import EMBEDDED
from svdiff_delta.hub_client.reference import Reference, parse_reference

from .clean_images import clean_picture
from .private import check_private


@dataclass(frozen=True)
class Sample:
    """A picture: what it is called in the repository, its bytes without what cameras and programs wrote, its prompt."""

    name: str
    content: bytes
    prompt: str


@dataclass(frozen=True)
class Publication:
    """What is published, checked.

    Attributes:
        repository: where.
        delta: what.
        content: the bytes of its file.
        prompt: the prompt that calls what it was trained on.
        model: the base's repository, or the word for the embedded base.
        samples: pictures.
        lora: a copy as LoRA, a safetensors file.
    """

    repository: str
    delta: Delta
    content: bytes
    prompt: str | None
    model: str
    samples: tuple[Sample, ...]
    lora: Path | None

    @property
    def title(self) -> str:
        """Its title, or the name of its repository."""
        return self.delta.metadata.title or self.repository.rpartition("/")[2]

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the delta's file."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def base_model(self) -> str | None:
        """The base as the Hub names models; None if it is not on the Hub."""
        return None if self.model == EMBEDDED else self.model


def publication(
    delta: Delta,
    repository: str,
    *,
    prompt: str | None = None,
    base_model: str | None = None,
    samples: Sequence[tuple[str | PathLike[str], str]] = (),
    lora: str | PathLike[str] | None = None,
) -> Publication:
    """Return what is published; arguments as in `push`.

    Raises:
        InputError: a picture or the LoRA copy cannot be used, the base has no name that others know, or something
            names a path on somebody's machine or holds an access token.
        FormatError: the delta is broken.
    """
    metadata = delta.metadata
    check_private(_said(metadata), "the delta's metadata")
    model = base_model or metadata.base.repository
    if base_model is not None and parse_reference(base_model) != Reference(base_model):
        raise InputError(f"{base_model}: is not the name of a base on the Hub", fix="write it as owner/repo")
    if model is None:
        raise InputError(
            "the delta does not say which repository its base came from", fix='name it with `base_model="owner/repo"`'
        )
    if model != EMBEDDED and "/" not in model:
        raise InputError(
            f"the delta calls its base {model!r}, which names no repository of an owner",
            fix='name it with `base_model="owner/repo"`',
        )
    trained = (metadata.training or {}).get("prompt")
    prompt = prompt or (trained if isinstance(trained, str) else None)
    pictures = [(*clean_picture(Path(path)), text) for path, text in samples]
    named = [Sample(f"images/sample-{i}{suffix}", raw, text) for i, (suffix, raw, text) in enumerate(pictures, 1)]
    check_private([prompt or "", *(sample.prompt for sample in named)], "a prompt")
    path = None if lora is None else Path(lora)
    if path is not None:
        _check_lora(path)
    return Publication(repository, delta, dumps(delta), prompt, model, tuple(named), path)


def _said(metadata: Metadata) -> list[object]:
    """Return all that a delta says of itself, but for the columns, which hold digests and shapes only."""
    strings = dump(metadata)
    document = json.loads(strings.pop(KEY))
    del document["parameters"]
    return [strings, document, [name.partition(".")[2] for name in metadata.parameters]]


def _check_lora(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    fix = 'name a file that `convert(..., to="diffusers")` wrote'
    if not path.is_file():
        raise InputError(f"{path}: there is no such file", fix=fix)
    try:
        with safe_open(path, "numpy") as file:
            keys, metadata = list(file.keys()), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is not a safetensors file ({error})", fix=fix) from None
    if not any("lora" in key for key in keys):
        raise InputError(f"{path}: holds no LoRA", fix=fix)
    check_private([metadata, keys], fspath(path))
