"""The folder of what is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import platformdirs

HOME_VARIABLE: Final = "SVDIFF_HOME"


def home() -> Path:
    """Return the folder of all that is kept between runs: `SVDIFF_HOME`, else the platform's cache folder."""
    return Path(os.environ.get(HOME_VARIABLE) or platformdirs.user_cache_dir("svdiff-delta", appauthor=False))
