"""Run the loop that paints: at every step waiting pictures come in, calls of all are computed, done ones leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol, cast

from svdiff_serve.errors import DrainingError

from .calls import Call, group
from .clones import clones_of, paint
from .endings import answer, outcome, reason
from .job import Job, Ticket
from .live_base import LiveBase
from .picture import Done, Event, Failed, Picture
from .queue import FairQueue

FIRST_GUESS: Final = 5.0
"""Seconds that a picture is thought to take until one was painted."""

LINGER: Final = 0.01
"""Seconds in which others may come before an idle engine begins: those that come together then leave together."""

SMOOTHING: Final = 0.2
"""How much the latest picture counts in the mean time of pictures."""

ROWS_OF_A_PICTURE: Final = 2
"""Rows that guidance makes of a picture in a forward."""


class Watcher(Protocol):
    """Is told what the engine does, such as to count it."""

    def forward(self, component: str, pictures: int, seconds: float) -> None:
        """Note a forward that so many pictures have shared."""

    def ended(self, outcome: str, waited: float, painted: float) -> None:
        """Note how a picture ended (done, failed, cancelled or late), and its seconds in the queue and after."""


@dataclass(frozen=True)
class _Error:
    """What a call ended by."""

    error: BaseException


@dataclass(eq=False)
class _Running:
    """A picture that is being painted, and the event that it came to."""

    ticket: Ticket
    picture: Picture
    clone: Any
    event: Event

    @property
    def call(self) -> Call:
        """The call that it waits for."""
        return cast("Call", self.event)


class Engine:
    """Pictures of many deltas from one live pipeline.

    Args:
        live: the pipeline with its deltas.
        batch_size: pictures that are painted at a time.
        queue_size: pictures that may wait.
        queue_of_key: pictures of one key that may wait.
        watcher: is told what happens.
    """

    def __init__(
        self,
        live: LiveBase,
        *,
        batch_size: int = 8,
        queue_size: int = 64,
        queue_of_key: int = 64,
        watcher: Watcher | None = None,
    ) -> None:
        self.live, self.batch_size, self._watcher = live, batch_size, watcher
        self._queue: FairQueue[Ticket] = FairQueue(queue_size, queue_of_key, self.patience)
        self._changed = threading.Condition()
        self._between: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._running: list[_Running] = []
        self._seconds, self._ending, self._over, self._hurry = FIRST_GUESS, False, False, False
        self._threads = ThreadPoolExecutor(batch_size, "svdiff-picture")
        self._clones = clones_of(live.pipeline, batch_size)
        self._loop = threading.Thread(target=self._run, name="svdiff-engine", daemon=True)
        self._loop.start()

    # -- what others call

    @property
    def waiting(self) -> int:
        """How many pictures wait."""
        return len(self._queue)

    @property
    def painting(self) -> int:
        """How many pictures are being painted."""
        return len(self._running)

    @property
    def alive(self) -> bool:
        """Whether the engine takes pictures."""
        return self._loop.is_alive() and not self._ending

    def patience(self) -> int:
        """Return in how many seconds a picture that comes now is likely to begin, at least 1."""
        rounds = (len(self._queue) + 1) / self.batch_size
        return max(1, ceil(rounds * self._seconds))

    def submit(self, jobs: Sequence[Job]) -> list[Ticket]:
        """Accept the pictures of one request, all or none.

        Raises:
            BusyError: the queue has no room for them.
            DrainingError: the engine is ending.
        """
        with self._changed:
            if not self.alive:
                raise DrainingError("the server is ending", fix="ask another one, or later")
            for key in {job.key for job in jobs}:
                self._queue.check(key, sum(job.key == key for job in jobs))
            tickets = [Ticket(job) for job in jobs]
            for ticket in tickets:
                self._queue.put(ticket.job.key, ticket)
                self._hurry |= ticket.job.at_once
            self._changed.notify()
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Give up pictures that nobody waits for any more: at once where they wait, else at their next step.

        A forward of which nobody waits for any row ends at its next block.
        """
        with self._changed:
            for ticket in tickets:
                ticket.gone = True
            self._changed.notify()

    def between_steps(self, action: Callable[[], Any]) -> Future[Any]:
        """Do something while no forward runs, and return what comes of it later."""
        answer: Future[Any] = Future()
        with self._changed:
            if self._over:
                answer.set_exception(DrainingError("the server is ending"))
                return answer
            self._between.put((action, answer))
            self._changed.notify()
        return answer

    def drain(self, seconds: float | None = None) -> bool:
        """Take nothing more, finish what was accepted, and end.

        Args:
            seconds: how long that may take; then what is left is answered with an error. None is for ever.

        Returns:
            Whether all was finished.
        """
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._loop.join(seconds)
        finished = not self._loop.is_alive()
        if not finished:
            with self._changed:
                late = [*self._queue.remove(lambda _: True), *(each.ticket for each in list(self._running))]
                for ticket in late:
                    ticket.gone = True
                    answer(ticket, error=DrainingError("the server ended before the picture was done"))
                self._changed.notify()
            self._loop.join(5)
        self._threads.shutdown(wait=False, cancel_futures=True)
        return finished

    # -- the loop

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._ending and not self._running and not len(self._queue) and self._between.empty():
                    self._over = True
                    return
                if not self._running:
                    self._changed.wait_for(self._is_urged, LINGER)
                self._hurry = False
            try:
                self._round()
            except Exception as error:  # noqa: BLE001 - the loop goes on, and whoever was painted for gets an answer
                for each in list(self._running):
                    self._go_on(each, each.picture.fail(error))

    def _has_work(self) -> bool:
        return bool(self._ending or self._running or len(self._queue) or not self._between.empty())

    def _is_urged(self) -> bool:
        return self._ending or self._hurry or len(self._queue) >= self.batch_size

    def _round(self) -> None:
        """Do what waits for a moment between steps, let pictures in and out, and compute one call of each."""
        self._do_between()
        self._drop()
        self._admit()
        self._compute()

    def _do_between(self) -> None:
        while True:
            try:
                action, answer = self._between.get_nowait()
            except Empty:
                return
            try:
                answer.set_result(action())
            except Exception as error:  # noqa: BLE001 - whoever asked gets it
                answer.set_exception(error)

    def _drop(self) -> None:
        """Let pictures go that nobody waits for, or whose time is over."""
        with self._changed:
            over = self._queue.remove(lambda ticket: ticket.gone or ticket.late())
        for ticket in over:
            self._end(ticket, error=reason(ticket))
        for each in [each for each in self._running if each.ticket.gone or each.ticket.late()]:
            self._go_on(each, each.picture.fail(reason(each.ticket)))

    def _admit(self) -> None:
        """Begin with waiting pictures as long as there is room."""
        while self._clones:
            with self._changed:
                if not len(self._queue):
                    return
                ticket = self._queue.take()
            ticket.began, clone = time.monotonic(), self._clones.pop()
            job, picture = ticket.job, Picture(self._threads)
            running = _Running(ticket, picture, clone, Failed(DrainingError("")))
            self._running.append(running)
            self._go_on(running, picture.start(lambda job=job, clone=clone: paint(clone, job)))  # type: ignore[misc]

    def _compute(self) -> None:
        """Compute the calls that all pictures wait for, in as few forwards as possible, and answer them."""
        waiting = list(self._running)
        calls = [each.call for each in waiting]
        found: dict[int, Any] = {}
        for members in group(calls, ROWS_OF_A_PICTURE * self.batch_size):
            found |= self._forward([waiting[number] for number in members], members)
        for number, each in enumerate(waiting):
            answer = found[number]
            failed = isinstance(answer, _Error)
            self._go_on(each, each.picture.fail(answer.error) if failed else each.picture.send(answer))

    def _forward(self, members: Sequence[_Running], numbers: Sequence[int]) -> dict[int, Any]:
        """Return the answers to calls by number; calls that fail together are computed one by one."""
        calls = [each.call for each in members]
        begun, results = time.perf_counter(), None
        try:
            mixes = [each.ticket.job.mix for each in members]
            results = self.live.compute(calls, mixes, lambda: not all(each.ticket.gone for each in members))
        except Exception as error:  # noqa: BLE001 - each picture gets its own
            if len(members) == 1:
                return {numbers[0]: _Error(error)}
        if results is None:  # only now, when the error has let go of what the forward had made
            alone = [self._forward([each], [number]) for each, number in zip(members, numbers, strict=True)]
            return {number: answer for one in alone for number, answer in one.items()}
        if self._watcher is not None:
            self._watcher.forward(calls[0].component, len(calls), time.perf_counter() - begun)
        return dict(zip(numbers, results, strict=True))

    def _go_on(self, running: _Running, event: Event) -> None:
        """Note what a picture came to; at its end, answer it."""
        running.event = event
        if isinstance(event, Call):
            return
        self._running.remove(running)
        self._clones.append(running.clone)
        if isinstance(event, Done):
            self._end(running.ticket, result=event.result)
        else:
            self._end(running.ticket, error=event.error)

    def _end(self, ticket: Ticket, *, result: Any = None, error: BaseException | None = None) -> None:
        now = time.monotonic()
        began = ticket.began or now
        if error is None:
            self._seconds += SMOOTHING * (now - began - self._seconds)
        answer(ticket, result=result, error=error)
        if self._watcher is not None:
            self._watcher.ended(outcome(error), began - ticket.came, now - began)
