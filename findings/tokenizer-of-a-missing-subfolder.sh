#!/usr/bin/env bash
# The tokenizer of a pipeline's folder that has no such sub-folder: an error, or what?
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 2>/dev/null
FOLDER="$folder" "$folder/venv/bin/python" -W ignore - 2>/dev/null <<'P'
import os
import sys

import transformers

tokenizer = transformers.CLIPTokenizer.from_pretrained(os.environ["FOLDER"], subfolder="tokenizer_2")
cat, dog = (tokenizer(f"a photo of a {word}")["input_ids"] for word in ("cat", "dog"))
print("transformers", transformers.__version__, 'CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer_2")')
print("expected: an OSError, since nothing is there")
print(f"seen: a tokenizer of {len(tokenizer)} tokens; cat and dog are the same to it: {cat == dog}")
sys.exit(0 if len(tokenizer) == 2 and cat == dog else "this has changed")
P
