#!/usr/bin/env bash
# Flux.2's last modulation layer under its original name, as a checkpoint and as a LoRA of full rank, by diffusers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0 peft==0.21.2 diffusers==0.42.1 2>/dev/null
"$folder/venv/bin/python" -W ignore - 2>/dev/null <<'P'
import sys

import diffusers
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_flux2_lora_to_diffusers as from_lora
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers as from_checkpoint

name, rows = "final_layer.adaLN_modulation.1", torch.arange(8.0)[:, None].expand(8, 4).contiguous()
whole = from_checkpoint({f"{name}.weight": rows.clone()})["norm_out.linear.weight"]
pair = {f"diffusion_model.{name}.lora_B.weight": rows.clone(), f"diffusion_model.{name}.lora_A.weight": torch.eye(4)}
change = from_lora(pair)["transformer.norm_out.linear.lora_B.weight"]
order = {"checkpoint": whole[:, 0].int().tolist(), "LoRA": change[:, 0].int().tolist()}
print("diffusers", diffusers.__version__, f"{name} of Flux.2, rows 0 to 7, converted to norm_out.linear")
print("expected: a LoRA's rows where the checkpoint's rows go")
print("seen:", *(f"{what} {rows}" for what, rows in order.items()), "- the LoRA's shift changes the scale, and the other way round")
sys.exit(0 if order == {"checkpoint": [4, 5, 6, 7, 0, 1, 2, 3], "LoRA": [*range(8)]} else "this has changed")
P
