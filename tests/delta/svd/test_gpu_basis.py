"""Bases on a GPU, as far as none is needed: what does not fit goes to the CPU, streams are shared, copies pinned."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.refusals import EXHAUSTED, FAILED
from support.weights import normal

from svdiff_delta import build_basis
from svdiff_delta._util import warned
from svdiff_delta._util.warned import DeltaWarning
from svdiff_delta.errors import BaseError
from svdiff_delta.svd import gpu_basis
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.decomposition import Basis, compute_basis
from svdiff_delta.svd.fingerprint import round_weight
from svdiff_delta.svd.gpu_basis import compute_on, gpu_workers, own_stream, round_for
from svdiff_train.tiny import open_tiny

CUDA, CARD = torch.device("cuda"), torch.device("meta")
"""A device, and one that has no numbers: it takes a weight, and fails where somebody computes with it."""


def failing(error: BaseException) -> Callable[[torch.Tensor], Basis]:
    """Return what decomposes, but fails on the card."""

    def compute(rounded: torch.Tensor) -> Basis:
        if rounded.device == CARD:
            raise error
        return compute_basis(rounded, 0)

    return compute


@pytest.mark.parametrize("who", sorted(EXHAUSTED.keys() - {"Python", "CPU", "CPU of Windows"}))
def test_what_does_not_fit_is_computed_on_the_cpu_and_said_once(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, compute = normal(6, 9), failing(EXHAUSTED[who]())
    monkeypatch.setattr(warned, "_SAID", set())
    with pytest.warns(DeltaWarning, match="^meta: has not enough memory for the basis of a weight of 6×9; "):
        found = compute_on(CARD, weight, compute)
    assert compute_on(CARD, normal(4, 5), compute).sigma.numel() == 4  # without a word, which would be an error
    expected = compute_basis(weight, 0)
    assert torch.equal(found.sigma, expected.sigma)
    assert torch.equal(found.factor, expected.factor)


@pytest.mark.parametrize("how", FAILED)
def test_a_card_that_fails_is_not_passed_over(how: str) -> None:
    error = FAILED[how]()
    with pytest.raises(RuntimeError) as raised:
        compute_on(CARD, normal(6, 9), failing(error))
    assert raised.value is error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (EXHAUSTED["Python"], "^out of memory while computing bases: lower `workers`, or select a part of the model$"),
        (FAILED["gone"], r"^the device has failed or is gone \(CUDA error: the device is no longer available\): start"),
    ],
)
def test_a_build_that_cannot_go_on_says_so_in_one_line(
    error: Any, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Basis:
        raise error()

    monkeypatch.setattr("svdiff_delta.svd.cache.compute_basis", fail)
    with pytest.raises(BaseError, match=line):
        build_basis(open_tiny(), "mid-ca", cache=BasisCache(tmp_path))


def test_there_are_as_many_workers_as_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 << 30))
    for gigabytes, workers in ((0, 2), (1, 2), (5, 5), (80, 8)):
        free = gigabytes << 30
        assert gpu_workers(CUDA) == workers
    assert gpu_workers(torch.device("mps")) == 2


def test_each_worker_has_a_stream_of_its_own_and_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    used = threading.local()

    class Stream:
        def __init__(self, device: torch.device) -> None:
            made.append(self)

    @contextmanager
    def stream(given: object) -> Iterator[None]:
        used.stream = given
        yield

    monkeypatch.setattr(gpu_basis, "_FREE", {})
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    meeting, found = threading.Barrier(3, timeout=60), list[object]()

    def work() -> None:
        for _ in range(2):
            with own_stream(CUDA):
                found.append(used.stream)
                meeting.wait()
            meeting.wait()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 3
    assert set(found[:3]) == set(found[3:]) == set(made)
    with own_stream(torch.device("cpu")):
        assert len(made) == 3


def test_a_weight_for_cuda_is_rounded_into_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, empty, pinned = normal(6, 9).to(torch.float64), torch.empty, list[bool]()

    def taking(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", taking)
    assert torch.equal(round_for(weight, "F16", CUDA), round_weight(weight, "F16"))
    assert pinned == [True]
    assert torch.equal(round_for(weight, "F16", torch.device("cpu")), round_weight(weight, "F16"))
    assert pinned == [True]


def test_memory_that_cannot_be_pinned_is_ordinary_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    weight = normal(6, 9)
    expected = round_weight(weight, "F16")
    monkeypatch.setattr(torch, "empty", refusing)
    assert torch.equal(round_for(weight, "F16", CUDA), expected)
