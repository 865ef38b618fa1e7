"""Memory: what freed weights took goes back to the system."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from svdiff_delta.runtime import memory


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


def test_freed_pages_go_back_to_the_system() -> None:
    # Smaller than what glibc maps on its own, every second one kept: the holes are not at the heap's end.
    blocks = [torch.ones(25_000) for _ in range(2_000)]
    del blocks[::2]
    before = resident()
    memory.give_back()
    assert resident() < before - 10_000


def test_without_such_a_call_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_trim", lambda: None)
    memory.give_back()


def test_while_weights_are_dropped_memory_goes_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(memory, "give_back", lambda: calls.append(1))
    trim = memory.Trim()
    for _ in range(9):
        trim.dropped(memory.SLACK // 2)
    assert len(calls) == 3
