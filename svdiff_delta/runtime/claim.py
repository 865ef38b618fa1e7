"""Hold all that one `attach` has put on a model: its layers are marked first and given back last.

Everything is put on and taken off in steps that may be done again, so that whatever interrupts leaves a way on or back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, Protocol

from torch import nn

from svdiff_delta.base_model.experts import held_weights
from svdiff_delta.errors import AttachError

from .live_weight import pickle_refusal

if TYPE_CHECKING:
    from .handle import Handle
    from .self_check import Check
    from .trained_gains import TrainedGains

CLAIM: Final = "svdiff_claim"
"""The attribute of a layer that says which claim it is under."""


class LayerPatch(Protocol):
    """Something that is put on one layer, and the way back."""

    def put(self) -> None:
        """Put it there; `restore` takes it off again wherever this ended."""

    def check(self, *, force: bool = False) -> None:
        """Check that `restore` would bring back what was there.

        Args:
            force: whether what was added to the weight may be lost.

        Raises:
            AttachError: something else has changed the layer since.
        """

    def read(self) -> None:
        """Read what `restore` will need.

        Raises:
            AttachError: it is not there any more.
        """

    def restore(self) -> None:
        """Let the layer be what it was; a second call does nothing."""


class Claim:
    """The layers that one `attach` shifts.

    Attributes:
        settled: whether all was put on; else the next `attach` to the model takes it off.
        whole: whether nothing was taken off yet.
        gone: whether everything was taken off.
        handle: what changes and detaches it, once all was put on.
        checking: what compares the next forward with W + ΔW, if anything does.
        gains: what computes gains in training at each forward of the models.
        busy: the lock that `attach` holds until it is done.
    """

    def __init__(self) -> None:
        self.busy: Any = RLock()
        self.settled, self.whole, self.gone = False, True, False
        self.handle: Handle | None = None
        self.checking: Check | None = None
        self.gains: list[TrainedGains] = []
        self._sites: Mapping[str, Sequence[LayerPatch]] = {}
        self._modules: Mapping[str, Sequence[nn.Module]] = {}
        self._gates: dict[str, Any] = {}

    @property
    def sites(self) -> Iterator[LayerPatch]:
        """All sites, in order."""
        return (site for sites in self._sites.values() for site in sites)

    def take(self, modules: Mapping[str, Sequence[nn.Module]], sites: Mapping[str, Sequence[LayerPatch]]) -> None:
        """Mark all layers.

        Args:
            modules: the layers, by parameter name.
            sites: what is to be put on them.

        Raises:
            AttachError: another claim is on one of them.
        """
        self._gates = {name: RLock() for name in sites}
        self._modules, self._sites = modules, sites
        for name, layers in modules.items():
            for module in layers:
                if module.__dict__.setdefault(CLAIM, self) is self:
                    continue
                if claim_of(module) is not None:
                    raise AttachError(f"{name}: another delta is being put on it", fix="attach them together")
                module.__dict__[CLAIM] = self

    def put(self, name: str) -> None:
        """Put on what shifts one parameter, unless all is being taken off again."""
        with self._gates[name]:
            if self.whole:
                for site in self._sites[name]:
                    site.put()

    def release(self, *, force: bool = False, first: Callable[[], object] = lambda: None) -> None:
        """Take everything off. What was interrupted goes on where it was; a second call does nothing.

        Args:
            force: whether what others have added to fused weights may be lost.
            first: called before layers are given back one by one, and again where it was interrupted.

        Raises:
            AttachError: something else has changed a layer since, or a weight cannot be read any more; nothing is taken
                off then.
        """
        if self.gone:
            return
        if self.whole:
            for site in self.sites:
                site.check(force=force)
        self._take_off(first)

    def undo(self) -> None:
        """Take off what was put on so far."""
        if not self.gone:
            self._take_off()

    def _take_off(self, first: Callable[[], object] = lambda: None) -> None:
        for site in self.sites:
            site.read()
        try:
            self._restore(first)
        except BaseException:
            self._restore(first)  # all that it needs is here, so what interrupted may only delay it
            raise

    def _restore(self, first: Callable[[], object]) -> None:
        self.whole = False
        if self.checking is not None:
            self.checking.stop()
        first()
        for gains in self.gains:
            gains.stop()
        for name in reversed(list(self._sites)):
            with self._gates[name]:  # a thread may be at it still
                for site in reversed(self._sites[name]):
                    site.restore()
        for layers in self._modules.values():
            for module in layers:
                if module.__dict__.get(CLAIM) is self:
                    module.__dict__.pop(CLAIM, None)
        self.gone, self._sites, self._modules, self.handle = True, {}, {}, None

    def __deepcopy__(self, memo: object) -> Claim:
        """Return a claim on nothing: a copy of a model has no handle."""
        return _gone()

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        if self.gone:
            return type(None), ()  # so that whoever loads it needs nothing of this library
        raise pickle_refusal()


def _gone() -> Claim:
    claim = Claim()
    claim.whole, claim.gone = False, True
    return claim


def claim_of(module: nn.Module) -> Claim | None:
    """Return the claim that a layer is under."""
    found: Claim | None = module.__dict__.get(CLAIM)
    return None if found is None or found.gone else found


def undo_unsettled(models: Iterable[nn.Module]) -> None:
    """Take off what an `attach` has left that could not take it off itself; the models' locks are held.

    Raises:
        AttachError: a weight cannot be read any more.
    """
    claims = (claim_of(module) for model in models for module in (*model.modules(), *held_weights(model)))
    for claim in {id(claim): claim for claim in claims if claim is not None and not claim.settled}.values():
        if claim.busy.acquire(blocking=False):  # else another thread is at it, on a part of the model
            try:
                claim.undo()
            finally:
                claim.busy.release()
