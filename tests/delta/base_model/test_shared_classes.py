"""Bases of one configuration share their classes on the meta device, which nothing of a base is kept in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from svdiff_delta.base_model import skeleton
from svdiff_delta.base_model.base import open_base
from svdiff_delta.base_model.kinds import base_kinds, class_kinds, shiftable
from svdiff_delta.errors import BaseError
from svdiff_train.tiny import base_path, open_tiny


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return shutil.copytree(base_path(), tmp_path / "copy")


def unet(folder: Path, **changed: Any) -> Any:
    """Return the class of a base's UNet, with changed settings."""
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    return open_base(folder).components["unet"].skeleton


def test_the_same_configuration_elsewhere_has_the_same_class_and_another_one_its_own(copied: Path) -> None:
    own: Any = open_tiny().components["unet"].skeleton
    assert unet(copied) is own
    other = unet(copied, sample_size=7)
    assert other is not own
    assert (other.config.sample_size, own.config.sample_size) == (7, 16)
    assert own.device.type == "meta"


def test_no_more_than_a_few_are_kept(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeleton, "SHARED", 2)
    assert [unet(copied, sample_size=size).config.sample_size for size in (5, 6, 7)] == [5, 6, 7]
    assert len(skeleton._shared) == 2


def test_a_class_that_cannot_be_built_is_tried_again(copied: Path) -> None:
    with pytest.raises(BaseError, match="cannot be built"):
        unet(copied, block_out_channels=[7])
    kept = len(skeleton._shared)
    with pytest.raises(BaseError, match="cannot be built"):
        unet(copied)
    assert len(skeleton._shared) == kept


def test_what_is_kept_of_a_class_is_what_it_has_and_a_base_s_own_kinds_may_be_changed(copied: Path) -> None:
    for on_request in (False, True):
        own = open_tiny().components["unet"].skeleton
        assert [*class_kinds(own, on_request=on_request)] == [*shiftable(own, on_request=on_request)]
    base_kinds(open_tiny()).clear()
    assert base_kinds(open_tiny()) == base_kinds(open_base(copied)) != {}
