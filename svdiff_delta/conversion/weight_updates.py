"""Hold the update of a single weight, to which all adapters are read; its ΔW is made when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from svdiff_delta.errors import TensorError

from .lazy_tensors import Ref, Shape


class Update(Protocol):
    """The change that an adapter makes in one weight."""

    def check(self) -> None:
        """Raise TensorError unless its tensors fit each other, read from shapes alone."""

    def misfit(self, shape: Shape) -> str:
        """Return why it does not fit a weight of this shape, read from shapes alone; empty if it fits."""

    def change(self, weight: Tensor) -> Tensor:
        """Return ΔW in float64, in the shape of the base's weight, which is given as it stands in the base."""


@dataclass(frozen=True)
class LowRank:
    """ΔW = scale · up · down (LoRA; LoCon for convolutions).

    Beside a convolution with groups, PEFT's first layer sees the inputs of all groups, and its second has groups itself
    (PEFT 0.21): `up` is (rows, r/groups, 1, …), and `down` (r, inputs of all groups, k, …), 0 outside a row's group.

    Attributes:
        up: (rows, r), or (rows, r, 1, …) for a convolution.
        down: (r, columns), or (r, in, k, …).
        scale: factor on the product, alpha / r as a rule.
        mid: (r, r, k, …) in between, where `down` is (r, in, 1, …).
        transposed: whether the weight is stored transposed: embeddings, and GPT-2's linear layers.
    """

    up: Ref
    down: Ref
    scale: float = 1.0
    mid: Ref | None = None
    transposed: bool = False

    @property
    def groups(self) -> int:
        """The groups of the convolution that it is for, as PEFT writes it; 1 for everything else."""
        up, down = self.up.shape, self.down.shape
        if self.mid is not None or min(len(up), len(down)) < 3 or not up[1] or down[0] % up[1]:
            return 1
        groups = down[0] // up[1]
        return groups if groups and up[0] % groups == 0 and down[1] % groups == 0 else 1

    def check(self) -> None:
        """Raise TensorError unless `up` and `down` (and `mid`) have the same rank."""
        if self.groups > 1:
            pass
        elif self.mid is None:
            _check_ranks((self.up, 1), (self.down, 0))
        else:
            _check_ranks((self.up, 1), (self.mid, 0))
            _check_ranks((self.mid, 1), (self.down, 0))
        if prod(self.up.shape[2:]) != 1 or (self.mid is not None and prod(self.down.shape[2:]) != 1):
            raise TensorError(f"{self.up}: has shape {list(self.up.shape)}, {self.down.key} {list(self.down.shape)}")

    def misfit(self, shape: Shape) -> str:
        """Return why it does not fit a weight of this shape."""
        rows, columns = self.up.shape[0], prod(self.down.shape[1:]) // self.groups
        if self.mid is not None:
            columns *= prod(self.mid.shape[2:])
        found = (columns, rows) if self.transposed else (rows, columns)
        return _misfit(found, shape)

    def change(self, weight: Tensor) -> Tensor:
        """Return ΔW, float64."""
        up, down = self.up.read().flatten(1), self.down.read()
        if self.groups > 1:
            return (self._by_groups(up, down.flatten(1)) * self.scale).reshape(weight.shape)
        if self.mid is not None:
            down = torch.einsum("rs...,si->ri...", self.mid.read(), down.flatten(1))
        product = up @ down.flatten(1) * self.scale
        return (product.T if self.transposed else product).reshape(weight.shape)

    def _by_groups(self, up: Tensor, down: Tensor) -> Tensor:
        """Return the product of each group's own factors, (rows, columns of one group).

        Raises:
            TensorError: a group's output would depend on the inputs of another, which no weight of the layer can do.
        """
        count = self.groups
        blocks = down.reshape(count, -1, count, down.shape[1] // count).transpose(1, 2)  # (of rows, of inputs, r, …)
        own = torch.eye(count, dtype=torch.bool)
        if blocks[~own].any():
            raise TensorError(f"{self.down}: reaches across the groups of its convolution", fix="leave this layer out")
        return torch.bmm(up.reshape(count, -1, up.shape[1]), blocks[own]).flatten(0, 1)


@dataclass(frozen=True)
class Hadamard:
    """ΔW = scale · (a₁ b₁) ⊙ (a₂ b₂) (LoHa).

    Attributes:
        a: two of (rows, r); with `t` (r, rows).
        b: two of (r, columns); with `t` (r, in).
        scale: factor on the product.
        t: two of (r, r, k, …), the cores of Tucker's form, or none.
    """

    a: tuple[Ref, Ref]
    b: tuple[Ref, Ref]
    scale: float = 1.0
    t: tuple[Ref, Ref] | None = None

    def check(self) -> None:
        """Raise TensorError unless each product's factors (and core) have the same rank."""
        for index in (0, 1):
            a, b = self.a[index], self.b[index]
            _check_matrices(a, b)
            if self.t is None:
                _check_ranks((a, 1), (b, 0))
            else:
                _check_ranks((a, 0), (self.t[index], 0))
                _check_ranks((self.t[index], 1), (b, 0))

    def misfit(self, shape: Shape) -> str:
        """Return why it does not fit a weight of this shape."""
        for index in (0, 1):
            found: Shape = (self.a[index].shape[0], self.b[index].shape[1])
            if self.t is not None:
                found = (self.a[index].shape[1], self.b[index].shape[1] * prod(self.t[index].shape[2:]))
            if reason := _misfit(found, shape):
                return reason
        return ""

    def change(self, weight: Tensor) -> Tensor:
        """Return ΔW, float64."""
        return (self._factor(0) * self._factor(1) * self.scale).reshape(weight.shape)

    def _factor(self, index: int) -> Tensor:
        a, b = self.a[index].read(), self.b[index].read()
        if self.t is None:
            return a @ b
        return torch.einsum("ij...,ip,jr->pr...", self.t[index].read(), a, b).flatten(1)


@dataclass(frozen=True)
class Kronecker:
    """ΔW = scale · w₁ ⊗ w₂, each of them whole or a product (LoKr).

    Attributes:
        first: (a, b), or its two factors (a, r) and (r, b).
        second: (c, d) or (c, d, k, …), or its factors (c, r) and (r, d·k…); with `t` (r, c) and (r, d).
        scale: factor on the product.
        t: (r, r, k, …), the core of Tucker's form of `second`, or none.
    """

    first: tuple[Ref, ...]
    second: tuple[Ref, ...]
    scale: float = 1.0
    t: Ref | None = None

    def check(self) -> None:
        """Raise TensorError unless the factors of each half (and the core) have the same rank."""
        _check_matrices(*self.first, *(self.second[:-1] if self.t is None else self.second))
        if len(self.first) == 2:
            _check_ranks((self.first[0], 1), (self.first[1], 0))
        if self.t is not None:
            _check_ranks((self.second[0], 0), (self.t, 0))
            _check_ranks((self.t, 1), (self.second[1], 0))
        else:
            _check_ranks((self.second[0], -1), (self.second[-1], 0 if len(self.second) == 2 else -1))

    def misfit(self, shape: Shape) -> str:
        """Return why it does not fit a weight of this shape."""
        a, b = self.first[0].shape[0], self.first[-1].shape[-1]
        if self.t is not None:
            c, d = self.second[0].shape[1], self.second[1].shape[1] * prod(self.t.shape[2:])
        else:
            c, d = self.second[0].shape[0], prod(self.second[-1].shape[1:])
        return _misfit((a * c, b * d), shape)

    def change(self, weight: Tensor) -> Tensor:
        """Return ΔW, float64."""
        first = _product(self.first)
        if self.t is not None:
            c, d = (ref.read() for ref in self.second)
            second = torch.einsum("ij...,ip,jr->pr...", self.t.read(), c, d)
        else:
            second = _product(self.second)
        # The kernel's places come last, and run with the columns of the second factor.
        return (torch.kron(first, second.flatten(1)) * self.scale).reshape(weight.shape)


@dataclass(frozen=True)
class Whole:
    """ΔW itself, or with `replaces` the weight that stands in the base's place.

    Attributes:
        value: in the weight's shape, or flat.
        replaces: whether ΔW is `value` − W.
    """

    value: Ref
    replaces: bool = False

    def check(self) -> None:
        """Return at once: there is only one tensor."""

    def misfit(self, shape: Shape) -> str:
        """Return why it does not fit a weight of this shape."""
        found = self.value.shape
        return "" if found == shape or (prod(found),) == shape else _differs(found, shape)

    def change(self, weight: Tensor) -> Tensor:
        """Return ΔW, float64."""
        value = self.value.read().reshape(weight.shape)
        return value - weight.double() if self.replaces else value


@dataclass(frozen=True)
class Decomposed:
    """ΔW = m · (W + ΔW′) / ‖W + ΔW′‖ − W, the norm taken along one axis (DoRA).

    Attributes:
        inner: ΔW′.
        magnitude: m, as many values as the weight is long along the axis.
        axis: the axis that keeps its length: 0 for a norm per output, 1 per input.
    """

    inner: Update
    magnitude: Ref
    axis: int = 0

    def check(self) -> None:
        """Raise TensorError unless the tensors of what it is around fit each other."""
        self.inner.check()

    def misfit(self, shape: Shape) -> str:
        """Return why it does not fit a weight of this shape."""
        if reason := self.inner.misfit(shape):
            return reason
        count, wanted = prod(self.magnitude.shape), prod(shape[self.axis : self.axis + 1])
        return "" if count == wanted else f"has {count} magnitudes, the base {wanted} along the axis"

    def change(self, weight: Tensor) -> Tensor:
        """Return ΔW, float64.

        Raises:
            TensorError: a norm is 0, so that a magnitude has no direction; or as `Ref.read`.
        """
        whole = weight.double() + self.inner.change(weight)
        others = [axis for axis in range(whole.dim()) if axis != self.axis]
        norm = whole.square().sum(others, keepdim=True).sqrt()
        if not norm.all():
            raise TensorError(f"{self.magnitude}: W + ΔW is 0 where it has a magnitude", fix="name the right base")
        return self.magnitude.read().reshape(norm.shape) / norm * whole - weight.double()


def _check_matrices(*refs: Ref) -> None:
    """Raise TensorError unless all of these tensors are matrices."""
    for ref in refs:
        if len(ref.shape) != 2:
            raise TensorError(f"{ref}: has shape {list(ref.shape)}, must be a matrix")


def _check_ranks(a: tuple[Ref, int], b: tuple[Ref, int]) -> None:
    """Raise TensorError unless two tensors, of two dimensions or more, have the same length along these dimensions."""
    (x, i), (y, j) = a, b
    if min(len(x.shape), len(y.shape)) < 2 or x.shape[i] != y.shape[j]:
        raise TensorError(
            f"{x} has shape {list(x.shape)}, {y.key} {list(y.shape)}: ranks differ",
            fix="fetch the file again, or write it again with the tool that made it",
        )


def _product(refs: tuple[Ref, ...]) -> Tensor:
    if len(refs) == 1:
        return refs[0].read()
    left, right = (ref.read() for ref in refs)
    return left @ right.flatten(1)


def _misfit(matrix: Shape, shape: Shape) -> str:
    """Return why a matrix does not fit a weight of this shape: its rows, or the number of its elements."""
    fits = bool(shape) and matrix[0] == shape[0] and prod(matrix) == prod(shape)
    return "" if fits else _differs(matrix, shape)


def _differs(found: Shape, shape: Shape) -> str:
    return f"has shape {list(found)}, the base has {list(shape)}"
