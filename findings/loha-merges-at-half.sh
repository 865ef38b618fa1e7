#!/usr/bin/env bash
# A LoHa of LyCORIS beside a linear layer, and merged into it: is the change the same?
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 einops==0.8.2 safetensors==0.8.0 toml tqdm 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-deps lycoris-lora==4.1.3 2>/dev/null
"$folder/venv/bin/python" -W ignore - 2>/dev/null <<'P'
import logging
import sys
from importlib.metadata import version

logging.disable(logging.CRITICAL)
import torch
from lycoris.modules.loha import LohaModule
from torch import nn

seen = {}
for alpha in (4.0, 2.0):
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8, bias=False), torch.randn(3, 8)
    adapter, plain = LohaModule("layer", layer, 1.0, 4, alpha), layer(x)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    with torch.no_grad():
        adapter.apply_to()
        beside = layer(x) - plain
        adapter.restore()
        adapter.merge_to(1.0)
        seen[alpha] = float((layer(x) - plain).norm() / beside.norm())
print("lycoris-lora", version("lycoris-lora"), "LohaModule of rank 4, its change merged into a layer over its change beside it")
print("expected: 1, whatever alpha is")
print(f"seen: {seen[4.0]:.3f} with alpha 4, {seen[2.0]:.3f} with alpha 2: merged, it is scaled by alpha/rank twice")
sys.exit(0 if abs(seen[4.0] - 1) < 1e-3 and abs(seen[2.0] - 0.5) < 1e-3 else "this has changed")
P
