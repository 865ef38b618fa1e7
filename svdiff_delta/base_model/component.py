"""One component of a base: its configuration, its weight files, and where each weight stands in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from svdiff_delta._util.reading import regular_file
from svdiff_delta.errors import BaseError, DeltaError
from svdiff_delta.format.container import Entry, Header, read_foreign_header

from .layout import PICKLE_SUFFIXES, check_variant, file_names, part_folders, read_json, weight_files
from .mapped_tensor import TORCH_DTYPES, map_bytes, map_tensor
from .skeleton import build_skeleton, tied_groups

SLOTS: Final[Mapping[str, str]] = {
    "UNet2DConditionModel": "unet",
    "UNet2DModel": "unet",
    "AutoencoderKL": "vae",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
    "T5EncoderModel": "text_encoder_3",
    "SD3Transformer2DModel": "transformer",
    "FluxTransformer2DModel": "transformer",
    "DiTTransformer2DModel": "transformer",
    "PixArtTransformer2DModel": "transformer",
}
"""The slot that a model's class has in pipelines; a model of any other class is called `model`."""

CONVERT_ORIGINAL: Final = (
    "convert it once with `StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)` and name FOLDER"
)


@dataclass(frozen=True)
class Component:
    """One component of a base.

    Attributes:
        class_name: the model's class, "" where nothing says it.
        library: "diffusers", "transformers" or "" where nothing says it.
        folder: where its config and weights lie; None for a single file.
        files: its weight files, in order.
    """

    class_name: str
    library: str
    folder: Path | None
    files: tuple[Path, ...]

    @cached_property
    def opened(self) -> dict[Path, tuple[Header, os.stat_result]]:
        """The checked header of each weight file, and what the system said of the file when that was read."""
        return {path: read_file_header(path) for path in self.files}

    @cached_property
    def headers(self) -> dict[Path, Header]:
        """The checked header of each weight file."""
        return {path: header for path, (header, _) in self.opened.items()}

    @cached_property
    def location(self) -> dict[str, tuple[Path, Entry]]:
        """File and header entry by state-dict key."""
        found: dict[str, tuple[Path, Entry]] = {}
        for path, header in self.headers.items():
            for key, entry in header.entries.items():
                if key in found:
                    raise BaseError(f"{key}: stands in {found[key][0].name} and again in {path.name}")
                found[key] = path, entry
        return found

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """The dtype of every tensor by state-dict key."""
        return {key: entry.dtype for key, (_, entry) in self.location.items()}

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its configuration, {} for a single file."""
        return read_json(self.folder / "config.json") if self.folder is not None else {}

    @cached_property
    def skeleton(self) -> nn.Module:
        """Its class on the meta device.

        Raises:
            BaseError: the class is not known.
            MissingExtraError: diffusers or transformers is needed and not installed.
        """
        return build_skeleton(self.class_name or "the model", self.library, self.class_name, self.folder)

    @cached_property
    def tied(self) -> dict[str, tuple[str, ...]]:
        """All keys of a tensor that the class holds under several, by each of them; {} where no class is known."""
        with suppress(DeltaError):
            return tied_groups(self.skeleton)
        return {}

    def stored(self, key: str) -> str | None:
        """Return the key under which the files hold a weight; None if they lack it.

        A tensor that the class holds under several keys, as where an output layer is tied to the embeddings, has one
        name: the key in the file. Where the file holds it twice, that is the one it is tied to.
        """
        for candidate in aliases(key):
            if candidate in self.location:
                return self._twins[candidate][0] if candidate in self._twins else candidate
        for twin in self.tied.get(key, ()):
            for candidate in aliases(twin):
                if candidate in self.location:
                    return candidate
        return None

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
                group = tuple(other for other in self.tied.get(key, ()) if other in keys)
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


def model_folders(path: Path) -> dict[str, Path]:
    """Return the folders of a pipeline's models by component."""
    # Safety checkers and image encoders are models too, so no list of known names is needed.
    return {name: folder for name, folder in _used_parts(path).items() if (folder / "config.json").is_file()}


def absent_models(path: Path) -> list[str]:
    """Return the parts that a pipeline's `model_index.json` names and that have no folder."""
    return [name for name, folder in _used_parts(path).items() if not folder.exists()]


def _used_parts(path: Path) -> dict[str, Path]:
    """Return the folders of a pipeline's parts by name, without those that are switched off."""
    said = read_json(path / "model_index.json")
    return {
        name: folder for name, folder in part_folders(path).items() if all(isinstance(word, str) for word in said[name])
    }


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
    return SLOTS.get(component.class_name, "model"), component


def open_file(path: Path) -> Component:
    """Return a single safetensors file as a component.

    Raises:
        BaseError: it is a pickle, GGUF, or in another layout.
    """
    if path.suffix in PICKLE_SUFFIXES:
        raise BaseError(f"{path}: is a pickle, which is never opened", fix=CONVERT_ORIGINAL)
    if path.suffix == ".gguf":
        raise BaseError(
            f"{path}: is quantized (GGUF) and has no singular values to shift", fix="use the unquantized base"
        )
    component = Component("", "", None, (path,))
    if any(key.startswith(("model.diffusion_model.", "first_stage_model.")) for key in component.location):
        raise BaseError(f"{path}: is a single-file checkpoint in the original layout", fix=CONVERT_ORIGINAL)
    return component


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
