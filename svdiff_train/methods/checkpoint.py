"""A tuned pipeline as a folder: changed components written, the others taken over from the base."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svdiff_delta._util.atomic import MARKER, replace_folder
from svdiff_delta._util.json import JSON
from svdiff_delta._util.paths import check_links
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import BaseError


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
        """Write the whole pipeline.

        Raises:
            BaseError: the base holds links that lead out of it.
            OutputError: as `replace_folder`.
        """
        others = copied(self.base, self.components)
        with replace_folder(path, overwrite=overwrite) as folder:
            for name in sorted(self.components):
                getattr(self.pipeline, name).save_pretrained(str(folder / name))
            for source in others:
                _copy(source, folder / source.name)


def copied(base: Base, components: frozenset[str]) -> list[Path]:
    """Return what is copied of a base beside the components that are trained.

    Raises:
        BaseError: the base holds links that lead out of it.
    """
    whole = Path(base.path)
    others = [source for source in sorted(whole.iterdir()) if source.name not in {MARKER, *components}]
    for source in others:
        for each in (source, *source.rglob("*")):
            check_links(whole, each, error=BaseError)
    return others


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder with all that is in it, and no rights, which could forbid to replace the copy."""
    if not source.is_dir():
        shutil.copyfile(source, target)
        return
    if source.is_symlink():  # which could lead round in a circle
        raise BaseError(f"{source}: is a link to a folder", fix="put a copy of that folder into its place")
    target.mkdir()
    for each in sorted(source.iterdir()):
        _copy(each, target / each.name)
