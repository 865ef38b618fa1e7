#!/usr/bin/env bash
# One tokenizer of transformers in two threads, as a server has it; one pads, the other does not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0 tokenizers==0.23.3 2>/dev/null
"$folder/venv/bin/python" - 2>/dev/null <<'P'
import sys
import threading
import time

import tokenizers
import transformers

words = {word: number for number, word in enumerate(["[PAD]", "a", "photo", "of", "dog"])}
plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[PAD]"))
plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", model_max_length=16)
calls = {
    "padded to 8": (lambda: tokenizer("a dog", padding="max_length", max_length=8), 8),
    "not padded": (lambda: tokenizer("a photo of a dog"), 5),
}
alone = [len(call().input_ids) == count for call, count in calls.values()]
wrong, end = dict.fromkeys(calls, 0), time.monotonic() + 60


def read(name):
    call, count = calls[name]
    while time.monotonic() < end and not all(wrong.values()):
        wrong[name] += len(call().input_ids) != count


threads = [threading.Thread(target=read, args=(name,)) for name in calls]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
print("expected: padding is an argument of a call, so each gets what it asked for; or an error says that it may not")
print("seen:", ", ".join(f"{name}: {count} of another length" for name, count in wrong.items()))
sys.exit(0 if all(alone) and all(wrong.values()) else "this has changed")
P
