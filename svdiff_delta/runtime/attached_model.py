"""Write δ into the shifted layers of one live model, and take all of them off again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from queue import Empty, SimpleQueue
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from svdiff_delta.errors import AttachError
from svdiff_delta.format.parameter import Kind
from svdiff_delta.svd.side_by_side import run_costliest_first
from svdiff_delta.svd.workspace import Workspace

from .claim import Claim
from .flat_deltas import Sums
from .fused import FusedPatch
from .gain_table import GainTable
from .joint_gains import MapCache
from .patched_layers import LivePatch
from .per_sample import Batch
from .shift import Shift
from .trained_gains import TrainedGains


class AttachedModel:
    """The shifted layers of a live model.

    Args:
        models: the models by component.
        sums: how δ is laid out.
        claim: the layers, with all that was put on them.

    Attributes:
        sums: how δ is laid out.
        claim: the layers.
        trained: the shifts that take gradients, by parameter name; tied layers train one.
        flats: the flat parameters that hold what is trained, by kind; none if every layer has one of its own.
        begun: whether something was written since this was set to false.
    """

    def __init__(self, models: Mapping[str, nn.Module], sums: Sums, claim: Claim) -> None:
        self._models, self.sums, self.claim, self.begun = models, sums, claim, False
        self._fused = [site for site in claim.sites if isinstance(site, FusedPatch)]
        self._shifts = [site.shift for site in claim.sites if isinstance(site, LivePatch)]
        self._turn = object()
        self._batches = {component: Batch(component) for component in models}
        for shift in self._shifts:
            shift.batch = self._batches[shift.component]
        self.trained: dict[str, Shift] = {shift.name: shift for shift in reversed(self._shifts) if shift.trainable}
        self.flats: dict[Kind, nn.Parameter] = {}
        self._maps = MapCache()
        self._bank = GainTable(sums, self._shifts) if self._shifts else None
        self._join()
        self._check = claim.checking
        if self._check is not None:
            self._check.begin(self._shifts, self._fused)

    def _join(self) -> None:
        """Let what is trained of each model be computed at once when its forward begins."""
        for component, model in self._models.items() if self.trained else ():
            gains = TrainedGains([shift for shift in self._shifts if shift.component == component])
            self.claim.gains.append(gains)
            gains.watch(model)

    @property
    def live(self) -> bool:
        """True if layers compute with δ, False if the weights hold it."""
        return self._bank is not None

    def revive(self) -> None:
        """Let gradients bring back what is trained and has fallen below −σ."""
        for shift in self._shifts:
            shift.revive = True

    def check(self, total: NDArray[np.float64]) -> None:
        """Check that fused weights are what was written, and that the base's file still holds what they are made of.

        Args:
            total: the δ (D,) that they are to get.

        Raises:
            AttachError: something else has changed one.
        """
        sites = {site.name: site for site in self._fused if site.changed or not site.holds(self._part(total, site))}

        def check(name: str, wait: bool) -> AttachError | None:  # noqa: ARG001
            try:
                sites[name].check_change(self._part(total, sites[name]))
            except AttachError as error:
                return error
            return None

        if sites:
            found = run_costliest_first({name: site.size for name, site in sites.items()}, check)
            for error in filter(None, found.values()):  # the first by name, whichever thread met one first
                raise error

    def _part(self, total: NDArray[np.float64], site: FusedPatch) -> NDArray[np.float64]:
        return self.sums.part(total, site.name)

    def kept(self) -> dict[str, Tensor]:
        """Return a copy of the δ that are being trained, for `put_back`."""
        return {name: shift.free().detach().clone() for name, shift in self.trained.items()}

    def put_back(self, kept: Mapping[str, Tensor]) -> None:
        """Let the δ that are being trained be what they were."""
        for name, value in kept.items():
            self.trained[name].free().detach().copy_(value)

    def write(self, total: NDArray[np.float64], rows: Sequence[NDArray[np.float64]]) -> None:
        """Put δ (D,) on the model, and one for each sample if there are `rows`; or let training start there.

        Whoever is interrupted may write again: nothing depends on what is there.
        """
        if self._check is not None:
            kept = total.copy()
            self._check.total = lambda name: self.sums.part(kept, name)
        self.begun = True
        for name, shift in self.trained.items():
            shift.start(torch.from_numpy(self.sums.part(total, name)))
        if self.trained:
            return
        self._fuse(total)
        if self._bank is not None:
            self._bank.write(total)
            if rows:
                self._bank.write_rows(rows)

    def _fuse(self, total: NDArray[np.float64]) -> None:
        """Put δ (D,) into fused weights, several at once, each on one thread: so the bits are the same on any number.

        A thread uses its memory again from one weight to the next.
        """
        turn, total = object(), total.copy()  # whoever gives it may use it again, while a thread is left behind
        self._turn = turn
        sites = {site.name: site for site in self._fused if not site.is_done(self._part(total, site))}
        spaces: SimpleQueue[Workspace] = SimpleQueue()

        def write(name: str, wait: bool) -> None:  # noqa: ARG001
            try:
                space = spaces.get_nowait()
            except Empty:
                space = Workspace()
            sites[name].write(self._part(total, sites[name]), space, lambda: self._turn is turn)
            spaces.put(space)

        if sites:
            costs = {name: site.cost for name, site in sites.items()}
            run_costliest_first(costs, write, workers=_workers(sites.values()))

    def _unfuse(self) -> None:
        """Put W back into fused weights, several at once; whoever is interrupted may call it again."""
        self._turn = object()
        sites = {site.name: site for site in self._fused if not site.is_original}
        if sites:
            sizes = {name: site.size for name, site in sites.items()}
            run_costliest_first(sizes, lambda name, _: sites[name].write_original(), workers=_workers(sites.values()))

    def flatten(self) -> dict[Kind, nn.Parameter]:
        """Move what is trained into one flat parameter for each kind, in the order of names.

        Raises:
            AttachError: it is on several devices or of several dtypes.
        """
        if self.flats or not self.trained:
            return self.flats
        kinds: dict[Kind, list[str]] = {}
        for name in self.sums.parameters:
            kinds.setdefault(self.trained[name].parameter.kind, []).append(name)
        states = {(shift.leaf.device, shift.leaf.dtype) for shift in self.trained.values()}
        if len(states) > 1:
            raise AttachError("what is trained is on several devices", fix="use `handle.parameters()`")
        flats = {kind: self._moved(names) for kind, names in sorted(kinds.items(), reverse=True)}
        self.flats = flats
        return flats

    def _moved(self, names: Sequence[str]) -> nn.Parameter:
        """Return a flat parameter that from now on holds the numbers of these weights, in order."""
        flat = nn.Parameter(torch.cat([self.trained[name].free().detach() for name in names]))
        self.trained[names[0]].flat = flat  # so that it moves with the model
        ends = accumulate(self.trained[name].count for name in names)
        begins = {name: end - self.trained[name].count for name, end in zip(names, ends, strict=True)}
        for shift in self._shifts:
            if shift.name in begins:
                shift.move_into(flat, begins[shift.name])
        return flat

    def untouched(self) -> list[str]:
        """Return the names of what is trained that no gradient has reached: that of the last pass, or ever if flat."""
        if not self.flats:
            return [name for name, shift in self.trained.items() if shift.leaf.grad is None]
        reached = {shift.name for shift in self._shifts if shift.reached}
        return [name for name in self.trained if name not in reached]

    def clipped_count(self) -> int:
        """Return how many of the δ that are being trained are below −σ, where they do nothing."""
        shifts = list(self.trained.values())
        joint = self._maps.of(shifts) if shifts else None
        with torch.no_grad():
            if joint is not None:
                return int((joint.full() < joint.floor).sum())
            return sum(int(shift.clipped_count()) for shift in shifts)

    def switch(self, *, on: bool) -> None:
        """Let the δ that is being trained count, or not."""
        for shift in self._shifts:
            shift.enabled = on

    @contextmanager
    def sharing(self, count: int) -> Iterator[None]:
        """Watch the batches of all models for as long as they are shared out to so many samples."""
        with ExitStack() as stack:
            stack.callback(cast("GainTable", self._bank).clear_rows)
            for batch in self._batches.values():
                stack.callback(setattr, batch, "deltas", 0)  # a hook that was left behind does nothing then
            for component, batch in self._batches.items():
                batch.deltas = count
                model = self._models[component]
                stack.callback(model.register_forward_pre_hook(batch.begin, with_kwargs=True).remove)
                stack.callback(model.register_forward_hook(batch.end, always_call=True).remove)
            yield

    def clear(self, *, force: bool) -> None:
        """Take everything off; arguments and errors as `Claim.release`."""
        self.claim.release(force=force, first=self._unfuse)
        self._fused, self._shifts, self._bank = [], [], None


def _workers(sites: Iterable[FusedPatch]) -> int | None:
    """Return how many weights to change at once: two on a GPU, where one is brought there while one is computed."""
    return 2 if any(site.device != "cpu" for site in sites) else None
