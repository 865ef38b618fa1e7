"""Converting many files: manifests, processes and a report, around one plain function."""

from __future__ import annotations

from .row import Row as Row
from .run import run_manifest as run_manifest
from .work import Result as Result
from .work import convert_one as convert_one

__all__ = ["Result", "Row", "convert_one", "run_manifest"]
