#!/usr/bin/env bash
# Two LoRA files of one name, in a folder and in a folder in it, where diffusers is asked for the inner one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 2>/dev/null
cd "$folder"
venv/bin/python -W ignore - <<'P'
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

NAME, KEY = "pytorch_lora_weights.safetensors", "unet.down.to_q.lora_A.weight"
for place, value in (("run", 1.0), ("run/step-500", 500.0)):
    Path(place).mkdir()
    save_file({KEY: torch.full((2, 2), value)}, f"{place}/{NAME}")


def value(**where):
    """Return the number that a LoRA file is full of."""
    found, _ = StableDiffusionPipeline.lora_state_dict("run", weight_name=NAME, **where)
    return float(found[KEY][0, 0])


plain, inner = value(), value(subfolder="step-500")
Path("run", NAME).unlink()
alone = value(subfolder="step-500")
print("diffusers", version("diffusers"), "peft", version("peft"))
print("expected: with subfolder='step-500' the file in that folder, 500.0")
print(f"seen: {inner}, that of the folder itself ({plain}); {alone} only where that is not there")
sys.exit(0 if (plain, inner, alone) == (1.0, 1.0, 500.0) else "this has changed")
P
