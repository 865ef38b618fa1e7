"""Keep requests in a bounded queue that is fair between keys: whoever asks much waits behind their own requests."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

from svdiff_serve.errors import BusyError, LimitError

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue of bounded length from which keys are served in turn; not for several threads by itself.

    Args:
        most: how many may wait.
        most_of_key: how many of one key.
        patience: returns in how many seconds there is likely room again.
    """

    def __init__(self, most: int, most_of_key: int, patience: Callable[[], int]) -> None:
        self._most, self._most_of_key, self._patience = most, most_of_key, patience
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def of_key(self, key: str) -> int:
        """Return how many of a key wait."""
        return len(self._waiting.get(key, ()))

    def check(self, key: str, count: int) -> None:
        """Check that there is room for so many more of a key.

        Raises:
            LimitError: there never is.
            BusyError: there is not now.
        """
        if count > min(self._most, self._most_of_key):
            raise LimitError(f"n: {count} pictures never fit into the queue", fix="ask for fewer", field="n")
        if len(self) + count > self._most:
            raise BusyError(
                f"{len(self)} pictures wait already, {self._most} is the most", retry_after=self._patience()
            )
        if self.of_key(key) + count > self._most_of_key:
            raise BusyError(
                f"{self.of_key(key)} pictures of this key wait already, {self._most_of_key} is the most",
                retry_after=self._patience(),
            )

    def put(self, key: str, item: T) -> None:
        """Add an item behind those of its key."""
        self._waiting.setdefault(key, deque()).append(item)

    def take(self) -> T:
        """Return the first item of the key whose turn it is; that key comes last then.

        Raises:
            IndexError: nothing waits.
        """
        if not self._waiting:
            raise IndexError("nothing waits")
        key, items = self._waiting.popitem(last=False)
        item = items.popleft()
        if items:
            self._waiting[key] = items
        return item

    def remove(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out what is not wanted any more, and return it."""
        gone: list[T] = []
        for key in list(self._waiting):
            kept: deque[T] = deque()
            for item in self._waiting[key]:
                (gone if unwanted(item) else kept).append(item)
            self._waiting[key] = kept
            if not kept:
                del self._waiting[key]
        return gone
