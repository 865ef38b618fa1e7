"""Find what becomes of each method of PEFT and LyCORIS, and write the table of it into the docs.

`PYTHONPATH=tests python -m support.method_table` writes it anew; a test compares.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion import DIALECTS
from svdiff_delta.conversion.dialect import Job, WeightChange
from svdiff_delta.conversion.lazy_tensors import OpenedAdapter
from svdiff_delta.errors import DeltaError
from svdiff_delta.svd.cache import BasisCache

from .library_adapters import (
    METHODS,
    PATHS,
    llama,
    lycoris_methods,
    merged_by_peft,
    save_lycoris_method,
    save_peft_method,
)

PAGE: Final = Path(__file__).parents[2] / "docs" / "methods.md"
TOLERANCE: Final = 1e-5
"""Of ΔW against a library's merge in float32: what that rounds is at most 2⁻²³ of W, which is ten times ΔW at most."""

TAKEN: Final = "a change of weights"
WITH_BASE: Final = "a change of weights, with the base named that it was made on"
NOT_LINEAR: Final = "is for norms, and read by their formula"

_WHERE: Final = re.compile(r"^\S*?(adapter_config\.json|\.safetensors|/[\w-]+): ")
_FIX: Final = re.compile(r": (merge it|use it|name the base|fetch|leave `made_on`).*$")


def read_changes(path: Path, dialect: str, base: Base, made_on: Base | None = None) -> dict[str, Tensor]:
    """Return ΔW of each weight that an adapter changes, in float64."""
    read = DIALECTS[dialect].read
    assert read is not None
    found = read(OpenedAdapter(str(path)), Job(base, BasisCache(), embeddings=True, made_on=made_on))
    changes = {name: found.read(name) for name in found.kinds}
    return {name: change.values for name, change in changes.items() if isinstance(change, WeightChange)}


def outcome(path: Path, dialect: str, base: Base, true: Mapping[str, Tensor]) -> str:
    """Return what becomes of an adapter, whose changes are within `TOLERANCE` of these if it is taken."""
    said = TAKEN
    try:
        found = read_changes(path, dialect, base)
    except DeltaError as error:
        if "made_on" not in error.fix:
            return _refused(error)
        said = WITH_BASE
        try:
            found = read_changes(path, dialect, base, made_on=base)
        except DeltaError as other:
            return _refused(other)
    assert found.keys() == true.keys()
    for name, change in true.items():
        assert torch.linalg.norm(found[name] - change) < TOLERANCE * torch.linalg.norm(change), name
    return said


def _refused(error: DeltaError) -> str:
    return f"refused: {_WHERE.sub('', error.message)}".replace("|", "/")


def of_peft(method: str, base: Base, folder: Path) -> str:
    """Return what becomes of a method of PEFT."""
    built = save_peft_method(method, base, folder)
    try:
        true = merged_by_peft(base, folder) if built else {}
    except (NotImplementedError, ValueError):
        true = {}  # PEFT itself has no merge of it
    return outcome(folder, "peft", base, true)


def of_lycoris(cls: Any, base: Base, path: Path) -> str:
    """Return what becomes of a method of LyCORIS."""
    saved = save_lycoris_method(cls, base, path)
    return NOT_LINEAR if saved is None else outcome(path, "lycoris", base, {f"model.{PATHS[0]}.weight": saved})


def rows(base: Base, folder: Path) -> list[str]:
    """Return the rows of the table."""
    found = [("PEFT", method, of_peft(method, base, folder / method)) for method in METHODS]
    for name, cls in lycoris_methods().items():
        found.append(("LyCORIS", name, of_lycoris(cls, base, folder / f"{name}.safetensors")))
    return [f"| {library} | {name} | {what} |" for library, name, what in found]


def listed() -> dict[tuple[str, str], str]:
    """Return what the page says of each method, by library and name."""
    cells = [line.strip("| \n").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return {(row[0], row[1]): row[2] for row in cells if len(row) == 3 and row[0] in ("PEFT", "LyCORIS")}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        table = rows(llama(Path(place) / "base"), Path(place))
    text = PAGE.read_text()
    head, _, rest = text.partition("| --- | --- | --- |\n")
    PAGE.write_text(head + "| --- | --- | --- |\n" + "\n".join(table) + "\n" + rest[rest.index("\n\n") + 1 :])
