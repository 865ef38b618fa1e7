"""Which component of a base a file is that does not say so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.base_model.component import Component
from svdiff_delta.base_model.matching import named_like, paired
from svdiff_delta.errors import BaseError


def file(path: Path, **shapes: tuple[int, ...]) -> Path:
    """Write a weight file; `__` in a name stands for a dot."""
    save_file({name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


def part(path: Path, **shapes: tuple[int, ...]) -> Component:
    return Component("", "", None, (file(path, **shapes),))


@pytest.fixture
def pipeline(tmp_path: Path) -> Base:
    """Two text encoders, the second with a layer more, and something else."""
    parts = {
        "text_encoder": part(tmp_path / "1", a=(2, 2), b=(2, 2)),
        "text_encoder_2": part(tmp_path / "2", a=(2, 2), b=(2, 2), c=(2, 2)),
        "vae": part(tmp_path / "3", a=(4, 4), x=(1,)),
    }
    return Base(tmp_path, parts, True)


@pytest.mark.parametrize(
    ("shapes", "component"),
    [
        ({"a": (2, 2), "b": (2, 2)}, "text_encoder"),
        ({"a": (2, 2), "b": (2, 2), "c": (2, 2)}, "text_encoder_2"),
        ({"text_model__c": (2, 2)}, "text_encoder_2"),
        ({"a": (4, 4)}, "vae"),
    ],
)
def test_a_file_is_the_component_that_it_shares_most_weights_with(
    pipeline: Base, tmp_path: Path, shapes: dict[str, tuple[int, ...]], component: str
) -> None:
    tuned = open_base(file(tmp_path / "tuned.safetensors", **shapes))
    assert [*paired(tuned, pipeline).components] == [component]


def test_a_component_that_the_base_has_keeps_its_name(pipeline: Base, tmp_path: Path) -> None:
    tuned = open_base(file(tmp_path / "tuned.safetensors", a=(4, 4)), component="text_encoder")
    assert paired(tuned, pipeline) is tuned


def test_a_file_with_nothing_in_common_is_refused(pipeline: Base, tmp_path: Path) -> None:
    tuned = open_base(file(tmp_path / "tuned.safetensors", y=(3,)))
    with pytest.raises(BaseError, match="has none of the components of the base, text_encoder, text_encoder_2, vae"):
        paired(tuned, pipeline)


def test_several_components_under_other_names_are_refused(pipeline: Base) -> None:
    tuned = Base(pipeline.path, {"x": pipeline.components["vae"], "y": pipeline.components["vae"]}, True)
    with pytest.raises(BaseError, match="has none of the components of the base"):
        paired(tuned, pipeline)


def test_a_single_file_takes_the_name_of_the_one_component_of_a_delta(pipeline: Base, tmp_path: Path) -> None:
    base = open_base(file(tmp_path / "base.safetensors", a=(2, 2)))
    assert [*named_like(base, ["unet.a", "unet.b"]).components] == ["unet"]
    assert named_like(base, ["unet.a", "vae.b"]) is base
    assert named_like(pipeline, ["unet.a"]) is pipeline
