"""Open a single file whose layout diffusers converts, as the components of the pipeline that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from svdiff_delta.errors import BaseError, HubError
from svdiff_delta.hub_client.errors import not_here
from svdiff_delta.hub_client.reference import Reference, describe, find_cached, locate

from .component import Component
from .dequantize import ASK, FLOAT8, GGUF, check_readable, scheme_of
from .layout import read_json
from .original_files import how_to_convert, original_family
from .original_layout import lay_out
from .original_parts import Part, find_parts
from .original_settings import Settings
from .slots import UNNAMED, slot_of

Config = str | PathLike[str] | None


def open_single(
    path: Path, component: str | None, config: Config, *, fetch: bool, dequantize: bool = False
) -> dict[str, Component]:
    """Return the components that a safetensors or GGUF file holds.

    Args:
        path: the file.
        component: what to call the component, where it is only one.
        config: a folder with the model's configuration, or a repository on the Hub; None where the file tells enough.
        fetch: whether the Hub may be asked for `config`.
        dequantize: whether a quantized file is read as float32 numbers.

    Raises:
        BaseError: the file is quantized and that was not asked for, the layout is not known, or no configuration fits
            the file.
        MissingExtraError: diffusers is needed and not installed.
    """
    plain = _plain(path, dequantize=dequantize)
    entries = {key: entry for key, (_, entry) in plain.location.items()}
    folder = None if config is None else config_folder(config, fetch=fetch)
    parts = find_parts(entries)
    if not parts:
        _check_known(path, [*entries])
        if folder is None:
            return {component or UNNAMED: plain}
        parts = [_part_of(_read_config(folder / "config.json"))]
    if folder is not None:
        parts = [_said(part, folder, alone=len(parts) == 1) for part in parts]
    given = _given(folder, alone=len(parts) == 1)
    found = {}
    if not plain.scheme and (scheme := scheme_of(entries)):
        check_readable(path, scheme)
        raise BaseError(f"{path}: is quantized ({scheme}) and has no singular values to shift", fix=ASK)
    for part in parts:
        layout = lay_out(path, part, entries, given)
        name = component if component and len(parts) == 1 else part.slot
        found[name] = Component(part.class_name, part.library, None, (path,), layout, plain.scheme)
    return found


def _plain(path: Path, *, dequantize: bool) -> Component:
    """Return a single file under its own keys, dequantized if that was asked for."""
    if path.suffix == ".gguf":
        if not dequantize:
            raise BaseError(f"{path}: is quantized (GGUF) and has no singular values to shift", fix=ASK)
        return Component("", "", None, (path,), scheme=GGUF)
    plain = Component("", "", None, (path,))
    if not dequantize:
        return plain
    entries = plain.headers[path].entries
    check_readable(path, scheme := scheme_of(entries))
    narrow = any(entry.dtype in FLOAT8 for entry in entries.values())
    return replace(plain, scheme=scheme or "fp8") if narrow else plain


def _check_known(path: Path, keys: list[str]) -> None:
    """Raise BaseError if a file is in a layout of makers that no converter is known of."""
    if original_family(keys) is not None:
        raise BaseError(
            f"{path}: is a single file in an original layout, of a family that is not known here",
            fix=how_to_convert(""),
        )


def config_folder(config: str | PathLike[str], *, fetch: bool) -> Path:
    """Return the folder of configurations that a caller names; those of a repository on the Hub are fetched.

    Raises:
        BaseError: there is none, or the Hub refused.
    """
    try:
        place = locate(fspath(config))
        if isinstance(place, Reference):
            snapshot = describe(place) if fetch else find_cached(place)
            if snapshot is None:
                raise not_here(place)
            place = snapshot.folder / place.path
    except HubError as error:
        raise BaseError(error.message, fix=error.fix) from None
    place = place.parent if place.name == "config.json" else place
    if not (place / "config.json").is_file() and not any(place.glob("*/config.json")):
        raise BaseError(
            f"{config}: holds no config.json, nor does a folder in it", fix="name a model's or pipeline's own folder"
        )
    return place


def _config_of(part: Part, folder: Path, *, alone: bool) -> Path | None:
    """Return where a folder has the configuration of a part: that of a pipeline by component, else its own."""
    inner = folder / part.slot / "config.json"
    if inner.is_file():
        return inner
    return folder / "config.json" if alone and (folder / "config.json").is_file() else None


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BaseError(f"{path}: there is no such file", fix="name the folder of the model's own config.json")
    return read_json(path)


def _part_of(said: dict[str, Any]) -> Part:
    """Return what a configuration says that a whole file is."""
    library = "diffusers" if "_class_name" in said else "transformers"
    class_name = str(said.get("_class_name") or (said.get("architectures") or [""])[0])
    return Part(slot_of(class_name, library), library, class_name, "")


def _said(part: Part, folder: Path, *, alone: bool) -> Part:
    """Return a part with the class that its configuration names: several classes may share a layout."""
    place = _config_of(part, folder, alone=alone)
    named = None if place is None else read_json(place).get("_class_name")
    return replace(part, class_name=named) if isinstance(named, str) and part.library == "diffusers" else part


def _given(folder: Path | None, *, alone: bool) -> Callable[[Part], Settings | None]:
    def given(part: Part) -> Settings | None:
        place = None if folder is None else _config_of(part, folder, alone=alone)
        return None if place is None else read_json(place)

    return given
