#!/usr/bin/env bash
# A vision-language model saved by transformers 5: are the names in its file those of its state dict?
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0 safetensors==0.8.0 2>/dev/null
FOLDER="$folder/model" "$folder/venv/bin/python" -W ignore - 2>/dev/null <<'P'
import os
import sys

import torch
import transformers
from safetensors import safe_open

text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32}
model = transformers.Qwen2_5_VLForConditionalGeneration(
    transformers.Qwen2_5_VLConfig(
        text_config={**text, "num_key_value_heads": 2, "rope_parameters": rope}, vision_config=vision
    )
)
model.save_pretrained(os.environ["FOLDER"])
with safe_open(os.path.join(os.environ["FOLDER"], "model.safetensors"), "pt") as file:
    stored = set(file.keys())
state = set(model.state_dict())
again = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(os.environ["FOLDER"]).state_dict()
same = all(torch.equal(value, again[key]) for key, value in model.state_dict().items())
print("transformers", transformers.__version__)
print(f"expected: {len(state)} weights in the state dict, and the same names in the file")
print(f"seen: {len(stored)} in the file, {len(stored & state)} of the same name; loaded again they are equal: {same}")
print("  for example", sorted(state - stored)[0], "is", sorted(stored - state)[0], "in the file")
sys.exit(0 if same and len(stored & state) == 1 and len(stored) == len(state) else "this has changed")
P
