"""How fast weights are identified: cold, against SHA-256 over the same bytes, and again from memory.

    python benchmarks/fingerprint.py [--json FILE] [--rounds N] [--size MIB]

A weight file is written in F32, F16 and BF16, of normal numbers, and of F32 numbers that need F32 as basis dtype. A
round identifies every weight of a freshly opened base, once with nothing remembered (cold) and once with everything, as
another process would (again), and hashes the file's bytes with hashlib. The last row is a blob of a Hub cache, whose
bytes are hashed once more when nothing is remembered. The file is in the page cache. The figures are medians; one
thread of torch. The folder for temporary files must lie on a file system whose change times are trusted
(`svdiff_delta/_util/file_state.py`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

from svdiff_delta import open_base
from svdiff_delta._util import file_state
from svdiff_delta.svd.fingerprint_cache import _documents, flush
from svdiff_delta.svd.prepare import identify_weight

SPEED = 0.5
AGAIN = 0.05
SIDE = 1024
FORMATS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "F32, basis dtype F16": lambda weight: weight,
    "F32, basis dtype F32": lambda weight: weight * 1e8,
    "F16": torch.Tensor.half,
    "BF16": torch.Tensor.bfloat16,
    "F16, a blob": torch.Tensor.half,
}


def seconds(work: Callable[[], object]) -> float:
    """Wall time."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def hash_file(path: Path) -> None:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        hashlib.sha256(raw)


def identify_all(path: Path) -> None:
    base = open_base(path)
    for name in base.names():
        identify_weight(base, name, 0)


def forget(home: Path) -> None:
    """Forget all fingerprints, on disk as well."""
    flush()
    _documents.clear()
    for path in (home / "fingerprints").glob("*"):
        path.unlink()


def write(folder: Path, weights: dict[str, torch.Tensor], *, blob: bool) -> Path:
    """Write a weight file, flush it, and wait until it is old enough to be remembered."""
    path = folder / "model.safetensors"
    save_file(weights, path)
    if blob:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "models--owner--repo" / "blobs").mkdir(parents=True)
        target = folder / "models--owner--repo" / "blobs" / digest
        path.rename(target)
        path.symlink_to(target)
    os.sync()
    time.sleep(file_state.RACY / 1e9 + 0.1)
    if not file_state.tells(path.resolve(), file_state.state(path.stat())):
        sys.exit(f"{folder}: lies on a file system whose change times are not trusted: set TMPDIR")
    return path


def measure(path: Path, home: Path, rounds: int) -> dict[str, float]:
    """Return the median seconds of hashing, and of identifying cold and warm."""
    times: dict[str, list[float]] = {"sha256": [], "cold": [], "again": []}
    for index in range(rounds + 1):
        forget(home)
        taken = {"sha256": seconds(lambda: hash_file(path)), "cold": seconds(lambda: identify_all(path))}
        flush()
        _documents.clear()  # as another process would find it
        taken["again"] = seconds(lambda: identify_all(path))
        for label, value in taken.items() if index else ():
            times[label].append(value)
    return {label: median(values) for label, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=512, help="MiB of each file in F32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SVDIFF_HOME"] = name
        count = max(1, (arguments.size << 20) // (4 * SIDE * SIDE))
        weights = {
            f"{i}.weight": torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(i)) for i in range(count)
        }
        for label, cast in FORMATS.items():
            cast_weights = {key: cast(weight * 0.02) for key, weight in weights.items()}
            path = write(folder, cast_weights, blob=label.endswith("blob"))
            found[label] = measure(path, folder, arguments.rounds)
    print(f"{count} weights of {SIDE} x {SIDE}, {arguments.rounds} rounds, 1 thread of torch")
    print(
        f"{'seconds':<24}{'sha256':>9}{'cold':>9}{'again':>9}{'sha/cold':>10}{'limit':>7}{'again/cold':>12}{'limit':>7}"
    )
    ratios = {}
    for label, times in found.items():
        speed, again = times["sha256"] / times["cold"], times["again"] / times["cold"]
        limit = SPEED / 2 if label.endswith("blob") else SPEED
        ratios[label] = {"speed": speed, "again": again, "met": speed >= limit and again <= AGAIN}
        shown = "".join(f"{times[key]:>9.4f}" for key in ("sha256", "cold", "again"))
        print(f"{label:<24}{shown}{speed:>10.2f}{limit:>7.2f}{again:>12.4f}{AGAIN:>7.2f}")
    if arguments.json:
        facts = {"limits": {"speed": SPEED, "again": AGAIN}, "ratios": ratios, "seconds": found, "threads": 1}
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n")
    sys.exit(0 if all(ratio["met"] for ratio in ratios.values()) else 1)


if __name__ == "__main__":
    main()
