#!/usr/bin/env bash
# torch.randn from one seed on one machine, with the vector units that another processor would have.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 2>/dev/null
draw='
import sys, torch
g = torch.Generator().manual_seed(0)
torch.save((torch.rand(4096, generator=g), torch.randn(4096, generator=g)), sys.argv[1])'
for units in default avx2; do
  ATEN_CPU_CAPABILITY=$units "$folder/venv/bin/python" -c "$draw" "$folder/$units.pt"
done
"$folder/venv/bin/python" - "$folder/default.pt" "$folder/avx2.pt" <<'P'
import sys

import torch

(even, normal), (same, other) = (torch.load(path, weights_only=True) for path in sys.argv[1:])
share = float((normal != other).double().mean())
print("torch", torch.__version__.split("+")[0], "on the CPU, ATEN_CPU_CAPABILITY=default against avx2, 4,096 numbers of one seed")
print("expected: the same numbers; rand gives them:", torch.equal(even, same))
print(f"seen: {share:.0%} of randn's numbers differ, by at most {float((normal - other).abs().max()):.1e}")
sys.exit(0 if torch.equal(even, same) and 0.1 < share < 0.9 else "this has changed")
P
