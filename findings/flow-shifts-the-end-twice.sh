#!/usr/bin/env bash
# The noise levels of diffusers' scheduler for flow matching, with the shift that Stable Diffusion 3 has.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0 2>/dev/null
"$folder/venv/bin/python" -W ignore - 2>/dev/null <<'P'
import sys

import diffusers

STEPS, SHIFT, TRAINED = 28, 3.0, 1000


def shifted(level: float) -> float:
    return SHIFT * level / (1 + (SHIFT - 1) * level)


scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAINED, shift=SHIFT)
lowest = float(scheduler.sigmas[-1])  # of those that are trained
scheduler.set_timesteps(STEPS)
seen = [float(level) for level in scheduler.sigmas[:STEPS]]
plain = [1 - index * (1 - 1 / TRAINED) / (STEPS - 1) for index in range(STEPS)]
expected = [shifted(level) for level in plain]
print("diffusers", diffusers.__version__)
print(f"expected: of {STEPS} levels, evenly spaced from 1 to 1/{TRAINED} and then shifted, the last are "
      f"{expected[-2]:.4f} and {expected[-1]:.4f}, which is the lowest that is trained, {lowest:.4f}")
print(f"seen: the last are {seen[-2]:.4f} and {seen[-1]:.4f}: the lowest one was shifted before they were spaced, and again")
once, twice = shifted(1 / TRAINED), shifted(shifted(1 / TRAINED))
sys.exit(0 if abs(lowest - once) < 1e-6 and abs(seen[-1] - twice) < 1e-6 else "this has changed")
P
