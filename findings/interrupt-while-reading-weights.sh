#!/usr/bin/env bash
# A Ctrl-C, or a signal whose handler raises, that arrives while safetensors reads a file of weights.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 safetensors==0.8.0 2>/dev/null
cd "$folder"
venv/bin/python -W ignore - <<'P'
import sys
from collections import Counter
from importlib.metadata import version

import torch
from safetensors.torch import load_file, save_file

save_file({f"weight.{n}": torch.ones(4, 4) for n in range(20)}, "model.safetensors")


def ends_with(arrival):
    """Load the file; in its `arrival`-th call of Python code a KeyboardInterrupt is raised, as a signal's handler does."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"
        if calls == arrival:
            sys.setprofile(None)
            raise KeyboardInterrupt

    try:
        sys.setprofile(count)
        load_file("model.safetensors")
    except BaseException as error:
        return error
    finally:
        sys.setprofile(None)


errors = [ends_with(arrival) for arrival in range(1, 41)]
seen = Counter(type(error).__name__ for error in errors)
dropped = [error for error in errors if isinstance(error, ValueError)]
print("safetensors", version("safetensors"), "torch", version("torch").partition("+")[0])
print("expected: KeyboardInterrupt, whenever it arrives, or an error that has it as its context")
print("seen:", dict(seen), "-", dropped[0], "- context:", dropped[0].__context__)
sys.exit(0 if seen["KeyboardInterrupt"] and dropped[0].__context__ is None else "this has changed")
P
