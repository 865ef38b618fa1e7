"""Count the bytes of tensors without values while operations run on them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Storages(TorchDispatchMode):
    """Watches operations, and counts the bytes of all that they make as long as it lives.

    Args:
        known: tensors that were there before, and do not count.

    Attributes:
        most: the most bytes that there were at one time.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._known = {key(tensor): None for tensor in known}
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do an operation, and note what it has made."""
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                self._note(each)
        return found

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        number = storage._cdata
        if number in self._known or number in self._seen:
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            self._seen.pop(number, None)
            self._now -= size

        self._seen[number] = weakref.ref(storage, gone)
        self._now += size
        self.most = max(self.most, self._now)


def key(tensor: Tensor) -> int:
    """Return what tells a tensor's storage from others."""
    number: int = tensor.untyped_storage()._cdata
    return number
