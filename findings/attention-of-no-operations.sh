#!/usr/bin/env bash
# torch's own counter of operations, over scaled_dot_product_attention on the CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/python" -W ignore - <<'P'
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

x = torch.randn(1, 2, 64, 16)


def counted():
    with FlopCounterMode(display=False) as counter:
        scaled_dot_product_attention(x, x, x)
    return counter.get_total_flops()


chosen = counted()
with sdpa_kernel(SDPBackend.MATH):
    plain = counted()
print("torch", torch.__version__)
print("expected: two products of 64 x 64 x 16 for each of 2 heads, 524,288 operations, by whichever kernel")
print(f"seen: {plain:,} by the plain kernel, {chosen:,} by the one that torch chooses on a CPU: it has no formula for it")
sys.exit(0 if (plain, chosen) == (524288, 0) else "this has changed")
P
