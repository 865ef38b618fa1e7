#!/usr/bin/env bash
# A LoRA of PEFT beside a dilated convolution: is the model the same once the LoRA is merged into it?
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0 peft==0.21.2 2>/dev/null
"$folder/venv/bin/python" -W ignore - 2>/dev/null <<'P'
import sys

import peft
import torch
from torch import nn

config = peft.LoraConfig(r=2, target_modules=["conv"], init_lora_weights=False)
apart = {}
for dilation in (1, 2):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("conv", nn.Conv1d(4, 4, 3, padding="same", dilation=dilation))
    adapted, x = peft.get_peft_model(model, config), torch.randn(1, 4, 10)
    beside = adapted(x)
    apart[dilation] = float((beside - adapted.merge_and_unload()(x)).abs().max() / beside.abs().max())
print("peft", peft.__version__, 'Conv1d(4, 4, 3, padding="same"), a LoRA beside it and merged into it')
print("expected: the same output, but for rounding")
print(f"seen: relative distance {apart[1]:.0e} without dilation, {apart[2]:.1f} with dilation 2: lora_A has none")
sys.exit(0 if apart[1] < 1e-5 and apart[2] > 0.1 else "this has changed")
P
