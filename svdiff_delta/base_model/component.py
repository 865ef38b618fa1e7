"""One component of a base: its configuration, its weight files, and where each weight stands in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

import torch
from torch import nn

from svdiff_delta._util.reading import regular_file
from svdiff_delta.errors import BaseError, DeltaError
from svdiff_delta.format.container import read_foreign_header
from svdiff_delta.format.entry import Entry, Header
from svdiff_delta.format.stacked import Slice, entry_of, slice_of

from .dequantize import GGUF, float8_entries, gguf_header
from .experts import ExpertPart
from .layout import PICKLE_SUFFIXES, check_variant, file_names, model_folders, read_json, weight_files
from .live_names import OLD_ATTENTION, LiveNames
from .mapped_tensor import TORCH_DTYPES, map_bytes, map_tensor
from .original_files import how_to_convert
from .original_layout import OriginalLayout
from .skeleton import shared_skeleton, tied_groups
from .slots import slot_of

CONVERT_ORIGINAL: Final = how_to_convert("StableDiffusionPipeline")


@dataclass(frozen=True)
class Component:
    """One component of a base.

    Attributes:
        class_name: the model's class, "" where nothing says it.
        library: "diffusers", "transformers" or "" where nothing says it.
        folder: where its config and weights lie; None for a single file.
        files: its weight files, in order.
        original: where its weights are in a single file of another layout than diffusers'.
        scheme: how its single file is quantized, which is read dequantized; "" for what is read as it stands.
    """

    class_name: str
    library: str
    folder: Path | None
    files: tuple[Path, ...]
    original: OriginalLayout | None = None
    scheme: str = ""

    @cached_property
    def opened(self) -> dict[Path, tuple[Header, os.stat_result]]:
        """The checked header of each weight file, and what the system said of the file when that was read."""
        if self.scheme == GGUF:
            return {path: (gguf_header(path), path.stat()) for path in self.files}
        found = {path: read_file_header(path) for path in self.files}
        if not self.scheme:
            return found
        return {
            path: (replace(header, entries=MappingProxyType(float8_entries(path, header.entries))), about)
            for path, (header, about) in found.items()
        }

    @cached_property
    def headers(self) -> dict[Path, Header]:
        """The checked header of each weight file."""
        return {path: header for path, (header, _) in self.opened.items()}

    @cached_property
    def location(self) -> dict[str, tuple[Path, Entry]]:
        """File and header entry by state-dict key."""
        if self.original is not None:
            return {key: (self.files[0], entry) for key, entry in self.original.entries.items()}
        found: dict[str, tuple[Path, Entry]] = {}
        for path, header in self.headers.items():
            for key, entry in header.entries.items():
                if key in found:
                    raise BaseError(f"{key}: stands in {found[key][0].name} and again in {path.name}")
                found[key] = path, entry
        return found

    def place(self, key: str) -> tuple[Path, Entry]:
        """Return file and header entry of a key that `stored` has returned: a tensor, or a slice of a stacked one."""
        if key in self.location:
            return self.location[key]
        path, _ = self.location[cast("Slice", slice_of(key)).stack]
        return path, cast("Entry", entry_of(self.headers[path].entries, key))

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """The dtype of every tensor by state-dict key."""
        return {key: entry.dtype for key, (_, entry) in self.location.items()}

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its configuration; {} for a single file that none is known of."""
        if self.original is not None:
            return dict(self.original.settings)
        return read_json(self.folder / "config.json") if self.folder is not None else {}

    @cached_property
    def skeleton(self) -> nn.Module:
        """Its class on the meta device, shared with other bases: for reading only.

        Raises:
            BaseError: the class is not known.
            MissingExtraError: diffusers or transformers is needed and not installed.
        """
        known = self.original is not None or (self.folder is not None and self.class_name)
        settings = self.config if known else None
        return shared_skeleton(self.class_name or "the model", self.library, self.class_name, self.folder, settings)

    @cached_property
    def tied(self) -> dict[str, tuple[str, ...]]:
        """All keys of a tensor that the class holds under several, by each of them; {} where no class is known."""
        with suppress(DeltaError):
            return tied_groups(self.skeleton)
        return {}

    @cached_property
    def names(self) -> LiveNames | None:
        """What its tensors are called in its class; None where no class is known."""
        with suppress(DeltaError):
            return LiveNames(self.skeleton, self.location, len(self.files))
        return None

    def live(self, key: str) -> str:
        """Return the key that a tensor of the files has in the class and in a live model; `key` if nothing says it."""
        if self.library == "diffusers" and not OLD_ATTENTION.search(key):
            return key
        return self.names.live.get(key, key) if self.names else key

    def in_class(self, key: str) -> str | None:
        """Return the key under which the files hold what the class calls `key`; None if they lack it."""
        if self.names and key in self.names.stored:
            return self.names.stored[key]
        there = (candidate for candidate in aliases(key) if candidate in self.location)
        return next((candidate for candidate in there if self.live(candidate) in aliases(key)), None)

    def named(self, key: str) -> str | None:
        """Return the key under which the files hold what a delta for such a model calls `key`; None if they lack it.

        It may have been made from other files of the model, in which the tensor has another name.
        """
        for candidate in aliases(key):
            if candidate in self.location:
                return candidate
        return self.in_class(key) or (self.names.find(key) if self.names else None)

    def stored(self, key: str) -> str | None:
        """Return the key of the files that `key`, of whatever files of such a model or of its class, leads to.

        None if they lack it. A tensor that the class holds under several keys, as where an output layer is tied to the
        embeddings, has one name: the key in the file. Where the file holds it twice, that is the one it is tied to.
        """
        if (part := slice_of(key)) is not None and key not in self.location:
            return self._slice(self.stored(part.stack), part.number)
        return self._only(self.named(key), key)

    def stored_class(self, key: str) -> str | None:
        """Return the key of the files that a key of the class leads to, as `stored`; None if they lack it."""
        if (part := slice_of(key)) is not None:
            return self._slice(self.stored_class(part.stack), part.number)
        return self._only(self.in_class(key), key)

    def stored_parts(self, key: str) -> tuple[str, ...]:
        """Return the keys of the files that hold what the class calls `key`; none if they lack it.

        One expert of a stacked tensor may stand in several tensors, which the library joins and stacks when it loads
        them.
        """
        if found := self.stored_class(key):
            return (found,)
        part = slice_of(key)
        return self.names.members.get((part.stack, part.number), ()) if part and self.names else ()

    def expert_part(self, key: str) -> ExpertPart | None:
        """Return where the class has one expert's weight, which the library stacks with others when it loads them.

        None for all other weights. Only transformers stacks: of other models no class is built, and no library
        imported.
        """
        return self.names.parts.get(key) if self.library == "transformers" and self.names else None

    def _slice(self, stack: str | None, index: int) -> str | None:
        """Return the key of a slice of a stacked tensor; None if there is none, or the library turns it on loading."""
        if stack is None or (self.names and stack in self.names.changed):
            return None
        key = str(Slice(stack, index))
        return key if entry_of({stack: self.location[stack][1]}, key) else None

    def _only(self, found: str | None, key: str) -> str | None:
        """Return the one name of a tensor: of those that are tied to it, the one that is stored."""
        if found is not None:
            return self._twins[found][0] if found in self._twins else found
        others = (self.in_class(twin) for twin in self.tied.get(key, ()))
        return next(filter(None, others), None)

    def twins(self, key: str) -> tuple[str, ...]:
        """Return all keys under which the files hold the tensor that is stored as `key`, that one first."""
        return self._twins.get(key, (key,))

    @cached_property
    def _twins(self) -> dict[str, tuple[str, ...]]:
        """The keys of tensors that are tied and yet stored more than once; transformers unties them if they differ."""
        alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
        if self.config.get("tie_word_embeddings") is False:
            return {}
        for key, (_, entry) in self.location.items():
            # Only embeddings are tied and stored twice; so no class is built where none can be.
            if len(entry.shape) == 2 and entry.shape[0] == self._vocabulary:
                alike.setdefault((entry.dtype, entry.shape), []).append(key)
        found: dict[str, tuple[str, ...]] = {}
        for keys in alike.values():
            for key in keys if len(keys) > 1 else ():
                twins = (self.in_class(other) for other in self.tied.get(self.live(key), ()))
                group = tuple(dict.fromkeys(twin for twin in twins if twin in keys))
                if len(group) > 1 and key not in found and self._same(group):
                    found.update(dict.fromkeys(group, group))
        return found

    @property
    def _vocabulary(self) -> int | None:
        inner = self.config.get("text_config")
        size = self.config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, Mapping) else None)
        return size if isinstance(size, int) else None

    def _same(self, keys: tuple[str, ...]) -> bool:
        places = (self.location[key] for key in keys)
        values = [
            (map_tensor if entry.dtype in TORCH_DTYPES else map_bytes)(path, self.headers[path].data, entry)
            for path, entry in places
        ]
        return all(torch.equal(values[0], other) for other in values[1:])


def aliases(key: str) -> list[str]:
    """Return the keys under which a state dict may hold `key`: transformers 5 dropped CLIP's `text_model.` level."""
    short = key.removeprefix("text_model.")
    return [key, short if short != key else f"text_model.{key}"]


def open_pipeline(path: Path, variant: str | None) -> dict[str, Component]:
    """Return the components of a pipeline's folder that are models.

    Raises:
        BaseError: there are none, their weights cannot be used, or none of them has the variant.
    """
    folders = model_folders(path)
    if not folders:
        raise BaseError(f"{path}: its model_index.json names no model that is there")
    check_variant(path, map(file_names, folders.values()), variant)
    return {name: _component(folder, variant) for name, folder in folders.items()}


def open_model(folder: Path, variant: str | None) -> tuple[str, Component]:
    """Return name and content of a model's own folder.

    It keeps the name that the pipeline around it gives it, else it takes the slot of its class.

    Raises:
        BaseError: its weights cannot be used, or there is no such variant.
    """
    check_variant(folder, [file_names(folder)], variant)
    component, whole = _component(folder, variant), folder.resolve()
    with suppress(DeltaError):
        if whole.name in read_json(whole.parent / "model_index.json"):
            return whole.name, component
    return slot_of(component.class_name, component.library), component


def check_suffix(path: Path) -> None:
    """Raise BaseError if a single file is a pickle by its name."""
    if path.suffix in PICKLE_SUFFIXES:
        raise BaseError(f"{path}: is a pickle, which is never opened", fix=CONVERT_ORIGINAL)


def _component(folder: Path, variant: str | None) -> Component:
    config = read_json(folder / "config.json")
    if class_name := config.get("_class_name"):
        return Component(str(class_name), "diffusers", folder, weight_files(folder, variant))
    architectures = config.get("architectures") or [""]
    return Component(str(architectures[0]), "transformers", folder, weight_files(folder, variant))


def read_file_header(path: Path) -> tuple[Header, os.stat_result]:
    """Return the checked header of a weight file, and what the system said of the file then.

    Raises:
        BaseError: it cannot be read, or is damaged.
    """
    try:
        with regular_file(path, BaseError) as stream:
            return read_foreign_header(stream)
    except BaseError:
        raise
    except DeltaError as error:
        raise BaseError(f"{path}: {error.message}", fix=error.fix) from None
