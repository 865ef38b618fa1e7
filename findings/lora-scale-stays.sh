#!/usr/bin/env bash
# A LoRA's scale after a call that had a scale of its own, and after it was fused and unfused.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 \
	accelerate==1.15.0 2>/dev/null
"$folder/venv/bin/python" -W ignore - 2>/dev/null <<'P'
import sys

import diffusers
import peft
import torch

torch.manual_seed(0)
unet = diffusers.UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
    norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"], init_lora_weights=False), "style")
inputs = torch.randn(1, 4, 8, 8), 1, torch.randn(1, 3, 8)


def scale() -> float:
    (found,) = {module.scaling["style"] for module in unet.modules() if "style" in getattr(module, "scaling", {})}
    return float(found)


found = {}
for label, given in (("0.3", 0.3), ("0", 0.0)):
    unet.set_adapters("style", 0.5)
    with torch.no_grad():
        unet(*inputs, cross_attention_kwargs={"scale": given})
    found[label] = scale()
unet.set_adapters("style", 0.5)
unet.fuse_lora(lora_scale=0.3)
unet.unfuse_lora()
found["unfused"] = scale()
print("diffusers", diffusers.__version__, "peft", peft.__version__)
print("expected: set to 0.5, a LoRA has that scale again after a call with a scale, and after fusing and unfusing")
print(f"seen: after a call with 0.3 it has {found['0.3']:g}, with 0 {found['0']:g}; fused with 0.3 and unfused {found['unfused']:g}")
sys.exit(0 if found == {"0.3": 0.5, "0": 1.0, "unfused": 0.15} else "this has changed")
P
