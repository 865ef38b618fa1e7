"""How long a training run takes to its first step when the bases are in the cache.

    python benchmarks/start.py [--json FILE] [--folder FOLDER]

SD 1.5's UNet with random float32 weights, shifts on all its weights. The floor, in a process of its own as well: the
imports of training, loading the model, and one product per matrix with a square factor in memory. Threads: 2. The
folder (by default a temporary one) needs 5 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import sd15

from svdiff_delta import build_basis, open_base
from svdiff_delta.cache import BasisCache

LIMIT, THREADS, RUNS = 1.3, 2, 3

BEGIN = """
import time
begun = time.perf_counter()
import sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[2]))
import svdiff_train.loop
from diffusers import UNet2DConditionModel
folder = Path(sys.argv[1])
model = UNet2DConditionModel.from_pretrained(folder).requires_grad_(False)
"""

START = (
    BEGIN
    + """
from svdiff_delta import attach, open_base, zero_delta
from svdiff_delta.cache import BasisCache
base, cache = open_base(folder), BasisCache(folder / "cache")
handle = attach(model, zero_delta(base, cache=cache), base=base, trainable=True, cache=cache)
print(time.perf_counter() - begun)
"""
)

FLOOR = (
    BEGIN
    + """
from svdiff_delta.basis import matricize
from svdiff_delta.kinds import shiftable
for key, kind, axis in shiftable(model):
    if kind == "spectral":
        matrix = matricize(model.get_parameter(key), axis)
        short = min(matrix.shape)
        factor = torch.empty(short, short)
        factor @ matrix if short == matrix.shape[0] else matrix @ factor
print(time.perf_counter() - begun)
"""
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where weights and cache lie or are made")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "unet"
        folder.mkdir(exist_ok=True)
        if not (folder / "diffusion_pytorch_model.safetensors").exists():
            sd15.write(folder)
        build_basis(open_base(folder), cache=BasisCache(folder / "cache"))
        taken = {name: [run(code, folder) for _ in range(RUNS)] for name, code in (("start", START), ("floor", FLOOR))}
    start, floor = (statistics.median(times) for times in taken.values())
    print(f"start {start:.1f} s; imports, loading and products {floor:.1f} s; {THREADS} threads, medians of {RUNS}")
    print(f"{'':<48}{'limit':>10}{'measured':>10}")
    print(f"{'start, of imports, loading and products':<48}{LIMIT:>10.2f}{start / floor:>10.2f}")
    sd15.save_figures(arguments.json, {"threads": THREADS, **taken, "ratio": start / floor})
    sys.exit(0 if start <= LIMIT * floor else 1)


def run(code: str, folder: Path) -> float:
    """Return the seconds that a process measures."""
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder), str(THREADS)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


if __name__ == "__main__":
    main()
