"""How long SD 1.5's UNet takes to a rank-16 LoRA, and how much memory, with bases in the cache.

    python benchmarks/lora_sd15.py [--json FILE] [--folder FOLDER] [--rank 16] [--times 3]

SD 1.5's UNet with random float32 weights and a δ on all of them but norms; fingerprints remembered. The floor, in the
same run and on one thread: reading the rows of the bases that this rank needs, and the weights, and the products of the
two. Both are done several times, in turn, and the fastest of each counts. On a machine that is busy otherwise look at
the processor time. The folder (by default a temporary one) needs 5 GB; `bake.py` makes and takes the same.

Memory is the most that the process had that converts: all pages that are its own, and all resident pages, which count
those of mapped files that the system can take back at any time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import sd15
from common.process import Spent, child, spending

from svdiff_delta import Delta, open_base, save, select, zero_delta
from svdiff_delta.svd.cache import BasisCache

TIMES, MEMORY = 1.5, 1_000_000_000

CONVERT = """
import json, sys
from pathlib import Path
import torch
from common.process import Spent, spending, watched
from svdiff_delta import convert, open_base
from svdiff_delta.svd.cache import BasisCache
import svdiff_delta.conversion.kohya

torch.set_num_threads(1)
spent = Spent()
with watched("RssAnon", "VmRSS") as most, spending(spent):
    base, cache = open_base(sys.argv[1]), BasisCache(Path(sys.argv[4]))
    found = convert(sys.argv[2], to="kohya", base=base, rank=int(sys.argv[5]), output=sys.argv[3], cache=cache)
print(json.dumps({"seconds": spent.clock, "processor": spent.processor, "bytes": found.size, **most}))
"""


def floor(folder: Path, cache: BasisCache, delta: Delta, rank: int) -> dict[str, float]:
    """Seconds, and those of the processor, to read the rows and the weights, and to multiply them."""
    parameters, spent = delta.metadata.parameters, Spent()
    for key, matrix in sd15.matrices(folder):
        basis = cache.get(parameters[f"unet.{key}"].fingerprint)
        assert basis is not None
        kept = torch.from_numpy(np.argsort(-np.abs(delta[f"unet.{key}"]))[:rank].copy())
        with spending(spent):
            work = (matrix if basis.left else matrix.T).clone()
            basis.factor[kept] @ work
    return {"seconds": spent.clock, "processor": spent.processor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where weights and cache lie or are made")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--times", type=int, default=3, help="how often each is measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["SVDIFF_HOME"] = temporary  # fingerprints are remembered there
        folder = sd15.folder_of(arguments.folder, Path(temporary))
        base, cache = open_base(folder), BasisCache(folder / "cache")
        zero = select(zero_delta(base, cache=cache), "2d", "4d")
        random = np.random.default_rng(0)
        delta = Delta({name: 0.01 * random.standard_normal(value.size) for name, value in zero.items()}, zero.metadata)
        save(delta, Path(temporary) / "delta.safetensors")
        places = [folder, Path(temporary) / "delta.safetensors", Path(temporary) / "out.safetensors"]
        runs, floors = [], []
        for _ in range(arguments.times):
            places[2].unlink(missing_ok=True)
            runs.append(child(CONVERT, *places, cache.root.parent, arguments.rank))
            floors.append(floor(folder, cache, delta, arguments.rank))
        found = {name: min(run[name] for run in runs) for name in ("seconds", "processor", "bytes")}
        found |= {name: max(run[name] for run in runs) for name in ("RssAnon", "VmRSS")}
        least = {name: min(run[name] for run in floors) for name in floors[0]}
    ratio = {name: found[name] / least[name] for name in least}
    print(f"{len(delta)} weights to rank {arguments.rank}, {found['bytes']:,} bytes: {found['seconds']:.1f} s")
    print(f"rows, weights and products: {least['seconds']:.1f} s; one thread")
    print(f"{'':<48}{'limit':>14}{'measured':>14}")
    print(f"{'convert, of rows, weights and products':<48}{TIMES:>14.2f}{ratio['seconds']:>14.2f}")
    print(f"{'the same in processor time':<48}{'':>14}{ratio['processor']:>14.2f}")
    print(f"{'most memory, bytes, its own pages':<48}{MEMORY:>14,}{found['RssAnon']:>14,}")
    print(f"{'with pages of mapped files':<48}{'':>14}{found['VmRSS']:>14,}")
    sd15.save_figures(arguments.json, {**found, "floor": least})
    sys.exit(0 if ratio["seconds"] <= TIMES and found["RssAnon"] <= MEMORY else 1)


if __name__ == "__main__":
    main()
