"""What was put on a live model: where δ is written to, and how all of it is taken off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .bank import Bank
from .batch import Batch
from .checking import Check
from .fused import FusedSite
from .layers import Shift
from .sites import LiveSite, Site
from .sums import Sums


class Board:
    """The shifted layers of a live model.

    Args:
        models: the models by component.
        sums: how δ is laid out.
        sites: the shifted layers, in the order in which they were put in.
        check: what compares the next forward with W + ΔW, if anything does.

    Attributes:
        trained: the shifts that take gradients, by parameter name; tied layers train one.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], sums: Sums, sites: Sequence[Site], check: Check | None = None
    ) -> None:
        self._models, self._sums, self._sites = models, sums, sites
        self._fused = [site for site in sites if isinstance(site, FusedSite)]
        self._shifts = [site.shift for site in sites if isinstance(site, LiveSite)]
        self._batches = {component: Batch(component) for component in models}
        for shift in self._shifts:
            shift.batch = self._batches[shift.component]
        self.trained: dict[str, Shift] = {shift.name: shift for shift in reversed(self._shifts) if shift.trainable}
        self._bank = Bank(sums, self._shifts) if self._shifts else None
        self._check = check
        if check is not None:
            check.begin(self._shifts, self._fused)

    @property
    def live(self) -> bool:
        """Whether layers compute with δ; else weights hold it."""
        return self._bank is not None

    def revive(self) -> None:
        """Let gradients bring back what is trained and has fallen below −σ."""
        for shift in self._shifts:
            shift.revive = True

    def write(self, total: NDArray[np.float64], rows: Sequence[NDArray[np.float64]]) -> None:
        """Put δ (D,) on the model, and one for each sample if there are `rows`; or let training start there.

        Raises:
            AttachError: something else has changed a fused weight; nothing is written then.
        """
        if self._check is not None:
            kept = total.copy()
            self._check.total = lambda name: self._sums.part(kept, name)
        if self.trained:
            for name, shift in self.trained.items():
                shift.start(torch.from_numpy(self._sums.part(total, name)))
            return
        for site in self._fused:
            site.check()
        for site in self._fused:
            site.write(self._sums.part(total, site.name))
        if self._bank is not None:
            self._bank.write(total)
            if rows:
                self._bank.write_rows(rows)

    def switch(self, *, on: bool) -> None:
        """Let the δ that is being trained count, or not."""
        for shift in self._shifts:
            shift.enabled = on

    @contextmanager
    def sharing(self, count: int) -> Iterator[None]:
        """Watch the batches of all models for as long as they are shared out to so many samples."""
        with ExitStack() as stack:
            stack.callback(cast("Bank", self._bank).clear_rows)
            for component, batch in self._batches.items():
                batch.deltas = count
                model = self._models[component]
                stack.callback(model.register_forward_pre_hook(batch.begin, with_kwargs=True).remove)
                stack.callback(model.register_forward_hook(batch.end, always_call=True).remove)
            yield

    def clear(self, *, force: bool) -> None:
        """Take everything off.

        Args:
            force: whether what others have added to fused weights may be lost.

        Raises:
            AttachError: something else has changed a layer since; nothing is taken off then.
        """
        for site in self._sites:
            site.check(force=force)
        if self._check is not None:
            self._check.stop()
        for site in reversed(self._sites):
            site.restore()
        self._sites, self._fused, self._shifts, self._bank = (), [], [], None
