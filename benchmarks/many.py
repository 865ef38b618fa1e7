"""The sum of many files: time against a floor that does no more than must be done, and memory.

    python benchmarks/many.py [--files 1000] [--json FILE]

The floor, in a process of its own, reads the same bytes, takes their SHA-256, parses the header and the metadata with
`json.loads`, and sums the numbers in float64. Threads: NumPy's own are set to 1 in both.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common.process import child

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.sd15 import sd15_delta

from svdiff_delta import save
from svdiff_delta.format.delta import Delta

LIMIT, LIMIT_MEMORY = 1.5, 150e6

FLOOR = """
import hashlib, json, sys
import numpy as np
from common.process import resident
total = None
for path in sys.argv[1:]:
    with open(path, "rb") as stream:
        raw = stream.read()
    hashlib.sha256(raw).hexdigest()
    length = int.from_bytes(raw[:8], "little")
    json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["svdiff"])
    values = np.frombuffer(raw, "<f4", offset=8 + length)
    total = values.astype("f8") if total is None else total + values
print(resident("VmHWM"))
"""
OURS = """
import sys
from common.process import resident
from svdiff_cli.main import main
main(["add", *sys.argv[2:], "-o", sys.argv[1], "--quiet", "--force"], standalone_mode=False)
print(resident("VmHWM"))
"""


def make(folder: Path, count: int) -> list[str]:
    base = sd15_delta()
    random = np.random.default_rng(0)
    paths = []
    for number in range(count):
        values = {name: random.standard_normal(value.size, dtype=np.float32) * 0.01 for name, value in base.items()}
        paths.append(str(folder / f"{number:04}.safetensors"))
        save(Delta(values, base.metadata), paths[-1])
    return paths


def timed(script: str, arguments: list[str]) -> tuple[float, int]:
    begun = time.perf_counter()
    memory = child(script, *arguments)
    return time.perf_counter() - begun, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make(folder, arguments.files)
        timed(FLOOR, paths)  # into the page cache
        rounds = [(timed(FLOOR, paths), timed(OURS, [str(folder / "sum.safetensors"), *paths])) for _ in range(3)]
    floor, ours = (min(times) for times in zip(*rounds, strict=True))
    ratio = ours[0] / floor[0]
    print(f"{arguments.files} files: floor {floor[0]:.2f} s, svdiff add {ours[0]:.2f} s")
    print(f"ratio   {ratio:.2f}  (limit {LIMIT})")
    print(f"memory  {ours[1] / 1e6:.0f} MB  (limit {LIMIT_MEMORY / 1e6:.0f} MB; floor {floor[1] / 1e6:.0f} MB)")
    if arguments.json:
        facts = {"files": arguments.files, "floor": floor, "ours": ours, "ratio": ratio}
        arguments.json.write_text(json.dumps(facts, indent=2))
    sys.exit(0 if ratio <= LIMIT and ours[1] <= LIMIT_MEMORY else 1)


if __name__ == "__main__":
    main()
