"""One conversion of a manifest: input, output, base and the options of the single command."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, Self

import msgspec

from svdiff_delta import __version__
from svdiff_delta._text.printable import shown
from svdiff_delta._util.json import canonical_json
from svdiff_delta._util.typed import build, keys_of
from svdiff_delta._util.typed import given as given_fields
from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.conversion.respell import TARGETS, is_respelling
from svdiff_delta.errors import InputError
from svdiff_delta.format.dtypes import STORED_DTYPES, StoredDtype, is_stored_dtype
from svdiff_delta.hub_client.download import fetch_delta
from svdiff_delta.hub_client.reference import Reference, locate
from svdiff_train.calibrate import digest_of
from svdiff_train.tiny import NAME, open_tiny

BLOCK: Final = 1 << 20
"""Bytes of a file that are hashed at a time."""

HASHED: Final = (".safetensors", ".json")
"""What counts in a folder that is an input."""


Text = Annotated[str, msgspec.Meta(min_length=1)]
UNSET: Final = msgspec.UNSET
Unset = msgspec.UnsetType


class _Respelled(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A row of an adapter that another dialect spells, for which a base is not always needed."""

    input: Text
    output: Text
    base: Text | Unset = UNSET
    variant: Text | Unset = UNSET
    to: Text | Unset = UNSET
    from_: Text | Unset = msgspec.field(default=UNSET, name="from")
    dtype: Text | Unset = UNSET
    title: Text | Unset = UNSET
    rank: int | Unset = UNSET
    energy: float | Unset = UNSET
    max_rank: int | Unset = UNSET
    min_energy: float | Unset = UNSET
    allow_unmatched: bool | Unset = UNSET
    component: Text | Unset = UNSET
    embeddings: bool | Unset = UNSET
    calibrate: Text | Unset = UNSET
    calibrate_steps: int | Unset = UNSET
    device: Text | Unset = UNSET
    base_config: Text | Unset = UNSET
    dequantize: bool | Unset = UNSET
    direct: bool | Unset = UNSET
    made_on: Text | Unset = UNSET


class _Said(_Respelled, forbid_unknown_fields=True, kw_only=True):
    """Any other row."""

    base: Text


THROUGH: Final = ("rank", "energy", "max_rank", "min_energy", "calibrate", "embeddings", "direct", "made_on")
"""Keys that ask for new factors, or a way through a delta."""

KEYS: Final = keys_of(_Said)
"""The keys of a row."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file to convert. It can be pickled, so that any scheduler can send it to another process or machine.

    Attributes:
        input: what to convert, as `svdiff convert` takes it.
        output: the file to write.
        base: the base that both belong to: a path, the word `tiny`, or a repository on the Hub; empty where an adapter
            is spelled anew in another dialect, and its keys tell the family.
        variant: which of the base's files to read, such as fp16.
        to: the dialect of the output.
        from_: the dialect of the input; found from it if not given.
        dtype: number format of the output.
        title: a title for the output.
        rank, energy, max_rank: how much of each weight's change a low-rank copy keeps.
        min_energy: the least share of the change that must be captured; that of the dialect if not given.
        allow_unmatched: whether what cannot be carried over may be left out.
        component: the component of the base that keys mean which name none; the denoiser if not given.
        embeddings: whether changed embeddings may be shifted too.
        calibrate: a file of prompts or texts, or a folder of pictures, to calibrate on.
        calibrate_steps: denoising steps of each prompt, or timesteps of each picture.
        device: where the base runs on them, such as cuda.
        base_config: where the configuration of a base is that is a single file.
        dequantize: whether a base that is a quantized single file is read as float32 numbers.
        direct: whether an adapter or a tuned model becomes a LoRA or a full difference without a delta in between.
        made_on: the base that an adapter was made on, for methods that take a part of their change out of it.
        folder: what relative paths are relative to; "" is the working folder.
    """

    input: str
    output: str
    base: str = ""
    variant: str | None = None
    to: str = "delta"
    from_: str | None = None
    dtype: StoredDtype = "F32"
    title: str | None = None
    rank: int | None = None
    energy: float | None = None
    max_rank: int | None = None
    min_energy: float | None = None
    allow_unmatched: bool = False
    component: str | None = None
    embeddings: bool = False
    calibrate: str | None = None
    calibrate_steps: int = 20
    device: str = "cpu"
    base_config: str | None = None
    dequantize: bool = False
    direct: bool = False
    made_on: str | None = None
    folder: str = ""

    @classmethod
    def parse(cls, given: Mapping[str, Any], folder: Path | None = None) -> Self:
        """Return the row that a mapping describes; the key of `from_` is `from`.

        Args:
            given: keys and values.
            folder: what its paths are relative to; the working folder if not given.

        Raises:
            InputError: a key is unknown or missing, or a value is of a wrong type.
        """
        to = given.get("to")
        spelled = isinstance(to, str) and to in TARGETS and not any(given.get(key) for key in THROUGH)
        said = build(_Respelled if spelled else _Said, given)
        values = {**given_fields(said), "folder": str(folder or "")}
        if "dtype" in values:
            values["dtype"] = values["dtype"].upper()
            if not is_stored_dtype(values["dtype"]):
                raise InputError(f"dtype: {shown(said.dtype)} is unknown", fix=f"known are {', '.join(STORED_DTYPES)}")
        row = cls(**values)
        if row.calibrate_steps < 1:
            raise InputError(f"calibrate_steps: must be at least 1, is {row.calibrate_steps}")
        return row

    @property
    def key(self) -> str:
        """SHA-256 of the row and of the library's version: whether an earlier result is one of this very row."""
        return hashlib.sha256(canonical_json({"row": self.described(), "version": __version__})).hexdigest()

    def described(self) -> dict[str, Any]:
        """Return the keys and values of the manifest that differ from the defaults."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        del values["folder"]
        found = {name: value for name, (value, default) in values.items() if value != default}
        return {("from" if name == "from_" else name): value for name, value in found.items()}

    def place(self, path: str) -> Path:
        """Return where a path of this row leads."""
        return Path(self.folder) / path

    def source(self) -> Path:
        """Return where the input is; what it names on the Hub is fetched into the local cache.

        Raises:
            HubError: it could not be.
        """
        place = locate(self.input, Path(self.folder))
        return fetch_delta(place) if isinstance(place, Reference) else place

    def is_remote(self) -> bool:
        """Tell whether the input is what a repository on the Hub has."""
        return isinstance(locate(self.input, Path(self.folder)), Reference)

    def is_respelling(self) -> bool:
        """Tell whether this is an adapter that another dialect spells, without a delta in between.

        Raises:
            InputError, HubError: the input cannot be looked at.
        """
        through = any(getattr(self, key) for key in THROUGH)
        return not through and is_respelling(self.source(), self.to, self.from_)

    def open_base(self) -> Base:
        """Open the base.

        Raises:
            BaseError: as the library's `open_base`.
        """
        return self._open(self.base)

    def open_made_on(self) -> Base | None:
        """Open the base that the adapter was made on; None if the row names none.

        Raises:
            BaseError: as the library's `open_base`.
        """
        return None if self.made_on is None else self._open(self.made_on)

    def _open(self, name: str) -> Base:
        place = self.place(name)
        if name == NAME and not place.exists():
            return open_tiny()
        config: str | Path | None = self.base_config
        if self.base_config is not None and self.place(self.base_config).exists():
            config = self.place(self.base_config)
        return open_base(
            place if place.exists() else name, variant=self.variant, config=config, dequantize=self.dequantize
        )

    def states(self, base: Base | None) -> dict[str, str]:
        """Return what tells whether the input or the base is another than at an earlier run.

        The input and what is calibrated on count by their SHA-256, the weight files of the base by name, size and time.

        Raises:
            InputError: the input, or what is calibrated on, cannot be read.
        """
        found = {"input": hash_path(self.source()), "base": _state(base)}
        if self.made_on is not None:
            found["made_on"] = _state(self.open_made_on())
        if self.calibrate is not None:
            found["calibrate"] = digest_of(self.place(self.calibrate))
        return found


def _state(base: Base | None) -> str:
    """Return SHA-256 of the names, sizes and times of a base's weight files."""
    files = [file for component in base.components.values() for file in component.files] if base else []
    about = [[file.name, file.stat().st_size, str(file.stat().st_mtime_ns)] for file in files]
    return hashlib.sha256(canonical_json(about)).hexdigest()


def hash_path(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and SHA-256 of the weights and configurations in a folder.

    Raises:
        InputError: it cannot be read.
    """
    try:
        if not path.is_dir():
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                while block := stream.read(BLOCK):
                    digest.update(block)
            return digest.hexdigest()
        files = sorted(file for file in path.rglob("*") if file.suffix in HASHED and file.is_file())
        about = [[file.relative_to(path).as_posix(), hash_path(file)] for file in files]
        return hashlib.sha256(canonical_json(about)).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror})") from None
