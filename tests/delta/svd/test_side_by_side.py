"""Weights looked at several at once: the results and errors of one thread, few in memory, and stopped at once."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.models import base_delta
from support.weights import normal

from svdiff_delta._util.parallel import check_stopped
from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.errors import BaseError, BaseMismatchError, DeltaError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.svd import fingerprint, fingerprint_cache
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.fingerprint_cache import Known, recall
from svdiff_delta.svd.prepare import identify_weight, sigmas_of
from svdiff_delta.svd.projection import check_same_weights, find_same_weights
from svdiff_delta.svd.side_by_side import map_weights, run_costliest_first
from svdiff_delta.svd.verify import verify_base
from svdiff_train.tiny import open_tiny

NAMES = [f"model.{letter}.weight" for letter in "abcdef"]
DELTA_NAMES = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.*"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, in which nothing is remembered."""
    monkeypatch.setenv("SVDIFF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fingerprint_cache, "_documents", {})
    return tmp_path / "home"


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """What gives torch, and so what is measured here, a number of threads."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def several(threads: Callable[[int], None]) -> int:
    threads(3)
    return 3


def weight_file(path: Path, **change: torch.Tensor) -> Base:
    """Six weights, the last the largest."""
    weights = {name.removeprefix("model."): normal(6, 8 * (index + 1), seed=index) for index, name in enumerate(NAMES)}
    save_file(weights | {f"{letter}.weight": value for letter, value in change.items()}, path)
    return open_base(path)


@pytest.fixture(scope="module")
def delta() -> Delta:
    return base_delta(open_tiny(), DELTA_NAMES)


def found_by(work: Callable[[], object]) -> object:
    """What it returns, or the kind and the words of its error."""
    try:
        return work()
    except DeltaError as error:
        return type(error), error.message, error.fix


def identities(base: Base) -> dict[str, Known]:
    return map_weights({name: base.shape(name)[1] for name in NAMES}, lambda name: identify_weight(base, name, 0))


def verified(base: Base, delta: Delta) -> list[tuple[str, Known]]:
    return [(name, item.known) for name, item in verify_base(base, [delta]).found.items()]


def other_fingerprints(delta: Delta) -> Delta:
    parameters = {name: replace(item, fingerprint="A" * 22) for name, item in delta.metadata.parameters.items()}
    return Delta({name: delta[name] for name in delta}, replace(delta.metadata, parameters=parameters))


USES: dict[str, Callable[[Delta], object]] = {
    "a base that fits": lambda delta: verified(open_tiny(), delta),
    "a base that does not": lambda delta: verified(open_tiny(), other_fingerprints(delta)),
    "the weights that are the same": lambda delta: find_same_weights(open_tiny(), delta.metadata.parameters),
    "the first that is not": lambda delta: check_same_weights(
        open_tiny(), other_fingerprints(delta).metadata.parameters, "x"
    ),
    "singular values": lambda delta: [
        (name, values.tobytes()) for name, values in sigmas_of(open_tiny(), delta, BasisCache()).items()
    ],
    "singular values of another base": lambda delta: sigmas_of(open_tiny(), other_fingerprints(delta), BasisCache()),
}


@pytest.mark.parametrize("use", USES)
def test_any_number_of_threads_finds_and_says_the_same(
    use: str, delta: Delta, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for count in (1, 3):
        monkeypatch.setattr(fingerprint_cache, "_documents", {})
        threads(count)
        found.append(found_by(lambda: USES[use](delta)))
    assert found[0] == found[1]


def test_the_identities_of_a_base_are_those_of_its_weights_one_by_one(tmp_path: Path, several: int) -> None:
    base = weight_file(tmp_path / "model.safetensors")
    found = identities(base)
    assert list(found) == NAMES
    assert found == {name: identify_weight(base, name, 0) for name in NAMES}
    assert len({known.fingerprint for known in found.values()}) == len(NAMES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_base_of_any_stored_format_is_identified(tmp_path: Path, several: int, dtype: torch.dtype) -> None:
    weights = {letter: normal(6, 80, seed=index).to(dtype) for index, letter in enumerate("abcdef")}
    found = identities(weight_file(tmp_path / "model.safetensors", **weights))
    assert [found[f"model.{letter}.weight"][:2] for letter in weights] == [
        fingerprint.fingerprint_stored(weight, letter, 0) for letter, weight in weights.items()
    ]


def test_of_several_weights_that_cannot_be_used_the_first_by_name_is_told(tmp_path: Path, several: int) -> None:
    """Though the last is the largest, and begun first."""
    bad = torch.full((6, 8), torch.nan)
    base = weight_file(tmp_path / "model.safetensors", b=bad, e=bad.clone(), f=torch.full((6, 80), torch.inf))
    for _ in range(5):
        with pytest.raises(BaseError, match=r"^model\.b\.weight: the base's weight holds NaN"):
            identities(base)


@pytest.mark.parametrize("slow", [0.0, 0.02])
def test_of_several_errors_that_of_the_most_costly_is_raised(slow: float) -> None:
    """As one thread would meet it, whichever thread ends first."""
    begun: list[str] = []

    def work(name: str, wait: bool) -> None:
        begun.append(name)
        if name == "9":
            time.sleep(slow)
        raise BaseError(f"{name} is broken")

    with pytest.raises(BaseError, match="9 is broken"):
        run_costliest_first({str(size): size for size in range(10)}, work, None, 3)
    assert begun[0] == "9"


def test_after_an_error_nothing_is_begun() -> None:
    begun: list[str] = []
    both = threading.Barrier(2)

    def work(name: str, wait: bool) -> None:
        begun.append(name)
        if len(begun) <= 2:
            both.wait(10)
        if name == "8":
            raise BaseError("8 is broken")
        time.sleep(0.05)

    with pytest.raises(BaseError, match="8 is broken"):
        run_costliest_first({str(size): size for size in range(10)}, work, None, 2)
    assert {"9", "8"} <= {*begun}
    assert len(begun) <= 3


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("bad", [False, True], ids=["sound", "not finite"])
def test_no_more_weights_are_in_memory_than_there_are_threads_and_the_largest_come_first(
    tmp_path: Path, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, bad: bool, count: int
) -> None:
    threads(count)
    change = {name[6]: torch.full((6, 80 - index), torch.nan) for index, name in enumerate(NAMES)} if bad else {}
    base, read = weight_file(tmp_path / "model.safetensors", **change), Base.read
    alive, most, order, lock = 0, 0, [], threading.RLock()

    def gone() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def counted(self: Base, name: str) -> torch.Tensor:
        nonlocal alive, most
        weight = read(self, name)
        with lock:
            alive, most = alive + 1, max(most, alive + 1)
            order.append(base.shape(name)[1])
        weakref.finalize(weight, gone)
        time.sleep(0.002)
        return weight

    monkeypatch.setattr(Base, "read", counted)
    found_by(lambda: identities(base))
    assert len(order) == len(NAMES)
    assert 1 <= most <= count
    assert alive == 0
    assert count > 1 or order == sorted(order, reverse=True)


class Interrupted(BaseException):
    """What interrupts, as Ctrl-C does."""


def test_an_interrupt_ends_what_is_being_identified_and_keeps_what_was(
    tmp_path: Path, several: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest weight has thousands of pieces, of which few are gone through."""
    base, pieces = weight_file(tmp_path / "model.safetensors", f=normal(600, 800)), 0
    monkeypatch.setattr(fingerprint_cache.files, "tells", lambda *_: True)
    is_finite = fingerprint._is_finite

    def counted(bits: fingerprint.Bits, infinity: int) -> bool:
        nonlocal pieces
        pieces += 1
        return is_finite(bits, infinity)

    def interrupt(done: int, total: int) -> None:
        if done < total:
            raise Interrupted

    costs = {name: base.shape(name)[1] for name in NAMES}
    monkeypatch.setattr(fingerprint, "PIECE", 50)
    monkeypatch.setattr(fingerprint, "_is_finite", counted)
    with pytest.raises(Interrupted):
        run_costliest_first(costs, lambda name, _: identify_weight(base, name, 0), interrupt)
    seen = pieces
    assert 0 < seen < 600 * 800 / 50
    time.sleep(0.02)
    assert pieces == seen, "a thread goes on"
    kept = {name: known for name in NAMES if (known := recall(base, name, 0, None))}
    assert NAMES[-1] not in kept
    assert kept
    monkeypatch.setattr(fingerprint_cache, "_documents", {})
    monkeypatch.setattr(fingerprint, "PIECE", 1 << 18)
    assert kept == {name: identify_weight(base, name, 0) for name in kept}


def test_who_was_interrupted_waits_for_no_task_that_asks(several: int) -> None:
    begun = threading.Barrier(several + 1)

    def work(name: str, wait: bool) -> None:
        if name == "0":
            begun.wait(10)
            return
        begun.wait(10)
        while True:
            check_stopped()
            time.sleep(0.001)

    def interrupt(*_: int) -> None:
        raise Interrupted

    waiter = threading.Thread(target=lambda: begun.wait(10))
    waiter.start()
    with pytest.raises(Interrupted):
        run_costliest_first(dict.fromkeys("012", 1), work, interrupt)
    waiter.join()


def test_whoever_works_alone_is_never_stopped() -> None:
    check_stopped()


def test_the_first_mismatch_by_name_is_told_before_a_later_weight_that_cannot_be_used(
    tmp_path: Path, several: int
) -> None:
    base = weight_file(tmp_path / "model.safetensors", f=torch.full((6, 80), torch.nan))
    said = {name: Parameter(base.shape(name), "spectral", 0, "F16", "A" * 22) for name in NAMES}
    with pytest.raises(BaseMismatchError, match=r"^model\.a\.weight: the file was made for another base"):
        check_same_weights(base, said, "the file")
    with pytest.raises(BaseError, match=r"^model\.f\.weight: the base's weight holds NaN"):
        check_same_weights(base, {NAMES[-1]: said[NAMES[-1]]}, "the file")
