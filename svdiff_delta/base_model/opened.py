"""An opened base: its components, and its weights by parameter name, read when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from svdiff_delta._util.file_state import state
from svdiff_delta.errors import BaseError, TensorError
from svdiff_delta.format.entry import Entry
from svdiff_delta.format.metadata import BaseInfo
from svdiff_delta.format.stacked import slice_of
from svdiff_delta.selectors.addresses import find_layout

from .dequantize import said
from .layout import absent_models
from .mapped_tensor import map_bytes, map_tensor
from .quantized import refuse
from .slots import UNNAMED

if TYPE_CHECKING:
    from .component import Component


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
        scheme = next((component.scheme for component in self.components.values()), "")
        extra = said(scheme) if scheme else {}
        return BaseInfo(classes, self.repository, self.revision, self._sample_size(), find_layout(self.names()), extra)

    def _sample_size(self) -> int | None:
        """The width of the latents that the denoiser was made for, if its configuration says it."""
        for name in ("unet", "transformer"):
            component = self.components.get(name)
            if component is not None:
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
        component = component_of(self, slot)
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
        return component, stored, *component.place(stored)

    def stored_name(self, name: str) -> str:
        """Return the one name that a parameter has in deltas for this base.

        Raises:
            BaseError: as `locate`.
        """
        component, key, _, _ = self.locate(name)
        slots = (slot for slot, part in self.components.items() if part is component)
        return f"{next(slots)}.{key}"

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
        part = slice_of(key)
        refuse(name, part.stack if part else key, component.dtypes, component.config)

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

    def read_stored(self, slot: str, key: str, *, raw: bool = False) -> Tensor:
        """Return a tensor of a single file under the file's own key, on the CPU.

        Args:
            slot: a component of the file.
            key: the key.
            raw: whether its bytes are wanted, uint8 in one dimension.

        Raises:
            BaseError: its file cannot be read any more or was saved again since.
        """
        component = self.components[slot]
        path = component.files[0]
        header, read = component.headers[path], map_bytes if raw else map_tensor
        try:
            return read(path, header.data, header.entries[key], partial(_check_file, key, component, path))
        except (OSError, ValueError) as error:
            raise BaseError(f"{key}: could not be read from {path} ({error})", fix="fetch the base again") from None


def _check_file(name: str, component: Component, path: Path, about: os.stat_result) -> None:
    """Raise BaseError if a file was saved again since its header was read: its tensors stand elsewhere now."""
    if not state(about).saved_as(state(component.opened[path][1])):
        raise BaseError(f"{name}: {path} was changed since the base was opened", fix="open the base again")


def component_of(base: Base, slot: str) -> Component | None:
    """Return a component; deltas of earlier versions call a model on its own `model`, whatever its class."""
    alone = slot == UNNAMED and not base.pipeline and len(base.components) == 1
    return next(iter(base.components.values())) if alone else base.components.get(slot)
