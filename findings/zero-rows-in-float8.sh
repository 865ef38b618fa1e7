#!/usr/bin/env bash
# A layer with a row of zeros (pruned, or begun at zero as ControlNet's are), its weights quantized to eight bits.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 safetensors==0.8.0 huggingface_hub==2.4.0 ninja 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-deps torchao==0.18.0 optimum-quanto==0.2.7 2>/dev/null
"$folder/venv/bin/python" -W ignore - 2>/dev/null <<'P'
import sys
from importlib.metadata import version

import torch
from optimum import quanto
from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

torch.manual_seed(0)
weight = torch.randn(4, 32)
weight[1] = 0


def with_torchao(model, config):
    quantize_(model, config)


def with_quanto(model, dtype):
    quanto.quantize(model, weights=dtype)
    quanto.freeze(model)


schemes = {
    "torchao int8": (with_torchao, Int8WeightOnlyConfig()),
    "torchao float8": (with_torchao, Float8WeightOnlyConfig()),
    "quanto int8": (with_quanto, quanto.qint8),
    "quanto float8": (with_quanto, quanto.qfloat8),
}
seen = {}
for name, (quantize, scheme) in schemes.items():
    model = nn.Sequential(nn.Linear(32, 4, bias=False))
    model[0].weight = nn.Parameter(weight.clone())
    quantize(model, scheme)
    with torch.no_grad():
        seen[name] = model(torch.ones(1, 32))[0]
print("torchao", version("torchao"), "optimum-quanto", version("optimum-quanto"), "a row of zeros in a linear layer")
print("expected: its output is 0 under every scheme")
print("seen:", ", ".join(f"{name}: {float(output[1])}" for name, output in seen.items()))
zero = all(seen[f"{library} int8"][1] == 0 for library in ("torchao", "quanto"))
nan = all(seen[f"{library} float8"][1].isnan() for library in ("torchao", "quanto"))
sys.exit(0 if zero and nan else "this has changed")
P
