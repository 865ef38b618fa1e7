"""The files of a model's folder as diffusers and transformers lay them out: weights, shards, variants, pickles."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from svdiff_delta._util.json_files import read_object
from svdiff_delta._util.limits import CONFIGURATION, INDEX
from svdiff_delta._util.paths import below
from svdiff_delta._util.reading import system_errors
from svdiff_delta._util.typed import build, keys_of
from svdiff_delta.errors import BaseError

WEIGHT_NAMES: Final = ("diffusion_pytorch_model", "model")
"""Stems of weight files in diffusers' and transformers' layout."""

PICKLE_SUFFIXES: Final = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})

CONVERT_PICKLE: Final = (
    "convert it once where you trust it, with `DiffusionPipeline.from_pretrained(FOLDER).save_pretrained(NEW)` "
    "or `AutoModel.from_pretrained(FOLDER).save_pretrained(NEW)`"
)

_STEM: Final = "|".join(WEIGHT_NAMES)
_SHARD: Final = r"-\d{5}-of-\d{5}"
_VARIANT: Final = re.compile(
    # model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, and the same as older versions wrote it
    rf"(?:{_STEM})(?:\.(?P<name>[\w-]+?)(?:{_SHARD})?|{_SHARD}\.(?P<old>[\w-]+))\.safetensors"
    rf"|(?:{_STEM})\.safetensors\.index\.(?P<index>[\w-]+)\.json"
    rf"|(?:{_STEM})\.safetensors\.(?P<old_index>[\w-]+)\.index\.json"
)


def weight_files(folder: Path, variant: str | None) -> tuple[Path, ...]:
    """Return the weight files of a model's folder, in order.

    Args:
        folder: where they lie.
        variant: which variant; None for the files without one. A model that lacks the variant is read without.

    Raises:
        BaseError: a shard is missing, or there are only pickles, only variants, or no weights at all.
    """
    names = weight_names(folder, file_names(folder), variant)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise BaseError(
            f"{folder}: {missing[0]} is named in its index and is not there",
            fix="fetch the model again, with all of its weights",
        )
    return tuple(folder / name for name in names)


def weight_names(folder: Path, names: Collection[str], variant: str | None) -> list[str]:
    """Return which of `names` are the weights; the index of a sharded model is read from `folder`.

    Raises:
        BaseError: as `weight_files`.
    """
    for wanted in (variant, None) if variant else (None,):
        for stem in WEIGHT_NAMES:
            if index := next((index for index in _index_names(stem, wanted) if index in names), None):
                return _shards(folder / index)
            if (single := _single_name(stem, wanted)) in names:
                return [single]
    there = sorted(names)
    if found := variants(there):
        raise BaseError(
            f"{folder}: its weights are there only as {_listed(found)}",
            fix=f"choose one with `variant={found[0]!r}`, or fetch the files without a variant",
        )
    if pickles := [name for name in there if Path(name).suffix in PICKLE_SUFFIXES]:
        raise BaseError(f"{folder}: holds only a pickle ({pickles[0]}), which is never opened", fix=CONVERT_PICKLE)
    if packed := [name for name in there if name.endswith(".gguf")]:
        raise BaseError(
            f"{folder}: holds only quantized weights ({packed[0]}, GGUF), which have no singular values to shift",
            fix="use the unquantized base",
        )
    raise BaseError(f"{folder}: holds no safetensors weights", fix="fetch the model again, with its weights")


def variants(names: Iterable[str]) -> list[str]:
    """Return the variants, such as fp16, that weight files of these names have."""
    matches = (_VARIANT.fullmatch(name) for name in names)
    return sorted({next(filter(None, match.groups())) for match in matches if match})


def is_index(name: str) -> bool:
    """Tell whether a file of this name is the index of a sharded model, of whatever variant."""
    return name.endswith(".json") and ".index." in name


def shard_names(index: Path) -> set[str]:
    """Return the names of the files that an index names; empty if it names none."""
    places = read_json(index).get("weight_map")
    return {str(name) for name in places.values()} if isinstance(places, dict) else set()


def check_variant(path: object, listings: Iterable[Iterable[str]], variant: str | None) -> None:
    """Raise BaseError if none of the models under `path`, whose file names are given, has weights of a variant."""
    if variant is None:
        return
    there = {found for names in listings for found in variants(names)}
    if not there:
        raise BaseError(f"{path}: has no variant {variant!r}, nor any other", fix="leave `variant` out")
    if variant not in there:
        raise BaseError(f"{path}: has no variant {variant!r}, only {_listed(there)}", fix="choose one that is there")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a base.

    Raises:
        BaseError: there is no such file, it is not a JSON object, it is too large, or what is read of it has another
            type; the message names file and key.
    """
    found = read_object(path, INDEX if is_index(path.name) else CONFIGURATION, BaseError)
    build(_Read, {key: found[key] for key in _KEYS if key in found}, str(path), BaseError)
    return found


class _Quantization(msgspec.Struct):
    """What is read of how a model is quantized."""

    quant_method: str | None = None


class _Text(msgspec.Struct):
    """What is read of the language model in another one."""

    vocab_size: int | None = None


class _Read(msgspec.Struct):
    """What this program reads of configurations and indices, of whatever class; all else is for its library.

    Numbers that no file of another program has elsewhere, such as infinity, may stand in what is not read.
    """

    _class_name: str | list[str] | None = None
    architectures: list[str] | None = None
    model_type: str | None = None
    dtype: str | dict[str, Any] | None = None
    torch_dtype: str | dict[str, Any] | None = None
    vocab_size: int | None = None
    tie_word_embeddings: bool | None = None
    text_config: _Text | None = None
    quantization_config: _Quantization | None = None
    sample_size: int | list[int] | None = None
    prediction_type: str | None = None
    weight_map: dict[str, str] | None = None


_KEYS: Final = keys_of(_Read)


def part_folders(path: Path) -> dict[str, Path]:
    """Return where the parts lie that a pipeline's `model_index.json` names, by name; some may not be there.

    Raises:
        BaseError: a part's name is not that of a folder in the pipeline's own, such as one with `..` in it.
    """
    index = path / "model_index.json"
    return {
        name: below(path, name, source=index, error=BaseError)
        for name, value in sorted(read_json(index).items())
        if isinstance(value, list) and len(value) == 2  # all else are settings
    }


def model_folders(path: Path) -> dict[str, Path]:
    """Return the folders of a pipeline's models by component."""
    # Safety checkers and image encoders are models too, so no list of known names is needed.
    return {name: folder for name, folder in _used_parts(path).items() if (folder / "config.json").is_file()}


def absent_models(path: Path) -> list[str]:
    """Return the parts that a pipeline's `model_index.json` names and that have no folder."""
    return [name for name, folder in _used_parts(path).items() if not folder.exists()]


def unused_parts(path: Path) -> list[str]:
    """Return the parts that a pipeline's `model_index.json` names, and that it says are switched off."""
    said = read_json(path / "model_index.json")
    return [name for name in part_folders(path) if said[name] == [None, None]]  # a setting may be a pair of numbers


def _used_parts(path: Path) -> dict[str, Path]:
    """Return the folders of a pipeline's parts by name, without those that are switched off."""
    said = read_json(path / "model_index.json")
    return {
        name: folder for name, folder in part_folders(path).items() if all(isinstance(word, str) for word in said[name])
    }


def file_names(folder: Path) -> set[str]:
    """Return the names of what lies in a folder.

    Raises:
        BaseError: it cannot be read.
    """
    with system_errors(folder, BaseError):
        return {path.name for path in folder.iterdir()}


def _single_name(stem: str, variant: str | None) -> str:
    return f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"


def _index_names(stem: str, variant: str | None) -> list[str]:
    if variant is None:
        return [f"{stem}.safetensors.index.json"]
    return [f"{stem}.safetensors.index.{variant}.json", f"{stem}.safetensors.{variant}.index.json"]


def _shards(index: Path) -> list[str]:
    places = read_json(index).get("weight_map")
    names = set(places.values()) if isinstance(places, dict) else set()
    if not names or not all(isinstance(name, str) and name.endswith(".safetensors") for name in names):
        raise BaseError(f"{index}: names no weight files", fix="fetch the model again")
    return [below(index.parent, name, source=index, error=BaseError).name for name in sorted(names)]


def _listed(found: Collection[str]) -> str:
    return ("the variant " if len(found) == 1 else "the variants ") + ", ".join(sorted(found))
