#!/usr/bin/env bash
# A LoRA for LTX-Video under the names of its original checkpoint, for each linear layer, is given to its pipeline.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 \
  accelerate==1.15.0 2>/dev/null
"$folder/venv/bin/python" -W ignore - 2>/dev/null <<'P'
import sys

import diffusers
import torch
from diffusers.loaders.single_file_utils import convert_ltx_transformer_checkpoint_to_diffusers

model = diffusers.LTXVideoTransformer3DModel(
    num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, num_layers=1, caption_channels=16
)
pipeline = diffusers.LTXPipeline(
    scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=None, tokenizer=None, transformer=model
)
original = {"proj_in": "patchify_proj", "time_embed": "adaln_single", "norm_q": "q_norm", "norm_k": "k_norm"}


def original_name(name):
    for new, old in original.items():
        name = name.replace(new, old)
    return name


layers = {original_name(name): m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
checkpoint = {f"model.diffusion_model.{name}.weight": m.weight for name, m in layers.items()}
converted = convert_ltx_transformer_checkpoint_to_diffusers(checkpoint)
as_checkpoint = len(set(converted) & set(model.state_dict()))
lora = {}
for name, layer in layers.items():
    lora[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(2, layer.in_features)
    lora[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2)
pipeline.load_lora_weights(lora, adapter_name="a")
as_lora = sum(name.endswith("lora_A.a") for name, _ in model.named_modules())
print("diffusers", diffusers.__version__)
print(f"expected: the loader of LoRAs knows the names that the converter of checkpoints knows, all {len(layers)}")
print(f"seen: {as_checkpoint} of {len(layers)} names as a checkpoint, {as_lora} as a LoRA;")
print("      patchify_proj and adaln_single are left out, with a line in the log and no error")
sys.exit(0 if (len(layers), as_checkpoint, as_lora) == (17, 17, 13) else "this has changed")
P
