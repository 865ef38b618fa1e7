"""The sum of files of SD 1.5's layout in a browser, beside the same sum by the library, in one run.

    make js && python benchmarks/mixer.py [--files 10] [--json FILE]

Both begin with the files' bytes in memory, read them strictly, add them, and end with the bytes of the canonical file,
which are compared. The first run in the browser, before anything is compiled, stands beside the median of all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.sd15 import sd15_delta

from svdiff_delta import add
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps, loads

ROOT = Path(__file__).parent.parent
LIMIT, RUNS = 3.0, 5


def make(folder: Path, count: int) -> list[Path]:
    """Write files with random shifts; return where they lie."""
    base, draw = sd15_delta(), np.random.default_rng(0)
    paths = []
    for number in range(count):
        values = {name: draw.standard_normal(value.size, dtype=np.float32) * 0.01 for name, value in base.items()}
        paths.append(folder / f"{number}.safetensors")
        paths[-1].write_bytes(dumps(Delta(values, base.metadata.with_title(f"number {number}"))))
    return paths


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        paths = make(Path(name), arguments.files)
        raws, ours = [path.read_bytes() for path in paths], []
        for _ in range(RUNS):
            start = time.perf_counter()
            made = dumps(add(*map(loads, raws)))
            ours.append(1000 * (time.perf_counter() - start))
        out = Path(name) / "sum"
        command = ["node", "browser/sum.mjs", str(RUNS), str(out), *map(str, paths)]
        done = subprocess.run(command, cwd=ROOT / "js", check=True, text=True, capture_output=True)
        browser = json.loads(done.stdout)
        same = out.read_bytes() == made
    page = (ROOT / "js" / "dist" / "mixer.html").stat().st_size
    ratio, first = median(browser) / median(ours), browser[0] / median(ours)
    print(f"{arguments.files} files: {median(ours):.0f} ms here, {median(browser):.0f} ms in the browser")
    print(f"ratio {ratio:.2f} (at most {LIMIT}), of the first run {first:.2f}")
    print(f"same bytes: {same}; the page has {page:,} bytes")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratio": ratio, "first": first, "same": same, "page": page}))
    return 0 if same and ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
