"""The losses of the paper: Eq. 1, and Eq. 3 with its prior-preservation term."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def denoising_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return ‖ε̂ − ε‖² of each sample (batch,), as a mean over its elements, in float32 (Eq. 1)."""
    return F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)


def prior_preserving_loss(
    prediction: Tensor, target: Tensor, subjects: int, prior_weight: float, weights: Tensor | None = None
) -> Tensor:
    """Return L = E‖…‖² over the subject's samples + λ E‖…‖² over the class's samples (Eq. 3).

    Args:
        prediction: (batch, …), the subject's samples first.
        target: the same shape.
        subjects: how many samples are the subject's; what follows are the class's, if any.
        prior_weight: λ.
        weights: (batch,), of each sample's squared error; ones if not given.
    """
    losses = denoising_loss(prediction, target)
    if weights is not None:
        losses = losses * weights
    loss = losses[:subjects].mean()
    if len(losses) > subjects:
        loss = loss + prior_weight * losses[subjects:].mean()
    return loss
