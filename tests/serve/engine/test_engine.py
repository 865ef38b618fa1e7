"""The engine: pictures under their own deltas come and go at steps, and each is what it is alone."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.pipelines import small_flux, small_sd3, small_sdxl
from support.served import base, fill, levels, pipeline, service, shifted, until, zero

from svdiff_delta.runtime import attach
from svdiff_serve.engine.clones import clones_of
from svdiff_serve.engine.engine import Engine
from svdiff_serve.engine.job import Job, Ticket
from svdiff_serve.engine.live_base import LiveBase
from svdiff_serve.errors import BusyError, CancelledError, DeadlineError, DrainingError
from svdiff_train.sampling.sample import Sampling, generate


class Seen:
    """Notes what an engine tells, and can hold its forwards back."""

    def __init__(self) -> None:
        self.forwards: list[tuple[str, int]] = []
        self.outcomes: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def forward(self, component: str, pictures: int, seconds: float) -> None:
        self.forwards.append((component, pictures))
        assert self.go_on.wait(30)

    def ended(self, outcome: str, waited: float, painted: float) -> None:
        self.outcomes.append(outcome)

    @property
    def steps(self) -> list[int]:
        """How many pictures each step of denoising had."""
        return [pictures for component, pictures in self.forwards if component == "unet"]


@pytest.fixture
def live() -> Iterator[LiveBase]:
    found = LiveBase(pipeline(), base())
    found.extend(shifted(0.3))
    yield found
    found.close()


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def engine(live: LiveBase, seen: Seen) -> Iterator[Engine]:
    found = Engine(live, batch_size=3, queue_size=6, queue_of_key=4, watcher=seen)
    yield found
    seen.go_on.set()
    assert found.drain(30)


def job(steps: int = 2, mix: Any = None, *, seed: int = 0, key: str = "k", seconds: float = 60, **more: Any) -> Job:
    return Job("a dog", seed, Sampling(steps=steps, **more), mix, key, time.monotonic() + seconds)


def pictures(tickets: Sequence[Ticket]) -> list[torch.Tensor]:
    return [levels(ticket.answer.result(60)) for ticket in tickets]


def far(one: torch.Tensor, other: torch.Tensor) -> int:
    return int((one - other).abs().max())


def test_pictures_of_one_batch_are_what_each_is_alone(live: LiveBase, engine: Engine, seen: Seen) -> None:
    dog, cat = shifted(0.3), shifted(-0.3)
    mixes = [live.gains([(dog, 1.0)]), live.gains([(cat, 0.5)]), None]
    jobs = [job(3, mixes[0], seed=1), job(2, mixes[1], seed=2, guidance=3.0), job(4, None, seed=3)]
    seen.go_on.clear()
    tickets = engine.submit(jobs)
    seen.go_on.set()
    found = pictures(tickets)
    engine.between_steps(live.close).result(30)
    expected = []
    for each, delta in zip(jobs, (dog, cat, None), strict=True):
        asked = [(each.prompt, each.seed)]
        if delta is None:
            expected.append(levels(generate(pipeline(), asked, each.sampling)[0]))
            continue
        with attach(pipeline(), delta, base=base(), scale=0.5 if delta is cat else 1.0):
            expected.append(levels(generate(pipeline(), asked, each.sampling)[0]))
    for one, other in zip(found, expected, strict=True):
        # Other batches go through other kernels, with and without δ: a level may lie on the edge to the next one.
        assert far(one, other) <= 1
    assert far(found[0], found[1]) > 8
    assert max(seen.steps) == 3


def test_a_picture_that_comes_while_others_run_enters_at_the_next_step_and_leaves_after_its_own(
    engine: Engine, seen: Seen
) -> None:
    seen.go_on.clear()
    (long,) = engine.submit([job(6)])
    until(lambda: seen.forwards)
    (short,) = engine.submit([job(2)])
    seen.go_on.set()
    short.answer.result(60)
    assert not long.answer.done()
    long.answer.result(60)
    assert seen.steps.count(2) == 2  # the short one's steps, and no others
    assert len(seen.steps) == 6


def test_deltas_of_layers_that_were_not_attached_come_in_between_two_steps(live: LiveBase, engine: Engine) -> None:
    other = shifted(0.2, "unet-1d")
    before = live.gains([(shifted(0.3), 1.0)])
    (running,) = engine.submit([job(6, before)])
    live.prepare(other)
    engine.between_steps(lambda: live.extend(other)).result(60)
    (late,) = engine.submit([job(2, live.gains([(other, 1.0)]))])
    (plain,) = engine.submit([job(2)])
    assert far(*pictures([late, plain])) > 0
    running.answer.result(60)


def test_who_goes_gets_no_picture_and_makes_room(engine: Engine, seen: Seen) -> None:
    seen.go_on.clear()
    tickets = engine.submit([job(50)])
    until(lambda: seen.forwards)
    engine.cancel(tickets)
    seen.go_on.set()
    with pytest.raises(CancelledError):
        tickets[0].answer.result(30)
    assert len(seen.steps) < 50
    until(lambda: engine.painting == 0)


def test_a_picture_whose_time_is_over_is_given_up_whether_it_waits_or_is_painted(engine: Engine, seen: Seen) -> None:
    seen.go_on.clear()
    tickets = engine.submit([job(50, seconds=0.2) for _ in range(4)])  # of which one waits
    time.sleep(0.3)
    seen.go_on.set()
    for ticket in tickets:
        with pytest.raises(DeadlineError):
            ticket.answer.result(30)
    assert seen.outcomes.count("late") == 4


@pytest.mark.slow  # the queue's own tests and the server's show it in less time
def test_a_full_queue_refuses_all_of_a_request(engine: Engine, seen: Seen) -> None:
    seen.go_on.clear()
    first = engine.submit([job() for _ in range(3)])
    until(lambda: engine.painting == 3)
    more = engine.submit([job(key="a") for _ in range(4)])
    with pytest.raises(BusyError, match="of this key"):
        engine.submit([job(key="a")])
    with pytest.raises(BusyError, match="6 is the most") as full:
        engine.submit([job(key="b") for _ in range(3)])
    assert full.value.retry_after >= 1
    assert engine.waiting == 4
    seen.go_on.set()
    assert len(pictures([*first, *more])) == 7


def test_what_fails_fails_alone(live: LiveBase, engine: Engine, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    own, mark = LiveBase.compute, live.gains([(zero(), 1.0)])

    def compute(self: LiveBase, calls: Any, mixes: Any, *wanted: Any) -> Any:
        if mark in mixes and calls[0].component == "unet":
            raise RuntimeError("no memory for this one")
        return own(self, calls, mixes, *wanted)

    monkeypatch.setattr(LiveBase, "compute", compute)
    good, bad = engine.submit([job(2), job(2, mark)])
    with pytest.raises(RuntimeError, match="no memory"):
        bad.answer.result(30)
    assert good.answer.result(30).size == (64, 64)
    assert sorted(seen.outcomes) == ["done", "failed"]


def test_an_engine_that_ends_finishes_what_it_took_and_takes_nothing_more(live: LiveBase) -> None:
    engine = Engine(live, batch_size=1)
    tickets = engine.submit([job(2), job(2)])
    assert engine.drain(60)
    assert len(pictures(tickets)) == 2
    with pytest.raises(DrainingError):
        engine.submit([job()])


def test_what_is_not_finished_in_time_gets_an_answer_all_the_same(live: LiveBase, seen: Seen) -> None:
    engine = Engine(live, batch_size=1, watcher=seen)
    seen.go_on.clear()
    tickets = engine.submit([job(40), job(40)])
    until(lambda: seen.forwards)
    threading.Timer(0.3, seen.go_on.set).start()
    assert not engine.drain(0.1)
    for ticket in tickets:
        with pytest.raises(DrainingError):
            ticket.answer.result(10)


def test_no_rows_are_left_on_the_model(live: LiveBase, engine: Engine) -> None:
    engine.submit([job(2, live.gains([(shifted(0.3), 1.0)]))])[0].answer.result(60)
    shifts = [module for module in pipeline().unet.modules() if hasattr(module, "rows")]
    assert shifts
    assert all(shift.rows is None for shift in shifts)


@pytest.mark.slow  # what the server's tests show too, but for a sum that is nothing
def test_a_service_paints_a_mix_by_name(tmp_path: Path) -> None:
    from svdiff_serve.mixes import parse_mix

    with service(fill(tmp_path / "deltas"), batch_size=2) as found:
        assert found.store.names() == ["cat", "dog", "pets/bird"]
        both = found.paint("a dog", 0, Sampling(steps=2), parse_mix("dog:0.5+cat:0.5", "tiny"))
        plain = found.paint("a dog", 0, Sampling(steps=2), parse_mix("tiny", "tiny"))
        dog = found.paint("a dog", 0, Sampling(steps=2), parse_mix("dog@down-ca", "tiny"))
    assert far(levels(both), levels(plain)) <= 1  # 0.5 · 0.3 − 0.5 · 0.3 = 0
    assert far(levels(dog), levels(plain)) > 0


@pytest.mark.parametrize("make", [small_sdxl, small_sd3, small_flux], ids=lambda make: make.__name__)
def test_other_families_paint_in_one_batch_what_each_picture_is_alone(make: Any) -> None:
    live, seen = make(), Seen()
    size = {"height": 32, "width": 32}
    jobs = [job(2 + number % 2, seed=number, guidance=2.0 + number, **size) for number in range(3)]
    expected = [levels(generate(live, [(each.prompt, each.seed)], each.sampling)[0]) for each in jobs]
    engine = Engine(LiveBase(live, base()), batch_size=3, watcher=seen)
    found = pictures(engine.submit(jobs))
    assert engine.drain(60)
    assert all(far(one, other) <= 1 for one, other in zip(found, expected, strict=True))
    assert max(count for component, count in seen.forwards if component in ("unet", "transformer")) == 3
    assert ("vae", 2) in seen.forwards


def test_an_autoencoder_that_is_too_narrow_in_half_precision_is_wide_for_good() -> None:
    live = small_sdxl()
    live.vae.half()
    assert live.vae.config.force_upcast
    (clone,) = clones_of(live, 1)
    latents = torch.zeros(1, 4, 4, 4, dtype=torch.float16)
    assert clone.vae.decode(latents, return_dict=False)[0].dtype == live.vae.dtype == torch.float32


def test_a_loop_that_meets_an_error_answers_all_and_goes_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr("svdiff_serve.engine.engine.group", fail)
        for ticket in engine.submit([job(), job()]):
            with pytest.raises(ZeroDivisionError):
                ticket.answer.result(30)
    assert len(pictures(engine.submit([job()]))) == 1


def test_a_picture_that_gets_no_thread_fails_and_the_loop_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(engine._threads, "submit", fail)
        with pytest.raises(RuntimeError, match="thread"):
            engine.submit([job()])[0].answer.result(10)
    assert len(pictures(engine.submit([job()]))) == 1


def test_a_batch_that_failed_has_let_go_of_its_memory_when_its_pictures_run_alone(
    live: LiveBase, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, held, alive = LiveBase.compute, [], []

    def compute(self: LiveBase, calls: Any, mixes: Any, *wanted: Any) -> Any:
        if len(calls) > 1:
            large = torch.zeros(1)
            held.append(weakref.ref(large))
            raise RuntimeError("no memory for all")
        alive.append(any(each() is not None for each in held))
        return own(self, calls, mixes, *wanted)

    monkeypatch.setattr(LiveBase, "compute", compute)
    assert len(pictures(engine.submit([job(1), job(1)]))) == 2
    assert held
    assert not any(alive)


def test_a_forward_that_nobody_waits_for_ends_at_its_next_block(live: LiveBase, engine: Engine, seen: Seen) -> None:
    """And leaves nothing behind: the next picture is what it always is."""
    alone = engine.submit([job(1, None)])[0].answer.result(60)
    begun, ended = threading.Event(), []

    def gone(block: Any, given: Any) -> None:
        if not begun.is_set():
            engine.cancel(tickets)
            begun.set()

    first, last = live.pipeline.unet.down_blocks[0].resnets[0], live.pipeline.unet.up_blocks[-1]
    hooks = [first.register_forward_hook(lambda block, given, _: gone(block, given))]
    hooks.append(last.register_forward_hook(lambda *_: ended.append(begun.is_set())))
    try:
        tickets = engine.submit([job(3, None), job(3, None, seed=5)])
        assert all(isinstance(ticket.answer.exception(60), CancelledError) for ticket in tickets)
        assert not any(ended)
    finally:
        for hook in hooks:
            hook.remove()
    again = engine.submit([job(1, None)])[0].answer.result(60)
    assert torch.equal(levels(alone), levels(again))
