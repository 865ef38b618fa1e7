"""Converting many files: manifests, processes or Ray, and a report, around one plain function."""

from __future__ import annotations

from .on_ray import run_manifest_on_ray as run_manifest_on_ray
from .row import Row as Row
from .run import run_manifest as run_manifest
from .work import Result as Result
from .work import convert_one as convert_one

__all__ = ["Result", "Row", "convert_one", "run_manifest", "run_manifest_on_ray"]
