"""Hold an update that a library's own layer makes of a weight, and check that nothing else goes into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.opened import Base
from svdiff_delta.conversion.lazy_tensors import Shape
from svdiff_delta.conversion.weight_updates import Update
from svdiff_delta.errors import BaseMismatchError, InputError

from .layers import FAILURES, quiet

MERGE: Final = 'merge it with the program that made it, where it was made, then `from_="full"`'

NAME: Final = 'name the base that it was made on as `made_on`, or merge it there, then `from_="full"`'

SAMPLE: Final = 3
"""Weights of which it is measured how far a rounded base moves their changes."""

SEEDS: Final = (0, 1)
"""Two builds of a layer start from these: what depends on them is not in the file."""

MOVED: Final = 1e-7
"""By how much of its norm the second build's weight is moved: what a decomposition makes of that is not in the file."""

APART: Final = (1e-5, 3e-6)
"""The shares of ΔW and of W by which two builds may differ: about `MOVED`, and what a layer in float32 rounds."""


class LayerBuilder(Protocol):
    """Builds a library's layer on a weight, and merges it."""

    @property
    def where(self) -> str:
        """The adapter and its method, as errors call them."""

    def merged(self, weight: Tensor, bias: Tensor | None, seed: int, *, rounded: bool = False) -> nn.Module:
        """Return the layer with the weight and bias that the library's merge makes, in the dtype of the weight.

        Args:
            weight: the base's.
            bias: the base's; zeros stand for it if None is given.
            seed: where random numbers began, by which what is built may be kept.
            rounded: whether weights that the builder reads itself are rounded to bfloat16.

        Raises:
            DeltaError: a tensor of the file was not taken, or one is missing.
            FAILURES: the library cannot build it, or not in this dtype.
        """


@dataclass(frozen=True, eq=False)
class LibraryUpdate:
    """ΔW = merge(W) − W by a library's own layer.

    Attributes:
        name: the parameter.
        builder: builds the layer.
        shape: of the base's weight.
        anew: what the library takes out of the base and the file lacks; empty where the file holds all.
        made_on: the base that it is taken out of.
        biased: whether the base has a bias beside the weight; what the library makes of that is asked for on its own.
    """

    name: str
    builder: LayerBuilder
    shape: Shape
    anew: str = ""
    made_on: Base | None = None
    biased: bool = False

    def check(self) -> None:
        """Return at once: the library checks the tensors when it builds its layer."""

    def misfit(self, shape: Shape) -> str:
        """Return why it does not fit a weight of this shape; it was built for the base's own."""
        return "" if shape == self.shape else f"has shape {list(self.shape)}, the base has {list(shape)}"

    def change(self, weight: Tensor) -> Tensor:
        """Return ΔW, float64.

        Raises:
            InputError: the library cannot build or merge it, or what it makes depends on what the file does not hold.
            BaseMismatchError: the weight of the base that it was made on has another shape.
        """
        weight = self._decomposed(weight)
        first = self._run(weight, SEEDS[0])
        moved = weight if self.anew else weight.double() + _small(weight)
        second = self._run(moved, SEEDS[1])
        allowed = APART[0] * float(first.norm()) + APART[1] * float(weight.double().norm())
        if not float((second - first).norm()) <= allowed:
            raise InputError(
                f"{self.builder.where}: what it makes of {self.name} depends on something that the file does not hold",
                fix=MERGE,
            )
        return first

    def rounded_share(self, weight: Tensor) -> float:
        """Return by which share ΔW is another on a bfloat16 copy of the base that it was made on."""
        weight = self._decomposed(weight)
        change = self._run(weight, SEEDS[0])
        other = self._run(weight.bfloat16(), SEEDS[0], rounded=True)
        return float((other - change).norm() / change.norm().clamp_min(1e-300))

    def _decomposed(self, weight: Tensor) -> Tensor:
        """Return the weight that the layer is put on: that of the base it was made on, if one is named."""
        if self.made_on is None:
            return weight
        found = self.made_on.read(self.name)
        if found.shape != weight.shape:
            shapes = f"{list(found.shape)} there, {list(weight.shape)} here"
            raise BaseMismatchError(f"{self.name}: has shape {shapes}", fix="name the base that it was made on")
        return found

    def changes_bias(self, base: Base, bias: Tensor) -> bool:
        """Tell whether the library's merge changes the bias too.

        Raises:
            InputError: as `change`.
        """
        weight = self._decomposed(base.read(self.name)).float()
        try:
            with quiet(SEEDS[0]):
                merged = self.builder.merged(weight, bias.float(), SEEDS[0])
        except FAILURES as error:
            raise refusal(self.builder.where, error) from None
        after = merged._parameters.get("bias")
        return after is None or not torch.equal(after.float(), bias.float())

    def _run(self, weight: Tensor, seed: int, *, rounded: bool = False) -> Tensor:
        """Return ΔW in float64, calculated by the layer in float64 if it can, else in float32."""
        if not self.anew:  # a decomposition is the library's own only in float32
            try:
                return self._finite(self._difference(weight.double(), seed, rounded=rounded))
            except FAILURES:  # not in float64; if it is something else, float32 shows it
                pass
        try:
            return self._finite(self._difference(weight.float(), seed, rounded=rounded))
        except FAILURES as error:
            raise refusal(self.builder.where, error) from None

    def _difference(self, weight: Tensor, seed: int, *, rounded: bool) -> Tensor:
        with quiet(seed):
            merged = self.builder.merged(weight, None, seed, rounded=rounded)
        found = merged._parameters["weight"]
        if found is None or found.shape != weight.shape:
            raise InputError(f"{self.builder.where}: {self.name} has another shape after the merge", fix=MERGE)
        bias = merged._parameters.get("bias")
        if not self.biased and bias is not None and bias.any():
            raise InputError(f"{self.builder.where}: gives {self.name} a bias, which the base does not have", fix=MERGE)
        return found.detach().double() - weight.double()

    def _finite(self, change: Tensor) -> Tensor:
        if not torch.isfinite(change).all():
            raise InputError(f"{self.builder.where}: makes NaN or infinity of {self.name}", fix="train it again")
        return change


def bind(updates: Mapping[str, Update], made_on: Base | None, what: str) -> dict[str, Update]:
    """Return updates that know the base that they were made on, if they need it.

    Args:
        updates: by parameter.
        made_on: that base; None if nobody names it.
        what: what errors call the adapter.

    Raises:
        InputError: it is needed and not named, or named and not needed.
    """
    needy = {name: update for name, update in updates.items() if isinstance(update, LibraryUpdate) and update.anew}
    if made_on is None and needy:
        first = next(iter(needy.values()))
        raise InputError(f"{first.builder.where}: the file lacks {first.anew}", fix=NAME)
    if made_on is not None and not needy:
        raise InputError(f"{what}: holds all that its change is made of", fix="leave `made_on` away")
    return {**updates, **{name: replace(update, made_on=made_on) for name, update in needy.items()}}


def rounding_remark(updates: Mapping[str, Update], base: Base) -> list[str]:
    """Return by how much changes that are made anew from a base are others on a copy of it in bfloat16."""
    found = sorted(name for name, update in updates.items() if isinstance(update, LibraryUpdate) and update.anew)
    shares = []
    for name in found[:: max(1, len(found) // SAMPLE)][:SAMPLE]:
        update = updates[name]
        if isinstance(update, LibraryUpdate):
            shares.append((update.rounded_share(base.read(name)), name))
    if not shares:
        return []
    share, name = max(shares)
    made = "a part of the change is not in the file and was made anew from the base named as `made_on`"
    return [f"{made}; on a copy of that in bfloat16 the change of {name} would be {share:.2%} another"]


def refusal(where: str, error: Exception) -> InputError:
    """Return the error that says why a library cannot read an adapter, by the library's own first line."""
    said = (str(error).strip().splitlines() or [""])[0].rstrip(".") or "it has no way to merge this method"
    return InputError(
        f"{where}: cannot be made a change of a weight: {said}",
        fix=MERGE,
    )


def _small(weight: Tensor) -> Tensor:
    """Return a seeded random tensor of `MOVED` times the norm of a weight."""
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return noise * (MOVED * float(weight.double().norm()) / max(float(noise.norm()), 1e-300))
