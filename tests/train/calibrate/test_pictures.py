"""Calibration on a data set: noised pictures with their captions, for every family; and texts for a language model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import svdiff
from support.files import listing
from support.models import MINILM, live_zero
from support.pipelines import PIPELINES, small_sd2
from support.weights import normal
from torch import Tensor, nn

from svdiff_delta import convert, load, open_base
from svdiff_delta.errors import InputError, TrainError
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.svd.calibration import Factors, Moments, Probe
from svdiff_delta.svd.decomposition import matricize
from svdiff_train.batch import run_manifest
from svdiff_train.calibrate import calibration_from, calibration_on_pictures, find_pictures
from svdiff_train.calibrate.pictures import collect
from svdiff_train.calibrate.texts import collect as collect_texts
from svdiff_train.data import load_image, seeded_random
from svdiff_train.families import family_of
from svdiff_train.tiny import base_path, open_tiny, pictures_path

KEYS = ["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", "mid_block.resnets.0.conv1.weight"]
CAPTION = "a photo of a black cat"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two pictures, of which one has a caption."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("00.png", "01.png"):
        shutil.copy(pictures_path("black_cat") / name, folder)
    (folder / "00.txt").write_text(CAPTION)
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base's UNet with two layers changed at random."""
    path = tmp_path_factory.mktemp("tuned") / "unet.safetensors"
    weights = load_file(base_path() / "unet" / "diffusion_pytorch_model.safetensors")
    for seed, key in enumerate(KEYS):
        weights[key] = weights[key].float() + 0.02 * normal(*weights[key].shape, seed=seed)
    save_file(weights, path)
    return path


def probe(parameter: Parameter) -> tuple[Factors, Probe]:
    """Any three matrices in the place of U, V and ΔW: the sums are the same for all."""
    rows = parameter.shape[parameter.axis]
    columns = int(np.prod(parameter.shape)) // rows
    size = min(rows, columns)
    found = Factors(parameter, normal(size, columns, seed=1), normal(rows, size, seed=2), normal(rows, columns, seed=3))
    return found, Probe(0, lambda: found)


def probes_of(model: nn.Module, slot: str) -> dict[str, Probe]:
    zero = live_zero(model, slot=slot)
    return {name: probe(p)[1] for name, p in zero.metadata.parameters.items() if p.kind == "spectral"}


def assert_moments(found: Moments, factors: Factors, inputs: list[Tensor]) -> None:
    """Compare the sums with those over vectors (…, columns), in float64."""
    x = torch.cat([each.double().reshape(-1, each.shape[-1]) for each in inputs])
    change = x @ factors.change.double().T
    right = x @ factors.right.double().T
    # products are float32
    np.testing.assert_allclose(found.square, right.square().sum(0), rtol=1e-5)
    np.testing.assert_allclose(found.cross, ((change @ factors.left.double()) * right).sum(0), rtol=1e-4, atol=1e-2)
    assert found.change == pytest.approx(float(change.square().sum()), rel=1e-5)
    assert found.inputs == pytest.approx(float(x.square().sum()), rel=1e-5)


# --- What is measured ---


def test_the_denoiser_sees_each_picture_at_each_timestep_with_its_caption_and_with_none(pictures: Path) -> None:
    """Eq. 1's z_t written out with the pipeline's own parts, one prediction after the other."""
    pipeline = small_sd2()
    family, found = family_of(pipeline), find_pictures(pictures)
    zero = live_zero(pipeline.unet, slot="unet")
    (name,) = [
        name for name in zero if name.endswith("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q.weight")
    ]
    factors, measured = probe(zero.metadata.parameters[name])
    moments = collect(family, found, {name: measured}, steps=2, resolution=16)

    inputs: list[Tensor] = []
    layer = pipeline.unet.get_submodule(name.removeprefix("unet.").removesuffix(".weight"))
    layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    cumulative = pipeline.scheduler.alphas_cumprod
    with torch.no_grad():
        for index, prompts in enumerate([(CAPTION, ""), ("",)]):
            pixels = load_image(found.pictures[index].path, 16).pixels[None]
            posterior = pipeline.vae.encode(pixels).latent_dist
            for step in range(2):
                at = (0, step, index)
                shape = tuple(posterior.mean.shape[1:])
                latents = 0.5 * (posterior.mean + posterior.std * seeded_random.noise(shape, *at, "posterior"))
                time = torch.randint(1000, (), generator=seeded_random.generator(*at, "timestep"))
                a = cumulative[time]
                noised = a.sqrt() * latents + (1 - a).sqrt() * seeded_random.noise(shape, *at, "noise")
                for prompt in prompts:
                    tokens = pipeline.tokenizer([prompt], padding="max_length", return_tensors="pt").input_ids
                    pipeline.unet(noised, time, pipeline.text_encoder(tokens).last_hidden_state)
    assert len(inputs) == 6
    assert_moments(moments[name], factors, inputs)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_family_meets_its_denoiser_its_text_encoders_and_the_encoder_of_pictures(
    name: str, pictures: Path
) -> None:
    pipeline = PIPELINES[name]()
    family, found = family_of(pipeline), find_pictures(pictures)
    probes: dict[str, Probe] = {}
    for slot in (family.slot, *family.text_slots, "vae"):
        probes |= probes_of(getattr(pipeline, slot), slot)
    moments = collect(family, found, probes, steps=1, resolution=16)
    assert all(np.isfinite([*each.cross, *each.square, each.change, each.inputs]).all() for each in moments.values())
    measurable = {key for key in probes if key.startswith(family.slot)}
    assert measurable - moments.keys() == set()
    met = {key.partition(".")[0] for key in moments}
    assert met == {family.slot, *family.text_slots, "vae"}
    assert any(key.startswith("vae.encoder.") for key in moments)
    assert not any(key.startswith("vae.decoder.") for key in moments)


def test_sdxl_is_told_the_sizes_of_the_pictures(pictures: Path) -> None:
    pipeline, told = PIPELINES["sdxl"](), list[Any]()
    pipeline.unet.register_forward_pre_hook(
        lambda _, args, given: told.append(given["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    collect(family_of(pipeline), find_pictures(pictures), probes_of(pipeline.unet, "unet"), steps=1, resolution=16)
    assert torch.cat(told).tolist() == 3 * [[64, 64, 0, 0, 16, 16]]


# --- The conversion ---


def said(delta: Any) -> Mapping[str, Any]:
    lineage = delta.metadata.lineage
    assert lineage is not None
    found: Mapping[str, Any] = lineage.record.arguments["calibration"]
    return found


def test_more_of_the_outputs_is_captured_and_the_record_says_of_what(tuned: Path, pictures: Path) -> None:
    base = open_tiny()
    one, two = (
        convert(tuned, from_="full", base=base, calibration=calibration_from(pictures, base, steps=2)) for _ in range(2)
    )
    assert sorted(one.outputs) == sorted(f"unet.{key}" for key in KEYS)
    assert all(output.shares[1] > output.shares[0] for output in one.outputs.values())
    assert all((one.delta[name] == two.delta[name]).all() for name in one.delta)
    record = said(one.delta)
    assert {key: record[key] for key in ("pictures", "captions", "steps", "layers")} == {
        "pictures": 2, "captions": 1, "steps": 2, "layers": 2,
    }  # fmt: skip
    assert one.remarks == ("calibration: 1 of 2 pictures have no caption; such are seen with the empty prompt only",)


def test_the_digest_is_of_files_and_captions_in_order(pictures: Path) -> None:
    from hashlib import sha256

    parts = [(pictures / "00.png").read_bytes(), CAPTION.encode(), (pictures / "01.png").read_bytes(), b""]
    expected = sha256(b"".join(sha256(part).digest() for part in parts)).hexdigest()
    assert calibration_from(pictures, open_tiny()).facts["sha256"] == expected


def test_the_command_takes_a_folder_and_remarks_on_what_it_lacks(tuned: Path, pictures: Path) -> None:
    (pictures / "00.txt").unlink()
    (pictures / "notes.md").touch()
    output = pictures.with_name("out.safetensors")
    command = ["convert", tuned, "--from", "full", "--base", "tiny", "--calibrate", pictures, "--calibrate-steps", "1"]
    outcome = svdiff(*command, "-o", output)
    assert outcome.code == 0, outcome.err
    assert "% is captured; uncalibrated it would be" in outcome.out
    assert "no picture has a caption; such are seen with the empty prompt only" in outcome.err
    assert "calibration: not read: notes.md" in outcome.err
    assert said(load(output))["captions"] == 0


def test_a_row_of_a_manifest_is_done_anew_with_another_caption(tuned: Path, pictures: Path) -> None:
    row = {"input": str(tuned), "output": "out", "base": "tiny", "from": "full", "calibrate": "pictures"}
    manifest = pictures.with_name("all.jsonl")
    manifest.write_text(json.dumps({**row, "calibrate_steps": 1}) + "\n")
    assert [result.status for result in run_manifest(manifest)] == ["converted"]
    assert [result.status for result in run_manifest(manifest)] == ["passed over"]
    (pictures / "00.txt").write_text("a black cat")
    assert [result.status for result in run_manifest(manifest)] == ["converted"]


# --- What cannot work ---


def test_a_folder_without_pictures_is_refused_before_anything_runs(tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = svdiff(
        "convert", tuned, "--from", "full", "--base", "tiny", "--calibrate", tmp_path / "empty", "-o", tmp_path / "x"
    )
    assert (run.code, listing(tmp_path)) == (1, ["empty"])
    assert "empty: holds no pictures (0 other files, 0 sub-folders): put a few there" in run.err


def test_a_picture_that_cannot_be_read_is_named(pictures: Path) -> None:
    (pictures / "01.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"01\.png: could not be read as a picture .*: remove or replace it$"):
        calibration_from(pictures, open_tiny())


def test_there_must_be_a_step(pictures: Path) -> None:
    with pytest.raises(InputError, match="at least 1 picture and 1 step"):
        calibration_on_pictures(lambda: None, find_pictures(pictures), steps=0)


def test_a_pipeline_that_no_family_knows_is_refused(pictures: Path) -> None:
    calibration = calibration_on_pictures(object, find_pictures(pictures))
    with pytest.raises(TrainError, match=r"no model family knows this pipeline .*: known are StableDiffusionPipeline"):
        calibration.collect({})


# --- Texts ---

LAYER = "model.encoder.layer.2.attention.self.query.weight"


def test_a_language_model_reads_each_line(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    texts = ["the lamp does not light up", "a red apple " * 400]
    model: Any = AutoModel.from_pretrained(MINILM, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(MINILM)
    factors, measured = probe(live_zero(model).metadata.parameters[LAYER])
    moments = collect_texts(model, tokenizer, texts, {LAYER: measured})

    inputs: list[Tensor] = []
    model.encoder.layer[2].attention.self.query.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    longest = model.config.max_position_embeddings
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text).input_ids
            cut = ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]]  # the last one ends a text
            model(input_ids=torch.tensor([cut]))
    assert [each.shape[1] for each in inputs] == [8, longest]
    assert_moments(moments[LAYER], factors, inputs)


def test_a_language_model_is_calibrated_on_the_lines_of_a_file(tmp_path: Path) -> None:
    base = open_base(MINILM)
    weight = matricize(base.read(LAYER), 0).float()
    changed = {LAYER.removeprefix("model."): (weight + 0.02 * normal(*weight.shape)).contiguous()}
    save_file(changed, tmp_path / "tuned.safetensors")
    (tmp_path / "texts.txt").write_text("the lamp does not light up\nmy parcel is late\n")
    found = convert(
        tmp_path / "tuned.safetensors", from_="full", base=base,
        calibration=calibration_from(tmp_path / "texts.txt", base), allow_unmatched=True,
    )  # fmt: skip
    (output,) = found.outputs.values()
    assert output.shares[1] > output.shares[0]
    record = said(found.delta)
    assert {key: record[key] for key in ("texts", "layers")} == {"texts": 2, "layers": 1}
    assert "steps" not in record
