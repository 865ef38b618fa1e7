"""The base: a diffusers pipeline, one component, a transformers model or one safetensors file, read by parameter."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike, fspath
from pathlib import Path

from torch import Tensor

from svdiff_delta._util.file_state import state
from svdiff_delta._util.reading import system_errors
from svdiff_delta.errors import BaseError, HubError, InputError, TensorError
from svdiff_delta.format.container import Entry
from svdiff_delta.format.metadata import BaseInfo
from svdiff_delta.hub_client.names import REPOSITORY, REVISION, is_repository, is_revision
from svdiff_delta.hub_client.reference import Reference, locate
from svdiff_delta.selectors.addresses import find_layout

from .component import Component, absent_models, open_file, open_model, open_pipeline
from .hub_model import find_model
from .mapped_tensor import map_bytes, map_tensor
from .quantized import refuse


@dataclass(frozen=True)
class Base:
    """An opened base. Weights are read one by one, when asked for.

    A tensor that stands under several keys, such as an output layer that is tied to the embeddings, has one parameter
    name: the one under which the file holds it (the source, if it holds both). The others lead to it.

    Attributes:
        path: the folder or file.
        components: its components with weights, by name.
        pipeline: whether `path` is a pipeline's folder.
        repository: the repository it is known by, if any; never a local path.
        revision: the commit, if known.
    """

    path: Path
    components: Mapping[str, Component]
    pipeline: bool = False
    repository: str | None = None
    revision: str | None = None

    @property
    def info(self) -> BaseInfo:
        """What a delta file says about this base."""
        classes = {name: component.class_name for name, component in self.components.items()}
        return BaseInfo(classes, self.repository, self.revision, self._sample_size(), find_layout(self.names()))

    def _sample_size(self) -> int | None:
        """The width of the latents that the denoiser was made for, if its configuration says it."""
        for name in ("unet", "transformer"):
            component = self.components.get(name)
            if component is not None and component.folder is not None:
                size = component.config.get("sample_size")
                size = size[-1] if isinstance(size, list) and size else size
                return size if isinstance(size, int) and size > 0 else None
        return None

    @property
    def files(self) -> list[Path]:
        """Its folder or file, and its weight files, which links may take elsewhere: what no output may touch."""
        return [self.path, *(file for component in self.components.values() for file in component.files)]

    @property
    def absent(self) -> list[str]:
        """The parts that its model_index.json names and that are not there."""
        return absent_models(self.path) if self.pipeline else []

    def names(self) -> Iterator[str]:
        """Yield every parameter name, by component and key."""
        for name, component in self.components.items():
            for key in sorted(component.location):
                yield f"{name}.{key}"

    def locate(self, name: str) -> tuple[Component, str, Path, Entry]:
        """Return component, key, file and header entry of a parameter.

        Raises:
            BaseError: the base has no such component or parameter, or holds it quantized under other keys.
        """
        slot, _, key = name.partition(".")
        component = self.components.get(slot)
        if component is None:
            if slot in self.absent:
                raise BaseError(
                    f"{name}: {self.path} has no folder {slot}, which its model_index.json names",
                    fix="fetch the base again, with all of its parts",
                )
            raise BaseError(
                f"{name}: the base {self.path} has no component {slot!r}, it has {', '.join(self.components)}",
                fix="name the base that the delta was made for",
            )
        stored = component.stored(key)
        if stored is None:
            refuse(name, key, component.dtypes, component.config)
            raise BaseError(
                f"{name}: the base {self.path} has no such parameter", fix="name the base that the delta was made for"
            )
        return component, stored, *component.location[stored]

    def stored_name(self, name: str) -> str:
        """Return the one name that a parameter has in deltas for this base.

        Raises:
            BaseError: as `locate`.
        """
        return f"{name.partition('.')[0]}.{self.locate(name)[1]}"

    def twins(self, name: str) -> tuple[str, ...]:
        """Return all keys under which the files hold this parameter's tensor: whoever bakes it writes them all.

        Raises:
            BaseError: as `locate`.
        """
        component, key, _, _ = self.locate(name)
        return component.twins(key)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape without reading its values."""
        return self.locate(name)[3].shape

    def check_format(self, name: str) -> None:
        """Raise BaseError if a parameter's number format, which it names, has no singular values to shift."""
        component, key, _, _ = self.locate(name)
        refuse(name, key, component.dtypes, component.config)

    def read(self, name: str) -> Tensor:
        """Return a parameter's values as they stand in the file, on the CPU.

        Raises:
            BaseError: there is no such parameter, or its file cannot be read any more or was saved again since.
        """
        component, _, path, entry = self.locate(name)
        try:
            return map_tensor(path, component.headers[path].data, entry, partial(_check_file, name, component, path))
        except (OSError, ValueError) as error:
            raise BaseError(f"{name}: could not be read from {path} ({error})", fix="fetch the base again") from None
        except TensorError as error:
            raise BaseError(f"{name}: {error.message} ({path})", fix="use the unquantized base") from None

    def read_bytes(self, name: str) -> Tensor:
        """Return a parameter's bytes as they stand in the file, uint8 in one dimension, whatever its dtype.

        Raises:
            BaseError: there is no such parameter, or its file cannot be read any more or was saved again since.
        """
        component, _, path, entry = self.locate(name)
        try:
            return map_bytes(path, component.headers[path].data, entry, partial(_check_file, name, component, path))
        except (OSError, ValueError) as error:
            raise BaseError(f"{name}: could not be read from {path} ({error})", fix="fetch the base again") from None


def _check_file(name: str, component: Component, path: Path, about: os.stat_result) -> None:
    """Raise BaseError if a file was saved again since its header was read: its tensors stand elsewhere now."""
    if not state(about).saved_as(state(component.opened[path][1])):
        raise BaseError(f"{name}: {path} was changed since the base was opened", fix="open the base again")


def open_base(
    path: str | PathLike[str],
    *,
    component: str | None = None,
    variant: str | None = None,
    repository: str | None = None,
    revision: str | None = None,
    fetch: bool = True,
) -> Base:
    """Open a base lazily; only its configuration and headers are read.

    Args:
        path: a diffusers pipeline's folder, a component's or transformers model's folder, a safetensors file in the
            layout of one of them, or `owner/repo[@revision][/path]` on the Hub. What exists as a path is one; `hf://`
            in front forces the Hub. Of a repository only safetensors files, configurations and tokenizer texts are
            fetched.
        component: what to call the one component of a folder or file that is not a pipeline.
        variant: which files to read, such as "fp16", where a model has several; components that lack it are read
            without.
        repository: the name to record in delta files, such as `owner/repo`; never a local path.
        revision: the commit to record.
        fetch: whether the Hub may be asked; else only its local cache is.

    Raises:
        InputError: `repository` or `revision` is no name that the Hub allows.
        BaseError: nothing is there, only pickles or other variants are, the layout is another one, or the Hub refused;
            the message says how to mend it.
    """
    _check_names(repository, revision)
    with system_errors(path, BaseError):
        return _open(path, component, variant, repository, revision, fetch)


def _open(
    path: str | PathLike[str],
    component: str | None,
    variant: str | None,
    repository: str | None,
    revision: str | None,
    fetch: bool,
) -> Base:
    place = _place(path)
    if isinstance(place, Reference):
        origin = find_model(place, variant, fetch=fetch)
        path, repository, revision = origin.path, repository or origin.repository, revision or origin.revision
    path = Path(path)
    if path.is_file():
        return Base(path, {component or "model": open_file(path)}, False, repository, revision)
    if (path / "model_index.json").is_file():
        return Base(path, open_pipeline(path, variant), True, repository, revision)
    if (path / "config.json").is_file():
        name, single = open_model(path, variant)
        return Base(path, {component or name: single}, False, repository, revision)
    raise BaseError(f"{path}: holds neither model_index.json nor config.json", fix="name a model's own folder")


def _check_names(repository: str | None, revision: str | None) -> None:
    """Refuse what no delta file may record, before anything is trained on it."""
    if repository is not None and not is_repository(repository):
        raise InputError(f"repository: {repository!r} is no name of the Hub", fix=f"give {REPOSITORY}")
    if revision is not None and not is_revision(revision):
        raise InputError(f"revision: {revision!r} is no name of the Hub", fix=f"give {REVISION}")


def missing_names(base: Base, names: Iterable[str]) -> list[str]:
    """Return those of `names` that the base lacks."""
    lacking = []
    for name in names:
        try:
            base.locate(name)
        except BaseError:
            lacking.append(name)
    return lacking


def _place(path: str | PathLike[str]) -> Path | Reference:
    try:
        place = locate(fspath(path))
    except HubError as error:
        raise BaseError(error.message, fix=error.fix) from None
    if isinstance(place, Path) and not place.exists():
        raise BaseError(
            f"{path}: there is no such file or folder",
            fix="name a local folder, owner/repo on the Hub, or the word tiny",
        )
    return place
