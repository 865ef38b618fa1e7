"""Files whose fingerprints are remembered: written, settled, and forgotten as by a new process."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from svdiff_delta._util import file_state
from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.svd import fingerprint_cache
from svdiff_delta.svd.fingerprint_cache import flush

NAME = "model.a.weight"

RACY = 0.05
"""Seconds after which files count as settled here: more than a granule of Linux's file systems (10 ms at most)."""


class AnyFileSystem:
    def __contains__(self, name: str) -> bool:
        return True


def written(path: Path, weight: torch.Tensor) -> Path:
    """Write a weight file, and wait until it has settled."""
    save_file({"a.weight": weight}, path)
    return settled(path)


def settled(path: Path) -> Path:
    """Wait until a file is old enough to be remembered."""
    while file_state.state(path.stat()).changed % file_state.MILLISECOND == 0:  # one in a million
        path.chmod(0o644)
    time.sleep(1.2 * RACY)
    return path


def forget_process() -> None:
    """Write what is new, and forget what this process holds in memory, as a new process would."""
    flush()
    fingerprint_cache._documents.clear()


def document(home: Path) -> Path:
    (found,) = (home / "fingerprints").iterdir()
    return found


class Unreadable(Base):
    """A base whose weights nobody reads."""

    def read(self, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")


def unreadable(path: Path, reference: str | None = None) -> Unreadable:
    base = open_base(reference or path)
    return Unreadable(base.path, base.components)


def delta_for(name: str, parameter: fingerprint_cache.Any) -> fingerprint_cache.Any:
    import numpy as np

    from svdiff_delta.format.delta import Delta
    from svdiff_delta.format.metadata import BaseInfo, Metadata

    return Delta({name: np.zeros(parameter.size)}, Metadata(BaseInfo(), {name: parameter}))
