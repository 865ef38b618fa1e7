"""A base that is not the delta's: what differs, how much of it, and which revision would fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save, save_file
from support.hub import fill_cache, folder_files
from support.models import base_delta

from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.errors import BaseError, BaseMismatchError
from svdiff_delta.format.delta import Delta
from svdiff_delta.svd.matching_base import find_matching_base
from svdiff_delta.svd.verify import verify_base
from svdiff_train.tiny import base_path, open_tiny

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
PREFIX = "mid_block.attentions.0.transformer_blocks.0"
QUERY, KEY = f"{PREFIX}.attn1.to_q.weight", f"{PREFIX}.attn1.to_k.weight"


@pytest.fixture(scope="module")
def delta() -> Delta:
    return base_delta(open_tiny(), f"unet.{PREFIX}.*")


def changed(tmp_path: Path, **change: torch.Tensor | None) -> Base:
    """The embedded base with some of its UNet's weights replaced, or taken out."""
    folder = tmp_path / "base"
    shutil.copytree(base_path(), folder)
    tensors = load_file(folder / WEIGHTS)
    for name, value in change.items():
        key = {"query": QUERY, "key": KEY}[name]
        del tensors[key]
        if value is not None:
            tensors[key] = value
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return open_base(folder)


def refused(base: Base, delta: Delta) -> BaseError:
    with pytest.raises(BaseError) as caught:
        verify_base(base, [delta])
    return caught.value


def test_the_base_that_a_delta_was_made_for_fits(delta: Delta) -> None:
    seen: list[tuple[int, int]] = []
    verify_base(open_tiny(), [delta], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(count, len(delta)) for count in range(1, len(delta) + 1)]


def test_one_weight_that_differs_is_named_with_both_fingerprints(tmp_path: Path, delta: Delta) -> None:
    shape = delta.metadata.parameters[f"unet.{QUERY}"].shape
    error = refused(changed(tmp_path, query=torch.ones(shape).half()), delta)
    assert isinstance(error, BaseMismatchError)
    assert f"unet.{QUERY}: the delta was made for another base (fingerprint " in error.message
    assert delta.metadata.parameters[f"unet.{QUERY}"].fingerprint in error.message
    assert "parameters" not in error.message


def test_several_that_differ_are_counted_and_the_first_are_named(delta: Delta) -> None:
    parameters = {
        name: replace(parameter, fingerprint="A" * 22) if index % 2 else parameter
        for index, (name, parameter) in enumerate(delta.metadata.parameters.items())
    }
    other = Delta({name: delta[name] for name in delta}, replace(delta.metadata, parameters=parameters))
    names = [name for name, parameter in parameters.items() if parameter.fingerprint == "A" * 22]
    error = refused(open_tiny(), other)
    assert f"{len(names)} of {len(delta)} parameters do not fit: {', '.join(names[:3])}, …" in error.message


def test_a_shape_that_changed_is_named(tmp_path: Path, delta: Delta) -> None:
    error = refused(changed(tmp_path, query=torch.ones(3, 4).half()), delta)
    assert isinstance(error, BaseMismatchError)
    assert f"unet.{QUERY}: the delta was made for a weight of shape [" in error.message
    assert "the base has [3, 4]" in error.message


def test_a_parameter_that_the_base_lacks_is_named(tmp_path: Path, delta: Delta) -> None:
    error = refused(changed(tmp_path, query=None), delta)
    assert not isinstance(error, BaseMismatchError)
    assert f"unet.{QUERY}: the base {tmp_path / 'base'} has no such parameter" in error.message


def test_several_that_the_base_lacks_are_counted(tmp_path: Path, delta: Delta) -> None:
    error = refused(changed(tmp_path, query=None, key=None), delta)
    assert f"2 of {len(delta)} parameters are not there: unet.{KEY}, unet.{QUERY}" in error.message


def test_a_component_that_the_base_lacks_is_named(delta: Delta) -> None:
    error = refused(open_base(base_path() / "vae"), delta)
    assert "has no component 'unet', it has vae" in error.message


def test_what_differs_and_what_is_missing_is_told_together(tmp_path: Path, delta: Delta) -> None:
    error = refused(changed(tmp_path, query=torch.ones(3, 4).half(), key=None), delta)
    assert isinstance(error, BaseMismatchError)
    assert f"2 of {len(delta)} parameters do not fit: unet.{QUERY}, unet.{KEY}" in error.message


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path, delta: Delta, value: float) -> None:
    weight = open_tiny().read(f"unet.{QUERY}").clone()
    weight[0, 0] = value
    error = refused(changed(tmp_path, query=weight), delta)
    assert f"unet.{QUERY}: the base's weight holds NaN or infinity" in error.message
    assert not isinstance(error, BaseMismatchError)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def tuned(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a commit in which one weight was changed."""
    path = base_path() / WEIGHTS
    tensors = {key: value + 1 if key == QUERY else value for key, value in load_file(path).items()}
    return {**files, WEIGHTS: save(tensors, {"format": "pt"})}


def from_hub(delta: Delta, repository: str | None, revision: str | None = None) -> Delta:
    base = replace(delta.metadata.base, repository=repository, revision=revision)
    return Delta({name: delta[name] for name in delta}, replace(delta.metadata, base=base))


def test_another_revision_in_the_cache_that_fits_is_named(cache: Path, delta: Delta) -> None:
    files = folder_files(base_path())
    old = fill_cache(cache, "owner/tiny", files, ref=None)
    fill_cache(cache, "owner/tiny", tuned(files))
    error = refused(open_base("owner/tiny"), delta)
    assert error.fix == f"owner/tiny@{old} is in the local Hub cache and fits"
    verify_base(open_base(f"owner/tiny@{old}"), [delta])


def test_the_repository_that_the_delta_names_is_looked_at(cache: Path, tmp_path: Path, delta: Delta) -> None:
    commit = fill_cache(cache, "owner/tiny", folder_files(base_path()))
    wrong = changed(tmp_path, query=None)
    assert find_matching_base(wrong, from_hub(delta, "owner/tiny")) == f"owner/tiny@{commit}"
    assert find_matching_base(wrong, from_hub(delta, None)) is None


def test_a_variant_that_fits_is_named(cache: Path, tmp_path: Path, delta: Delta) -> None:
    files = folder_files(base_path())
    files[WEIGHTS.replace(".safetensors", ".fp16.safetensors")] = files[WEIGHTS]
    commit = fill_cache(cache, "owner/tiny", tuned(files))
    found = find_matching_base(changed(tmp_path, query=None), from_hub(delta, "owner/tiny"))
    assert found == f"owner/tiny@{commit} with the variant fp16"


def test_a_broken_revision_in_the_cache_is_passed_over(cache: Path, delta: Delta) -> None:
    files = folder_files(base_path())
    fill_cache(cache, "owner/tiny", {**files, WEIGHTS: b"broken"}, ref="broken")
    fill_cache(cache, "owner/tiny", {"model_index.json": json.dumps({}).encode()}, ref="empty")
    fill_cache(cache, "owner/tiny", tuned(files))
    error = refused(open_base("owner/tiny"), delta)
    assert error.fix == "name the base that the delta was made for, by its own words tiny"


def test_where_nothing_fits_the_delta_s_own_words_are_given(tmp_path: Path, cache: Path, delta: Delta) -> None:
    error = refused(changed(tmp_path, query=None), from_hub(delta, "owner/tiny", "v1"))
    assert error.fix == "name the base that the delta was made for, by its own words owner/tiny@v1"
