"""Forwards of a model as graphs: what models take and give, and what is let go of."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.graphs import Captures, FrozenCaptures
from torch import Tensor, nn

from svdiff_train.graphs import static_work
from svdiff_train.graphs.graphed_model import GraphedModel

WARM = 2
"""Forwards before a capture, here."""


@pytest.fixture(autouse=True)
def captured_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_work, "WARM", WARM)


class Gives(nn.Module):
    """A model that gives what a function makes of its input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def graphed(model: nn.Module, captures: Captures) -> tuple[GraphedModel, list[str]]:
    said: list[str] = []
    return GraphedModel(model, torch.device("cpu"), captures, said.append), said


SEVERAL: dict[str, Callable[[Tensor], Any]] = {
    "two": lambda x: (x + 1, x[:, :1] * 2),
    "a list, one for each sample": lambda x: ([row[:index] + 3 for index, row in enumerate(x.unbind(), 1)],),
    "by names": lambda x: {"sample": x.T * 5, "more": (x.sum(), x - 1)},
    "twice the same": lambda x: (x, x),
}


@pytest.mark.parametrize("what", SEVERAL)
def test_several_tensors_come_from_one_graph(what: str) -> None:
    model, captures = Gives(SEVERAL[what]), FrozenCaptures()
    graphs, said = graphed(model, captures)
    with torch.no_grad():
        for number in range(WARM + 3):
            x = torch.arange(6.0).view(2, 3) + number
            expected = model(x)
            with graphs.running():
                found = model(x)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [graph.times for graph in captures.graphs] == [3]
    assert said == []


OTHER: dict[str, Callable[[Tensor], Any]] = {
    "nothing": lambda x: (),
    "a tensor and nothing": lambda x: (x, None),
    "a number": lambda x: float(x.sum()),
    "tensors of two dtypes": lambda x: (x, x.double()),
}


@pytest.mark.parametrize("what", OTHER)
def test_what_is_no_tensor_is_left_to_the_model(what: str) -> None:
    model, captures = Gives(OTHER[what]), Captures()
    graphs, said = graphed(model, captures)
    with graphs.running(), torch.no_grad():
        for number in range(4):
            assert str(model(torch.full((2,), float(number)))) == str(model.function(torch.full((2,), float(number))))
    assert said == ["the denoiser gives something else than tensors of one dtype"]
    assert captures.tried == 0


def test_graphs_that_are_forgotten_are_gone_at_once_and_the_next_is_right() -> None:
    model, captures = Gives(lambda x: x * 2), Captures()
    graphs, _ = graphed(model, captures)

    def run() -> list[float]:
        with graphs.running(), torch.no_grad():
            found = [model(torch.full((1,), float(number))) for number in range(WARM + 2)]
        return [float(each) for each in found]

    assert run() == [0, 2, 4, 6]
    seen = weakref.ref(captures.graphs.pop())
    gc.disable()  # what the card's memory waits for must not be a collection
    try:
        graphs.forget()
        assert seen() is None
    finally:
        gc.enable()
    assert run() == [0, 2, 4, 6]
    assert captures.tried == 2


def test_diffusers_own_hooks_move_and_cast_what_a_graph_would_read() -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    model, captures = nn.Sequential(nn.Linear(2, 2)), Captures()
    graphs, said = graphed(model, captures)
    registry = HookRegistry.check_if_exists_or_initialize(model[0])
    with graphs.running(), torch.no_grad():
        model(torch.zeros(1, 2))
    assert (captures.warmed, said) == (1, [])  # a registry alone does nothing
    registry.register_hook(ModelHook(), "layerwise_casting")
    with graphs.running(), torch.no_grad():
        model(torch.zeros(1, 2))
    assert (captures.warmed, said) == (1, ["diffusers' hooks keep, cast or move what its layers compute"])
