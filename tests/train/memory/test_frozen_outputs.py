"""Encoders whose outputs are kept: the run is the same, their weights go, and another encoder's are not taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.pipelines import PIPELINES
from support.recorded_pipelines import BUILDERS, VIDEOS
from support.recorded_truth import shape_of
from support.seeing_pipelines import SEEING

from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.errors import InputError, TrainError
from svdiff_train.data.image_sets import ClassPictures
from svdiff_train.families import family_of
from svdiff_train.memory.content import models_digest
from svdiff_train.memory.frozen_outputs import FrozenOutputs, encoders_of, keep_outputs
from svdiff_train.memory.output_cache import OutputCache
from svdiff_train.sampling.sample import Sampling
from svdiff_train.settings.concept import Concept
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.callbacks import Watch
from svdiff_train.training.keeping import Keeping
from svdiff_train.training.loop import train
from svdiff_train.training.setup import prepare_run
from svdiff_train.training.validation import Validation

pytestmark = pytest.mark.usefixtures("rough_class_pictures")

PICTURES = pictures_path("black_cat")
CONFIG = TrainConfig(
    prompt="a photo of a sks cat", class_prompt="a photo of a cat", class_images=2, selectors=("unet-ca-kv",),
    steps=2, learning_rate=5e-2, flip=True,
)  # fmt: skip
BOTH = {"cache_latents": True, "pre_compute_text_embeddings": True}


@pytest.mark.slow
def test_a_run_is_the_same_with_and_without_its_encoders(tmp_path: Path) -> None:
    """Bit for bit, but for the settings that it records; and the second run computes nothing of it again."""
    said: list[str] = []

    def run(config: TrainConfig, name: str) -> dict[str, Any]:
        watch, cache = Watch(say=said.append), OutputCache(tmp_path / "outputs")
        validation = Validation(prompts=("a sks cat",), sampling=Sampling(steps=2)) if name == "first" else None
        outcome = train(
            open_tiny(), PICTURES, config, watch=watch, outputs=cache, validation=validation,
            keeping=Keeping(folder=tmp_path / name), class_folder=tmp_path / "class",
        )  # fmt: skip
        return dict(outcome.delta)

    keeping = replace(CONFIG, **BOTH)
    plain, first, second = run(CONFIG, "plain"), run(keeping, "first"), run(keeping, "second")
    for name, shift in plain.items():
        assert (first[name] == shift).all()
        assert (second[name] == shift).all()
    released = [line for line in said if "released" in line]
    assert [line.partition("; ")[2] for line in released] == [
        "0 outputs were kept from before, 16 made",  # 2 prompts, 5 pictures and 2 of the class, mirrored or not
        "16 outputs were kept from before, 0 made",
    ]
    assert (tmp_path / "first/validation/step-000002-0.png").exists()


LOADABLE = [pytest.param(name, marks=() if name in ("flux", "sd2") else pytest.mark.slow) for name in sorted(PIPELINES)]
"""The families, as they come back from a folder."""


@pytest.fixture(scope="module", params=LOADABLE)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of every family."""
    path = tmp_path_factory.mktemp("base")
    PIPELINES[request.param]().save_pretrained(path)
    return path


def kept(base: Base, cache: OutputCache, pipeline: Any = None) -> tuple[Any, FrozenOutputs]:
    from svdiff_train.sampling.pipelines import load_pipeline

    family = family_of(load_pipeline(base) if pipeline is None else pipeline)
    config = TrainConfig(prompt="a", **BOTH)
    return family, FrozenOutputs(family, base, encoders_of(family, config), cache)


def test_encoders_of_every_family_are_kept_released_and_brought_back(folder: Path, tmp_path: Path) -> None:
    base, cache = open_base(folder), OutputCache(tmp_path)
    family, outputs = kept(base, cache)
    pictures = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    with torch.no_grad():  # as runs ask for it; with gradients, attention takes another kernel
        own = type(family).encode_prompts(family, ["a cat"]), type(family).encode_images(family, pictures)
    made = family.encode_prompts(["a cat"]), family.encode_images(pictures)
    outputs.release()
    slots = {*family.text_slots, "vae"}
    for name in slots:
        assert all(weight.is_meta for weight in family.pipeline.components[name].parameters())
    again = family.encode_prompts(["a cat"]), family.encode_images(pictures)
    assert (outputs.hits, outputs.made) == (2, 2)
    for first in (made, again):
        assert torch.equal(first[1], own[1])
        assert first[0].keys() == own[0].keys()
        assert all(torch.equal(first[0][name], value) for name, value in own[0].items())
    other = family.encode_prompts(["a dog"])  # which nobody had asked for: the models come back for it
    assert outputs.made == 3
    assert not torch.equal(other["states"], own[0]["states"]) if "states" in other else True
    assert all(weight.is_meta for weight in family.pipeline.components["vae"].parameters())


RECORDED = {**BUILDERS, **{name: make for name, make in SEEING.items() if name != "Qwen-Image-Edit"}}
"""Families by recording, and those that see a second picture; the processor of one does not come back from a folder."""
QUICK = ("Z-Image", "Flux.1 Kontext")
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RECORDED]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' scheduler of SANA
@pytest.mark.parametrize("name", CASES)
def test_a_family_predicts_the_same_once_its_encoders_are_gone(name: str, tmp_path: Path) -> None:
    RECORDED[name]().save_pretrained(tmp_path / "base")
    base, found = open_base(tmp_path / "base"), []
    for gone in (False, True):
        family, outputs = kept(base, OutputCache(tmp_path / f"outputs-{gone}"))
        shape = shape_of(name, family) if name in BUILDERS else family.latent_shape(32, 32)
        family.encode_prompts(["a cat"])
        family.prepare()
        if gone:
            outputs.release()
        told = family.join([family.encode_prompts(["a cat"])] * 2)
        if family.companion is not None:
            pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
            beside = pixels.flip(-1) if family.companion == "conditions" else (pixels[:, :1] > 0).float()
            told = {**told, **family.join([family.see(pixels, beside, "a cat")] * 2)}
        noised = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found.append(family.predict(family.denoiser, noised, torch.tensor([700.0, 300.0]), told))
    assert torch.equal(*found)


AUTOENCODED = ("Flux.2 klein", "LTX", "Qwen-Image", "Wan 2.1", "SANA", "Z-Image")
"""A family for each class of autoencoders."""


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' scheduler of SANA
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "Flux.2 klein" else pytest.mark.slow) for name in AUTOENCODED]
)
def test_latents_are_the_same_once_the_autoencoder_is_gone_and_it_comes_back_for_others(
    name: str, tmp_path: Path
) -> None:
    """What normalizes latents may be among its weights."""
    from svdiff_train.sampling.pipelines import load_pipeline

    BUILDERS[name]().save_pretrained(tmp_path / "base")
    base = open_base(tmp_path / "base")
    family, outputs = kept(base, OutputCache(tmp_path / "outputs"))
    frames = (1 + family.frame_unit,) if name in VIDEOS else ()
    shape = (1, 3, *frames, 2 * family.unit, 2 * family.unit)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    own: Any = family_of(load_pipeline(base))
    found = []
    for each in (own, family):
        with torch.no_grad():
            moments = [each.encode_images(pixels)]
        if each is family:
            outputs.release()
            moments.append(each.encode_images(-pixels))  # which nobody had asked for
        else:
            moments.append(each.encode_images(-pixels))
        found.append([each.sample_latents(one, torch.zeros_like(one[:, 0])) for one in moments])
    assert outputs.made == 2
    assert all(weight.is_meta for weight in family.pipeline.vae.parameters())
    for one, other in zip(*found, strict=True):  # weights elsewhere in memory may round otherwise
        assert float((one - other).abs().max()) <= 2e-5 * float(one.abs().max())


def test_outputs_of_another_encoder_are_not_taken(tmp_path: Path) -> None:
    """Whatever of it differs: one weight in its last bit, a setting, a word of its tokenizer."""
    pipeline = PIPELINES["sd2"]()
    pipeline.save_pretrained(tmp_path / "base")
    base, slots = open_base(tmp_path / "base"), ("text_encoder", "tokenizer")
    before = [models_digest(pipeline, slots, base.path)]
    name = next(name for name, _ in pipeline.text_encoder.named_parameters() if name.endswith("final_layer_norm.bias"))
    weight = pipeline.text_encoder.get_parameter(name)
    with torch.no_grad():
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    before.append(models_digest(pipeline, slots, base.path))
    pipeline.text_encoder.config.hidden_act = "relu"
    before.append(models_digest(pipeline, slots, base.path))
    (tmp_path / "base/tokenizer/tokenizer_config.json").write_text("{}")
    before.append(models_digest(pipeline, slots, base.path))
    assert len(set(before)) == 4


def test_an_encoder_that_moved_elsewhere_is_the_same(tmp_path: Path) -> None:
    cache, found = OutputCache(tmp_path / "cache"), []
    for name in ("here", "there"):
        PIPELINES["sd2"]().save_pretrained(tmp_path / name)
        family, outputs = kept(open_base(tmp_path / name), cache)
        found.append(family.encode_prompts(["a cat"]))
        assert (outputs.hits, outputs.made) == ((0, 1) if name == "here" else (1, 0))
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_a_trained_text_encoder_has_no_outputs_to_keep() -> None:
    config = replace(CONFIG, selectors=("text",), pre_compute_text_embeddings=True, class_prompt=None)
    with pytest.raises(TrainError, match=r"text_encoder is trained.*leave out pre_compute_text_embeddings"):
        train(open_tiny(), PICTURES, config)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"cache_latents": True, "crop": "random"}, "every random cut is another"),
        ({"cache_latents": True, "concepts": True}, "cache_latents is for samples that come again"),
        ({"pre_compute_text_embeddings": True, "concepts": True}, "pre_compute_text_embeddings is for samples"),
        ({"quantization": "nf4", "method": "full"}, "quantization is for spectral shifts"),
        ({"quantization": "nf3"}, "quantization 'nf3' is unknown"),
    ],
)
def test_settings_of_memory_without_meaning_are_refused(fields: dict[str, Any], why: str) -> None:
    concepts = tuple(Concept(PICTURES, f"a photo of a V{n} cat", "a photo of a cat") for n in (1, 2))
    fields = {**fields, **({"concepts": concepts} if "concepts" in fields else {"prompt": "a cat"})}
    with pytest.raises(InputError, match=why):
        TrainConfig(**fields)


@pytest.mark.parametrize("several", [False, True])
def test_all_that_is_drawn_was_encoded_beforehand(several: bool, tmp_path: Path) -> None:
    """Of pictures in buckets of several shapes, mirrored or not, with captions, of concepts and their classes."""
    for name, shapes in (("a", [(64, 64), (96, 48), (50, 90)]), ("b", [(64, 30)])):
        (tmp_path / name).mkdir()
        for number, shape in enumerate(shapes):
            Image.new("RGB", shape, (40 * number, 0, 0)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "a/1.txt").write_text("a V1 cat on a wall")
    concepts = tuple(
        Concept(tmp_path / name, f"a photo of a V{n} {word}", f"a photo of a {word}")
        for n, (name, word) in enumerate((("a", "cat"), ("b", "dog")), 1)
    )
    what = (
        {"concepts": concepts, "mix_probability": 0.0} if several else {"prompt": "a V1 cat", "class_prompt": "a cat"}
    )
    config, base = TrainConfig(buckets=True, flip=True, **what, **BOTH), open_tiny()  # type: ignore[arg-type]
    images = None if several else tmp_path / "a"
    opened = prepare_run(base, images, config, torch.device("cpu"), skip_bad=False)
    classes = {
        prompt: ClassPictures([Image.new("RGB", (64, 64), (0, n, 0)) for n in range(2)], prompt)
        for concept in opened.concepts
        if (prompt := concept.class_prompt)
    }
    batches = opened.batches(classes)
    outputs = keep_outputs(opened.family, base, config, batches, OutputCache(tmp_path / "cache"))
    assert outputs is not None
    made = outputs.made
    for step in range(40):
        opened.family.encode_prompts([batches.batch(step, [0, 1]).prompts[0]])
    assert outputs.made == made
