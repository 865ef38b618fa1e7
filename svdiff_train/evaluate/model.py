"""Models that pictures are measured with: local folders or repositories on the Hub, read from safetensors alone."""

from __future__ import annotations

from collections.abc import Collection
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from svdiff_delta._util.interrupted import interruptions_kept
from svdiff_delta.base_model.devices import find_device
from svdiff_delta.base_model.hub_model import find_model
from svdiff_delta.base_model.layout import read_json, weight_files
from svdiff_delta.errors import BaseError, DeltaError, InputError, MissingExtraError, is_out_of_memory
from svdiff_delta.hub_client.reference import Reference, exists, locate


def find_folder(reference: str | PathLike[str], what: str, types: Collection[str]) -> Path:
    """Return the folder of a model, fetched into the local Hub cache where it lacks; pickles are never fetched.

    Args:
        reference: a path, or `owner/repo[@revision][/folder]` on the Hub. What exists as a path is one.
        what: what errors call such a model, such as "CLIP".
        types: the `model_type`s in config.json that will do.

    Raises:
        InputError: there is nothing, it is another kind of model, or its weights are pickles.
        HubError: the reference names nothing on the Hub.
    """
    fix = f"name a folder with a {what} as transformers saves it, or owner/repo on the Hub"
    place = locate(reference)
    try:
        folder = find_model(place).path if isinstance(place, Reference) else place
        if not exists(folder):
            raise InputError(f"{reference}: there is no such folder", fix=fix)
        if not (folder / "config.json").is_file():
            raise InputError(f"{reference}: is no {what}, it has no config.json", fix=fix)
        found = read_json(folder / "config.json").get("model_type")
        if found not in types:
            raise InputError(f"{reference}: is no {what}, its model_type is {found!r}", fix=fix)
        weight_files(folder, None)
    except BaseError as error:
        raise InputError(error.message, fix=error.fix or fix) from None
    return folder


def load_model(model_class: str, folder: Path, what: str, device: str | torch.device, **options: Any) -> Any:
    """Return a transformers model in float32, frozen, in evaluation mode.

    Args:
        model_class: its name in transformers, such as "CLIPModel".
        folder: from `find_folder`.
        what: what errors call it.
        device: where to put it.
        options: what else to give to `from_pretrained`.

    Raises:
        InputError: its weights cannot be read, or some of them are not there; or there is no such device.
        MissingExtraError: transformers is not installed.
    """
    device, library = find_device(device), transformers()
    read = getattr(library, model_class).from_pretrained
    options |= {"use_safetensors": True, "local_files_only": True}
    try:
        with interruptions_kept():
            model, about = read(str(folder), dtype=torch.float32, output_loading_info=True, **options)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _unreadable(folder, what, error) from None
    if missing := sorted(about["missing_keys"]):
        raise InputError(
            f"{folder}: is no whole {what}, {missing[0]} and {len(missing) - 1} others are not in its weights",
            fix="fetch it again, or name another",
        )
    return model.to(device).eval().requires_grad_(False)


def load_part(part_class: str, folder: Path, what: str, **options: Any) -> Any:
    """Return a tokenizer or image processor of a model.

    Args:
        part_class: its name in transformers.
        folder: from `find_folder`.
        what: what errors call the model.
        options: what to give to `from_pretrained`.

    Raises:
        InputError: its files cannot be read.
        MissingExtraError: transformers is not installed.
    """
    read = getattr(transformers(), part_class).from_pretrained
    try:
        with interruptions_kept():
            return read(str(folder), local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # noqa: BLE001 - as above
        raise _unreadable(folder, what, error) from None


def _unreadable(folder: Path, what: str, error: Exception) -> DeltaError:
    return InputError(f"{folder}: could not be loaded as a {what} ({error})", fix="fetch it again, or name another")


def transformers() -> Any:
    """Return transformers, told to print nothing."""
    try:
        import transformers as library
    except ImportError:
        raise MissingExtraError("transformers", "train") from None
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


def short_name(reference: str | PathLike[str]) -> str:
    """Return what results call a model: its reference on the Hub, or its folder's name."""
    place = locate(reference)
    return str(place) if isinstance(place, Reference) else place.resolve().name
