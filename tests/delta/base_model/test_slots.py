"""A model on its own takes the slot of the pipelines that use its class, and fits them."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from support.models import base_delta
from support.zoo.registry import DENOISERS
from support.zoo.trial import class_of
from torch import nn

from svdiff_delta import attach, bake, convert, select
from svdiff_delta.base_model.base import open_base
from svdiff_delta.base_model.slots import slot_of
from svdiff_delta.format.delta import Delta

PARTS = {
    "AceStepAudioTokenDetokenizer",
    "AceStepAudioTokenizer",
    "AceStepConditionEncoder",
    "AudioLDM2ProjectionModel",
    "CLIPImageProjection",
    "Cosmos3AVAEAudioTokenizer",
    "Ideogram4PromptEnhancerHead",
    "Kandinsky6SRLatentUpscalerBank",
    "LTX2VideoDiffusionDecoderModel",
    "MMAudioVocoder",
    "MotionAdapter",
    "MultiAdapter",
    "ReduxImageEncoder",
    "StableAudio3DurationEmbedder",
    "StableAudioProjectionModel",
    "T2IAdapter",
    "UniDiffuserTextDecoder",
    "ControlNetXSAdapter",
}
"""Small parts of one pipeline or another, called `model` on their own."""


NONE = {"MiniMaxMusic3RVQDepthDecoder", "T5FilmDecoder", "TransformerTemporalModel"}
"""Denoisers that no pipeline says it takes, or that are a part of others."""


def taken() -> dict[str, Counter[str]]:
    """Return how many pipelines take a class of diffusers in which slot, by class."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name in (name for name in dir(diffusers) if name.endswith("Pipeline")):
        for parameter in inspect.signature(getattr(diffusers, name).__init__).parameters.values():
            for word in {*re.findall(r"\w+", str(parameter.annotation))}:
                cls = getattr(diffusers, word, None)
                if inspect.isclass(cls) and issubclass(cls, diffusers.ModelMixin):
                    found[word][parameter.name] += 1
    return found


def test_the_slot_of_a_class_is_the_one_that_most_pipelines_take_it_in() -> None:
    pipelines = taken()
    wrong = {
        name: (slot_of(name, "diffusers"), counts)
        for name, counts in pipelines.items()
        if name not in PARTS and counts[slot_of(name, "diffusers")] < max(counts.values())
    }
    assert wrong == {}
    assert {name for name in PARTS if slot_of(name, "diffusers") != "model"} == set()
    assert len(pipelines) > 100


def test_every_denoiser_has_a_slot() -> None:
    names = {class_of(name).__name__ for name in DENOISERS}
    assert {slot_of(name, "diffusers") for name in names} <= {"unet", "transformer", "decoder", "prior", "model"}
    assert {name for name in names if slot_of(name, "diffusers") == "model"} == NONE


def test_a_class_that_nobody_would_write_has_no_slot() -> None:
    assert [slot_of("UNet".ljust(length, "x"), "diffusers") for length in (255, 256)] == ["unet", "model"]


def test_language_models_are_called_model_whatever_their_name() -> None:
    assert slot_of("SwitchTransformersForConditionalGeneration", "transformers") == "model"
    assert slot_of("LlamaForCausalLM", "transformers") == "model"
    assert slot_of("T5EncoderModel", "transformers") == "text_encoder_3"


CONFIGS = {
    "QwenImageTransformer2DModel": DENOISERS["QwenImageTransformer2DModel"].config,
    "WanTransformer3DModel": DENOISERS["WanTransformer3DModel"].config,
    "AutoencoderKLWan": {
        "base_dim": 3,
        "z_dim": 4,
        "dim_mult": [1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [True],
    },
}


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, nn.Module, str]:
    """A model by itself, and within a pipeline."""
    torch.manual_seed(0)
    model: nn.Module = getattr(diffusers, request.param)(**CONFIGS[request.param])
    root, slot = tmp_path_factory.mktemp("slots"), slot_of(request.param, "diffusers")
    model.save_pretrained(root / "alone")
    shutil.copytree(root / "alone", root / "whole" / slot)
    index = {"_class_name": "DiffusionPipeline", slot: ["diffusers", request.param]}
    (root / "whole" / "model_index.json").write_text(json.dumps(index))
    return root / "alone", root / "whole", model, slot


def test_a_delta_of_a_lone_folder_fits_the_pipeline_that_holds_the_model(
    case: tuple[Path, Path, nn.Module, str], tmp_path: Path
) -> None:
    alone, whole, model, slot = case
    delta = base_delta(open_base(alone))
    assert {name.partition(".")[0] for name in delta} == {slot}
    assert len(select(delta, slot)) == len(delta)
    bake(open_base(whole), [(delta, 1.0)], tmp_path / "baked")
    pipeline = type("Pipeline", (), {"components": {slot: model, "other": nn.Linear(2, 2)}})()
    with attach(pipeline, delta, base=open_base(alone)):
        pass


def as_before(delta: Delta) -> Delta:
    """Return a delta as versions before called the parameters of a transformer on its own."""
    names = {name: f"model.{name.partition('.')[2]}" for name in delta}
    about = delta.metadata
    (class_name,) = about.base.components.values()
    parameters = {names[name]: parameter for name, parameter in about.parameters.items()}
    base = replace(about.base, components={"model": class_name})
    return Delta({names[name]: delta[name] for name in delta}, replace(about, base=base, parameters=parameters))


def test_a_delta_that_calls_the_model_as_before_is_still_that_of_the_folder(
    case: tuple[Path, Path, nn.Module, str], tmp_path: Path
) -> None:
    alone, _, model, _ = case
    base = open_base(alone)
    delta, old = base_delta(base), as_before(base_delta(base))
    bake(base, [(delta, 1.0)], tmp_path / "new")
    bake(base, [(old, 1.0)], tmp_path / "old")
    one, other = (load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("new", "old"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    made = convert(old, to="full", base=base, output=tmp_path / "full.safetensors", allow_unmatched=True)
    assert len(made.layers) == len(delta)
    with attach(model, old, base=base):
        pass
    with attach(type(model).from_pretrained(alone), old):  # type: ignore[attr-defined]
        pass
