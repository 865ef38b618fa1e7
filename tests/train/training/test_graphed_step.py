"""Steps as graphs: in the same order and with the same result, from buffers that stay, and as before where they fail.

No card is needed: what captures is a stand-in that does the work at every replay, or fails as a card would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.graphs import READS, REFUSED, Captures, FrozenCaptures
from support.pipelines import WHOLE
from support.refusals import EXHAUSTED, FAILED
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from svdiff_delta import open_base
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import TrainError
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.data.batches import Batch, Batches, Texts
from svdiff_train.graphs import static_work
from svdiff_train.graphs.cuda_capture import Graph
from svdiff_train.graphs.static_work import StaticWork
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training import graphed_step, loop, setup
from svdiff_train.training.callbacks import Watch
from svdiff_train.training.graphed_step import GraphedStep
from svdiff_train.training.keeping import Keeping
from svdiff_train.training.loop import train
from svdiff_train.training.outcome import Outcome
from svdiff_train.training.step import Stepper

PICTURES = pictures_path("black_cat")
CONFIG = TrainConfig(
    prompt="a photo of a sks cat", selectors=("unet-ca-kv",), steps=4, learning_rate=1e-2, resolution=32
)

WARM = 2
"""Steps before a capture, here."""

FROM_HOST = frozenset({"lift_fresh", "lift_fresh_copy", "scalar_tensor"})
"""Operations that make a tensor of numbers of the host: in a graph they would stay what they were."""


class Operations(TorchDispatchMode):
    """List operations, with the shapes and dtypes of what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.given: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        self.given.append([(each.shape, each.dtype) for each in tree_leaves(found) if isinstance(each, Tensor)])
        return found


@pytest.fixture(autouse=True)
def captured_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_work, "WARM", WARM)


@pytest.fixture(autouse=True)
def painted_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of the class need not be painted to be learned."""
    paths = sorted(pictures_path("police_car").glob("*.png"))[:2]
    monkeypatch.setattr(setup, "class_pictures", lambda *_, **__: [Image.open(path).convert("RGB") for path in paths])


def run_of(
    config: TrainConfig,
    base: Base | None = None,
    cache: BasisCache | None = None,
    keeping: Keeping | None = None,
) -> tuple[Outcome, list[float]]:
    losses: list[float] = []
    watch = Watch(step=lambda report: losses.append(report.loss), every=1)
    return train(base or open_tiny(), PICTURES, config, watch=watch, cache=cache, keeping=keeping), losses


plain = cache(run_of)


def graphed(
    monkeypatch: pytest.MonkeyPatch,
    config: TrainConfig,
    captures: Captures | None,
    around: Callable[[GraphedStep, int], Tensor] = GraphedStep.step,
    **given: Any,
) -> tuple[Outcome, list[float], list[str]]:
    """Train with graphs; return the outcome, the losses, and what was said of graphs."""
    said: list[str] = []

    def step_of(stepper: Stepper, say: object, *, graphs: bool) -> Callable[[int], Tensor]:
        assert graphs
        steps = GraphedStep(stepper, say=said.append, capture=captures)
        if isinstance(captures, FrozenCaptures):
            captures.held = steps._held
        return lambda number: around(steps, number)

    monkeypatch.setattr(loop, "step_of", step_of)
    outcome, losses = run_of(config, **given)
    return outcome, losses, said


def same(found: Outcome, expected: Outcome) -> None:
    assert found.delta.keys() == expected.delta.keys()
    for name in expected.delta:
        assert found.delta[name].tobytes() == expected.delta[name].tobytes(), name


SETTINGS: dict[str, dict[str, Any]] = {
    "some layers": {},
    "all layers, batch 2, of low rank": {"selectors": None, "batch_size": 2, "train_rank": 4},
    "with pictures of the class, a warm-up of rates": {
        "class_prompt": "a photo of a cat",
        "class_images": 2,
        "warmup": 3,
    },
    "accumulated": {"accumulate": 2, "class_prompt": "a photo of a cat", "class_images": 2},
    "bf16": {"mixed_precision": "bf16"},
    "fp16": {"mixed_precision": "fp16"},
}


LATER = {*SETTINGS} - {"some layers", "fp16"}  # what is slow


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LATER else ()) for name in SETTINGS]
)
def test_steps_as_graphs_give_what_plain_steps_give_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, captures = replace(CONFIG, **SETTINGS[name]), Captures()
    expected, wanted = plain(config)
    found, losses, said = graphed(monkeypatch, config, captures)
    assert losses == wanted
    same(found, expected)
    assert said == []
    assert (captures.warmed, [graph.times for graph in captures.graphs]) == (WARM, [config.steps - WARM])


@pytest.mark.parametrize(
    "name",
    [
        "accumulated",
        "fp16",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("some layers", "with pictures of the class, a warm-up of rates", "bf16")
        ),
    ],
)
def test_operations_alone_repeated_on_the_same_memory_are_the_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, captures = replace(CONFIG, **SETTINGS[name]), FrozenCaptures()
    expected, wanted = plain(config)
    found, losses, said = graphed(monkeypatch, config, captures)
    assert losses == wanted
    same(found, expected)
    assert said == []
    assert [graph.times for graph in captures.graphs] == [config.steps - WARM]


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == "flux" else pytest.mark.slow) for name in WHOLE]
)
def test_every_family_is_captured(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WHOLE[family]().save_pretrained(tmp_path / "base")
    base, cache = open_base(tmp_path / "base"), BasisCache(tmp_path / "basis")
    config, captures = replace(CONFIG, selectors=None, resolution=16, learning_rate=1e-3), FrozenCaptures()
    expected, wanted = run_of(config, base, cache)
    found, losses, said = graphed(monkeypatch, config, captures, base=base, cache=cache)
    assert losses == wanted
    same(found, expected)
    assert said == []
    assert [graph.times for graph in captures.graphs] == [config.steps - WARM]


@pytest.mark.parametrize("after", [0, 40, 400, 10**9], ids=["at once", "in the forward", "later", "at its end"])
def test_a_capture_that_fails_half_way_leaves_the_run_as_it_was(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    captures = Captures(breaks_at=after)
    expected, wanted = plain(CONFIG)
    found, losses, said = graphed(monkeypatch, CONFIG, captures)
    assert losses == wanted
    same(found, expected)
    assert said == [f"steps without CUDA graphs: capturing one failed ({REFUSED.splitlines()[0]})"]
    assert captures.tried == 1


def test_a_capture_that_fails_leaves_a_scaled_run_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, mixed_precision="fp16")
    expected, wanted = plain(config)
    found, losses, _ = graphed(monkeypatch, config, Captures(breaks_at=10**9))
    assert losses == wanted
    same(found, expected)


def cut_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every second batch have latents of half the height."""
    own = Batches.batch

    def batch(self: Batches, step: int, samples: Sequence[int]) -> Batch:
        found = own(self, step, samples)
        if step % 2 == 0:
            return found
        rows = found.latents.shape[2] // 2
        return replace(found, latents=found.latents[:, :, :rows], noise=found.noise[:, :, :rows])

    monkeypatch.setattr(Batches, "batch", batch)


def test_every_shape_has_a_graph_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_by_turns(monkeypatch)
    config, captures = replace(CONFIG, steps=7), Captures()
    expected, wanted = plain(config)
    found, losses, said = graphed(monkeypatch, config, captures)
    assert losses == wanted
    same(found, expected)
    assert [graph.times for graph in captures.graphs] == [2, 1]
    assert said == []


def test_shapes_beyond_a_number_have_no_graph_and_that_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_by_turns(monkeypatch)
    monkeypatch.setattr(graphed_step, "MOST", 1)
    config, captures = replace(CONFIG, steps=7), Captures()
    expected, wanted = plain(config)
    found, losses, said = graphed(monkeypatch, config, captures)
    assert losses == wanted
    same(found, expected)
    assert [graph.times for graph in captures.graphs] == [2]
    assert said == ["steps without CUDA graphs: batches have more than 1 shapes; those after the first 1 have none"]


REASONS: dict[str, dict[str, Any]] = {
    "the method lora has none": {"method": "lora", "selectors": None},
    "the method full has none": {"method": "full", "selectors": None},
    "the run has several processes": {"processes": 2},
    "a text encoder is trained": {"selectors": ("text",)},
    "gradient checkpointing looks at the state of random numbers": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_cannot_be_a_graph_is_done_as_before_and_says_why(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captures = Captures()
    config = replace(CONFIG, steps=1, **REASONS[reason])
    _, losses, said = graphed(monkeypatch, config, captures)
    assert said == [f"steps without CUDA graphs: {reason}"]
    assert captures.warmed == captures.tried == 0
    assert len(losses) == 1


def test_a_processor_has_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, said = graphed(monkeypatch, replace(CONFIG, steps=1), None)
    assert said == ["steps without CUDA graphs: the run is on the CPU"]


def test_a_run_on_a_processor_takes_plain_steps_and_says_nothing_of_graphs() -> None:
    said: list[str] = []
    outcome = train(open_tiny(), PICTURES, replace(CONFIG, steps=1), watch=Watch(say=said.append))
    assert outcome.steps == 1
    assert not [line for line in said if "graph" in line]


def counted(step: Callable[[int], Tensor], number: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Operations, Tensor]:
    """List the operations of one step, but not those that draw a batch or find what is known of a prompt; do it."""
    with monkeypatch.context() as patch, Operations() as operations:
        for owner, name in ((Batches, "batch"), (Texts, "conditioning")):
            patch.setattr(owner, name, uncounted(getattr(owner, name)))
        result = step(number)
    return operations, result


def uncounted(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*given: Any) -> Any:
        with _disable_current_modes():
            return function(*given)

    return called


@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_step_has_the_plain_steps_operations_in_order_and_reads_nothing(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_work, "WARM", 99)  # what is captured later is what is done here
    found: dict[str, list[Operations]] = {"plain": [], "graphed": []}
    places: list[list[int]] = []

    def around(steps: GraphedStep, number: int) -> Tensor:
        kind, step = ("graphed", steps.step) if number % 2 else ("plain", steps._stepper.step)
        operations, result = counted(step, number, monkeypatch)
        found[kind].append(operations)
        buffers = [buffer for work in steps._works.values() for buffer in work.buffers.values()]
        places.append([each.data_ptr() for each in (*buffers, *steps._held())])
        return result

    graphed(monkeypatch, replace(CONFIG, steps=6, mixed_precision=precision), Captures(), around)
    plain_step, (_, before, step) = found["plain"][-1], found["graphed"]
    assert READS.isdisjoint(step.names)
    assert FROM_HOST.isdisjoint(step.names)
    # Rates are written, then inputs; from there on it is the plain step, operation by operation.
    assert plain_step.names[0] == "fill_"
    assert step.names == ["fill_", *["copy_"] * 5, *plain_step.names[1:]]
    # Every later step does the same on the same memory; what an operation gives has the same size each time.
    assert (step.names, step.given) == (before.names, before.given)
    assert places[-1] == places[-2]


def test_a_graph_is_made_anew_where_what_it_works_on_has_moved() -> None:
    held, captures = [torch.zeros(2)], Captures()

    def work(buffers: Mapping[str, Tensor]) -> Tensor:
        held[0].add_(buffers["x"])
        return held[0] * 1

    static = StaticWork(work, {"x": torch.zeros(2)}, held=lambda: held, clean=lambda: None, capture=captures)
    one = {"x": torch.ones(2)}
    runs = [static.run(one) for _ in range(WARM + 1)]
    assert static.captured
    held[0] = held[0].clone()
    runs += [static.run(one) for _ in range(WARM)]
    assert not static.captured
    runs.append(static.run(one))
    assert static.captured
    assert [run.tolist() for run in runs] == [[n, n] for n in range(1, 2 * WARM + 3)]
    assert captures.tried == 2


def test_who_keeps_what_was_made_of_a_tensor_sees_that_a_graph_has_changed_it() -> None:
    held = torch.zeros(2)

    class Silent(Captures):
        """Writes as a card does, which torch does not see."""

        def capture(self, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
            graph, result = super().capture(work)
            with torch.no_grad():
                graph.work = lambda: torch.from_numpy(held.numpy()).add_(1)  # type: ignore[attr-defined]
            return graph, result

    captures = Silent()
    static = StaticWork(
        lambda buffers: held.add_(buffers["x"]),
        {"x": torch.ones(2)},
        held=lambda: [held],
        clean=lambda: None,
        capture=captures,
    )
    for _ in range(WARM + 1):
        static.run({"x": torch.ones(2)})
    version = held._version
    static.run({"x": torch.ones(2)})
    assert held._version > version


@pytest.mark.parametrize(
    "who", ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cuBLAS", "cuDNN", "driver"))]
)
def test_a_capture_without_enough_memory_goes_on_without_one(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, wanted = plain(CONFIG)
    found, losses, said = graphed(monkeypatch, CONFIG, Captures(fails_with=EXHAUSTED[who]))
    assert losses == wanted
    same(found, expected)
    first = str(EXHAUSTED[who]()).splitlines()[0]
    assert said == [f"steps without CUDA graphs: capturing one failed ({first})"]


@pytest.mark.parametrize("when", [pytest.param("at the capture", marks=pytest.mark.slow), "at a replay"])
def test_a_card_that_is_gone_ends_the_run_which_goes_on_from_its_last_state(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on all that reads from the device fails."""
    expected, _ = plain(CONFIG)
    captures, keeping = Captures(), Keeping(folder=tmp_path, every=1)

    def gone(*_: object, **__: object) -> Any:
        for place in ("runtime.handle.Handle.detach", "runtime.fused.write_shifted"):
            patch.setattr(f"svdiff_delta.{place}", gone)
        patch.setattr("svdiff_train.training.reports.Reports.fault", gone)
        patch.setattr(StaticWork, "_put_back", gone)
        patch.setattr(Stepper, "_loss", gone)
        raise FAILED["gone"]()

    with monkeypatch.context() as patch:
        patch.setattr(Captures, "capture", gone) if when == "at the capture" else patch.setattr(
            "support.graphs.Replayed.replay", gone
        )
        with pytest.raises(TrainError, match=r"no longer available\); the last state is kept in .*step-000002"):
            graphed(patch, CONFIG, captures, keeping=keeping)
    found, _ = run_of(CONFIG, keeping=replace(keeping, resume=True))
    same(found, expected)
