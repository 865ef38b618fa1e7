"""What only a card can show: captures and replays, real failures of them, and figures that are the processor's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.live import CASES, delta_of, run, tiny
from support.models import base_delta, random_delta
from support.pipelines import PIPELINES, WHOLE
from torch import Tensor

from svdiff_delta import attach, build_basis, open_base
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.cache_entry import read_entry
from svdiff_train.graphs.cuda_capture import CudaCapture
from svdiff_train.graphs.graphed_model import GraphedModel
from svdiff_train.graphs.static_work import WARM
from svdiff_train.sampling.edit import EditConfig, edit
from svdiff_train.sampling.graphed_denoiser import GraphedDenoiser
from svdiff_train.sampling.morph import morph
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import Sampling, generate
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training import loop
from svdiff_train.training.callbacks import Watch
from svdiff_train.training.graphed_step import GraphedStep
from svdiff_train.training.loop import train
from svdiff_train.training.outcome import Outcome
from svdiff_train.training.step import Stepper

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.*deterministic")]

CONFIG = TrainConfig(prompt="a photo of a sks cat", steps=WARM + 5, learning_rate=1e-2)


@pytest.fixture(autouse=True)
def repeatable(card: torch.device) -> Iterator[None]:
    """Let the same operations give the same bits (cuBLAS is told so where the tests are started)."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


def trained(config: TrainConfig, **options: Any) -> tuple[Outcome, list[str]]:
    said: list[str] = []
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        outcome = train(open_tiny(), pictures_path("black_cat"), config, watch=Watch(say=said.append), **options)
    return outcome, [line for line in said if "graph" in line]


def same(found: Outcome, expected: Outcome) -> None:
    for name in expected.delta:
        assert found.delta[name].tobytes() == expected.delta[name].tobytes(), name


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[GraphedStep]:
    """What runs do their steps with."""
    found: list[GraphedStep] = []

    def step_of(stepper: Stepper, say: Callable[[str], None] | None, *, graphs: bool) -> Callable[[int], Tensor]:
        if not graphs:
            return stepper.step
        found.append(GraphedStep(stepper, say=say))
        return found[-1].step

    monkeypatch.setattr(loop, "step_of", step_of)
    return found


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_steps_as_graphs_are_the_plain_steps(precision: str, made: list[GraphedStep]) -> None:
    config = replace(CONFIG, mixed_precision=precision)
    found, said = trained(config)
    assert said == []
    assert [work.captured for work in made[0]._works.values()] == [True]
    same(found, trained(config, cuda_graphs=False)[0])


@contextmanager
def reading_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a step that is captured read its loss, which is not allowed then."""
    finish = Stepper.finish

    def reads(self: Stepper, loss: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            float(loss)
        return finish(self, loss)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "finish", reads)
        yield


def test_a_capture_that_fails_half_way_goes_on_from_the_same_state(monkeypatch: pytest.MonkeyPatch) -> None:
    with reading_back(monkeypatch):
        found, said = trained(CONFIG)
    assert len(said) == 1
    assert said[0].startswith("steps without CUDA graphs: capturing one failed (")
    same(found, trained(CONFIG, cuda_graphs=False)[0])


@pytest.mark.parametrize("name", ["UNet", "Flux"])
def test_a_captured_forward_shows_swaps_and_scales(name: str, card: torch.device) -> None:
    dog, cat = delta_of(name, seed=1), delta_of(name, seed=2)
    model = tiny(name).to(card)
    given = {key: each.to(card) if isinstance(each, Tensor) else each for key, each in CASES[name].inputs(2).items()}
    with torch.no_grad(), attach(model, dog) as handle:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            run(model, name, given)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run(model, name, given)
        for change in (lambda: handle.swap(cat), lambda: handle.set_scale(0.5), lambda: handle.swap(dog)):
            change()
            graph.replay()
            torch.testing.assert_close(out, run(model, name, given), rtol=1e-5, atol=1e-6)


def captured(graphs: GraphedDenoiser) -> list[bool]:
    return [work.captured for model in graphs.models for work in model._works.values()]


def near(found: Any, expected: Any) -> None:
    """Compare pictures: a graph's kernels may be others, and their last bits."""
    apart = np.asarray(found, dtype=int) - np.asarray(expected, dtype=int)
    assert abs(apart).max() <= 1  # of 255


@pytest.mark.parametrize("family", PIPELINES)
def test_every_family_paints_by_one_graph_what_it_paints_without(family: str, card: torch.device) -> None:
    pipeline = PIPELINES[family]().to(card)
    sampling, jobs = Sampling(steps=WARM + 3, guidance=4.0, height=32, width=32), [("a cat", 0)]
    said: list[str] = []
    graphs = GraphedDenoiser(pipeline, say=said.append)
    (expected,) = generate(pipeline, jobs, sampling)
    for _ in range(2):
        (found,) = generate(pipeline, jobs, sampling, graphs=graphs)
        near(found, expected)
    assert said == []
    assert captured(graphs) == [True]


def test_pictures_are_edited_and_morphed_by_graphs(card: torch.device) -> None:
    pipeline, base, said = load_pipeline(open_tiny(), device=card), open_tiny(), list[str]()
    graphs = GraphedDenoiser(pipeline, say=said.append)
    image = Image.open(sorted(pictures_path("black_cat").glob("*.png"))[0])
    config = EditConfig(steps=WARM + 2, guidance=3.0)
    dog, cat = (random_delta(base_delta(base, "mid"), seed=seed) for seed in (1, 2))

    def painted(graphs: GraphedDenoiser | None) -> list[Any]:
        found = edit(pipeline, image, ["a cat"], config, graphs=graphs)
        frames = morph(pipeline, base, dog, cat, "a cat", count=3, sampling=Sampling(steps=WARM + 2), graphs=graphs)
        return [found.reconstruction, found.pictures[0][0], *(frame.image for frame in frames)]

    for found, expected in zip(painted(graphs), painted(None), strict=True):
        near(found, expected)
    assert said == []
    assert captured(graphs) == [True]  # of the morph, whose δ are on other layers: the rest is let go of


def test_a_graph_may_follow_one_that_is_gone(card: torch.device) -> None:
    """Torch gives a pool of memory up with its last graph."""
    model, x = torch.nn.Linear(8, 8).to(card), torch.ones(2, 8, device=card)
    said: list[str] = []
    graphs = GraphedModel(model, card, CudaCapture(card), said.append)
    with torch.no_grad():
        expected = model(x)
        for _ in range(3):
            with graphs.running():
                for _ in range(WARM + 2):
                    torch.testing.assert_close(model(x), expected)
            graphs.forget()
    assert said == []


@pytest.mark.parametrize("family", WHOLE)
def test_every_family_is_trained_by_one_graph(
    family: str, card: torch.device, tmp_path: Path, made: list[GraphedStep]
) -> None:
    WHOLE[family]().save_pretrained(tmp_path)
    said: list[str] = []
    config = replace(CONFIG, resolution=16)
    train(open_base(tmp_path), pictures_path("black_cat"), config, watch=Watch(say=said.append))
    assert not [line for line in said if "graph" in line]
    assert [work.captured for work in made[0]._works.values()] == [True]


def test_bases_are_the_processors(card: torch.device, tmp_path: Path) -> None:
    base = open_tiny()
    caches = {device: BasisCache(tmp_path / device, device=device) for device in ("cpu", "cuda")}
    found = {device: build_basis(base, cache=cache) for device, cache in caches.items()}
    assert found["cpu"] == found["cuda"]
    keys = {each.fingerprint for each in found["cpu"].values() if each.kind == "spectral"}
    for key in keys:
        here, there = (read_entry(cache.path(key), key) for cache in caches.values())
        assert float((here.sigma - there.sigma).abs().max() / here.sigma[0]) < 1e-12


def test_a_fused_delta_changes_on_the_card_as_on_the_processor(card: torch.device) -> None:
    delta, weights = delta_of("UNet", seed=1), {}
    for device in ("cpu", "cuda"):
        model = tiny("UNet").to(device)
        with attach(model, delta, mode="fused") as handle:
            handle.set_scale(0.5)
            weights[device] = {key: each.detach().cpu().numpy().copy() for key, each in model.state_dict().items()}
    for key, expected in weights["cpu"].items():
        np.testing.assert_allclose(weights["cuda"][key], expected, rtol=1e-5, atol=1e-6)
