#!/usr/bin/env bash
# A LoRA of PEFT on stacked experts, one of the two parameters with a rank of its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 2>/dev/null
"$folder/venv/bin/python" - 2>/dev/null <<'P'
import sys
import warnings

import peft
import transformers

config = transformers.Qwen3MoeConfig(
    hidden_size=16,
    intermediate_size=16,
    moe_intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    num_experts=3,
    num_experts_per_tok=1,
    vocab_size=10,
)
names = ["gate_up_proj", "down_proj"]
lora = peft.LoraConfig(
    r=2, target_modules=[], target_parameters=[f"experts.{name}" for name in names], rank_pattern={"gate_up_proj": 3}
)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    model = peft.get_peft_model(transformers.Qwen3MoeForCausalLM(config), lora)
ignored = [str(each.message) for each in said if "rank_pattern" in str(each.message)]
rows = {key: value.shape[0] for key, value in peft.get_peft_model_state_dict(model).items() if "lora_A" in key}
ranks = sorted(count // config.num_experts for count in rows.values())
print("peft", peft.__version__, "transformers", transformers.__version__)
print('expected: "were ignored" means that both parameters have rank 2')
print("seen:", *ignored)
print(f"      and the ranks of the two parameters are {ranks}")
sys.exit(0 if len(ignored) == 1 and "ignored: ['gate_up_proj']" in ignored[0] and ranks == [2, 3] else "this has changed")
P
