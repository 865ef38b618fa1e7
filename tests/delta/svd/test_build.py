"""Building bases: several at once, shared between processes, resumed after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from support.weights import normal

from svdiff_delta.errors import BaseError
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.svd.build import build_basis
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.cache_entry import BusyError
from svdiff_delta.svd.side_by_side import cost, run_costliest_first
from svdiff_train.tiny import base_path, open_tiny

PARAMETER = Parameter((2, 2), "spectral", 0, "F32", "A" * 22)


def entries(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that one worker fills for the mid block of the embedded base."""
    folder = tmp_path_factory.mktemp("alone")
    build_basis(open_tiny(), "mid", cache=BasisCache(folder), workers=1)
    return folder


def test_any_number_of_workers_and_threads_makes_the_same_bytes(alone: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        build_basis(open_tiny(), "mid", cache=BasisCache(tmp_path), workers=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert entries(tmp_path) == entries(alone)


def test_progress_ends_at_the_whole(alone: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_basis(open_tiny(), "mid", cache=BasisCache(alone), progress=lambda *step: seen.append(step))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == {total for _, total in seen}.pop()


def test_a_built_cache_is_not_computed_again(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svdiff_delta.svd.cache.compute_basis", lambda *_, **__: pytest.fail("computed again"))
    build_basis(open_tiny(), "mid", cache=BasisCache(alone))


def test_the_largest_come_first() -> None:
    order: list[str] = []

    def work(name: str, wait: bool) -> Parameter:
        order.append(name)
        return PARAMETER

    found = run_costliest_first({"small": 1, "large": 3, "middle": 2, "also large": 3}, work, None, 1)
    assert order == ["also large", "large", "middle", "small"]
    assert list(found) == sorted(order)


def test_what_another_process_computes_is_waited_for_in_the_end() -> None:
    calls: list[tuple[str, bool]] = []

    def work(name: str, wait: bool) -> Parameter:
        calls.append((name, wait))
        if name == "large" and not wait:
            raise BusyError
        return PARAMETER

    assert run_costliest_first({"small": 1, "large": 3}, work, None, 1).keys() == {"small", "large"}
    assert calls == [("large", False), ("small", False), ("large", True)]


def test_the_first_error_stops_the_rest() -> None:
    called: list[str] = []

    def work(name: str, wait: bool) -> Parameter:
        called.append(name)
        time.sleep(0.05)
        raise BaseError(f"{name}: is broken")

    with pytest.raises(BaseError, match="layer 9: is broken"):
        run_costliest_first({f"layer {size}": size for size in range(10)}, work, None, 1)
    assert len(called) <= 2


def test_the_cost_of_a_basis_grows_with_its_sides() -> None:
    assert cost((4, 10), "spectral", 0) == 4 * 40 + 10 * 64
    assert cost((10, 4), "spectral", 0) == cost((4, 10), "spectral", 0)
    assert cost((10, 4, 1, 1), "spectral", 1) == cost((4, 10), "spectral", 0)
    assert cost((7,), "elementwise", 0) == 7


SHARE = """
import os, sys, torch
from pathlib import Path
from torch import distributed
from svdiff_delta.svd import cache
from svdiff_delta.base_model.base import open_base
from svdiff_delta.svd.build import build_basis
distributed.init_process_group("gloo")
rank, count = distributed.get_rank(), 0
compute = cache.compute_basis
def counted(*args, **options):
    global count
    count += 1
    if count == 1:
        distributed.barrier()  # nobody goes on before the other has taken a weight of its own
    return compute(*args, **options)
cache.compute_basis = counted
torch.set_num_threads(1)
found = build_basis(open_base(sys.argv[1]), "mid", cache=cache.BasisCache(Path(sys.argv[2])))
Path(sys.argv[3], f"rank{rank}").write_text(f"{distributed.get_world_size()} {count} {len(found)}")
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_out_the_weights(alone: Path, tmp_path: Path) -> None:
    code, cache = tmp_path / "share.py", tmp_path / "cache"
    code.write_text(SHARE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*command, str(code), str(base_path()), str(cache), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    ranks = [[int(word) for word in (tmp_path / f"rank{rank}").read_text().split()] for rank in (0, 1)]
    whole = entries(alone)
    assert [world for world, _, _ in ranks] == [2, 2]
    assert all(computed > 0 for _, computed, _ in ranks)
    assert sum(computed for _, computed, _ in ranks) == len(whole)
    assert {found for _, _, found in ranks} == {len(build_basis(open_tiny(), "mid", cache=BasisCache(alone)))}
    assert entries(cache) == whole


KILLED = """
import sys
from pathlib import Path
from svdiff_delta.base_model.base import open_base
from svdiff_delta.svd.build import build_basis
from svdiff_delta.svd.cache import BasisCache
build_basis(open_base(sys.argv[1]), "mid", cache=BasisCache(Path(sys.argv[2])), progress=lambda *_: print(flush=True))
"""


@pytest.mark.slow
def test_a_build_that_was_killed_goes_on_where_it_was(alone: Path, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, base_path(), tmp_path], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    kept = entries(tmp_path)
    assert 0 < len(kept) < len(entries(alone))
    begun = time.monotonic()
    build_basis(open_tiny(), "mid", cache=BasisCache(tmp_path))
    assert time.monotonic() - begun < 60, "a lock of the killed process blocked"
    assert entries(tmp_path) == entries(alone)


def test_a_cache_without_patience_passes_over_what_another_computes(tmp_path: Path) -> None:
    cache, rounded, key = BasisCache(tmp_path), normal(6, 9).float(), "A" * 22
    with cache._lock(key), pytest.raises(BusyError):
        cache.impatient().obtain(key, rounded, 0)
    assert cache.impatient().obtain(key, rounded, 0).sigma.numel() == 6


def test_a_cache_with_patience_takes_what_another_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, rounded, key = BasisCache(tmp_path), normal(6, 9).float(), "A" * 22
    found = []
    with cache._lock(key):
        waiting = threading.Thread(target=lambda: found.append(cache.obtain(key, rounded, 0)))
        waiting.start()
        cache._compute(key, rounded, 0)
        monkeypatch.setattr("svdiff_delta.svd.cache.compute_basis", lambda *_, **__: pytest.fail("computed again"))
    waiting.join(timeout=60)
    assert len(found) == 1


def test_who_waited_long_enough_computes_as_well(tmp_path: Path) -> None:
    cache, rounded, key = BasisCache(tmp_path, patience=0.1), normal(6, 9).float(), "A" * 22
    with cache._lock(key):
        assert cache.obtain(key, rounded, 0).sigma.numel() == 6
