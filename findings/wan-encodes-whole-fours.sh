#!/usr/bin/env bash
# A clip whose number of frames is not one more than a multiple of four, through Wan's autoencoder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 2>/dev/null
cd "$folder"
venv/bin/python -W ignore - <<'P'
import sys
from importlib.metadata import version

import torch
from diffusers import AutoencoderKLWan

torch.manual_seed(0)


def latents(halvings, frames):
    """Encode a clip by a small autoencoder that halves time so many times."""
    model = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=halvings,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()
    with torch.no_grad():
        return [model.encode(clip).latent_dist.mode() for clip in frames]


clip = torch.randn(1, 3, 9, 16, 16)
other = clip.clone()
other[:, :, 5:8] = 0  # only frames 6 to 8 differ
nine, eight, changed = latents([False, True, True], [clip, clip[:, :, :8], other[:, :, :8]])
print("diffusers", version("diffusers"), "torch", version("torch").partition("+")[0])
print("expected: 8 frames are padded, or refused, and each of them has its part in the latents")
print(f"seen: 9 frames give {nine.shape[2]} latents, 8 give {eight.shape[2]};",
      "other frames 6 to 8 change", int((eight != changed).sum()), "of its numbers")
sys.exit(0 if (nine.shape[2], eight.shape[2]) == (3, 2) and torch.equal(eight, changed) else "this has changed")
P
