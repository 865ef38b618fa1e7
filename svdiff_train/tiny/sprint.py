"""A stage by the clock: as many steps as fit into its seconds, on a GPU each of them one CUDA graph."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SYNC = 16
"""Steps between two looks at the clock: a GPU is told what to do far ahead of doing it."""
_AVERAGED = 4
"""Steps between two steps of the average."""
_KEPT_SECONDS = 15.0
"""Between two copies of the weights, which a run goes back to where its loss is no number."""


class Device(Protocol):
    """One stage with all its data on one device."""

    name: str
    device: torch.device
    seed: int

    def model(self) -> nn.Module:
        """A fresh model, its weights drawn from the stage's seed, or the one to go on from."""
        ...

    def loss(self, model: nn.Module) -> Tensor:
        """The loss of one batch; all its chance comes from the device's generator."""
        ...

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """Figures of the averaged model, for the log."""
        ...


@dataclass(frozen=True)
class Pace:
    """Numbers of a run by the clock: warm-up, a constant rate, then `falling` of the time down to nothing."""

    rate: float
    warmup: int = 200
    falling: float = 0.5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    ema: float = 0.999
    clip: float = 1.0
    measures: int = 1
    """How often it is measured, evenly over the time; the last time is the end."""
    compiled: bool = False
    """Whether torch.compile joins kernels: pays where a run is longer than compiling takes."""

    def rate_at(self, step: int, share: float) -> float:
        """The learning rate of step `step`, counted from 0, after `share` of the time."""
        return self.rate * max(0.0, min(1.0, (step + 1) / max(1, self.warmup), (1 - share) / self.falling))


def mixed(device: torch.device) -> AbstractContextManager[Any]:
    """Products in bfloat16 on a GPU; nothing on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def lean(model: nn.Module) -> nn.Module:
    """Let group norms of a model write what they read: under autocast they would write float32."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = partial(_norm, module)  # type: ignore[method-assign]
    return model


def _norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.group_norm(x, norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


class Sprint:
    """A stage in progress: weights, their average, the optimizer; `ready` it, then `go`."""

    def __init__(self, task: Device, pace: Pace, folder: Path, plain: int = 0) -> None:
        self.task, self.pace, self.folder, self.plain = task, pace, folder, plain
        folder.mkdir(parents=True, exist_ok=True)
        self.gpu = task.device.type == "cuda"
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(task.seed)
        self.model = lean(task.model().to(task.device).train())
        self.average = task.model().to(task.device).requires_grad_(False).eval()
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        self._mean = [mean for mean, p in pairs if p.requires_grad]
        self.rate = torch.zeros((), device=task.device)
        self.optimizer = self._optimizer()
        self.total = torch.zeros((), device=task.device)
        self.step, self.spent, self.scale = 0, 0.0, 1.0
        self.before = (0, 0.0)
        self._graph: Any = None
        self._load()

    def _optimizer(self) -> torch.optim.Optimizer:
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        decayed = [p for n, p in named if p.ndim > 1 and "embed" not in n]
        others = [p for n, p in named if p.ndim <= 1 or "embed" in n]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": self.pace.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=self.rate, betas=self.pace.betas, fused=self.plain < 2, capturable=self.gpu)

    def _load(self) -> None:
        """Go on from the averaged weights of a checkpoint, if there is one, with an optimizer that knows nothing."""
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            for model in (self.model, self.average):
                model.load_state_dict(state["average"])
            self.before = (state["step"], state["seconds"])

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self.folder / f"{self.task.name}.pt"

    def _once(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.task.loss(self.model)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, self.pace.clip, foreach=True)
        self.optimizer.step()
        self.total += loss.detach()

    def ready(self) -> str:
        """Compile, warm up and capture on whatever the data holds now; the weights stay. Says what came of it."""
        first = [p.detach().clone() for p in self.weights]
        said = [self._try("compiled", self._compile)] if self.gpu and self.pace.compiled and not self.plain else []
        if self.gpu and self.plain < 2:
            said.append(self._try("captured", self._capture))
        if self._graph is None:
            self._once()
        with torch.no_grad():
            torch._foreach_copy_(self.weights, first)
        self._forget()
        self.total.zero_()
        return ", ".join(said) or "plain"

    def _try(self, what: str, do: Callable[[], None]) -> str:
        begin = time.monotonic()
        try:
            do()
        except Exception as error:  # noqa: BLE001 a slower way is left for each
            self.note(f"not {what}: {type(error).__name__}: {error}")
            return f"not {what}"
        return f"{what} in {time.monotonic() - begin:.0f} s"

    def _compile(self) -> None:
        try:
            self.model.compile(dynamic=False)
            for _ in range(2):
                self._once()
            if self.gpu:
                torch.cuda.synchronize()
        except Exception:
            self.model._compiled_call_impl = None  # what nn.Module.compile sets
            torch._dynamo.reset()
            raise

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._once()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._once()
        self._graph = graph

    def _forget(self) -> None:
        """Make the optimizer know nothing, in the places that a graph reads."""
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def advance(self, share: float) -> None:
        """One step, after `share` of the time, and now and then one of the average."""
        self.rate.fill_(self.scale * self.pace.rate_at(self.step, share))
        if self._graph is not None:
            self._graph.replay()
        else:
            self._once()
        self.step += 1
        if self.step % _AVERAGED == 0:
            keep = min(self.pace.ema, (1 + self.step) / (10 + self.step)) ** _AVERAGED
            with torch.no_grad():
                torch._foreach_lerp_(self._mean, self.weights, 1 - keep)

    def go(self, seconds: float) -> None:
        """Train for `seconds`, measuring in between; the checkpoint and the log are written as `Run` does."""
        begin = kept = time.monotonic()
        every, due, seen, loss = seconds / self.pace.measures, 1, 0, 0.0
        copies = self._copies()
        while (share := (time.monotonic() - begin) / seconds) < 1:
            for _ in range(_SYNC if self.gpu else 1):
                self.advance(share)
            self.spent = time.monotonic() - begin
            loss = float(self.total) / max(1, self.step - seen)  # waits for the GPU
            if not math.isfinite(loss):
                copies = self._back(copies)
                seen = self.step
            elif time.monotonic() - kept > _KEPT_SECONDS:
                self.log({"loss": round(loss, 5), "rate": float(self.rate), "steps_per_second": self._speed()})
                copies, kept, seen = self._copies(), time.monotonic(), self.step
                self.total.zero_()
            if time.monotonic() - begin > due * every and due < self.pace.measures:
                due += 1
                self._measure()
        self.spent = time.monotonic() - begin
        self._measure()
        self.log({"loss": round(loss, 5), "rate": float(self.rate), "steps_per_second": self._speed()})

    def _speed(self) -> float:
        return round(self.step / max(1e-9, self.spent), 2)

    def _measure(self) -> None:
        self.save()
        self.log(self.task.measure(self.average, self._spent()[0]))

    def _copies(self) -> list[list[Tensor]]:
        return [[p.detach().clone() for p in part] for part in (self.weights, self._mean)]

    def _back(self, copies: list[list[Tensor]]) -> list[list[Tensor]]:
        """Go back to the last copies with half the rate."""
        self.scale /= 2
        self.note("the loss is no number: back to the last copies with half the rate")
        with torch.no_grad():
            for now, then in zip((self.weights, self._mean), copies, strict=True):
                torch._foreach_copy_(now, then)
        self._forget()
        self.total.zero_()
        return self._copies()

    def save(self) -> None:
        """Write a checkpoint that `Run` and the export read, without what the optimizer knows."""

        def on_cpu(model: nn.Module) -> dict[str, Tensor]:
            return {key: value.detach().to("cpu", copy=True) for key, value in model.state_dict().items()}

        state = {"model": on_cpu(self.model), "average": on_cpu(self.average), "optimizer": None}
        steps, seconds = self._spent()
        state |= {"step": steps, "fresh": steps, "seconds": seconds, "target": steps}
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)

    def _spent(self) -> tuple[int, float]:
        return self.before[0] + self.step, self.before[1] + self.spent

    def note(self, text: str) -> None:
        """A line for whoever watches."""
        sys.stderr.write(f"{self.task.name}, step {self.step}: {text}\n")

    def log(self, row: dict[str, Any]) -> None:
        """One line of JSON in the stage's log."""
        steps, seconds = self._spent()
        row = {"step": steps, "hours": round(seconds / 3600, 4), **row}
        with (self.folder / f"{self.task.name}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
