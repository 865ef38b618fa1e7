#!/usr/bin/env bash
# The routed experts of HiDream's feed-forward layers, in the way that diffusers' own LoRA script loads the model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0 2>/dev/null
cd "$folder"
venv/bin/python -W ignore - <<'P'
import sys
from importlib.metadata import version

import torch
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU

SHARED, ROUTED = "shared expert", "routed experts"


def reached(force):
    """Return which of a layer's experts have a gradient in training mode, and which part of the input's is there."""
    torch.manual_seed(0)
    layer = MOEFeedForwardSwiGLU(8, 16, num_routed_experts=4, num_activated_experts=2, _force_inference_output=force)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    layer.train()
    x = torch.randn(1, 6, 8, requires_grad=True)
    layer(x).square().sum().backward()
    parts = {SHARED: layer.shared_experts, ROUTED: layer.experts}
    return {name for name, part in parts.items() if any(p.grad is not None for p in part.parameters())}


asked, plain = reached(force=True), reached(force=False)
print("diffusers", version("diffusers"), "torch", version("torch").partition("+")[0])
print("expected: force_inference_output, with which diffusers' HiDream script trains, leaves what has a gradient")
print("seen, in training mode: with it", sorted(asked), "- without it", sorted(plain))
sys.exit(0 if asked == {SHARED} and plain == {SHARED, ROUTED} else "this has changed")
P
