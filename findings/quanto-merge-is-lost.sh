#!/usr/bin/env bash
# A LoRA of PEFT on a layer that quanto has quantized, merged into it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 safetensors==0.8.0 huggingface_hub==2.4.0 ninja \
	transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-deps optimum-quanto==0.2.7 2>/dev/null
"$folder/venv/bin/python" -W ignore - 2>/dev/null <<'P'
import sys
import warnings
from importlib.metadata import version

import peft
import torch
from optimum import quanto
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 32))
quanto.quantize(model, weights=quanto.qint8)
quanto.freeze(model)
inputs = torch.randn(4, 32)
with torch.no_grad(), warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    plain = model(inputs)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False))
    beside = wrapped(inputs)
    merged = wrapped.merge_and_unload()(inputs)
change = float((beside - plain).abs().max())
left = float((merged - plain).abs().max())
print("peft", peft.__version__, "optimum-quanto", version("optimum-quanto"))
print("expected: merged into its layer, a LoRA changes the output as it did beside it, but for rounding to int8;")
print("          or it is refused")
print(f"seen: beside the layer the output changes by {change:.2f}, merged by {left}, with {len(said)} warnings")
sys.exit(0 if change > 0.5 and left == 0 and not said else "this has changed")
P
