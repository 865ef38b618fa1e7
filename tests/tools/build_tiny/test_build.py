"""The build command: stages by name, in an order in which each finds what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.build_tiny.build import STAGES, main

from .pictures import write_packages


def test_the_stages_are_in_order() -> None:
    assert list(STAGES) == ["fetch", "clip", "vae", "latents", "unet", "decoder", "clip_image", "export", "card"]


def test_packages_that_are_there_are_not_fetched_again(tmp_path: Path) -> None:
    write_packages(tmp_path / "npm")
    main(["--work", str(tmp_path), "--stage", "fetch"])
    assert sorted(path.name for path in (tmp_path / "npm").iterdir()) == ["google", "twitter"]


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--work", str(tmp_path), "--stage", "dream"])
