"""Check that a quantized weight is what its scheme makes of a base's weight, one layer at a time."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from svdiff_delta.errors import AttachError

from .weight import QuantizedWeight

NAME: Final = "name the base that was quantized with `base=`"
"""What mends a base that is another one."""

CASTS: Final = (torch.float32, torch.float16, torch.bfloat16)
"""What a weight may have been cast to before it was quantized."""


def check_origin(name: str, stored: QuantizedWeight, original: Tensor) -> None:
    """Check that a live weight is as near to the base's as its scheme's rounding explains.

    Args:
        name: the parameter, for errors.
        stored: how the live weight is stored.
        original: the base's values, on the CPU.

    Raises:
        AttachError: it is not: the base is not what was quantized, or something was fused into it since.
    """
    if stored.shape != tuple(original.shape):
        shapes = f"{list(stored.shape)}, the base's has {list(original.shape)}"
        raise AttachError(f"{name}: the live weight ({stored.scheme}) has shape {shapes}", fix=NAME)
    seen = []
    for dtype in CASTS:
        seen.append(_beyond(stored, original, dtype))
        if not seen[-1][0]:
            return
    share, times = min(seen)
    raise AttachError(
        f"{name}: the live weight is not the base's, quantized ({stored.scheme}): {share:.2g} of its values are "
        f"further from that than rounding explains, up to {times:.2g} times as far",
        fix=f"{NAME}, or undo what was fused into it",
    )


@torch.no_grad()
def _beyond(stored: QuantizedWeight, original: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Return the share of values that rounding does not explain, and the distance of the worst in bounds."""
    found = stored.dequantize()
    given = stored.rounded(original.to(found.device).to(dtype).float())
    allowed = stored.bound(found) + 4 * torch.finfo(torch.float32).eps * found.abs()
    off = (found - given).abs()
    beyond = ~(off <= allowed)  # NaN is further than anything
    times = (off / allowed.clamp_min(torch.finfo(torch.float32).tiny)).nan_to_num(nan=torch.inf)
    return float(beyond.float().mean()), float(times.max())
