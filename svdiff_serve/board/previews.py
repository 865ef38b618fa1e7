"""Paint previews so that the newest position of the hand wins: a page's next request ends the one before it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from svdiff_serve.engine.job import Job, Ticket
from svdiff_serve.engine.live_base import MixGains
from svdiff_serve.errors import BusyError, CancelledError, DrainingError, RefusedError
from svdiff_serve.http.errors import error_body
from svdiff_serve.http.keys import ANYONE
from svdiff_serve.http.rates import Rates
from svdiff_serve.settings import Limits
from svdiff_train.sampling.sample import Sampling

from .asking import Preview
from .listing import dtype_of
from .shelf import Shelf
from .sums import Check, check_totals, summed, totals_of

PAGES: Final = 1024
"""Pages whose last request is remembered."""


@dataclass(eq=False)
class _Run:
    """A request that is being answered.

    Attributes:
        move: the page's number of the hand's position.
        tickets: pictures that are asked for now.
        replaced: whether a newer request has come.
    """

    move: int
    tickets: list[Ticket] = field(default_factory=list)
    replaced: bool = False


class Previews:
    """Paints what pages ask for.

    Args:
        shelf: the deltas.
        limits: what requests may ask for.
        rates: how many pictures a key may have.
    """

    def __init__(self, shelf: Shelf, limits: Limits, rates: Rates) -> None:
        self._shelf, self._limits, self._rates = shelf, limits, rates
        self._service = shelf.service
        self._latest: OrderedDict[tuple[str, str], _Run] = OrderedDict()

    def begin(self, asked: Preview, owner: str) -> _Run:
        """End what the same page asked for before, and return the new request's place.

        One that was sent before another and comes after it is replaced already.
        """
        key, run = (owner, asked.client), _Run(asked.move)
        former = self._latest.pop(key, None)
        if former is not None and former.move > run.move:
            run.replaced = True
            self._latest[key] = former
            return run
        if former is not None:
            former.replaced = True
            self._service.engine.cancel(former.tickets)
        self._latest[key] = run
        while len(self._latest) > PAGES:
            self._latest.popitem(last=False)
        return run

    async def lines(
        self, asked: Preview, stages: Sequence[Sampling], owner: str, run: _Run
    ) -> AsyncGenerator[bytes, None]:
        """Yield the lines of an answer as they come; what was begun is given up when nobody takes them any more."""
        if run.replaced:
            yield _line(asked, {"kind": "replaced"})
            return
        try:
            async with aclosing(self._paint(asked, stages, owner, run)) as painted:
                async for line in painted:
                    yield _line(asked, line)
            yield _line(asked, {"kind": "replaced" if run.replaced else "done"})
        except Exception as error:  # noqa: BLE001 - the answer has begun: each becomes its last line
            if run.replaced or isinstance(error, CancelledError):
                yield _line(asked, {"kind": "replaced"})
            else:
                later = {"retry_after": error.retry_after} if isinstance(error, BusyError) else {}
                yield _line(asked, {"kind": "error", **error_body(error), **later})
        finally:
            self._service.engine.cancel(run.tickets)
            run.tickets = []  # its number stays, for requests that are still on their way

    async def _paint(
        self, asked: Preview, stages: Sequence[Sampling], owner: str, run: _Run
    ) -> AsyncGenerator[dict[str, Any], None]:
        if not self._service.engine.alive:
            raise DrainingError("the server is ending", fix="wait until it is back")
        checks, gains = await asyncio.to_thread(self._prepare, asked, stages[0])
        yield {"kind": "check", "checks": [check.json() for check in checks]}
        if refused := next((check for check in checks if check.state == "refused"), None):
            raise RefusedError(refused.message, field="mixes")
        for stage, sampling in enumerate(stages):
            if run.replaced:
                return
            self._rates.take(owner, len(asked.pictures))
            begun = time.perf_counter()
            run.tickets = self._submit(asked, sampling, gains, owner)
            waiting = {asyncio.wrap_future(ticket.answer): number for number, ticket in enumerate(run.tickets)}
            try:
                async with aclosing(_as_they_come(waiting)) as coming:
                    async for number, image in coming:
                        png = await asyncio.to_thread(_png, image)
                        facts = {"stage": stage, "steps": sampling.steps, "number": number}
                        facts |= {"seed": asked.pictures[number].seed}
                        seconds = round(time.perf_counter() - begun, 4)
                        yield {"kind": "picture", **facts, "seconds": seconds, "png": png}
            finally:
                _let_go(waiting)

    def _prepare(self, asked: Preview, sampling: Sampling) -> tuple[list[Check], list[MixGains | None]]:
        """Return what is to be said of the mixes, and the gains of each picture."""
        self._service.check(sampling)
        half = dtype_of(self._service.pipeline) == "float16"
        sums, sigmas = [totals_of(self._shelf, [(mix, 1.0)]) for mix in asked.mixes], self._service.live.sigmas()
        checks = [check_totals(each, sigmas, half=half) for each in sums]
        if any(check.state == "refused" for check in checks):
            return checks, []
        made: dict[tuple[float, ...], MixGains | None] = {}
        for picture in asked.pictures:
            if picture.share not in made:
                delta = summed(self._shelf, asked.shares(picture), sums[0])
                made[picture.share] = None if delta is None else self._service.live.gains([(delta, 1.0)])
        return checks, [made[picture.share] for picture in asked.pictures]

    def _submit(self, asked: Preview, sampling: Sampling, gains: Sequence[MixGains | None], owner: str) -> list[Ticket]:
        deadline = time.monotonic() + self._limits.seconds
        # Without keys all are one owner, and whoever asks much would keep others waiting.
        key = f"{owner} {asked.client}" if owner == ANYONE else owner
        jobs = [
            Job(asked.prompt, picture.seed, sampling, mix, key, deadline, at_once=True)
            for picture, mix in zip(asked.pictures, gains, strict=True)
        ]
        return self._service.engine.submit(jobs)


async def _as_they_come(waiting: dict[asyncio.Future[Any], int]) -> AsyncGenerator[tuple[int, Any], None]:
    """Yield number and picture of each that is done; raise what one of them ended by."""
    pending = set(waiting)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for each in sorted(done, key=waiting.__getitem__):
            yield waiting[each], each.result()


def _let_go(waiting: dict[asyncio.Future[Any], int]) -> None:
    for each in waiting:
        if not each.cancel() and not each.cancelled():
            each.exception()  # asked for, or asyncio would say that nobody has


def _png(image: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)  # it is looked at and thrown away
    return base64.b64encode(stream.getvalue()).decode()


def _line(asked: Preview, facts: dict[str, Any]) -> bytes:
    return json.dumps({"move": asked.move, **facts}, separators=(",", ":")).encode() + b"\n"
