"""A stage by the clock: as many steps as fit into its seconds, on a GPU each of them one CUDA graph."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .graph import capture, join_kernels, lean
from .loop import optimizer_groups, write_checkpoint, write_row
from .pace import Pace

_SYNC = 16
"""Steps between two looks at the clock on a GPU, which is told what to do far ahead of doing it."""
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
        """Return a fresh model, its weights drawn from the stage's seed, or the one to go on from."""
        ...

    def loss(self, model: nn.Module) -> Tensor:
        """Return the loss of one batch; all its chance comes from the device's generator."""
        ...

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return figures of the averaged model, for the log."""
        ...


class Sprint:
    """A stage in progress: weights, their average, the optimizer; `ready` it, then `go`.

    Args:
        task: the stage.
        pace: its numbers.
        folder: of its checkpoint and its log; training goes on from the averaged weights of a checkpoint there.
        plain: 1 compiles nothing, 2 captures no graph and fuses nothing either: what is left where those fail.
        clock: tells the time in seconds.
    """

    def __init__(
        self, task: Device, pace: Pace, folder: Path, plain: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.task, self.pace, self.folder, self.plain, self.clock = task, pace, folder, plain, clock
        folder.mkdir(parents=True, exist_ok=True)
        self.gpu = task.device.type == "cuda"
        torch.manual_seed(task.seed)
        self.model = lean(task.model().to(task.device).train())
        self.average = task.model().to(task.device).requires_grad_(False).eval()
        open_pairs = [
            (p, mean)
            for p, mean in zip(self.model.parameters(), self.average.parameters(), strict=True)
            if p.requires_grad
        ]
        self.weights: list[Tensor] = [p for p, _ in open_pairs]
        self.means: list[Tensor] = [mean for _, mean in open_pairs]
        self.rate, self.total = (torch.zeros((), device=task.device) for _ in range(2))
        self.optimizer = torch.optim.AdamW(
            optimizer_groups(self.model, pace.weight_decay),
            lr=self.rate, betas=pace.betas, fused=plain < 2, capturable=self.gpu,
        )  # fmt: skip
        self.step, self.spent, self.scale = 0, 0.0, 1.0
        self.before = (0, 0.0)
        self._graph: Any = None
        self._load()

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self.folder / f"{self.task.name}.pt"

    def _load(self) -> None:
        """Go on from the averaged weights of a checkpoint, if there is one, with an optimizer that knows nothing."""
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            for model in (self.model, self.average):
                model.load_state_dict(state["average"])
            self.before = (state["step"], state["seconds"])

    def ready(self) -> str:
        """Compile, warm up and capture on whatever the data holds now; the weights stay. Return what came of it."""
        first = [p.detach().clone() for p in self.weights]
        said = []
        if self.gpu and self.pace.compiled and not self.plain:
            said.append(self._try("compiled", lambda: join_kernels(self.model, self._once)))
        if self.gpu and self.plain < 2:
            said.append(self._try("captured", self._capture))
        if self._graph is None:
            self._once()
        with torch.no_grad():
            torch._foreach_copy_(self.weights, first)
        self._forget()
        return ", ".join(said) or "plain"

    def _try(self, what: str, do: Callable[[], None]) -> str:
        begun = self.clock()
        try:
            do()
        except Exception as error:  # noqa: BLE001 a slower way is left for each
            self.note(f"not {what}: {type(error).__name__}: {error}")
            return f"not {what}"
        return f"{what} in {self.clock() - begun:.0f} s"

    def _capture(self) -> None:
        torch.backends.cudnn.benchmark = True  # shapes never change
        self._graph = capture(self._once, lambda: self.optimizer.zero_grad(set_to_none=True))

    def _once(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.task.loss(self.model)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, self.pace.clip, foreach=True)
        self.optimizer.step()
        self.total += loss.detach()

    def _forget(self) -> None:
        """Make the optimizer and the summed loss know nothing, in the places that a graph reads."""
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self.total.zero_()

    def advance(self, share: float) -> None:
        """Do one step, after `share` of the time, and now and then one of the average."""
        self.rate.fill_(self.scale * self.pace.rate_at(self.step, share))
        if self._graph is not None:
            self._graph.replay()
        else:
            self._once()
        self.step += 1
        if self.step % _AVERAGED == 0:
            with torch.no_grad():
                torch._foreach_lerp_(self.means, self.weights, 1 - self.pace.ema_at(self.step, _AVERAGED))

    def go(self, seconds: float) -> None:
        """Train for `seconds`, measuring in between; the checkpoint and the log are written as `Run` does."""
        kept, seen, due, loss = 0.0, 0, 1, 0.0
        copies = self._copies()
        for share in self._shares(seconds):
            for _ in range(_SYNC if self.gpu else 1):
                self.advance(share)
            loss = float(self.total) / (self.step - seen)  # waits for the GPU
            if not math.isfinite(loss):
                self._go_back(copies)
                seen = self.step
            elif self.spent - kept > _KEPT_SECONDS:
                self._log_loss(loss)
                copies, kept, seen = self._copies(), self.spent, self.step
                self.total.zero_()
            if share * self.pace.measures > due and due < self.pace.measures:
                due += 1
                self._measure()
        self._measure()
        self._log_loss(loss)

    def _shares(self, seconds: float) -> Iterator[float]:
        """Yield the share of the time that is over, as long as some is left."""
        begun = self.clock()
        while self.spent < seconds:
            yield self.spent / seconds
            self.spent = self.clock() - begun

    def _measure(self) -> None:
        self.save()
        self.log(self.task.measure(self.average, self._steps_and_seconds()[0]))

    def _log_loss(self, loss: float) -> None:
        speed = round(self.step / max(1e-9, self.spent), 2)
        self.log({"loss": round(loss, 5), "rate": float(self.rate), "steps_per_second": speed})

    def _copies(self) -> tuple[list[Tensor], list[Tensor]]:
        weights, means = ([p.detach().clone() for p in part] for part in (self.weights, self.means))
        return weights, means

    def _go_back(self, copies: tuple[list[Tensor], list[Tensor]]) -> None:
        """Go back to the last copies with half the rate."""
        self.scale /= 2
        self.note("the loss is no number: back to the last copies with half the rate")
        with torch.no_grad():
            for now, then in zip((self.weights, self.means), copies, strict=True):
                torch._foreach_copy_(now, then)
        self._forget()

    def save(self) -> None:
        """Write a checkpoint that `Run` and the export read, without what the optimizer knows."""
        steps, seconds = self._steps_and_seconds()
        parts = {"model": _on_cpu(self.model), "average": _on_cpu(self.average), "optimizer": None}
        write_checkpoint(self.path, parts | {"step": steps, "fresh": steps, "seconds": seconds, "target": steps})

    def _steps_and_seconds(self) -> tuple[int, float]:
        """Return steps and seconds of all runs that led here."""
        return self.before[0] + self.step, self.before[1] + self.spent

    def note(self, text: str) -> None:
        """Write a line for whoever watches."""
        sys.stderr.write(f"{self.task.name}, step {self.step}: {text}\n")

    def log(self, row: dict[str, Any]) -> None:
        """Write one line of JSON into the stage's log."""
        write_row(self.folder / f"{self.task.name}.jsonl", *self._steps_and_seconds(), row)


def _on_cpu(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().to("cpu", copy=True) for key, value in model.state_dict().items()}
