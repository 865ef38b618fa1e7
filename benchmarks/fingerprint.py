"""How fast weights are identified: on one thread against SHA-256 over the same bytes, on all cores, and from memory.

    python benchmarks/fingerprint.py [--json FILE] [--rounds N] [--size MIB] [--format TEXT]

Weight files are written in every format that is stored and can be shifted, of normal numbers; in F32 also of numbers
that are exact in a shorter format, and of such as need F32 as basis dtype because they are too large or too small for
F16; in F16 also of numbers of which half are −0, which stands for +0. A round hashes the file's bytes with hashlib, and
identifies every weight of a freshly opened base three times: with nothing remembered, one after the other on one thread
(cold) and on all cores (all), and with all remembered, as another process would (again). A blob of a Hub cache has its
bytes hashed once more when nothing is remembered. The file is in the page cache. The figures are medians. The folder
for temporary files must lie on a file system whose change times are trusted (`svdiff_delta/_util/file_state.py`).

Limits: cold is at least 0.5 times as fast as SHA-256 on one thread, of a blob 0.25 times; all is at least 0.85 times
the number of cores as fast as cold; again takes at most 0.05 of the time of cold.
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
from svdiff_delta.svd.side_by_side import map_weights

SPEED = 0.5
CORES = 0.85
AGAIN = 0.05
SIDE = 1024
FORMATS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "F32": lambda weight: weight,
    "F32, exact in F16": lambda weight: weight.half().float(),
    "F32, exact in BF16": lambda weight: weight.bfloat16().float(),
    "F32, exact in both": lambda weight: weight.sign() / 32,
    "F32, too large for F16": lambda weight: weight * 1e8,
    "F32, too small for F16": lambda weight: weight * 1e-6,
    "F16": torch.Tensor.half,
    "F16, half of it -0": lambda weight: torch.where(weight < 0, -0.0, weight).half(),
    "BF16": torch.Tensor.bfloat16,
    "F64": torch.Tensor.double,
    "F16, a blob": torch.Tensor.half,
    "F32, a blob": lambda weight: weight,
}
COLUMNS = ("sha256", "cold", "all", "again")


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


def identify_on_all_cores(path: Path, cores: int) -> None:
    base = open_base(path)
    torch.set_num_threads(cores)
    map_weights(dict.fromkeys(base.names(), SIDE * SIDE), lambda name: identify_weight(base, name, 0))
    torch.set_num_threads(1)


def forget(home: Path) -> None:
    """Forget all fingerprints, on disk as well."""
    flush()
    _documents.clear()
    for path in (home / "fingerprints").glob("*"):
        path.unlink()


def write(folder: Path, weights: dict[str, torch.Tensor], *, blob: bool) -> Path:
    """Write a weight file, flush it, and wait until it is old enough to be remembered."""
    path = folder / "model.safetensors"
    path.unlink(missing_ok=True)
    save_file(weights, path)
    if blob:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "models--owner--repo" / "blobs").mkdir(parents=True, exist_ok=True)
        target = folder / "models--owner--repo" / "blobs" / digest
        path.rename(target)
        path.symlink_to(target)
    os.sync()
    time.sleep(file_state.RACY / 1e9 + 0.1)
    if not file_state.tells(path.resolve(), file_state.state(path.stat())):
        sys.exit(f"{folder}: lies on a file system whose change times are not trusted: set TMPDIR")
    return path


def measure(path: Path, home: Path, rounds: int, cores: int) -> dict[str, float]:
    """Return the median seconds of hashing, and of identifying cold, on all cores, and warm."""
    times: dict[str, list[float]] = {column: [] for column in COLUMNS}
    for index in range(rounds + 1):
        taken = {"sha256": seconds(lambda: hash_file(path))}
        for column, work in (
            ("cold", lambda: identify_all(path)),
            ("all", lambda: identify_on_all_cores(path, cores)),
        ):
            forget(home)
            taken[column] = seconds(work)
        flush()
        _documents.clear()  # as another process would find it
        taken["again"] = seconds(lambda: identify_all(path))
        for column, value in taken.items() if index else ():
            times[column].append(value)
    return {column: median(values) for column, values in times.items()}


def judge(label: str, times: dict[str, float], cores: int) -> dict[str, tuple[float, float, bool]]:
    """Return each ratio, its limit, and whether it is met."""
    speed = times["sha256"] / times["cold"]
    whole = times["cold"] / times["all"]
    again = times["again"] / times["cold"]
    least = SPEED / 2 if label.endswith("blob") else SPEED
    return {
        "sha256/cold": (speed, least, speed >= least),
        "cold/all": (whole, CORES * cores, whole >= CORES * cores),
        "again/cold": (again, AGAIN, again <= AGAIN),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=512, help="MiB of each file in F32")
    parser.add_argument("--format", default="", help="only the formats whose name has this in it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cores, found = len(os.sched_getaffinity(0)), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SVDIFF_HOME"] = name
        count = max(1, (arguments.size << 20) // (4 * SIDE * SIDE))
        weights = {
            f"{i}.weight": torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(i)) for i in range(count)
        }
        for label, cast in FORMATS.items():
            if arguments.format in label:
                cast_weights = {key: cast(weight * 0.02) for key, weight in weights.items()}
                path = write(folder, cast_weights, blob=label.endswith("blob"))
                del cast_weights
                found[label] = measure(path, folder, arguments.rounds, cores)
    print(f"{count} weights of {SIDE} x {SIDE}, {arguments.rounds} rounds; sha256, cold, again: 1 thread; all: {cores}")
    ratios = {label: judge(label, times, cores) for label, times in found.items()}
    columns = [*COLUMNS, "sha256/cold", "limit", "cold/all", "limit", "again/cold", "limit"]
    print(f"{'seconds':<24}" + "".join(f"{column:>12}" for column in columns))
    for label, times in found.items():
        shown = "".join(f"{times[column]:>12.4f}" for column in COLUMNS)
        shown += "".join(f"{value:>12.3f}{limit:>12.3f}" for value, limit, _ in ratios[label].values())
        print(f"{label:<24}{shown}" + ("" if all(met for *_, met in ratios[label].values()) else "  MISSED"))
    if arguments.json:
        limits = {"sha256/cold": SPEED, "cold/all": CORES * cores, "again/cold": AGAIN}
        threads = {"sha256": 1, "cold": 1, "all": cores, "again": 1}
        facts = {"limits": limits, "ratios": ratios, "seconds": found, "threads": threads}
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n")
    sys.exit(0 if all(met for ratio in ratios.values() for *_, met in ratio.values()) else 1)


if __name__ == "__main__":
    main()
