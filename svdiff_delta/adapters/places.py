"""Look at files, folders and repositories: describe each thing that is there, and stop at none that is broken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from svdiff_delta._util.json import check_nodes, strict_json
from svdiff_delta._util.limits import CONFIGURATION
from svdiff_delta._util.reading import read_bytes, regular_file, system_errors
from svdiff_delta.errors import DeltaError, HeaderError, InputError, MetadataError
from svdiff_delta.format.container import LARGEST_FOREIGN
from svdiff_delta.hub_client.reference import Reference, locate

from .description import Description, describe
from .folders import MODEL, PEFT_CONFIG, PEFT_PICKLE, PEFT_WEIGHTS, PICKLES, PIPELINE, Item, items, names_below
from .header_facts import Facts, facts_of, read_facts

UNPICKLE: Final = (
    "it can run code when it is opened, so it is not looked into: open it in the program that wrote it, where you "
    "trust it, and save it as safetensors"
)
PACKED: Final = "its weights are packed in blocks: as a base, name the model that it was made of"
MAGIC: Final = 4
ZIP, PICKLE, GGUF = b"PK\x03\x04", b"\x80", b"GGUF"


def look(reference: str) -> Iterator[Description]:
    """Yield what a file is, or each thing in a folder or repository; what is broken says so in `error`.

    Args:
        reference: a path, or `owner/repo[@revision][/file]` on the Hub.
    """
    try:
        place = locate(reference)
        where: _Place = _Repository(place) if isinstance(place, Reference) else _Disk(Path(place), reference)
        found = where.items()
    except DeltaError as error:
        yield _broken(reference, error)
        return
    for item in found:
        yield _described(where, item)


class _Place(ABC):
    """Where files are."""

    @abstractmethod
    def items(self) -> list[Item]:
        """Return what is there."""

    @abstractmethod
    def path(self, name: str) -> str:
        """Return what a file or folder is called."""

    @abstractmethod
    def facts(self, name: str) -> Facts:
        """Return what the header of a file says."""

    @abstractmethod
    def start(self, name: str) -> tuple[bytes, int]:
        """Return the first bytes of a file, and its size."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a small file."""


class _Disk(_Place):
    """A file or folder."""

    def __init__(self, root: Path, said: str) -> None:
        self.root, self.said = root, said.rstrip("/") or said

    def items(self) -> list[Item]:
        """Return what is there."""
        with system_errors(self.root, InputError):
            if not self.root.is_dir():
                return [Item("file", "")]
            found = list(items(names_below(self.root)))
        if not found:
            raise InputError(f"{self.root}: holds no file with tensors", fix="name a folder or file that does")
        return found

    def path(self, name: str) -> str:
        """Return what a file or folder is called."""
        return f"{self.said}/{name}" if name else self.said

    def facts(self, name: str) -> Facts:
        """Return what the header of a file says."""
        return read_facts(Path(self.path(name)))

    def start(self, name: str) -> tuple[bytes, int]:
        """Return the first bytes of a file, and its size."""
        path = Path(self.path(name))
        with regular_file(path) as stream:
            return stream.read(MAGIC), path.stat().st_size

    def read(self, name: str) -> bytes:
        """Return a small file."""
        return read_bytes(Path(self.path(name)), CONFIGURATION.bytes)


class _Repository(_Place):
    """A repository on the Hub; of its files the headers are fetched, and nothing is kept."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def items(self) -> list[Item]:
        """Return what is there."""
        from svdiff_delta.hub_client.heads import names_of

        inside = self.reference.path
        names = names_of(self.reference)
        if inside and inside in names:
            self.reference = Reference(self.reference.repository, self.reference.revision)
            return [Item("file", inside)]
        below = [name for name in names if not inside or name.startswith(f"{inside.rstrip('/')}/")]
        self.reference = Reference(self.reference.repository, self.reference.revision)
        if found := list(items(below)):
            return found
        raise InputError(f"{self.reference}: holds no file with tensors", fix="name a repository or file that does")

    def path(self, name: str) -> str:
        """Return what a file or folder is called."""
        return f"{self.reference}/{name}" if name else str(self.reference)

    def _file(self, name: str) -> Reference:
        return Reference(self.reference.repository, self.reference.revision, name)

    def facts(self, name: str) -> Facts:
        """Return what the header of a file says."""
        from svdiff_delta.hub_client.heads import fetch_header

        try:
            return facts_of(*fetch_header(self._file(name), LARGEST_FOREIGN))
        except HeaderError as error:
            raise HeaderError(f"{self.path(name)}: {error.message}", fix=error.fix) from None

    def start(self, name: str) -> tuple[bytes, int]:
        """Return the first bytes of a file, and its size."""
        from svdiff_delta.hub_client.heads import fetch_start

        return fetch_start(self._file(name), MAGIC)

    def read(self, name: str) -> bytes:
        """Return a small file."""
        from svdiff_delta.hub_client.heads import fetch_start

        return fetch_start(self._file(name), CONFIGURATION.bytes)[0]


def _described(place: _Place, item: Item) -> Description:
    path = place.path(item.name)
    try:
        if item.kind == "peft":
            return _peft(place, item)
        if item.kind in ("pipeline", "model"):
            return _model(place, item)
        return _file(place, item.name, path)
    except DeltaError as error:
        return _broken(path, error)


def _file(place: _Place, name: str, path: str) -> Description:
    suffix = Path(path).suffix.lower()
    if suffix in PICKLES or suffix == ".gguf":
        start, size = place.start(name)
        if start == GGUF:
            return Description(path, "model", method="GGUF", size=size, note=PACKED)
        if start[:1] == PICKLE or start == ZIP:
            return Description(path, "pickle", method="pickle", size=size, note=UNPICKLE)
    return describe(path, place.facts(name))


def _inside(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file


def _peft(place: _Place, item: Item) -> Description:
    path = place.path(item.name)
    config = _object(place, _inside(item.name, PEFT_CONFIG))
    if PEFT_WEIGHTS in item.files:
        return describe(path, place.facts(_inside(item.name, PEFT_WEIGHTS)), config)
    if PEFT_PICKLE in item.files:
        size = place.start(_inside(item.name, PEFT_PICKLE))[1]
        return Description(path, "pickle", method="pickle", dialect="peft", size=size, note=UNPICKLE)
    raise InputError(f"{path}: has {PEFT_CONFIG} and no {PEFT_WEIGHTS}", fix="fetch both")


def _model(place: _Place, item: Item) -> Description:
    """Return what a pipeline's or model's folder is, by the file that describes it."""
    path, pipeline = place.path(item.name), item.kind == "pipeline"
    config = _object(place, _inside(item.name, PIPELINE if pipeline else MODEL))
    said = config.get("_class_name") or config.get("model_type") or ""
    return Description(
        path,
        "model",
        method="diffusers pipeline" if pipeline else "a model's folder",
        family=said if isinstance(said, str) else "",
    )


def _object(place: _Place, name: str) -> Mapping[str, Any]:
    raw, where = place.read(name), place.path(name)
    check_nodes(raw, where, CONFIGURATION, InputError)
    found = strict_json(raw, where, MetadataError)
    if not isinstance(found, dict):
        raise InputError(f"{where}: is not a JSON object")
    return found


def _broken(path: str, error: DeltaError) -> Description:
    return Description(path, "broken", error=str(error))
