"""How long baking a model of 860 million weights takes, and how much memory.

    python benchmarks/bake.py [--json FILE] [--folder FOLDER]

SD 1.5's UNet with random float32 weights and a δ on all its weights; bases in the cache, fingerprints remembered. The
floor, in the same run: the two products per matrix that the one-sided basis needs, on tensors in memory, and a copy of
the weight file. Threads: 2. The folder (by default a temporary one) needs 9 GB.

Memory is the most that a process had that bakes: all resident pages, those of mapped files included.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import process, sd15

from svdiff_delta import Delta, open_base, save, zero_delta
from svdiff_delta.svd.cache import BasisCache

TIMES, MEMORY, OPENING, THREADS = 1.3, 1_500_000_000, 0.05, 2

BAKE = """
import json, sys, time
from pathlib import Path
import torch
from common.process import watched
from svdiff_delta import bake, load, open_base
from svdiff_delta.svd import cache

torch.set_num_threads(int(sys.argv[5]))
opening = 0.0
get = cache.BasisCache.get
def timed(self, key):
    global opening
    begun = time.perf_counter()
    try:
        return get(self, key)
    finally:
        opening += time.perf_counter() - begun

cache.BasisCache.get = timed
begun = time.perf_counter()
with watched("VmRSS") as most:
    bake(open_base(sys.argv[1]), [load(sys.argv[2])], sys.argv[3], cache=cache.BasisCache(Path(sys.argv[4])))
taken = time.perf_counter() - begun
print(json.dumps({"seconds": taken, "opening": opening, **most}))
"""


def floor(folder: Path, cache: BasisCache, delta: Delta, copy: Path) -> tuple[float, float]:
    """Seconds of the products, and of a copy of the file."""
    products = 0.0
    parameters = delta.metadata.parameters
    for key, matrix in sd15.matrices(folder):
        basis = cache.get(parameters[f"unet.{key}"].fingerprint)
        assert basis is not None
        factor = basis.factor.clone()
        work = (matrix if basis.left else matrix.T).clone()
        begun = time.perf_counter()
        factor.T @ (factor @ work)
        products += time.perf_counter() - begun
    begun = time.perf_counter()
    shutil.copyfile(folder / "diffusion_pytorch_model.safetensors", copy)
    return products, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where weights and cache lie or are made")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = sd15.folder_of(arguments.folder, Path(temporary))
        base, cache = open_base(folder), BasisCache(folder / "cache")
        zero = zero_delta(base, cache=cache)
        random = np.random.default_rng(0)
        delta = Delta({name: 0.01 * random.standard_normal(value.size) for name, value in zero.items()}, zero.metadata)
        save(delta, Path(temporary) / "delta.safetensors")
        places = [folder, Path(temporary) / "delta.safetensors", Path(temporary) / "out", cache.root.parent, THREADS]
        found = process.child(BAKE, *places)
        shutil.rmtree(Path(temporary) / "out")
        products, copying = floor(folder, cache, delta, Path(temporary) / "copy")
    ratio, opening = found["seconds"] / (products + copying), found["opening"] / found["seconds"]
    print(f"bake {found['seconds']:.1f} s; products {products:.1f} s, copy {copying:.1f} s; {THREADS} threads")
    print(f"{'':<48}{'limit':>14}{'measured':>14}")
    print(f"{'bake, of the products and a copy':<48}{TIMES:>14.2f}{ratio:>14.2f}")
    print(f"{'opening bases, of the whole':<48}{OPENING:>14.1%}{opening:>14.1%}")
    print(f"{'most memory, bytes':<48}{MEMORY:>14,}{found['VmRSS']:>14,}")
    sd15.save_figures(arguments.json, {"threads": THREADS, **found, "products": products, "copy": copying})
    met = ratio <= TIMES and opening <= OPENING and found["VmRSS"] <= MEMORY
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
