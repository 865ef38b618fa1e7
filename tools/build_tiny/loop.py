"""The training loop that all three stages share: resumable, exact by step, stoppable at any time."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .partner import Partner, Shared


class Task(Protocol):
    """One stage: its model, its loss at a step, and a measurement of the averaged weights."""

    name: str

    def model(self) -> nn.Module:
        """A fresh model, its weights drawn from the stage's seed."""
        ...

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """The loss of step `step`; all its chance comes from `step_generator`."""
        ...

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """Figures of the averaged model, for the log."""
        ...


@dataclass(frozen=True)
class Recipe:
    """Numbers of a run: warm-up, then a constant rate, then `decay` steps down to nothing."""

    steps: int
    rate: float
    warmup: int = 200
    decay: int = 1_000
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    ema: float = 0.999
    clip: float = 1.0
    measure_every: int = 1_000
    save_seconds: float = 240.0
    log_every: int = 50

    def rate_at(self, step: int, fresh: int = 0) -> float:
        """The learning rate of step `step`, counted from 0, for an optimizer that knew nothing at step `fresh`."""
        left = (self.steps - step) / max(1, self.decay)
        return self.rate * min(1.0, (step - fresh + 1) / max(1, self.warmup), left)

    def ema_at(self, step: int) -> float:
        """The average's memory at `step`: short at first, so that it forgets the start."""
        return min(self.ema, (1 + step) / (10 + step))


def step_generator(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one step: they depend on nothing that ran before."""
    return np.random.default_rng([seed, step])


def noise_generator(rng: np.random.Generator) -> torch.Generator:
    """A torch generator seeded from `rng`."""
    return torch.Generator().manual_seed(int(rng.integers(2**62)))


def channels_last(model: nn.Module) -> Any:
    """The model with its filters in channels-last layout: 2.5 times as fast on these cores."""
    anything: Any = model
    return anything.to(memory_format=torch.channels_last)


def optimizer_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's groups of what is open to change: filters and matrices decay; norms, biases, embeddings do not."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.ndim > 1 and "embed" not in name]
    others = [p for name, p in named if p.ndim <= 1 or "embed" in name]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint beside the old one, then put it in its place."""
    part = path.with_suffix(".part")
    torch.save(dict(state), part)
    part.replace(path)


def write_row(log: Path, step: int, seconds: float, row: Mapping[str, Any]) -> None:
    """Add one line of JSON to a stage's log."""
    with log.open("a") as file:
        file.write(json.dumps({"step": step, "hours": round(seconds / 3600, 4), **row}) + "\n")


class Run:
    """A stage in progress: weights, their average, the optimizer and the step, kept in one file."""

    def __init__(self, task: Task, recipe: Recipe, folder: Path) -> None:
        self.task, self.recipe, self.folder = task, recipe, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.model = task.model()
        self.average = task.model().requires_grad_(False).eval()
        self.step, self.seconds = 0, 0.0
        self.fresh = 0  # the step at which the optimizer knew nothing
        self.optimizer = self._optimizer()
        self._load()
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.partner: Partner | None = None
        self._halted = False

    def share(self, make: Callable[[], Shared]) -> None:
        """Let a second process, with its own task from `make`, compute half of every batch."""
        self.partner = Partner(make, self.weights)

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self.folder / f"{self.task.name}.pt"

    @property
    def stable_path(self) -> Path:
        """The checkpoint from just before the rate went down: a longer run goes on from here."""
        return self.folder / f"{self.task.name}.stable.pt"

    def _optimizer(self) -> torch.optim.Optimizer:
        groups = optimizer_groups(self.model, self.recipe.weight_decay)
        return torch.optim.AdamW(groups, lr=self.recipe.rate, betas=self.recipe.betas, fused=True)

    def _load(self) -> None:
        path = self.path
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        begun = state["step"] > state["target"] - self.recipe.decay
        if begun and state["target"] < self.recipe.steps and self.stable_path.exists():
            state = torch.load(self.stable_path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.step, self.seconds = state["step"], state["seconds"]
        if state["optimizer"] is None:  # weights of a finished base
            self.fresh = self.step
        else:
            self.optimizer.load_state_dict(state["optimizer"])
            self.fresh = state["fresh"]

    def save(self, path: Path | None = None) -> None:
        """Write the checkpoint beside the old one, then put it in its place."""
        path = path or self.path
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "fresh": self.fresh,
            "seconds": self.seconds,
            "target": self.recipe.steps,
        }
        write_checkpoint(path, state)

    def log(self, row: dict[str, Any]) -> None:
        """One line of JSON in the stage's log."""
        write_row(self.folder / f"{self.task.name}.jsonl", self.step, self.seconds, row)

    def advance(self) -> float:
        """One optimizer step and one step of the average; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(self.step, self.fresh)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward()
        nn.utils.clip_grad_norm_(self.weights, self.recipe.clip)
        self.optimizer.step()
        self._average()
        self.step += 1
        return float(loss.detach())

    def _backward(self) -> Tensor:
        if self.partner is None:
            loss = self.task.loss(self.model, self.step)
            loss.backward()
            return loss
        shared: Any = self.task
        self.partner.ask(self.step)
        half: Tensor = shared.part_loss(self.model, self.step, 0, 2)
        half.backward()
        self.partner.join(self.weights)
        return half

    @torch.no_grad()
    def _average(self) -> None:
        keep = self.recipe.ema_at(self.step)
        mean = [p.detach() for p in self.average.parameters()]
        now = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(mean, now, 1 - keep)

    def go(self, until: int | None = None) -> None:
        """Train to the recipe's last step, or to `until`; SIGTERM and Ctrl-C save and stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._halt)
        last = min(self.recipe.steps, until or self.recipe.steps)
        saved, losses = time.monotonic(), list[float]()
        while self.step < last and not self._halted:
            if self.step == self.recipe.steps - self.recipe.decay:
                self.save(self.stable_path)
            start = time.monotonic()
            losses.append(self.advance())
            self.seconds += min(60.0, time.monotonic() - start)
            losses = self._report(losses)
            if time.monotonic() - saved > self.recipe.save_seconds:
                self.save()
                saved = time.monotonic()
        self.save()
        if self.partner is not None:
            self.partner.close()

    def _report(self, losses: list[float]) -> list[float]:
        if self.step % self.recipe.measure_every == 0 or self.step == self.recipe.steps:
            self.log(self.task.measure(self.average, self.step))
        if self.step % self.recipe.log_every:
            return losses
        self.log({"loss": round(float(np.mean(losses)), 5), "rate": self.recipe.rate_at(self.step, self.fresh)})
        return []

    def _halt(self, *_: Any) -> None:
        self._halted = True
