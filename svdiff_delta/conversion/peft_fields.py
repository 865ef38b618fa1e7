"""List the fields of PEFT's `LoraConfig`, and which of them change what the factors mean (PEFT 0.21.2).

A field is understood, or has no meaning for ΔW, or must have the value that leaves it out. What is not in the lists
must be empty: a later PEFT may have put anything there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from svdiff_delta.errors import InputError

MERGE: Final = 'merge it with PEFT, then `from_="full"`'
MERGE_THERE: Final = 'merge it with PEFT where it was trained, then `from_="full"`'

UNDERSTOOD: Final = (
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights"),
    *("bias", "lora_bias", "modules_to_save"),
)
"""What a reader goes by, or finds in the keys: biases and whole modules stand there under their own names."""

MEANINGLESS: Final = (
    # Bookkeeping, and how it was trained or is loaded.
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_dropout", "runtime_config"),
    # Which layers: the keys say it.
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying"),
    # The layer's class says whether its weight is stored transposed, and PEFT sets this field by it.
    "fan_in_fan_out",
    # Of initializations and variants that are refused by their own field, else without effect.
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config", "qalora_group_size", "megatron_core"),
    # The backward pass alone.
    "velora_config",
    # Of versions before 0.3: whether the layer was merged when it was not trained.
    "merge_weights",
)
"""Fields that say nothing of ΔW."""

PARAMETERS: Final = "target_parameters"

REFUSED: Final[Mapping[str, str]] = {
    "alora_invocation_tokens": "the adapter acts only from certain tokens on, which no change of a weight does",
    "layer_replication": "layers of the base stand several times in the model",
    "megatron_config": "layers are Megatron's, shared out to several devices",
    "use_qalora": "the inputs are pooled before the factors",
    "monteclora_config": "the factors are sampled",
    PARAMETERS: "the factors are for parameters that their keys do not name",
    "trainable_token_indices": "rows of the embedding were trained on their own",
    "use_bdlora": "the factors are blocks of a diagonal",
    "arrow_config": "several adapters are mixed by what the inputs are",
    "kasa_config": "the base's smallest singular values are cut off, and there is a diagonal between the factors",
}
"""Fields that change what the factors mean, and how."""

PLAIN: Final = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Initializations that only choose the first factors; so do true and false."""

CHANGING: Final[Mapping[str, str]] = {
    "pissa": "takes the largest singular values out of the base, and puts them into the factors",
    "olora": "takes the first columns of a QR decomposition out of the base, and puts them into the factors",
    "corda": "takes directions out of the base, and puts them into the factors",
    "lora_ga": "takes the first factors out of the base",
    "loftq": "quantizes the base",
}
"""Initializations that change the base's weights, which the file does not hold."""


def check_fields(fields: Mapping[str, Any], where: str, *, parameters: bool = False) -> None:
    """Raise InputError if a configuration says what the factors alone do not tell; the message names the field.

    Args:
        fields: as in the file.
        where: what errors call it.
        parameters: whether the reader finds the parameters that `target_parameters` names.
    """
    if (method := fields.get("peft_type") or "LORA") != "LORA":
        raise InputError(f"{where}: is of PEFT's method {method}, not LORA", fix=MERGE)
    _check_start(fields.get("init_lora_weights"), where)
    for field, value in sorted(fields.items()):
        if not value or field in UNDERSTOOD or field in MEANINGLESS or (parameters and field == PARAMETERS):
            continue
        if field == "alora_invocation_tokens":
            raise InputError(f"{where}: {field}: {REFUSED[field]}", fix="use it with PEFT")
        if field in REFUSED:
            raise InputError(f"{where}: {field}: {REFUSED[field]}", fix=MERGE)
        raise InputError(f"{where}: this program does not know what {field} means (it is {_shown(value)})", fix=MERGE)


def _check_start(start: Any, where: str) -> None:
    """Raise InputError if the first factors were not all that an initialization chose."""
    if start is None or isinstance(start, bool) or (isinstance(start, str) and start.lower() in PLAIN):
        return
    for name, what in CHANGING.items():
        if str(start).lower().startswith(name):
            # PEFT takes the first two out of the base again when it loads them; of the others only the run knows.
            named = f"{MERGE}, or name the base that it was made on as `made_on`"
            fix = named if name in ("pissa", "olora") else MERGE_THERE
            raise InputError(f"{where}: init_lora_weights is {start}, which {what}", fix=fix)
    raise InputError(f"{where}: this program does not know what init_lora_weights {_shown(start)} does", fix=MERGE)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
