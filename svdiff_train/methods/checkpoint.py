"""A tuned pipeline as a folder: changed components written, the others taken over from the base."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdiff_delta._atomic import replace_folder
from svdiff_delta._json import JSON
from svdiff_delta.base import Base


class TunedPipeline:
    """A pipeline some of whose components were trained, as plain diffusers loads it.

    Args:
        base: where it came from.
        pipeline: the live pipeline.
        components: those that changed.
        facts: of the run.
    """

    def __init__(self, base: Base, pipeline: Any, components: frozenset[str], facts: Mapping[str, JSON]) -> None:
        self.base, self.pipeline, self.components, self.facts = base, pipeline, components, facts

    def titled(self, title: str | None) -> TunedPipeline:  # noqa: ARG002
        """Return the same: there is no place for a title."""
        return self

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the whole pipeline."""
        with replace_folder(path, overwrite=overwrite) as folder:
            for source in sorted(Path(self.base.path).iterdir()):
                if source.name in self.components:
                    getattr(self.pipeline, source.name).save_pretrained(str(folder / source.name))
                elif source.is_dir():
                    shutil.copytree(source, folder / source.name)
                else:
                    shutil.copyfile(source, folder / source.name)
