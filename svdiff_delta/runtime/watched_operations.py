"""Tell when somebody looks at the operations that are done, and would not look into a function of autograd's."""

from __future__ import annotations

import torch


def plain() -> bool:
    """Tell whether operations must be torch's own: under `torch.func`'s transforms, and where they are traced."""
    return torch._C._get_tracing_state() is not None or torch._C._are_functorch_transforms_active()
