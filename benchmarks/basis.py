"""How fast the bases of SD 1.5's UNet are computed, and how much disk they take.

    python benchmarks/basis.py [--json FILE] [--folder FOLDER] [--layers N]

Random weights in the real configuration, 282 matrices. `build_basis` does all of it (reading, rounding, fingerprints,
decomposition, writing to the cache); the reference is the loop of `torch.linalg.svd(W.float(), full_matrices=False)`
alone, in the same run. Threads: 2 for both. The folder (by default a temporary one) needs 5 GB; it takes 6 minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import sd15

from svdiff_delta import build_basis, open_base
from svdiff_delta.svd.cache import BasisCache

FASTER, SIZE = 5.0, 0.30
THREADS = 2


def reference(folder: Path) -> float:
    """Seconds of the plain loop."""
    taken = 0.0
    for _, matrix in sd15.matrices(folder):
        begun = time.perf_counter()
        torch.linalg.svd(matrix.float(), full_matrices=False)
        taken += time.perf_counter() - begun
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where the weights lie or are written, and the cache is made anew")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        if not (folder / "diffusion_pytorch_model.safetensors").exists():
            sd15.write(folder)
        cache = BasisCache(Path(temporary) / "cache")
        base = open_base(folder)
        begun = time.perf_counter()
        parameters = build_basis(base, cache=cache)
        ours = time.perf_counter() - begun
        plain = reference(folder)
        kept = sum(entry.bytes for entry in cache.entries())
        weights = sum(4 * matrix.numel() for _, matrix in sd15.matrices(folder))
    count = sum(parameter.kind == "spectral" for parameter in parameters.values())
    print(f"{count} matrices, {THREADS} threads: build_basis {ours:.1f} s, torch.linalg.svd {plain:.1f} s")
    print(f"{'':<48}{'limit':>8}{'measured':>10}")
    print(f"{'times as fast as the loop of torch.linalg.svd':<48}{FASTER:>8.1f}{plain / ours:>10.2f}")
    print(f"{'cache, of the float32 weights':<48}{SIZE:>8.2f}{kept / weights:>10.3f}")
    figures = {"build_basis": ours, "torch.linalg.svd": plain, "cache": kept, "weights": weights}
    sd15.save_figures(arguments.json, {"threads": THREADS, **figures})
    sys.exit(0 if plain / ours >= FASTER and kept / weights <= SIZE else 1)


if __name__ == "__main__":
    main()
