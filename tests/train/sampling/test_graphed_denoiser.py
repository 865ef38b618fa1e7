"""Pictures whose denoiser runs as graphs: the same pictures, few graphs, and as before where one cannot be.

No card is needed: what captures is a stand-in that does the work at every replay, or fails as a card would.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.commands import svdiff
from support.files import contents
from support.forked import forked
from support.graphs import REFUSED, Captures, FrozenCaptures
from support.models import base_delta, random_delta
from support.pipelines import PIPELINES
from support.refusals import EXHAUSTED
from torch import Tensor, nn

from svdiff_delta import Delta, attach, save
from svdiff_delta.runtime.forward_state import why_not_repeatable
from svdiff_train.evaluate.candidates import paint_candidates
from svdiff_train.families import FAMILIES
from svdiff_train.graphs import graphed_model, static_work
from svdiff_train.sampling.edit import EditConfig, edit
from svdiff_train.sampling.gallery import Plan
from svdiff_train.sampling.graphed_denoiser import GraphedDenoiser
from svdiff_train.sampling.morph import morph
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import Sampling, generate
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training import class_images
from svdiff_train.training.callbacks import Watch
from svdiff_train.training.loop import train
from svdiff_train.training.step import Stepper
from svdiff_train.training.validation import Validation

WARM = 2
"""Forwards before a capture, here."""

JOBS = [("a photo of a sks cat", 0)]
FEW = Sampling(steps=3)


@pytest.fixture(autouse=True)
def captured_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_work, "WARM", WARM)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline(open_tiny())


def same(found: list[Any], expected: list[Any]) -> None:
    assert [picture.tobytes() for picture in found] == [picture.tobytes() for picture in expected]


def graphs_of(pipeline: Any, captures: Captures) -> tuple[GraphedDenoiser, list[str]]:
    said: list[str] = []
    return GraphedDenoiser(pipeline, say=said.append, capture=captures), said


@pytest.mark.parametrize("card", [Captures, FrozenCaptures])
@pytest.mark.parametrize("family", ["sd1", *PIPELINES])
def test_every_family_paints_the_same_pictures_with_one_graph(family: str, card: Any, pipeline: Any) -> None:
    painter = pipeline if family == "sd1" else PIPELINES[family]()
    sampling = Sampling(steps=5, guidance=4.0, height=32, width=32)
    expected = generate(painter, JOBS, sampling)
    captures = card()
    graphs, said = graphs_of(painter, captures)
    same(generate(painter, JOBS, sampling, graphs=graphs), expected)
    same(generate(painter, JOBS, sampling, graphs=graphs), expected)
    assert said == []
    assert captures.warmed == WARM
    assert [graph.times for graph in captures.graphs] == [2 * 5 - WARM]
    same(generate(painter, JOBS, sampling), expected)  # the model is as it was


DOCUMENTED = {
    "SD 1": ["sd1"],
    "SD 2": ["sd2"],
    "SDXL": ["sdxl"],
    "SD 3": ["sd3"],
    "SD 3.5": ["sd3.5 without t5"],
    "Flux": ["flux", "flux without guidance"],
}
"""What stands in docs, and where it is tried here."""


UNTRIED = FAMILIES.keys() - {
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
}
"""Families by recording, which docs do not list: some read a value, or copy from the host, and run as they are."""


def test_every_family_that_docs_list_is_among_these() -> None:
    assert FAMILIES.keys() - UNTRIED == {type(make()).__name__ for make in PIPELINES.values()}
    page = " ".join((Path(__file__).parents[3] / "docs" / "bases.md").read_text("utf-8").split())
    (listed,) = re.findall(r"Captured are (.*?)\. Where a denoiser", page)
    assert set(re.split(r", | and ", listed)) == DOCUMENTED.keys()
    assert {case for cases in DOCUMENTED.values() for case in cases} == {"sd1", *PIPELINES}


@pytest.mark.slow
def test_no_denoiser_does_what_a_capture_forbids() -> None:
    """On a device that is not the CPU none reads a value, or copies from the host's memory."""
    done = forked("import runpy; runpy.run_module('support.fake_card', run_name='__main__')", warn=True)
    found = json.loads(done.out)
    assert found.pop("reads") == ["_to_copy", "DataDependentOutputException"]
    assert found == {name: [] for name in ("sd1", *PIPELINES)}


def deltas() -> list[Delta]:
    whole = base_delta(open_tiny(), "mid")
    return [random_delta(whole, seed=seed) for seed in (1, 2)]


@pytest.mark.parametrize("dtype", ["F32", pytest.param("BF16", marks=pytest.mark.slow)])
def test_other_deltas_and_scales_need_no_new_graph(dtype: str) -> None:
    (dog, cat), pipeline = deltas(), load_pipeline(open_tiny(), dtype=dtype)
    captures = FrozenCaptures()
    graphs, said = graphs_of(pipeline, captures)
    with attach(pipeline, dog, base=open_tiny()) as handle:
        for change in (lambda: None, lambda: handle.swap(cat), lambda: handle.set_scale(0.5), lambda: handle.swap(dog)):
            change()
            expected = generate(pipeline, JOBS, FEW)
            same(generate(pipeline, JOBS, FEW, graphs=graphs), expected)
    assert said == []
    assert [graph.times for graph in captures.graphs] == [4 * FEW.steps - WARM]


@pytest.mark.slow
def test_a_delta_that_is_off_or_on_other_layers_is_another_graph_and_one_that_is_gone_leaves_none(
    pipeline: Any,
) -> None:
    dog, _ = deltas()
    captures = FrozenCaptures()
    graphs, said = graphs_of(pipeline, captures)

    def painted() -> list[Any]:
        expected = generate(pipeline, JOBS, FEW)
        same(generate(pipeline, JOBS, FEW, graphs=graphs), expected)
        return expected

    plain = painted()
    with attach(pipeline, dog, base=open_tiny()) as handle:
        handle.disable()
        painted()
        handle.enable()
        shifted = painted()
        handle.disable()
        handle.swap(random_delta(base_delta(open_tiny(), "mid-ca"), seed=3))
        handle.enable()
        partly = painted()
        handle.swap(dog)
        same(painted(), shifted)
        with handle.per_sample(["default"]):
            painted()
    same(painted(), plain)
    assert len({each[0].tobytes() for each in (plain, shifted, partly)}) == 3
    assert len(captures.graphs) == 5
    assert said == ["painting without CUDA graphs: hooks look at its layers"]  # those that share out a batch


def test_weights_that_have_moved_or_were_cast_are_read_where_they_are_now() -> None:
    pipeline, captures = PIPELINES["sd2"](), FrozenCaptures()
    graphs, _ = graphs_of(pipeline, captures)
    for change in (lambda: None, lambda: pipeline.unet.double(), lambda: pipeline.unet.float()):
        change()
        pipeline.text_encoder.to(pipeline.unet.dtype)
        pipeline.vae.to(pipeline.unet.dtype)
        expected = generate(pipeline, JOBS, FEW)
        same(generate(pipeline, JOBS, FEW, graphs=graphs), expected)
    assert len(captures.graphs) == 3


def test_every_shape_has_a_graph_and_those_beyond_a_number_have_none(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphed_model, "MOST", 2)
    captures = Captures()
    graphs, said = graphs_of(pipeline, captures)
    jobs = [("a cat", seed) for seed in range(3)]
    for size in (2, 3):  # batches of 2 and 1, then of 3
        sampling = Sampling(steps=3, batch_size=size)
        same(generate(pipeline, jobs, sampling, graphs=graphs), generate(pipeline, jobs, sampling))
    assert len(captures.graphs) == 2
    assert said == [
        "painting without CUDA graphs: inputs have more than 2 shapes or values; those after the first 2 have none"
    ]


@pytest.mark.parametrize("after", [0, 30, 300, 10**9], ids=["at once", "early", "later", "at its end"])
def test_a_capture_that_fails_half_way_goes_on_painting_the_same(after: int, pipeline: Any) -> None:
    dog, _ = deltas()
    captures = Captures(breaks_at=after)
    graphs, said = graphs_of(pipeline, captures)
    with attach(pipeline, dog, base=open_tiny()):
        expected = generate(pipeline, JOBS, FEW)
        same(generate(pipeline, JOBS, FEW, graphs=graphs), expected)
        same(generate(pipeline, JOBS, FEW, graphs=graphs), expected)
    assert said == [f"painting without CUDA graphs: capturing one failed ({REFUSED.splitlines()[0]})"]
    assert captures.tried == 1


@pytest.mark.parametrize(
    "who", ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cuBLAS", "cuDNN", "driver"))]
)
def test_a_capture_without_enough_memory_goes_on_without_one(who: str, pipeline: Any) -> None:
    graphs, said = graphs_of(pipeline, Captures(fails_with=EXHAUSTED[who]))
    expected = generate(pipeline, JOBS, FEW)
    same(generate(pipeline, JOBS, FEW, graphs=graphs), expected)
    first = str(EXHAUSTED[who]()).splitlines()[0]
    assert said == [f"painting without CUDA graphs: capturing one failed ({first})"]


@contextmanager
def hooked(pipeline: Any) -> Iterator[None]:
    handle = pipeline.unet.mid_block.register_forward_hook(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def compiled(pipeline: Any) -> Iterator[None]:
    pipeline.unet._compiled_call_impl = pipeline.unet._call_impl
    try:
        yield
    finally:
        pipeline.unet._compiled_call_impl = None


@contextmanager
def offloaded(pipeline: Any) -> Iterator[None]:
    pipeline.unet.conv_in._hf_hook = object()
    try:
        yield
    finally:
        del pipeline.unet.conv_in._hf_hook


@contextmanager
def checked(pipeline: Any) -> Iterator[None]:
    with attach(pipeline, deltas()[0], base=open_tiny(), check=True):
        yield


REASONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a hook": (hooked, "hooks look at its layers"),
    "a check of layers": (checked, "hooks look at its layers"),
    "compiled": (compiled, "the model is compiled"),
    "offloaded": (offloaded, "the model is offloaded"),
}


@pytest.mark.parametrize("what", REASONS)
def test_a_model_that_does_more_than_compute_runs_as_it_is_and_that_is_said_once(what: str, pipeline: Any) -> None:
    captures, (made, reason) = Captures(), REASONS[what]
    graphs, said = graphs_of(pipeline, captures)
    with made(pipeline):
        assert why_not_repeatable(pipeline.unet) == reason
        for _ in range(2):
            with graphs.running():
                assert pipeline.unet._compiled_call_impl in (None, pipeline.unet._call_impl)
    assert why_not_repeatable(pipeline.unet) is None
    assert said == [f"painting without CUDA graphs: {reason}"]
    assert captures.warmed == captures.tried == 0


class Odd(nn.Module):
    """A denoiser that gives, or takes, something else."""

    def forward(self, x: Tensor, other: object = None) -> tuple[Tensor, None]:
        del other
        return x + 1, None


class OddPipeline:
    def __init__(self) -> None:
        self.unet, self.device = Odd(), torch.device("cpu")


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (None, "the denoiser gives something else than tensors of one dtype"),
        (object(), "the denoiser is given a object"),
    ],
)
def test_what_is_no_tensor_is_left_to_the_model(other: object, reason: str) -> None:
    pipeline, captures = OddPipeline(), Captures()
    graphs, said = graphs_of(pipeline, captures)
    with graphs.running(), torch.no_grad():
        for number in range(4):
            found = pipeline.unet(torch.full((2,), float(number)), other)
            assert (found[0].tolist(), found[1]) == ([number + 1.0] * 2, None)
    assert said == [f"painting without CUDA graphs: {reason}"]
    assert captures.tried == 0


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_forwards_with_gradients_or_inference_tensors_are_the_models_own(mode: Any, pipeline: Any) -> None:
    captures = Captures()
    graphs, _ = graphs_of(pipeline, captures)
    width, channels = (pipeline.unet.config[key] for key in ("cross_attention_dim", "in_channels"))
    with graphs.running(), mode():
        pipeline.unet(torch.zeros(1, channels, 8, 8), 1, torch.zeros(1, 4, width))
    assert captures.warmed == 0


def test_values_that_change_from_call_to_call_are_not_frozen(pipeline: Any) -> None:
    """A timestep as a number is part of the graph: of each number there is one."""
    captures = FrozenCaptures()
    graphs, _ = graphs_of(pipeline, captures)
    width, channels = (pipeline.unet.config[key] for key in ("cross_attention_dim", "in_channels"))
    given = torch.ones(1, channels, 8, 8), torch.ones(1, 4, width)
    with torch.no_grad():
        for step in (1, 500, 1, 500, 1, 500, 1, 500, True):
            expected = pipeline.unet(given[0], step, given[1]).sample
            with graphs.running():
                found = pipeline.unet(given[0], step, given[1])
            assert torch.equal(found.sample, expected)
    assert len(captures.graphs) == 2


def test_a_picture_that_was_returned_is_not_written_over(pipeline: Any) -> None:
    graphs, _ = graphs_of(pipeline, FrozenCaptures())
    width, channels = (pipeline.unet.config[key] for key in ("cross_attention_dim", "in_channels"))
    found = []
    with torch.no_grad(), graphs.running():
        for number in range(WARM + 3):
            noise = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(number))
            result = pipeline.unet(noise, torch.tensor(5), torch.zeros(1, 4, width)).sample
            found.append((result, result.clone()))
    assert all(torch.equal(result, copy) for result, copy in found)


@pytest.mark.slow
def test_a_sheet_with_a_row_for_each_delta_has_a_graph_for_the_base_and_one_for_all_deltas(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    captures = FrozenCaptures()
    dog, cat = deltas()
    plan = Plan({"dog": (dog, 1.0), "cat": (cat, 0.7)}, ["a cat"], [0], Sampling(steps=6), each=True)
    expected = plan.paint(pipeline, open_tiny(), cuda_graphs=False)
    made: list[GraphedDenoiser] = []

    def make(given: Any, say: Any) -> GraphedDenoiser:
        made.append(GraphedDenoiser(given, say=say, capture=captures))
        return made[-1]

    monkeypatch.setattr("svdiff_train.sampling.gallery.GraphedDenoiser", make)
    same(list(plan.paint(pipeline, open_tiny()).images), list(expected.images))
    assert len(made) == 1
    assert len(captures.graphs) == 2


@pytest.mark.slow
def test_validation_sees_what_was_learned_since_and_needs_one_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captures, painted = FrozenCaptures(), {}
    config = TrainConfig(
        prompt="a photo of a sks cat", selectors=("unet",), steps=3, learning_rate=3e-2, resolution=32, batch_size=1
    )
    validation = Validation(prompts=("a photo of a sks cat",), every=1, sampling=Sampling(steps=3))
    own = Validation._write

    def write(self: Validation, pictures: Any, step: int, *others: Any) -> None:
        painted.setdefault(which, []).append(pictures[0].tobytes())
        own(self, pictures, step, *others)

    def make(given: Any, say: Any) -> GraphedDenoiser:
        return GraphedDenoiser(given, say=say, capture=captures)

    monkeypatch.setattr(Validation, "_write", write)
    said: list[str] = []
    for which in ("plain", "graphed"):
        if which == "graphed":
            monkeypatch.setattr("svdiff_train.training.loop.GraphedDenoiser", make)
        train(open_tiny(), pictures_path("black_cat"), config, validation=validation, watch=Watch(say=said.append))
    assert painted["graphed"] == painted["plain"]
    assert len(set(painted["plain"])) == 3
    assert len(captures.graphs) == 1
    assert not [line for line in said if "graph" in line]


def test_a_pipeline_on_a_processor_has_no_graphs_and_nothing_is_said(pipeline: Any) -> None:
    said: list[str] = []
    graphs = GraphedDenoiser(pipeline, say=said.append)
    same(generate(pipeline, JOBS, FEW, graphs=graphs), generate(pipeline, JOBS, FEW))
    assert said == []


class TwoPipeline:
    """What paints the first part of the way with one model, and the rest with another."""

    def __init__(self) -> None:
        self.transformer, self.transformer_2 = nn.Linear(2, 2), nn.Linear(2, 2)
        self.unet, self.device = None, torch.device("cpu")


def test_both_denoisers_of_a_pipeline_run_as_graphs() -> None:
    pipeline, captures = TwoPipeline(), FrozenCaptures()
    graphs, said = graphs_of(pipeline, captures)
    with torch.no_grad():
        for number in range(WARM + 2):
            x = torch.full((1, 2), float(number))
            expected = pipeline.transformer(x), pipeline.transformer_2(x)
            with graphs.running():
                assert torch.equal(pipeline.transformer(x), expected[0])
                assert torch.equal(pipeline.transformer_2(x), expected[1])
    assert [graph.times for graph in captures.graphs] == [2, 2]
    assert said == []


def edited(pipeline: Any, graphs: GraphedDenoiser | None) -> list[Any]:
    image = Image.open(sorted(pictures_path("black_cat").glob("*.png"))[0])
    found = edit(pipeline, image, ["a cat", "a house"], EditConfig(steps=3, guidance=3.0), graphs=graphs)
    return [found.reconstruction, *(picture for row in found.pictures for picture in row)]


def morphed(pipeline: Any, graphs: GraphedDenoiser | None) -> list[Any]:
    dog, cat = deltas()
    sampling = Sampling(steps=2)
    return [
        frame.image
        for frame in morph(pipeline, open_tiny(), dog, cat, "a cat", count=3, sampling=sampling, graphs=graphs)
    ]


WAYS: dict[str, tuple[Callable[[Any, GraphedDenoiser | None], list[Any]], list[int]]] = {
    # Two inversions and one of the reconstruction; its way back; and two edits.
    "edit": (edited, [3 * 3 - WARM, 3 - WARM, 2 * 3 - WARM]),
    # Each end has one of the two, and what is between has both: all on the same layers.
    "morph": (morphed, [3 * 2 - WARM]),
}
"""What paints, and how often each of its graphs is replayed."""


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_paint_has_few_graphs_and_gives_the_same(way: str, pipeline: Any) -> None:
    paint, times = WAYS[way]
    captures = FrozenCaptures()
    graphs, said = graphs_of(pipeline, captures)
    same(paint(pipeline, graphs), paint(pipeline, None))
    assert [graph.times for graph in captures.graphs] == times
    assert said == []


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_paint_goes_on_where_a_capture_fails_half_way(way: str, pipeline: Any) -> None:
    paint, times = WAYS[way]
    captures = Captures(breaks_at=100)
    graphs, said = graphs_of(pipeline, captures)
    same(paint(pipeline, graphs), paint(pipeline, None))
    assert captures.tried == len(times)
    assert said == [f"painting without CUDA graphs: capturing one failed ({REFUSED.splitlines()[0]})"]


def makes(monkeypatch: pytest.MonkeyPatch, place: str, captures: Captures) -> list[GraphedDenoiser]:
    """Let what is made at a place capture so; return what is made."""
    made: list[GraphedDenoiser] = []

    def make(given: Any, say: Any) -> GraphedDenoiser:
        made.append(GraphedDenoiser(given, say=say, capture=captures))
        return made[-1]

    monkeypatch.setattr(f"svdiff_train.{place}.GraphedDenoiser", make)
    return made


@pytest.mark.slow
def test_candidates_have_a_graph_each_which_is_gone_before_they_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    captures, (dog, cat), said = FrozenCaptures(), deltas(), list[str]()
    given: dict[str, Delta | None] = {"base": None, "dog": dog, "cat": cat}

    def painted(**options: Any) -> list[Any]:
        found = []
        for candidate in paint_candidates(open_tiny(), given, JOBS, FEW, **options):
            found += candidate.images
            assert all(not model._works for graphs in made for model in graphs.models)
        return found

    made = makes(monkeypatch, "evaluate.candidates", captures)
    same(painted(say=said.append), painted(cuda_graphs=False))
    assert [graph.times for graph in captures.graphs] == [FEW.steps - WARM] * 3
    assert len(made) == 1
    assert said == []


def test_pictures_of_the_class_are_painted_by_graphs_that_are_gone_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_images, "SAMPLING", Sampling(steps=3, batch_size=2))
    captures, said = FrozenCaptures(), list[str]()
    config = TrainConfig(
        prompt="a photo of a sks cat",
        class_prompt="a photo of a cat",
        class_images=4,
        selectors=("mid-ca",),
        steps=1,
        resolution=32,
    )
    own = Stepper.step

    def step(self: Stepper, number: int) -> Tensor:
        assert all(not model._works for graphs in made for model in graphs.models)
        return own(self, number)

    monkeypatch.setattr(Stepper, "step", step)
    made = makes(monkeypatch, "training.loop", captures)
    for graphs, folder in ((True, tmp_path / "graphed"), (False, tmp_path / "plain")):
        train(
            open_tiny(),
            pictures_path("black_cat"),
            config,
            class_folder=folder,
            watch=Watch(say=said.append),
            cuda_graphs=graphs,
        )
    assert contents(tmp_path / "graphed") == contents(tmp_path / "plain")
    assert [graph.times for graph in captures.graphs] == [2 * 3 - WARM]
    assert not [line for line in said if "graph" in line]


@pytest.mark.parametrize(
    "command", ["generate", *(pytest.param(name, marks=pytest.mark.slow) for name in ("edit", "morph", "evaluate"))]
)
def test_the_commands_paint_by_graphs_and_leave_them_out_on_request(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a capture fails, one line says so."""
    picture = sorted(pictures_path("black_cat").glob("*.png"))[0]
    save(deltas()[0], tmp_path / "d.safetensors")
    arguments: dict[str, list[object]] = {
        "generate": ["tiny", tmp_path / "d.safetensors"],
        "edit": ["tiny", tmp_path / "d.safetensors", picture],
        "morph": ["tiny", *[tmp_path / "d.safetensors"] * 2, "--count", 2],
        "evaluate": ["tiny", "--images", picture.parent, "--seeds", 1],
    }
    place = {"evaluate": "evaluate.candidates", "generate": "sampling.gallery"}.get(
        command, "sampling.graphed_denoiser"
    )
    captures = Captures(breaks_at=0)
    made = makes(monkeypatch, place, captures)
    out = tmp_path / {"evaluate": "out.json"}.get(command, "out.png")
    given = [command, *arguments[command], "--prompt", "a cat", "--steps", 4, "-o", out, "--force"]
    found = []
    for more, line in (
        ([], [f"painting without CUDA graphs: capturing one failed ({REFUSED.splitlines()[0]})"]),
        (["--no-cuda-graphs"], []),
    ):
        done = svdiff(*map(str, [*given, *more]))
        assert done.code == 0, done.err
        assert [each for each in done.err.splitlines() if "graph" in each] == line
        found.append(out.read_bytes())
    assert found[0] == found[1]
    assert len(made) == 1
