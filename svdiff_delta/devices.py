"""Where torch computes."""

from __future__ import annotations

import torch

from .errors import InputError


def find_device(name: str | torch.device) -> torch.device:
    """Return a device by its name, such as "cpu", "cuda:1" or "mps".

    Raises:
        InputError: there is no such device here.
    """
    try:
        device = torch.device(name)
        if device.type != "cpu":
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{name}: there is no such device here ({reason})", fix="use --device cpu") from None
    return device
