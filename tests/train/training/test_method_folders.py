"""A tuned pipeline as a folder: what is copied of the base, and what is refused before a step is done."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.files import contents, tree

from svdiff_delta import open_base
from svdiff_delta._util.atomic import MARKER
from svdiff_delta.errors import BaseError
from svdiff_train.methods.checkpoint import TunedPipeline, copied
from svdiff_train.methods.full import TunedWeights
from svdiff_train.tiny import base_path

UNET = frozenset({"unet"})


class Unet:
    """What a live pipeline has, as far as it is asked."""

    def save_pretrained(self, folder: str) -> None:
        Path(folder).mkdir()
        Path(folder, "config.json").write_text("{}")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    shutil.copytree(base_path(), tmp_path / "base")
    (tmp_path / "secret.json").write_text("mine")
    return tmp_path / "base"


@pytest.mark.parametrize("place", ["vae/link.json", "link.json", "vae/deep/link"])
def test_a_link_that_leaves_the_base_is_refused_before_the_first_step(base: Path, tmp_path: Path, place: str) -> None:
    (base / place).parent.mkdir(exist_ok=True)
    (base / place).symlink_to(tmp_path / "secret.json")
    with pytest.raises(BaseError, match="is a link that leads out of"):
        TunedWeights(SimpleNamespace(base=open_base(base)), UNET, {})  # type: ignore[arg-type]


def test_a_link_to_a_folder_is_not_followed_round_in_a_circle(base: Path, tmp_path: Path) -> None:
    (base / "vae" / "loop").symlink_to("..")
    tuned = TunedPipeline(open_base(base), SimpleNamespace(unet=Unet()), UNET, {})
    with pytest.raises(BaseError, match="loop: is a link to a folder: put a copy"):
        tuned.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_but_the_trained_components_is_copied_and_no_marker_of_an_older_output(base: Path, tmp_path: Path) -> None:
    (base / MARKER).write_text("of an older output")
    assert {path.name for path in copied(open_base(base), UNET)} == {path.name for path in base.iterdir()} - {
        "unet",
        MARKER,
    }
    (base / "vae").chmod(0o555)  # rights are not copied: they could forbid to replace the copy
    TunedPipeline(open_base(base), SimpleNamespace(unet=Unet()), UNET, {}).save(tmp_path / "out")
    found, whole = contents(tmp_path / "out"), tree(base)
    assert found.pop(MARKER) != whole.pop(MARKER)
    assert found.pop("unet/config.json") == b"{}"
    assert found == {name: raw for name, raw in whole.items() if not name.startswith("unet/")}
    assert (tmp_path / "out" / "vae").stat().st_mode & 0o200
