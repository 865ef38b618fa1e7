"""Record what a converter does to tensors, on stand-ins without values: which numbers of a file each result holds.

A library's converter gets tensors on the meta device. Whatever it does to them is noted, and done again with real ones
when values are asked for. What only moves numbers can be read from the file, and written back to where they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from svdiff_delta.errors import BaseError

VIEWS: Final = frozenset(
    f"aten.{name}"
    for name in (
        "alias", "detach", "narrow", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t",
        "transpose", "unbind", "unsqueeze", "view",
    )
)  # fmt: skip
"""Operations whose results are parts of what they are given."""

COPIES: Final = frozenset(("aten.clone", "aten.cat", "aten.stack", "aten._unsafe_view"))
"""Operations that put numbers elsewhere, and leave every number as it is."""


@dataclass(frozen=True, eq=False)
class Step:
    """One operation that made a stand-in.

    Attributes:
        action: what was called.
        arguments: what it was called with; tensors are the keys or steps that they came from.
        keywords: the same, by name.
        part: which of several results it is.
    """

    action: Any
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    part: int | None = None

    @property
    def moves(self) -> bool:
        """Whether it only moves numbers; else it computes some."""
        return _name(self.action) in VIEWS | COPIES


@dataclass(frozen=True)
class Source:
    """A tensor of the file, by its key."""

    key: str


Origin = Source | Step
"""Where a tensor comes from."""


class Recorder(TorchDispatchMode):
    """Notes within its block what is done to stand-ins.

    Attributes:
        viewed: the key of the file whose numbers a tensor shows in their place, by the tensor's id.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._origins: dict[int, tuple[Tensor, Origin]] = {}  # with the tensor, so that no other gets its id
        self.viewed: dict[int, str] = {}

    def stand_in(self, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor without values that stands for one of the file."""
        made = torch.empty(shape, dtype=dtype, device="meta")
        self._origins[id(made)], self.viewed[id(made)] = (made, Source(key)), key
        return made

    def origin(self, tensor: Tensor) -> Origin | None:
        """Return where a tensor comes from; None if the converter made it of nothing that was recorded."""
        found = self._origins.get(id(tensor))
        return None if found is None else found[1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do an operation, and note it.

        Raises:
            BaseError: it changes a tensor in place.
        """
        keywords = dict(kwargs or {})
        if func._schema.is_mutable:
            raise BaseError(f"the converter changes tensors in place ({_name(func)})")
        whole = _same_numbers(func, args)
        result = func(*args, **keywords) if whole is None else whole.view(whole.shape)
        arguments = tuple(self._named(value) for value in args)
        named = {key: self._named(value) for key, value in keywords.items()}
        source = args[0] if _name(func) in VIEWS else whole
        parts = enumerate(result) if isinstance(result, list | tuple) else [(None, result)]
        for part, tensor in parts:
            if isinstance(tensor, Tensor):
                self._origins[id(tensor)] = tensor, Step(func, arguments, named, part)
                if source is not None and id(source) in self.viewed:
                    self.viewed[id(tensor)] = self.viewed[id(source)]
        return result

    def _named(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._named(item) for item in value]
        return self.origin(value) or value if isinstance(value, Tensor) else value


def _same_numbers(func: Any, args: tuple[Any, ...]) -> Tensor | None:
    """Return the tensor of which an operation makes a mere copy, in the same order in memory; None if it does more."""
    name = _name(func)
    one = args[0] if name == "aten.clone" else args[0][0] if name == "aten.cat" and len(args[0]) == 1 else None
    return one if isinstance(one, Tensor) and one.is_contiguous() else None


def _name(action: Any) -> str:
    return str(action).rpartition(".")[0]


def replay(origin: Origin, read: Callable[[str], Tensor]) -> Tensor:
    """Do again what was recorded, with real tensors.

    Args:
        origin: where a tensor comes from.
        read: returns the tensor of a key.
    """
    if isinstance(origin, Source):
        return read(origin.key)
    arguments = [_again(value, read) for value in origin.arguments]
    made: Any = origin.action(*arguments, **{key: _again(value, read) for key, value in origin.keywords.items()})
    return cast("Tensor", made if origin.part is None else made[origin.part])


def _again(value: Any, read: Callable[[str], Tensor]) -> Any:
    if isinstance(value, list):
        return [_again(item, read) for item in value]
    return replay(value, read) if isinstance(value, Source | Step) else value


def computed(origin: Origin) -> str | None:
    """Return the first operation on a tensor's way that computes numbers, by name; None if all only move them."""
    if isinstance(origin, Source):
        return None
    if not origin.moves:
        return _name(origin.action)
    return next((name for each in _inputs(origin) if (name := computed(each))), None)


def sources(origin: Origin) -> set[str]:
    """Return the keys of the file that a tensor is made of."""
    if isinstance(origin, Source):
        return {origin.key}
    return {key for each in _inputs(origin) for key in sources(each)}


def _inputs(step: Step) -> Iterator[Origin]:
    for value in (*step.arguments, *step.keywords.values()):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Source | Step):
                yield item
