"""Control the deltas on a live model by name: weigh, swap, share out to samples, and detach bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from torch import nn

from svdiff_delta._util.json import JSON
from svdiff_delta.errors import AttachError, InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.parameter import Kind
from svdiff_delta.ops.arithmetic import add

from .handle_state import HandleState, finite
from .model_locks import exclusive
from .shift import Shift

Sample = str | None | Mapping[str, float]
"""The δ of one sample: a name, none, or names with weights."""


class Handle(HandleState):
    """Deltas on a live model. Made by `attach`.

    What the model computes with is Σ scale · weight · δ over the active deltas, summed first and clipped once.

    Threads may share it: a change waits for the one before. One that fails, or is interrupted, changes nothing.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    # -- what is there

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of all deltas, active or not."""
        return tuple(self._held)

    @property
    def active(self) -> dict[str, float]:
        """The names of the active deltas, with their weights, in the order in which they are summed."""
        return dict(self._active)

    @property
    def enabled(self) -> bool:
        """True if the active deltas are turned on."""
        return self._enabled

    @property
    def scale(self) -> float:
        """The factor on all deltas."""
        return self._scale

    def kinds(self) -> dict[str, Kind]:
        """Return the kind of each attached parameter, by name."""
        return {name: parameter.kind for name, parameter in self._sums.parameters.items()}

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield parameter name and the free numbers of its δ, for an optimizer; nothing unless `trainable`.

        Raises:
            AttachError: they are in flat parameters.
        """
        if self._board.flats:
            raise AttachError(
                "what is trained is in flat parameters, which gradients go to",
                fix="use `handle.flat_parameters()`, or attach again and never call that",
            )
        for name in self._sums.parameters:
            if name in self._trained:
                yield name, self._trained[name].leaf

    @exclusive
    def flat_parameters(self) -> dict[Kind, nn.Parameter]:
        """Return the free numbers of all δ as one flat parameter for each kind, for an optimizer.

        An optimizer has one update for each then, not one for each layer; kinds are apart since their learning rates
        differ. From the first call on gradients go to these, and `parameters` is refused. Where the numbers of a weight
        are, `flat_places` says. One that no gradient reaches has gradient 0 there, and is reached by weight decay.

        Returns:
            For "spectral" and "elementwise", as far as there are such weights, a parameter (F,); nothing unless
            `trainable`.

        Raises:
            AttachError: the handle is detached, or layers are on several devices.
        """
        self._check_attached()
        return dict(self._board.flatten())

    def flat_places(self) -> dict[str, tuple[Kind, slice]]:
        """Return by parameter name which flat parameter has its numbers, and where; nothing before there are any."""
        found: dict[str, tuple[Kind, slice]] = {}
        for name in self._sums.parameters if self._board.flats else ():
            shift = self._trained[name]
            found[name] = (shift.parameter.kind, slice(shift.start_at, shift.start_at + shift.count))
        return found

    def untouched(self) -> list[str]:
        """Return the names of trained weights that no gradient has reached, since the loss does not depend on them.

        Of flat parameters it is none since training began; otherwise the parameter's own gradient is missing now.
        """
        names = set(self._board.untouched())
        return [name for name in self._sums.parameters if name in names]

    def clipped_count(self) -> int:
        """Return how many trained singular values are negative, σ + δ < 0, so that their δ does nothing."""
        return self._board.clipped_count()

    def trained(self) -> Mapping[str, Shift]:
        """Return what is being trained, by parameter name; nothing unless `trainable`."""
        return {name: self._trained[name] for name in self._sums.parameters if name in self._trained}

    @exclusive
    def revive(self) -> None:
        """Let gradients bring back, from now on, shifts in training that fell below −σ (projected gradient)."""
        self._board.revive()

    @exclusive
    def delta(self, *, training: Mapping[str, JSON] | None = None) -> Delta:
        """Return δ as it is on the model now, its weights and scale folded in; as if it were enabled.

        Args:
            training: facts to record in its metadata.

        Raises:
            AttachError: nothing is active, or the handle is detached.
            TensorError: a value is not finite.
        """
        self._check_attached()
        factors = self._factors(self._active)
        if not factors:
            raise AttachError("no delta is active", fix="name one with `set_adapters`")
        deltas = [self._held[name].delta for name in factors]
        if not self._trained and list(factors.values()) != [1.0]:
            summed = add(*deltas, weights=list(factors.values()))
            return Delta.from_stored(
                summed.stored, replace(summed.metadata, training=training or summed.metadata.training)
            )
        values = self._trained_values() if self._trained else self._parts(self._total(self._active))
        metadata = replace(deltas[0].metadata, parameters=self._sums.parameters)
        return Delta(values, replace(metadata, training=training or metadata.training))

    # -- what is active

    @exclusive
    def set_adapters(self, names: str | Sequence[str], weights: float | Sequence[float] = 1.0) -> None:
        """Let these deltas be active, and no others, with these weights.

        Args:
            names: one name, or several, which are summed in this order.
            weights: one for each name, or one for all.

        Raises:
            InputError: a name is unknown or given twice, or the weights are not as many or not finite.
            AttachError: the handle is detached, or its delta is being trained.
        """
        self._check_fixed()
        names = [names] if isinstance(names, str) else list(names)
        factors = [*weights] if isinstance(weights, Sequence) else [weights] * len(names)
        if not names:
            raise InputError("no delta was named", fix="`disable()` turns all of them off")
        if len(factors) != len(names):
            raise InputError(f"{len(names)} deltas need as many weights, {len(factors)} were given")
        if twice := next((name for index, name in enumerate(names) if name in names[:index]), None):
            raise InputError(f"the delta {twice!r} is named twice", fix="name it once, with the sum of its weights")
        self._change(_active=self._checked(dict(zip(names, factors, strict=True))))

    @exclusive
    def set_scale(self, scale: float) -> None:
        """Let all deltas have another factor.

        Raises:
            InputError: it is not finite.
            AttachError: the handle is detached, or its delta is being trained.
        """
        self._check_fixed()
        self._change(_scale=finite(scale, "the scale"))

    def enable(self) -> None:
        """Turn the active deltas on again."""
        self._set_enabled(True)

    def disable(self) -> None:
        """Turn all deltas off: the model computes what the base does, to rounding; bit for bit if it is fused."""
        self._set_enabled(False)

    @exclusive
    def _set_enabled(self, enabled: bool) -> None:
        self._check_attached()
        if not self._trained:
            self._change(_enabled=enabled)
            return
        before = self._enabled
        try:
            self._enabled = enabled
            self._board.switch(on=enabled)
        except BaseException:
            self._enabled = before
            self._board.switch(on=before)
            raise

    # -- which there are

    @exclusive
    def add(self, name: str, delta: Delta) -> None:
        """Hold another delta of the same base and layers, not active yet.

        Raises:
            InputError: the name is taken.
            AttachError: it shifts a layer that was not attached, the handle is detached, or its delta is being trained.
            BaseMismatchError: it was made for another base.
        """
        self._check_fixed()
        if name in self._held:
            raise InputError(f"there is a delta {name!r} already", fix="choose another name, or `swap` that one")
        self._held[name] = self._sums.flatten(delta)

    @exclusive
    def delete(self, *names: str) -> None:
        """Forget deltas; those that were active no longer are.

        Raises:
            InputError: a name is unknown.
            AttachError: samples have it now, the handle is detached, or its delta is being trained.
        """
        self._check_fixed()
        self._checked(dict.fromkeys(names, 1.0))
        if busy := next((name for name in names if any(name in sample for sample in self._samples)), None):
            raise AttachError(f"samples have the delta {busy!r}", fix="delete it after `per_sample`")
        self._change(
            _active={name: weight for name, weight in self._active.items() if name not in names},
            _held={name: flat for name, flat in self._held.items() if name not in names},
        )

    @exclusive
    def swap(self, delta: Delta, name: str | None = None) -> None:
        """Put another delta of the same base in the place of one, with its weight; what it does not shift is at δ = 0.

        Args:
            delta: the other delta.
            name: which one it takes the place of; the only active one if not given.

        Raises:
            AttachError: it shifts a layer that was not attached, or the handle is detached.
            BaseMismatchError: it was made for another base.
            InputError: the name is unknown, or several are active and none was named.
        """
        self._check_attached()
        if name is None and len(self._active) != 1:
            raise InputError(f"{len(self._active)} deltas are active", fix="say which one to swap, by name")
        name = next(iter(self._active)) if name is None else name
        self._checked({name: 1.0})
        self._change(_held={**self._held, name: self._sums.flatten(delta)})

    # -- one batch, many deltas

    @contextmanager
    def per_sample(self, samples: Sequence[Sample]) -> Iterator[None]:
        """Let every sample of a batch have its own δ while the block runs.

        A batch that is a multiple of the list is the list over and over, as diffusers doubles it for classifier-free
        guidance: without and with the prompt, each for all samples in order. A name stands for that delta with weight
        1, whether it is active or not; the scale is a factor on all. One broadcast multiplication per layer does it.

        Args:
            samples: for each sample a name, a mapping from names to weights, or None for the base.

        Raises:
            InputError: a name is unknown, a weight is not finite, or there is no sample; and, from the model, a batch
                that is no multiple of the list.
            AttachError: the handle is detached, fused, in another such block, or its delta is being trained.
        """
        self._check_fixed()
        if not self._board.live:
            raise AttachError("a fused delta is the same for all samples", fix='attach with `mode="live"`')
        if isinstance(samples, str) or not samples:
            raise InputError("per_sample takes a list with a delta, or None, for every sample of the batch")
        chosen = [self._checked(_weights(sample)) for sample in samples]
        try:
            self._take_samples(chosen)
            with self._board.sharing(len(chosen)):
                self._share(chosen)
                yield
        finally:
            if self._samples is chosen:
                self._samples = []

    @exclusive
    def _take_samples(self, chosen: list[dict[str, float]]) -> None:
        self._check_fixed()
        if self._samples:
            raise AttachError("samples have their own deltas already", fix="leave the block around this one first")
        self._samples = chosen

    @exclusive
    def _share(self, chosen: list[dict[str, float]]) -> None:
        self._check_fixed()
        self._change(_samples=chosen)

    # -- the end

    @exclusive
    def detach(self, *, force: bool = False) -> None:
        """Take all deltas off; every weight is again what it was, bit for bit. A second call does nothing.

        One that was interrupted is complete, or goes on when it is called again.

        Args:
            force: whether to write over what others have added to fused weights since.

        Raises:
            AttachError: something else was put on a layer afterwards, or the base's file holds another weight now;
                nothing is taken off then.
        """
        self._board.clear(force=force)


def _weights(sample: Sample) -> Mapping[str, float]:
    if sample is None:
        return {}
    return {sample: 1.0} if isinstance(sample, str) else sample
