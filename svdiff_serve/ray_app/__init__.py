"""Serve from replicas on a Ray cluster: the same engine and the same HTTP API, on as many processes as it takes.

`serve run svdiff_serve.ray_app:build base=BASE deltas=FOLDER` puts it on the cluster at hand; `serving` is the same
from Python. Ray itself is imported when one of them is called.
"""

from __future__ import annotations

from .application import build as build
from .application import serving as serving
from .settings import RaySettings as RaySettings

__all__ = ["RaySettings", "build", "serving"]
