"""The base: a diffusers pipeline, one component, a transformers model or one safetensors file, read by parameter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Final

import safetensors
from torch import Tensor

from .addresses import find_layout
from .container import Entry, Header, read_header
from .errors import BaseError, DeltaError
from .metadata import BaseInfo

WEIGHT_NAMES: Final = ("diffusion_pytorch_model", "model")
"""Stems of weight files in diffusers' and transformers' layout."""

PICKLE_SUFFIXES: Final = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})

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
    def headers(self) -> dict[Path, Header]:
        """The checked header of each weight file."""
        return {path: _read_file_header(path) for path in self.files}

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


@dataclass(frozen=True)
class Base:
    """An opened base. Weights are read one by one, when asked for.

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
    _open: dict[Path, Any] = field(default_factory=dict, repr=False, compare=False)

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
                size = read_json(component.folder / "config.json").get("sample_size")
                size = size[-1] if isinstance(size, list) and size else size
                return size if isinstance(size, int) and size > 0 else None
        return None

    def names(self) -> Iterator[str]:
        """Yield every parameter name, by component and key."""
        for name, component in self.components.items():
            for key in sorted(component.location):
                yield f"{name}.{key}"

    def locate(self, name: str) -> tuple[Component, str, Path, Entry]:
        """Return component, key, file and header entry of a parameter.

        Raises:
            BaseError: the base has no such component or parameter.
        """
        slot, _, key = name.partition(".")
        component = self.components.get(slot)
        if component is None:
            raise BaseError(
                f"{name}: the base {self.path} has no component {slot!r}, it has {', '.join(self.components)}",
                fix="name the base that the delta was made for",
            )
        for candidate in aliases(key):
            if candidate in component.location:
                return component, candidate, *component.location[candidate]
        raise BaseError(
            f"{name}: the base {self.path} has no such parameter", fix="name the base that the delta was made for"
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape without reading its values."""
        return self.locate(name)[3].shape

    def read(self, name: str) -> Tensor:
        """Return a parameter's values as they stand in the file, on the CPU.

        Raises:
            BaseError: there is no such parameter, or its dtype cannot be read.
        """
        _, key, path, _ = self.locate(name)
        if path not in self._open:
            self._open[path] = safetensors.safe_open(path, "pt")
        try:
            tensor = self._open[path].get_tensor(key)
        except (safetensors.SafetensorError, KeyError, TypeError) as error:
            raise BaseError(f"{name}: could not be read from {path} ({error})") from None
        return tensor  # type: ignore[no-any-return]


def aliases(key: str) -> list[str]:
    """Return the keys under which a state dict may hold `key`: transformers 5 dropped CLIP's `text_model.` level."""
    short = key.removeprefix("text_model.")
    return [key, short if short != key else f"text_model.{key}"]


def open_base(
    path: str | PathLike[str],
    *,
    component: str | None = None,
    repository: str | None = None,
    revision: str | None = None,
) -> Base:
    """Open a base lazily; only its configuration and headers are read.

    Args:
        path: a diffusers pipeline's folder, a component's or transformers model's folder, or a safetensors file in
            the layout of one of them.
        component: what to call the one component of a folder or file that is not a pipeline.
        repository: the name to record in delta files, such as `owner/repo`; never a local path.
        revision: the commit to record.

    Raises:
        BaseError: nothing is there, only pickles are, or the layout is another one; the message says how to convert.
    """
    path = Path(path)
    if path.is_file():
        found = {component or "model": _single_file(path)}
    elif (path / "model_index.json").is_file():
        found = _pipeline(path)
        return Base(path, found, True, repository, revision)
    elif (path / "config.json").is_file():
        single = _component(path)
        found = {component or _slot(path, single.class_name): single}
    elif path.is_dir():
        raise BaseError(f"{path}: holds neither model_index.json nor config.json", fix="name a model's own folder")
    else:
        raise BaseError(f"{path}: there is no such file or folder", fix="name a local folder, or the word tiny")
    return Base(path, found, False, repository, revision)


def _pipeline(path: Path) -> dict[str, Component]:
    index = read_json(path / "model_index.json")
    found = {}
    for name, value in sorted(index.items()):
        if not isinstance(value, list) or len(value) != 2 or not all(isinstance(part, str) for part in value):
            continue  # settings, and components that are switched off
        if (path / name / "config.json").is_file():
            # Safety checkers and image encoders are models too, so no list of known names is needed.
            found[name] = _component(path / name)
    if not found:
        raise BaseError(f"{path}: its model_index.json names no model that is there")
    return found


def _component(folder: Path) -> Component:
    config = read_json(folder / "config.json")
    if class_name := config.get("_class_name"):
        return Component(str(class_name), "diffusers", folder, _weight_files(folder))
    architectures = config.get("architectures") or [""]
    return Component(str(architectures[0]), "transformers", folder, _weight_files(folder))


def _weight_files(folder: Path) -> tuple[Path, ...]:
    for stem in WEIGHT_NAMES:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            if missing := [shard for shard in shards if not (folder / shard).is_file()]:
                raise BaseError(f"{folder}: {missing[0]} is named in {index.name} and is not there")
            return tuple(folder / shard for shard in shards)
        if (folder / f"{stem}.safetensors").is_file():
            return (folder / f"{stem}.safetensors",)
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise BaseError(f"{folder}: holds only a pickle ({pickles[0]}), which is never opened", fix=_CONVERT_PICKLE)
    raise BaseError(f"{folder}: holds no safetensors weights", fix="fetch the model again, with its weights")


_CONVERT_PICKLE: Final = (
    "convert it once where you trust it, with `DiffusionPipeline.from_pretrained(FOLDER).save_pretrained(NEW)` "
    "or `AutoModel.from_pretrained(FOLDER).save_pretrained(NEW)`"
)
_CONVERT_ORIGINAL: Final = (
    "convert it once with `StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)` and name FOLDER"
)


def _single_file(path: Path) -> Component:
    if path.suffix in PICKLE_SUFFIXES:
        raise BaseError(f"{path}: is a pickle, which is never opened", fix=_CONVERT_ORIGINAL)
    component = Component("", "", None, (path,))
    if any(key.startswith(("model.diffusion_model.", "first_stage_model.")) for key in component.location):
        raise BaseError(f"{path}: is a single-file checkpoint in the original layout", fix=_CONVERT_ORIGINAL)
    return component


def _slot(path: Path, class_name: str) -> str:
    """A component's folder keeps the name that the pipeline around it gives it, else the slot of its class."""
    folder = path.resolve()
    with suppress(DeltaError):
        if folder.name in read_json(folder.parent / "model_index.json"):
            return folder.name
    return SLOTS.get(class_name, "model")


def _read_file_header(path: Path) -> Header:
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            return read_header(prefix + stream.read(min(length, size)), size)
    except OSError as error:
        raise BaseError(f"{path}: could not be read ({error.strerror})") from None
    except DeltaError as error:
        raise BaseError(f"{path}: {error.message}", fix=error.fix) from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a base.

    Raises:
        BaseError: there is no such file, or it is not a JSON object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BaseError(f"{path}: could not be read ({error.strerror})") from None
    except ValueError as error:
        raise BaseError(f"{path}: is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise BaseError(f"{path}: is not a JSON object")
    return value


def missing_names(base: Base, names: Iterable[str]) -> list[str]:
    """Return those of `names` that the base lacks."""
    lacking = []
    for name in names:
        try:
            base.locate(name)
        except BaseError:
            lacking.append(name)
    return lacking
