"""Number formats of quantized bases, told from what stands beside a weight: none of them can be shifted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from svdiff_delta.errors import BaseError
from svdiff_delta.format.dtypes import FLOATING

PACKED: Final[Mapping[str, str]] = {
    "{stem}._weight_qdata": "torchao",
    "{key}._data": "quanto",
    "{stem}.weight_packed": "compressed-tensors",
    "{key}_blocks": "MXFP4",
}
"""Schemes by the key that a weight `key`, or `stem.weight`, is packed under."""

FOUR_BITS: Final = ("absmax", "quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4")
"""What may stand below a weight that bitsandbytes has packed."""


def quantized(key: str, dtypes: Mapping[str, str], config: Mapping[str, Any]) -> str | None:
    """Return in words how a weight is quantized, None if it is not.

    Args:
        key: the weight's state-dict key, as the model's class has it.
        dtypes: dtype of every tensor in the file, by key.
        config: the model's configuration; its `quantization_config` says which method was used.
    """
    stem = key.removesuffix(".weight")
    said = config.get("quantization_config")
    method = str(said.get("quant_method", "")) if isinstance(said, Mapping) else ""
    if any(f"{key}.{part}" in dtypes for part in FOUR_BITS):
        state = f"{key}.quant_state.bitsandbytes__"
        kind = next((other.removeprefix(state) for other in dtypes if other.startswith(state)), "")
        return f"bitsandbytes 4-bit {kind}".rstrip()
    if f"{stem}.SCB" in dtypes or f"{key}.SCB" in dtypes:
        return "bitsandbytes 8-bit"
    if f"{stem}.qweight" in dtypes:
        return f"{method.upper() or 'GPTQ or AWQ'}, packed in {stem}.qweight as {dtypes[f'{stem}.qweight']}"
    for place, scheme in PACKED.items():
        if (packed := place.format(stem=stem, key=key)) in dtypes:
            return f"{scheme}, in {packed} as {dtypes[packed]}"
    if (dtype := dtypes.get(key, "")).startswith(("F4", "F6", "F8")) and dtype not in FLOATING:
        return f"float{dtype[1]}"
    if method and key not in dtypes:  # any other scheme that keeps several tensors for one weight
        beside = (other for other in dtypes if other.rpartition(".")[0] == stem)
        parts = (other for other in beside if not other.endswith(("bias", ".weight")))
        return next((f"{method}, in {other} as {dtypes[other]}" for other in parts), None)
    return method or None if dtypes.get(key, "F32") not in FLOATING else None


def refuse(name: str, key: str, dtypes: Mapping[str, str], config: Mapping[str, Any]) -> None:
    """Raise BaseError if a weight's number format has no singular values to shift; it names dtype and scheme."""
    dtype, scheme = dtypes.get(key), quantized(key, dtypes, config)
    if scheme is None and (dtype is None or dtype in FLOATING):
        return
    parts = ", ".join(part for part in (dtype and f"dtype {dtype}", scheme) if part)
    what = "is quantized" if scheme else "is complex" if (dtype or "").startswith("C") else "is not floating-point"
    raise BaseError(f"{name}: {what} ({parts}) and has no singular values to shift", fix="use the unquantized base")
