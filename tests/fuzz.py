"""Read broken files by the ten thousand: each is refused by a DeltaError, or read correctly.

    python tests/fuzz.py [--kind delta] [--count 100000] [--seed 0] [--keep FOLDER] [--jobs 2]

Kinds are deltas; adapters of all dialects; recipes, manifests and run files; configurations of bases; pictures; entries
of the cache; model cards. Of deltas:

"Read correctly" means that every value is finite, and that what is written again is read as the same. Nothing else may
be raised, no warning be given, no file take a second, and none more memory than ten times its size and a megabyte,
which is what Python needs to parse a few kilobytes.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import FrameType

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from support.measured import Target, fuzz_target
from support.mutants import mutant

from svdiff_delta.errors import LONGEST, DeltaError
from svdiff_delta.format.file import dumps, loads

DELTA = "delta"
SECONDS, TIMES, ALLOWANCE = 1.0, 10, 1_000_000
HANG = 20
"""Seconds after which a file that is still being read is given up."""


@dataclass(frozen=True)
class Outcome:
    """What became of a file: `kind` is "read" or the class of the refusal."""

    kind: str
    seconds: float
    bytes: int


def read(raw: bytes) -> str:
    """Read a file and write it again; return "read", or the class of the refusal.

    Raises:
        AssertionError: it was read, and not correctly.
        Exception: whatever else went wrong.
    """
    try:
        delta = loads(raw)
        found = dict(delta)
    except DeltaError as error:
        if not error.message:
            raise AssertionError("a refusal without a message") from error
        if not str(error).isprintable() or len(str(error)) > 2 * LONGEST:
            raise AssertionError("a refusal that fills more than a line") from error
        return type(error).__name__
    again = loads(dumps(delta))
    assert all(np.isfinite(value).all() for value in found.values()), "a value is not finite"
    assert again.keys() == found.keys(), "other names"
    assert all(np.array_equal(again[name], found[name]) for name in found), "other values"
    assert again.metadata.with_modelspec("hash_sha256", None) == delta.metadata.with_modelspec("hash_sha256", None)
    return "read"


def examine(raw: bytes) -> Outcome:
    """Read a file, with warnings as errors, under a clock and a count of the memory.

    The clock counts this process's own work, so that a busy machine fails nothing; the alarm rings for what only waits.

    Raises:
        AssertionError: it took too long or too much, or was not read correctly.
        Exception: whatever else went wrong.
    """
    signal.alarm(HANG)
    tracemalloc.reset_peak()
    before, begun = tracemalloc.get_traced_memory()[0], time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind = read(raw)
    seconds = time.process_time() - begun
    signal.alarm(0)
    taken = tracemalloc.get_traced_memory()[1] - before
    assert seconds <= SECONDS, f"took {seconds:.2f} s"
    assert taken <= TIMES * len(raw) + ALLOWANCE, f"took {taken:,} bytes for a file of {len(raw):,}"
    return Outcome(kind, seconds, taken)


def fuzz(count: int, seed: int, keep: Path | None = None, *, first: int = 0) -> tuple[Counter[str], float, int]:
    """Examine mutants; return how many came out how, the most seconds and the most bytes.

    Raises:
        AssertionError: one of them failed; its name and number are in the message, and its bytes in `keep`.
    """
    kinds: Counter[str] = Counter()
    slowest, largest = 0.0, 0

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still reading after {HANG} s")

    signal.signal(signal.SIGALRM, give_up)
    tracemalloc.start()
    try:
        for number in range(first, first + count):
            name, raw = mutant(seed, number)
            try:
                outcome = examine(raw)
            except Exception as error:
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{seed}-{number}.safetensors").write_bytes(raw)
                raise AssertionError(f"mutant {number} of seed {seed} ({name}): {error!r}") from error
            kinds[outcome.kind] += 1
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.bytes)
    finally:
        signal.alarm(0)
        tracemalloc.stop()
    return kinds, slowest, largest


def deltas(numbers: range, seed: int, keep: Path | None) -> Counter[str]:
    """Examine deltas of these numbers; return how many came out how."""
    return fuzz(len(numbers), seed, keep, first=numbers.start)[0]


def work(kind: str, numbers: range, seed: int, keep: Path | None) -> Counter[str]:
    """Read the files of one kind that have these numbers, in a process of its own.

    Raises:
        AssertionError: one of them failed.
    """
    if kind == DELTA:
        return deltas(numbers, seed, keep)
    os.environ["HF_HUB_OFFLINE"] = "1"  # names in broken files may be those of repositories
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # of transformers and huggingface_hub, on odd values
    return fuzz_target(kind, targets()[kind], numbers, seed, keep)


def targets() -> Mapping[str, Target]:
    """Return all kinds but deltas, whose readers need torch."""
    from support.broken_kinds import TARGETS

    return TARGETS


def main() -> None:
    """Fuzz, and say what came out."""
    counts = {DELTA: 100_000, **{name: target.count for name, target in targets().items()}}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=[*counts], action="append", help="all, if none is named")
    parser.add_argument("--count", type=int, help="files of each kind, if not as many as it has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-out"), help="where a file that fails is written")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    arguments = parser.parse_args()
    failed = False
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        for kind in arguments.kind or counts:
            begun, count = time.perf_counter(), arguments.count or counts[kind]
            step = -(-count // (4 * arguments.jobs))
            parts = [range(first, min(first + step, count)) for first in range(0, count, step)]
            futures = [pool.submit(work, kind, part, arguments.seed, arguments.keep) for part in parts]
            kinds: Counter[str] = Counter()
            for future in futures:
                try:
                    kinds += future.result()
                except AssertionError as error:
                    failed = True
                    print(f"FAILED {error}")
            total = ", ".join(f"{name} {number:,}" for name, number in kinds.most_common())
            print(f"{kind}: {kinds.total():,} files in {time.perf_counter() - begun:.0f} s: {total}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
