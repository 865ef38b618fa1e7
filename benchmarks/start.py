"""How long a training run takes to its first step when the bases are in the cache.

    python benchmarks/start.py [--json FILE] [--folder FOLDER]

SD 1.5's UNet with random float32 weights, shifts on all its weights. The floor, in a process of its own as well: the
imports of training, loading the model, and one product per matrix with a square factor in memory. Beside it, the same
with factors and products kept, as a start must keep them: what pages of new memory cost. Threads: 2. The folder (by
default a temporary one) needs 5 GB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from common import sd15
from common.process import spent_by

from svdiff_delta import build_basis, open_base
from svdiff_delta.svd.cache import BasisCache

LIMIT, THREADS, RUNS = 1.3, 2, 3

BEGIN = """
import json, sys
from common.process import Spent, spending
spent = Spent()
watch = spending(spent)
watch.__enter__()
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[2]))
import svdiff_train.training.loop
from diffusers import UNet2DConditionModel
folder = Path(sys.argv[1])
model = UNet2DConditionModel.from_pretrained(folder).requires_grad_(False)
"""

END = """
watch.__exit__(None, None, None)
print(json.dumps(vars(spent)))
"""

START = (
    BEGIN
    + """
from svdiff_delta import attach, open_base, zero_delta
from svdiff_delta.svd.cache import BasisCache
base, cache = open_base(folder), BasisCache(folder / "cache")
handle = attach(model, zero_delta(base, cache=cache), base=base, trainable=True, cache=cache)
"""
    + END
)

FLOOR = (
    BEGIN
    + """
from svdiff_delta.svd.decomposition import matricize
from svdiff_delta.base_model.kinds import shiftable
kept = []
for key, kind, axis in shiftable(model):
    if kind == "spectral":
        matrix = matricize(model.get_parameter(key), axis)
        short = min(matrix.shape)
        factor = torch.empty(short, short)
        product = factor @ matrix if short == matrix.shape[0] else matrix @ factor
        KEEP
"""
    + END
)

KEPT = FLOOR.replace("factor = torch.empty(short, short)", "factor = torch.ones(short, short)")
CODES = {
    "start": START,
    "floor": FLOOR.replace("KEEP", ""),
    "kept": KEPT.replace("KEEP", "kept.append((factor, product))"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where weights and cache lie or are made")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = sd15.folder_of(arguments.folder, Path(temporary))
        build_basis(open_base(folder), cache=BasisCache(folder / "cache"))
        taken = spent_by(CODES, folder, THREADS, runs=RUNS, key=lambda run: run.clock)
    middle = {name: runs[RUNS // 2] for name, runs in taken.items()}
    for name, run in middle.items():
        print(f"{name:<48}{run}")
    print(f"{THREADS} threads, medians of {RUNS}")
    ratio = middle["start"].clock / middle["floor"].clock
    print(f"{'':<48}{'limit':>10}{'measured':>10}")
    print(f"{'start, of imports, loading and products':<48}{LIMIT:>10.2f}{ratio:>10.2f}")
    print(
        f"{'start, of the same with Z and bases kept':<48}{'':>10}{middle['start'].clock / middle['kept'].clock:>10.2f}"
    )
    figures = {name: [vars(run) for run in runs] for name, runs in taken.items()}
    sd15.save_figures(arguments.json, {"threads": THREADS, **figures, "ratio": ratio})
    sys.exit(0 if ratio <= LIMIT else 1)


if __name__ == "__main__":
    main()
