"""Group the files of a folder or repository into what people call one thing: a file, a PEFT folder, a model."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final, Literal, NamedTuple

PICKLES: Final = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
SAFETENSORS: Final = ".safetensors"
GGUF: Final = ".gguf"
PEFT_CONFIG: Final = "adapter_config.json"
PEFT_WEIGHTS: Final = "adapter_model.safetensors"
PEFT_PICKLE: Final = "adapter_model.bin"
PIPELINE: Final = "model_index.json"
MODEL: Final = "config.json"
DELTA: Final = "svdiff.safetensors"
WEIGHTS: Final = ("diffusion_pytorch_model", "model", "pytorch_model")
"""How the files of a model's folder begin."""


class Item(NamedTuple):
    """One thing in a folder.

    Attributes:
        kind: "file", PEFT's folder ("peft"), a pipeline's ("pipeline") or a model's ("model").
        name: of the file or folder, relative, with slashes; "" for the folder itself.
        files: the names of the files in that folder; of a pipeline's in all below it.
    """

    kind: Literal["file", "peft", "pipeline", "model"]
    name: str
    files: tuple[str, ...] = ()


def items(names: Iterable[str]) -> Iterator[Item]:
    """Yield what files are, sorted by folder and name.

    Args:
        names: of all files, relative, with slashes.
    """
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, _, file = name.rpartition("/")
        folders[folder].append(file)
    taken: set[str] = set()
    for folder in sorted(folders):
        if taken and any(str(parent) in taken for parent in (*PurePosixPath(folder).parents, PurePosixPath(folder))):
            continue
        files = frozenset(folders[folder])
        if PIPELINE in files:
            taken.add(str(PurePosixPath(folder)))
            below = [f"{f}/{file}" for f in folders if _is_below(f, folder) for file in folders[f]]
            yield Item("pipeline", folder, tuple(sorted(below)))
            continue
        yield from _items(folder, files)


def _is_below(folder: str, root: str) -> bool:
    return not root or folder == root or folder.startswith(f"{root}/")


def _items(folder: str, files: frozenset[str]) -> Iterator[Item]:
    used: set[str] = set()
    if PEFT_CONFIG in files:
        used = {PEFT_WEIGHTS, PEFT_PICKLE}
        yield Item("peft", folder, tuple(sorted(files)))
    elif MODEL in files and DELTA not in files:
        used = {file for file in files if file.startswith(WEIGHTS) and is_weights(file)}
        if used:
            yield Item("model", folder, tuple(sorted(files)))
    for file in sorted(files - used):
        if is_weights(file):
            yield Item("file", f"{folder}/{file}" if folder else file)


def is_weights(name: str) -> bool:
    """Tell whether a file may hold tensors, by its suffix."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - of thousands of names
    return suffix in (SAFETENSORS, GGUF) or suffix in PICKLES


def names_below(root: Path) -> list[str]:
    """Return the files below a folder, relative, with slashes; links to folders are not followed, hidden ones passed.

    Raises:
        OSError: the folder cannot be listed.
    """
    found: list[str] = []
    todo = [("", os.fspath(root))]
    while todo:
        prefix, folder = todo.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith("."):
                        todo.append((f"{prefix}{entry.name}/", entry.path))
                else:
                    found.append(prefix + entry.name)
    return found
