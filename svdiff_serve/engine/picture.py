"""Let a pipeline paint one picture in steps: it runs until it calls a model, and waits for the answer.

Each picture runs diffusers' own pipeline, with its own scheduler, on a thread of its own; but only one of these threads
or the engine's runs at any moment, and they pass the turn on by queues. Coroutines without threads would not do: torch
keeps for each thread whether gradients are recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from inspect import signature
from queue import SimpleQueue
from typing import Any, Final

from torch import Tensor, nn

from .calls import Call

_HERE: Final = threading.local()

JOINED: Final = frozenset(
    {
        "UNet2DConditionModel",
        "SD3Transformer2DModel",
        "FluxTransformer2DModel",
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "T5EncoderModel",
        "AutoencoderKL",
    }
)
"""Classes whose calls are joined: tests hold that a joined call is the calls one by one. Others run one by one."""


@dataclass(frozen=True)
class Done:
    """A picture is finished."""

    result: Any


@dataclass(frozen=True)
class Failed:
    """A picture ended by an error."""

    error: BaseException


@dataclass(frozen=True)
class _Stop:
    error: BaseException


Event = Call | Done | Failed
"""What a picture came to: a call that it waits for, or its end."""


class Picture:
    """One picture that is being painted.

    Args:
        threads: where it runs.
    """

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()

    def start(self, paint: Callable[[], Any]) -> Event:
        """Begin to paint, and return the first event."""

        def run() -> None:
            _HERE.picture = self
            try:
                event: Event = Done(paint())
            except BaseException as error:  # noqa: BLE001 - whoever waits for the picture gets it
                event = Failed(error)
            finally:
                _HERE.picture = None
            self._events.put(event)

        try:
            self._threads.submit(run)
        except RuntimeError as error:  # the system gives no thread: nobody would put an event
            return Failed(error)
        return self._events.get()

    def send(self, answer: Any) -> Event:
        """Answer the call that it waits for, and return the next event."""
        self._answers.put(answer)
        return self._events.get()

    def fail(self, error: BaseException) -> Event:
        """Let the call that it waits for raise an error, and return the next event."""
        self._answers.put(_Stop(error))
        return self._events.get()

    def ask(self, call: Call) -> Any:
        """Wait for the answer to a call; called by the picture's own thread."""
        self._events.put(call)
        answer = self._answers.get()
        if isinstance(answer, _Stop):
            raise answer.error
        return answer


class MetModule(nn.Module):
    """Stand in a pipeline for one of its models: its calls are the engine's to compute, all else is the model's.

    Args:
        component: the model's name in the pipeline.
        inner: the model.
        decode: whether `decode` is what is called, as of an autoencoder, and not the forward.
    """

    def __init__(self, component: str, inner: nn.Module, *, decode: bool = False) -> None:
        super().__init__()
        own = self.__dict__
        own["met_component"], own["met_inner"], own["met_joins"] = component, inner, type(inner).__name__ in JOINED
        own["met_names"] = list(signature(getattr(inner, "decode" if decode else "forward")).parameters)
        if decode:
            own["decode"] = lambda *args, **options: self._meet("decode", args, options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["met_inner"], name)

    def parameters(self, recurse: bool = True) -> Any:
        """Return the model's own parameters."""
        return self.__dict__["met_inner"].parameters(recurse)

    def forward(self, *args: Any, **options: Any) -> Any:
        """Wait until the engine has computed the call."""
        return self._meet("forward", args, options)

    def _meet(self, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        own = self.__dict__
        inner = own["met_inner"]
        values = dict(zip(own["met_names"], args, strict=False)) | options
        if method == "decode":  # what was cast for good takes what pipelines give it in their own dtype
            values |= {name: each.to(inner.dtype) for name, each in values.items() if isinstance(each, Tensor)}
        picture: Picture | None = getattr(_HERE, "picture", None)
        if picture is None:
            return getattr(inner, method)(**values)
        return picture.ask(Call(own["met_component"], method, values, own["met_joins"]))
