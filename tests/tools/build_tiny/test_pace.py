"""A stage by the clock: its rate over the time, how many steps fit, and what becomes of a loss that is no number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tools.build_tiny.pace import Pace
from tools.build_tiny.sprint import Sprint


class Clock:
    """A clock that only goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Line:
    """A stage that fits w x to 3 x, each batch in `seconds` of the clock; some of its losses are no number."""

    name, device, seed = "line", torch.device("cpu"), 5

    def __init__(self, clock: Clock, seconds: float = 1.0, broken: tuple[int, ...] = ()) -> None:
        self.clock, self.seconds, self.broken, self.calls = clock, seconds, broken, 0
        self.measured: list[int] = []

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return nn.Linear(1, 1, bias=False)

    def loss(self, model: nn.Module) -> Tensor:
        self.clock.now += self.seconds
        self.calls += 1
        x = torch.rand(8, 1)
        loss: Tensor = (model(x) - 3 * x).square().mean()
        return loss * float("nan") if self.calls in self.broken else loss

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        self.measured.append(step)
        return {"weight": float(model.weight.detach())}


def sprint(folder: Path, pace: Pace, **more: object) -> tuple[Sprint, Line]:
    clock = Clock()
    task = Line(clock, **more)  # type: ignore[arg-type]
    return Sprint(task, pace, folder, clock=clock), task


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "line.jsonl").read_text().splitlines()]


def test_the_rate_rises_by_steps_and_falls_by_time() -> None:
    pace = Pace(rate=1.0, warmup=4, falling=0.5)
    assert [pace.rate_at(step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [pace.rate_at(99, share) for share in (0.5, 0.75, 1.0, 1.2)] == [1.0, 0.5, 0.0, 0.0]


def test_the_average_is_short_at_first_and_counts_every_step() -> None:
    pace = Pace(rate=1.0, ema=0.999)
    assert pace.ema_at(4, 1) == 5 / 14
    assert pace.ema_at(100_000, 4) == 0.999**4


@pytest.mark.parametrize(("seconds", "each", "steps"), [(10.0, 1.0, 10), (10.0, 3.0, 4), (0.5, 1.0, 1)])
def test_as_many_steps_are_done_as_fit_and_the_last_is_finished(
    tmp_path: Path, seconds: float, each: float, steps: int
) -> None:
    run, _ = sprint(tmp_path, Pace(rate=1e-2), seconds=each)
    run.go(seconds)
    assert run.step == steps
    assert run.spent == steps * each


def test_it_is_measured_evenly_and_at_the_end(tmp_path: Path) -> None:
    run, task = sprint(tmp_path, Pace(rate=1e-2, measures=3))
    run.go(30.0)
    assert len(task.measured) == 3
    assert task.measured[-1] == run.step == 30
    assert [abs(step - due) <= 2 for step, due in zip(task.measured, (10, 20, 30), strict=True)] == [True] * 3


def test_getting_ready_changes_no_weight(tmp_path: Path) -> None:
    run, task = sprint(tmp_path, Pace(rate=1.0, warmup=1))
    first = task.model().weight.clone()
    assert run.ready() == "plain"
    assert torch.equal(run.model.weight, first)  # type: ignore[arg-type]
    assert run.step == 0
    assert run.total == 0


def test_it_learns_and_a_second_run_goes_on_from_the_average(tmp_path: Path) -> None:
    run, _ = sprint(tmp_path, Pace(rate=0.1, warmup=1, ema=0.9))
    run.ready()
    run.go(200.0)
    state = torch.load(tmp_path / "line.pt", weights_only=True)
    assert float(state["average"]["weight"]) == pytest.approx(3, abs=0.1)
    assert (state["step"], state["seconds"], state["optimizer"]) == (200, 200.0, None)
    again, _ = sprint(tmp_path, Pace(rate=0.1, warmup=1))
    assert torch.equal(again.model.state_dict()["weight"], state["average"]["weight"])
    again.go(5.0)
    assert rows(tmp_path)[-1]["step"] == 205
    assert rows(tmp_path)[-1]["hours"] == round(205 / 3600, 4)


def test_a_loss_that_is_no_number_goes_back_with_half_the_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = sprint(tmp_path, Pace(rate=0.1, warmup=1, falling=1e-9), broken=(40, 41))
    run.go(60.0)
    assert run.scale == 0.25
    assert capsys.readouterr().err.count("half the rate") == 2
    assert all(torch.isfinite(p).all() for model in (run.model, run.average) for p in model.parameters())
    assert float(run.rate) == pytest.approx(0.025)
    assert run.step == 60
