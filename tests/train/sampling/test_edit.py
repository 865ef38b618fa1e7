"""Editing one picture: from its latents or from noise, and training for it without a rare token."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.pipelines import small_flux, small_sd3

from svdiff_delta.errors import InputError
from svdiff_train.data import open_image
from svdiff_train.sampling.edit import EditConfig, edit
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import Sampling, generate
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.loop import train

EDITS = ["a photo of a cat", "a photo of a house"]
PICTURE = sorted(pictures_path("black_cat").glob("*.*"))[0]
FEW: dict[str, Any] = {"steps": 2, "guidance": 3.0}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline(open_tiny())


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return open_image(PICTURE)


def plain(pipeline: Any, prompt: str, seed: int, eta: float) -> bytes:
    return generate(pipeline, [(prompt, seed)], Sampling(**FEW, eta=eta))[0].tobytes()


def test_there_is_a_picture_for_each_edit_and_seed(pipeline: Any, image: Image.Image) -> None:
    seen: list[tuple[int, int]] = []
    config = EditConfig(**FEW, seeds=(0, 1), alpha=0.5)
    found = edit(pipeline, image, EDITS, config, progress=lambda *done: seen.append(done))
    assert [len(row) for row in found.pictures] == [2, 2]
    pictures = [found.source, found.reconstruction, *(one for row in found.pictures for one in row)]
    assert {one.size for one in pictures if one is not None} == {(64, 64)}
    assert seen == [(1, 8), (2, 8), (3, 8), (5, 8), (6, 8), (8, 8)]


def test_pictures_have_the_size_that_is_asked_for(pipeline: Any, image: Image.Image) -> None:
    found = edit(pipeline, image, EDITS[:1], EditConfig(**FEW), size=(48, 64), reconstruct=False)
    assert (found.source.size, found.pictures[0][0].size, found.reconstruction) == ((64, 48), (64, 48), None)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("given", [{"invert": False}, {"alpha": 1.0}], ids=["from noise", "all noise"])
def test_from_noise_it_is_plain_sampling(pipeline: Any, image: Image.Image, eta: float, given: Any) -> None:
    config = EditConfig(**FEW, eta=eta, seeds=(5,), **given)
    found = edit(pipeline, image, EDITS[:1], config, reconstruct=False)
    assert found.pictures[0][0].tobytes() == plain(pipeline, EDITS[0], 5, eta)


def test_without_noise_the_seed_does_not_matter_and_with_noise_it_does(pipeline: Any, image: Image.Image) -> None:
    for alpha, kinds in ((0.0, 1), (0.5, 2)):
        config = EditConfig(**FEW, seeds=(0, 1), alpha=alpha)
        ((a, b),) = edit(pipeline, image, EDITS[:1], config, reconstruct=False).pictures
        assert len({a.tobytes(), b.tobytes()}) == kinds


def test_inversion_keeps_to_the_picture(pipeline: Any, image: Image.Image) -> None:
    """Sampled back without guidance, the picture is nearer to the source than one from noise is."""

    def apart(a: Image.Image, b: Image.Image) -> float:
        pairs = zip(a.tobytes(), b.tobytes(), strict=True)
        return sum(abs(x - y) for x, y in pairs)

    config = EditConfig(steps=10, guidance=1.0, source_prompt="a photo of a black cat")
    found = edit(pipeline, image, [config.source_prompt], config)
    (noise,) = generate(pipeline, [(config.source_prompt, 0)], Sampling(steps=10, guidance=1.0))
    assert found.reconstruction is not None
    assert found.pictures[0][0].tobytes() == found.reconstruction.tobytes()
    assert apart(found.reconstruction, found.source) < 0.5 * apart(noise, found.source)


@pytest.mark.parametrize("build", [small_sd3, small_flux])
@pytest.mark.parametrize("invert", [True, False])
def test_flow_matching_is_refused(build: Any, image: Image.Image, invert: bool) -> None:
    with pytest.raises(InputError, match="DDIM inverts diffusion only: edit with Stable Diffusion"):
        edit(build(), image, EDITS, EditConfig(invert=invert))


@pytest.mark.parametrize(
    ("given", "message"),
    [({"alpha": 2.0}, "alpha"), ({"seeds": ()}, "seed"), ({"eta": -1.0}, "eta"), ({"steps": 0}, "steps")],
)
def test_settings_that_make_no_sense_are_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EditConfig(**given)


def test_there_must_be_something_to_edit(pipeline: Any, image: Image.Image) -> None:
    with pytest.raises(InputError, match="nothing to edit"):
        edit(pipeline, image, [], EditConfig())


def test_one_picture_and_its_description_are_enough_to_train(tmp_path: Path) -> None:
    """λ = 0 and no rare token: the prompt describes the picture (section 3.4)."""
    shutil.copy(PICTURE, tmp_path)
    config = TrainConfig(prompt="a photo of a black cat", steps=1, selectors=("mid-ca",))
    assert (config.find_token(), config.with_prior) == (None, False)
    delta = train(open_tiny(), tmp_path, config).delta
    training = delta.metadata.training or {}
    assert (training["prompt"], training["images"]) == ("a photo of a black cat", 1)
    assert "class_prompt" not in training
    assert any(shift.any() for shift in delta.values())
