"""Live models that are interrupted while they change: attached and right, or untouched bit for bit."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.interrupts import Interrupt, moments
from support.models import live_zero, named, random_delta
from support.weights import normal
from torch import Tensor, nn

from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.errors import AttachError
from svdiff_delta.format.delta import Delta
from svdiff_delta.runtime import Handle, attach, handle_of

FOLDER = "svdiff_delta/runtime/"
FORMS: dict[str, dict[str, Any]] = {"live": {}, "exact": {"exact": True}, "fused": {"mode": "fused"}}
X = normal(4, 6, 12)


class Stopped(BaseException):
    """What interrupts: neither an `Exception`, as Ctrl-C is not, nor anything that the library could expect."""


Shown = tuple[int, float]
"""Which delta, and its scale."""


class Scene:
    """A model with its file, two deltas for it, and what it is before anything is done to it."""

    def __init__(self, folder: Path, form: str) -> None:
        torch.manual_seed(0)
        self.form = FORMS[form]
        self.model: Any = nn.Sequential(named(nn.Linear(12, 8)), named(nn.Conv1d(6, 5, 1)), named(nn.LayerNorm(8)))
        save_file(self.model.state_dict(), folder / "model.safetensors")
        self.base: Base = open_base(folder / "model.safetensors")
        zero = live_zero(self.model)
        self.deltas = [random_delta(zero, size=0.3, seed=seed) for seed in (0, 1)]
        self.plain = self.look()
        self.outputs: dict[Shown, Tensor] = {}
        with self.attach(self.deltas[0]) as handle:
            for scale in (1.0, 0.5):
                handle.set_scale(scale)
                self.outputs[0, scale] = self.model(X)
            handle.disable()
            self.outputs[0, 0.0] = self.model(X)
        with self.attach(self.deltas[1]):
            self.outputs[1, 1.0] = self.model(X)

    def attach(self, delta: Delta) -> Handle:
        return attach(self.model, delta, base=self.base, **self.form)

    def look(self) -> tuple[Any, ...]:
        """All of a model: classes, attributes, hooks, weights and what it computes."""
        modules = {
            name: (type(module), sorted(vars(module)), [len(hooks) for hooks in hooks_of(module)])
            for name, module in self.model.named_modules()
        }
        return modules, {key: value.tolist() for key, value in self.model.state_dict().items()}, self.model(X).tolist()

    def shows(self) -> Shown:
        """What the model has on it, to the last bit; anything but what was put there fails."""
        output = self.model(X)
        return next(shown for shown, expected in self.outputs.items() if torch.equal(output, expected))

    def says(self, handle: Handle) -> Shown:
        """What a handle says is on the model."""
        held = handle._held["default"].delta
        index = next(index for index, delta in enumerate(self.deltas) if delta is held)
        return index, handle.scale if handle.enabled else 0.0


def hooks_of(module: nn.Module) -> Iterator[Any]:
    for name in ("_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks"):
        yield getattr(module, name)


@pytest.fixture(params=FORMS)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    before, torch_threads = torch.is_grad_enabled(), torch.get_num_threads()
    yield Scene(tmp_path, request.param)
    assert (torch.is_grad_enabled(), torch.get_num_threads()) == (before, torch_threads)


def length(action: Callable[[], object]) -> int:
    """How many bytecodes an action has."""
    with Interrupt(FOLDER).watching() as count:
        action()
    return count.count


def stopped(action: Callable[[], object], *at: int) -> bool:
    """Do something that is interrupted before these bytecodes; tell whether it was."""
    interrupt = Interrupt(FOLDER, at, Stopped)
    try:
        with interrupt.watching():
            action()
    except Stopped:
        return True
    assert not interrupt.raised  # nothing may swallow it
    return False


def interrupt_attach(scene: Scene, at: list[list[int]]) -> None:
    for moment in at:
        handles: list[Handle] = []
        failed = stopped(lambda: handles.append(scene.attach(scene.deltas[0])), *moment)  # noqa: B023
        if len(moment) == 1 and failed:
            assert scene.look() == scene.plain
        with handles.pop() if handles else scene.attach(scene.deltas[0]):  # takes off first what was left
            assert scene.shows() == (0, 1.0)
        assert scene.look() == scene.plain


def interrupt_change(scene: Scene, at: list[list[int]], change: Callable[[Handle], object]) -> None:
    for moment in at:
        with scene.attach(scene.deltas[0]) as handle:
            stopped(lambda: change(handle), *moment)
            if len(moment) == 1:
                assert scene.shows() == scene.says(handle)
            handle.enable()
            handle.set_scale(1.0)
            handle.swap(scene.deltas[1])
            assert scene.shows() == (1, 1.0)
        assert scene.look() == scene.plain


def interrupt_detach(scene: Scene, at: list[list[int]]) -> None:
    for moment in at:
        handle = scene.attach(scene.deltas[0])
        stopped(handle.detach, *moment)
        if len(moment) == 1 and scene.look() != scene.plain:
            assert scene.shows() == scene.says(handle)
        handle.detach()
        assert scene.look() == scene.plain
        with pytest.raises(AttachError, match="was detached"):
            handle.swap(scene.deltas[1])


CHANGES: dict[str, Callable[[Scene], Callable[[Handle], object]]] = {
    "swap": lambda scene: lambda handle: handle.swap(scene.deltas[1]),
    "scale": lambda scene: lambda handle: handle.set_scale(0.5),
    "switch": lambda scene: lambda handle: (handle.disable(), handle.enable()),
}


def steps_of(scene: Scene, action: str) -> int:
    with scene.attach(scene.deltas[0]) as handle:
        if action in CHANGES:
            return length(lambda: CHANGES[action](scene)(handle))
        if action == "detach":
            return length(handle.detach)
    return length(lambda: scene.attach(scene.deltas[0]).detach()) - steps_of(scene, "detach")


def interrupt(scene: Scene, action: str, at: list[list[int]]) -> None:
    if action == "attach":
        interrupt_attach(scene, at)
    elif action == "detach":
        interrupt_detach(scene, at)
    else:
        interrupt_change(scene, at, CHANGES[action](scene))


ACTIONS = ("attach", "detach", *CHANGES)


@pytest.mark.parametrize("action", ACTIONS)
def test_what_is_interrupted_leaves_a_model_attached_and_right_or_as_it_was(scene: Scene, action: str) -> None:
    interrupt(scene, action, [[moment] for moment in moments(6, steps_of(scene, action))])


@pytest.mark.parametrize("action", ACTIONS)
def test_what_is_interrupted_twice_can_be_called_again(scene: Scene, action: str) -> None:
    first = moments(4, steps_of(scene, action), offset=6)
    interrupt(scene, action, [[moment, moment + 40 * (index + 1)] for index, moment in enumerate(first)])


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
def test_two_hundred_moments(scene: Scene, action: str) -> None:
    total = steps_of(scene, action)
    interrupt(scene, action, [[moment] for moment in moments(200, total, offset=10)])
    interrupt(scene, action, [[moment, moment + 7 + 13 * (moment % 31)] for moment in moments(100, total, offset=210)])


def ring(*_: object) -> None:
    raise Stopped


def put_off(scene: Scene, action: str, handle: Handle | None) -> Handle | None:
    """Attach, swap or detach."""
    if handle is None:
        return scene.attach(scene.deltas[0])
    handle.swap(scene.deltas[1]) if action == "swap" else handle.detach()
    return handle


def found_or_attached(scene: Scene) -> Handle:
    """Return the handle that an interrupted `attach` may have left, just before it could return it."""
    try:
        return handle_of(scene.model)
    except AttachError:
        return scene.attach(scene.deltas[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("action", ["attach", "swap", "detach"])
def test_a_timer_s_signal_interrupts_as_ctrl_c_does(scene: Scene, action: str) -> None:
    """Anywhere in any library. Python's `open` leaves its file to the garbage collector then, which warns of it."""
    rung, longest = 0, 0.0
    before = signal.signal(signal.SIGALRM, ring)
    try:
        for index in range(2000):
            handle = None if action == "attach" else scene.attach(scene.deltas[0])
            begun = time.perf_counter()
            try:
                if longest:
                    signal.setitimer(signal.ITIMER_REAL, longest * (0.001 + (index * 0.6180339887) % 1))
                handle = put_off(scene, action, handle)
                signal.setitimer(signal.ITIMER_REAL, 0)
                longest = longest or time.perf_counter() - begun
            except Stopped:
                rung += 1
            handle = found_or_attached(scene) if handle is None else handle
            assert action == "detach" or scene.shows() == scene.says(handle)
            handle.detach()
            assert torch.equal(scene.model(X), torch.tensor(scene.plain[2]))
            if rung == 200:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung == 200


def together(*actions: Callable[[], object]) -> list[BaseException | None]:
    """Do things in threads that start at once; return what each raised."""
    barrier, errors = threading.Barrier(len(actions)), [None] * len(actions)

    def run(index: int) -> None:
        barrier.wait()
        try:
            actions[index]()
        except Exception as error:  # noqa: BLE001 - given back
            errors[index] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return list(errors)


def test_of_two_threads_that_attach_one_does(scene: Scene) -> None:
    for _ in range(8):
        handles: dict[int, Handle] = {}

        def work(index: int, handles: dict[int, Handle] = handles) -> None:
            handles[index] = scene.attach(scene.deltas[index])

        errors = together(lambda: work(0), lambda: work(1))
        ((index, handle),) = handles.items()
        assert isinstance(errors[1 - index], AttachError)
        assert scene.shows() == (index, 1.0)
        handle.detach()
        assert scene.look() == scene.plain


def test_threads_that_attach_and_detach_follow_each_other(scene: Scene) -> None:
    def work(index: int) -> None:
        for _ in range(6):
            with suppress(AttachError), scene.attach(scene.deltas[index]) as handle:
                handle.swap(scene.deltas[1 - index])

    assert together(lambda: work(0), lambda: work(1)) == [None, None]
    assert scene.look() == scene.plain


def test_a_handle_may_be_changed_and_detached_by_threads(scene: Scene) -> None:
    for _ in range(8):
        handle = scene.attach(scene.deltas[0])

        def change(handle: Handle = handle) -> None:
            with suppress(AttachError):
                for index in (1, 0, 1):
                    handle.swap(scene.deltas[index])
                    handle.set_scale(0.5)
                    handle.set_scale(1.0)

        assert together(change, handle.detach, change) == [None, None, None]
        assert scene.look() == scene.plain


def test_threads_that_attach_to_a_model_and_to_a_part_of_it_do_not_meet(tmp_path: Path) -> None:
    model: Any = nn.Sequential(named(nn.Linear(12, 8)), named(nn.LayerNorm(8)))
    whole, part = random_delta(live_zero(model), size=0.3), random_delta(live_zero(model[0]), size=0.3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for _ in range(8):
        handles: list[Handle] = []
        errors = together(
            lambda: handles.append(attach(model, whole)),  # noqa: B023
            lambda: handles.append(attach(model[0], part)),  # noqa: B023
        )
        assert all(error is None or isinstance(error, AttachError) for error in errors)
        assert len(handles) <= 1
        for handle in handles:
            handle.detach()
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert type(model[0].layer) is nn.Linear


def test_an_attach_that_could_not_clean_up_is_cleaned_up_by_the_next(scene: Scene) -> None:
    interrupt_attach(scene, [[moment, moment + 3] for moment in moments(6, steps_of(scene, "attach"), offset=500)])
