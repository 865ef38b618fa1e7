#!/usr/bin/env bash
# A LoRA's scale for one block of a diffusers transformer.
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

model = diffusers.FluxTransformer2DModel(
    in_channels=4, num_layers=12, num_single_layers=3, attention_head_dim=8, num_attention_heads=2,
    joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
)
model.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"]), adapter_name="style")


def scaled(weights: dict[str, float]) -> list[str]:
    """Return the blocks whose LoRA has not the scale 1."""
    model.set_adapters("style", weights)
    found = []
    for name, module in model.named_modules():
        if "style" in getattr(module, "scaling", {}) and module.scaling["style"] != 1.0:
            found.append(name.removesuffix(".attn.to_q"))
    return found


one = scaled({"transformer_blocks.1": 0.5})
double = scaled({"transformer_blocks": 0.5})
print("diffusers", diffusers.__version__, "peft", peft.__version__)
print("expected: a scale for `transformer_blocks.1` is that block's; one for `transformer_blocks` that of the 12 of this name")
print("seen:", ", ".join(one), "have the first;", len(double), "blocks have the second")
others = ["transformer_blocks.10", "transformer_blocks.11", "single_transformer_blocks.1"]
sys.exit(0 if one == ["transformer_blocks.1", *others] and len(double) == 15 else "this has changed")
P
