#!/usr/bin/env bash
# Stable Diffusion 3 without its largest text encoder, which its pipeline allows, is saved and loaded again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 \
  2>/dev/null
"$folder/venv/bin/python" -W ignore - 2>/dev/null <<'P'
import json
import sys
import tempfile
from pathlib import Path

import diffusers
import transformers

text = transformers.CLIPTextConfig(
    hidden_size=32,
    intermediate_size=37,
    num_hidden_layers=1,
    num_attention_heads=4,
    vocab_size=100,
    projection_dim=32,
    bos_token_id=0,
    eos_token_id=2,
)
tokenizer = transformers.CLIPTokenizer(vocab={"<|startoftext|>": 0, "!": 1, "<|endoftext|>": 2}, merges=[])
pipeline = diffusers.StableDiffusion3Pipeline(
    transformer=diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=64,
    ),
    scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    vae=diffusers.AutoencoderKL(latent_channels=4, block_out_channels=(32,), shift_factor=0.1),
    text_encoder=transformers.CLIPTextModelWithProjection(text),
    text_encoder_2=transformers.CLIPTextModelWithProjection(text),
    text_encoder_3=None,
    tokenizer=tokenizer,
    tokenizer_2=tokenizer,
    tokenizer_3=None,
)
with tempfile.TemporaryDirectory() as saved:
    pipeline.save_pretrained(saved)
    noted = json.loads((Path(saved) / "model_index.json").read_text())["text_encoder_3"]
    try:
        diffusers.StableDiffusion3Pipeline.from_pretrained(saved)
        seen = "loaded"
    except ValueError as error:
        seen = str(error).partition("> ")[2].partition(",")[0]
    without = {"text_encoder_3": None, "tokenizer_3": None}
    again = diffusers.StableDiffusion3Pipeline.from_pretrained(saved, **without)
print("diffusers", diffusers.__version__)
print(f"expected: the folder, whose index says {noted} of text_encoder_3, is loaded as it was saved")
print(f"seen: ValueError, {seen}…; with text_encoder_3=None and tokenizer_3=None it loads")
changed = noted != [None, None] or not seen.startswith("expected") or again.text_encoder_3 is not None
sys.exit("this has changed" if changed else 0)
P
