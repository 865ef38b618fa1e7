#!/usr/bin/env bash
# Wan 2.2 has two transformers. A LoRA for both, each under the name of its component, is given to its pipeline.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 \
  accelerate==1.15.0 2>/dev/null
"$folder/venv/bin/python" -W ignore - <<'P'
import sys

import diffusers
import torch

sizes = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "in_channels": 4, "out_channels": 4}
experts = [diffusers.WanTransformer3DModel(text_dim=16, freq_dim=32, ffn_dim=32, **sizes) for _ in range(2)]
pipeline = diffusers.WanPipeline(
    tokenizer=None,
    text_encoder=None,
    vae=None,
    scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    transformer=experts[0],
    transformer_2=experts[1],
    boundary_ratio=0.875,
)
layer, lora = "blocks.0.attn1.to_q", {}
for component in ("transformer", "transformer_2"):
    lora[f"{component}.{layer}.lora_A.weight"] = torch.randn(2, 32)
    lora[f"{component}.{layer}.lora_B.weight"] = torch.randn(32, 2)
pipeline.load_lora_weights(lora, adapter_name="both")
got = [sum(name.endswith("lora_A.both") for name, _ in expert.named_modules()) for expert in experts]
print("diffusers", diffusers.__version__)
print("expected: one layer of each expert has the LoRA, or an error names the keys that no layer takes")
print(f"seen: no error; layers with the LoRA in transformer: {got[0]}, in transformer_2: {got[1]}")
sys.exit(0 if got == [1, 0] else "this has changed")
P
