"""Keep the values of small tensors while a model runs on tensors without any, for models that read them.

Masks of text and timesteps are known before a run, and what is made of them alone is known too. Where tokens choose
their experts, the choice is not: they are taken to be spread evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

LARGEST: Final = 1 << 20
"""Numbers of the largest tensor whose values are kept."""

KNOWN: Final = "known_values"
"""The attribute of a tensor without values that says what they would be, on the CPU."""

AT: Final = torch.ops.aten
INDEXING: Final = (AT.index.Tensor, AT.index_put.default, AT.index_put_.default)


def let_known(tensor: Tensor, value: Tensor) -> Tensor:
    """Return a tensor without values, which from now on is known to have these."""
    if value.numel() <= LARGEST:
        with _disable_current_modes():
            tensor.__dict__[KNOWN] = value.detach().cpu()
    return tensor


@contextmanager
def known_values(device: torch.device) -> Iterator[None]:
    """Answer with values that are known, where a model reads some, within `FakeTensorMode`.

    Args:
        device: of the tensors without values.
    """
    with _Values(device), _Arrays():
        yield


class _Arrays(TorchFunctionMode):
    """Gives known values as an array."""

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.numpy and KNOWN in args[0].__dict__:
            with _disable_current_modes():
                return args[0].__dict__[KNOWN].clone().numpy()
        return func(*args, **(kwargs or {}))


class _Values(TorchDispatchMode):
    """Computes small tensors beside those without values."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self._lost: dict[int, Tensor] = {}  # written to with what is not known

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

        options = dict(kwargs or {})
        if func is AT._local_scalar_dense.default and (value := self._of(args[0])) is not None:
            with _disable_current_modes():
                return value.item()
        work = self._work(func, args, options)
        if func in INDEXING:
            args = (args[0], self._places(args[1]), *args[2:])
        try:
            found = func(*args, **options)
        except (DataDependentOutputException, DynamicOutputShapeException):
            if work is None:
                raise
            found = tree_map(self._without, work())
        else:
            if work is not None and all(each.numel() <= LARGEST for each in _tensors(found)):
                for each, value in zip(_tensors(found), _tensors(work()), strict=True):
                    each.__dict__[KNOWN] = value
            elif func._schema.is_mutable:
                self._lose(func, args, options)
        if func is AT.topk.default:
            self._spread(found[1], args[0].shape[args[2] if len(args) > 2 else -1])
        return found

    def _of(self, tensor: Tensor) -> Tensor | None:
        """Return a tensor's values, if they are known."""
        from torch._subclasses.fake_tensor import FakeTensor

        if not isinstance(tensor, FakeTensor):
            return tensor if tensor.device.type == "cpu" and tensor.numel() <= LARGEST else None
        value: Tensor | None = tensor.__dict__.get(KNOWN)
        return None if value is None or value.untyped_storage()._cdata in self._lost else value

    def _work(self, func: Any, args: Any, options: dict[str, Any]) -> Callable[[], Any] | None:
        """Return what does an operation on known values; None if it has to do with others, or with chance."""
        if func.namespace != "aten" or torch.Tag.nondeterministic_seeded in func.tags:
            return None
        values = {id(each): self._of(each) for each in _tensors((args, options))}
        own = func._schema.is_mutable and any(KNOWN not in each.__dict__ for each in _tensors((args, options)))
        if own or any(value is None for value in values.values()):
            return None

        def value_of(each: Any) -> Any:
            if isinstance(each, Tensor):
                return values[id(each)]
            return torch.device("cpu") if isinstance(each, torch.device) else each

        def work() -> Any:
            with _disable_current_modes(), torch.no_grad():
                return func(*tree_map(value_of, args), **tree_map(value_of, options))

        return work

    def _without(self, value: Any) -> Any:
        """Return a tensor without values in the place of one that has them."""
        if not isinstance(value, Tensor):
            return value
        return let_known(torch.empty(value.shape, dtype=value.dtype, device=self._device), value)

    def _places(self, indices: list[Any]) -> list[Any]:
        """Return indices with the places of a known mask's ones where the mask was."""
        found: list[Any] = []
        for index in indices:
            value = self._of(index) if isinstance(index, Tensor) and index.dtype == torch.bool else None
            if value is None:
                found.append(index)
                continue
            with _disable_current_modes():
                places = value.nonzero().unbind(1)
            found += map(self._without, places)
        return found

    def _lose(self, func: Any, args: Any, options: dict[str, Any]) -> None:
        """Forget the values of what an operation writes to."""
        given = [*zip(func._schema.arguments, args, strict=False)]
        given += [(each, options[each.name]) for each in func._schema.arguments if each.name in options]
        for said, tensor in given:
            if said.alias_info is not None and said.alias_info.is_write and isinstance(tensor, Tensor):
                value = tensor.__dict__.pop(KNOWN, None)
                if value is not None:
                    self._lost[value.untyped_storage()._cdata] = value

    def _spread(self, chosen: Tensor, count: int) -> None:
        """Let the choices of the greatest among some be those that come round."""
        with _disable_current_modes():
            turns = torch.arange(chosen.numel()).remainder(count).view(chosen.shape)
        let_known(chosen, turns)


def _tensors(found: Any) -> list[Tensor]:
    return [each for each in tree_leaves(found) if isinstance(each, Tensor)]
