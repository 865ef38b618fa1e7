#!/usr/bin/env bash
# Two processes of torchrun on a machine without a GPU: does accelerate see one run of two?
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 accelerate==1.15.0 2>/dev/null
cat > "$folder/script.py" <<'P'
import sys

import accelerate

state = accelerate.PartialState(**({"cpu": True} if sys.argv[1:] else {}))
sys.stdout.write(f"{accelerate.__version__} {state.num_processes} {state.distributed_type.value}\n")
P
run() { CUDA_VISIBLE_DEVICES="" "$folder/venv/bin/torchrun" --standalone --nproc_per_node 2 "$folder/script.py" "$@" 2>/dev/null | sort; }
plain=$(run) asked=$(run cpu)
echo "accelerate, processes, kind, of each process:"
echo "expected: 2 processes"
echo "seen: $(echo "$plain" | tr '\n' ';') and with cpu=True: $(echo "$asked" | tr '\n' ';')"
[ "$(echo "$plain" | cut -d' ' -f2 | tr -d '\n')" = 11 ] && [ "$(echo "$asked" | cut -d' ' -f2 | tr -d '\n')" = 22 ] \
  || { echo "this has changed" >&2; exit 1; }
