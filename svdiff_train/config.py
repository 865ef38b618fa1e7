"""One training run, described and checked before anything starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal

from svdiff_delta.errors import InputError

Precision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train and how. The defaults are the paper's and its author's.

    Attributes:
        prompt: describes the subject's pictures, with its rare token: "a photo of a V1 dog".
        class_prompt: describes its class, "a photo of a dog"; None trains without prior preservation.
        selectors: which weights are shifted, as `select` takes them.
        steps: optimizer steps.
        batch_size: pictures of the subject per step and process; as many of the class come with them.
        learning_rate: of δ on singular values.
        learning_rate_1d: of δ on norm weights.
        weight_decay: of AdamW.
        max_grad_norm: the gradient is clipped to it.
        prior_weight: λ in Eq. 3.
        class_images: how many pictures of the class are generated.
        seed: of all draws.
        resolution: side of the square training pictures in pixels; None takes the model's own.
        mixed_precision: "no", or the dtype that accelerate runs the model in.
    """

    prompt: str
    class_prompt: str | None = None
    selectors: tuple[str, ...] = ("unet",)
    steps: int = 500
    batch_size: int = 1
    learning_rate: float = 1e-3
    learning_rate_1d: float = 1e-6
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    prior_weight: float = 1.0
    class_images: int = 200
    seed: int = 0
    resolution: int | None = None
    mixed_precision: Precision = "no"

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InputError("the prompt is empty", fix="describe the pictures, such as 'a photo of a V1 dog'")
        for name in ("steps", "batch_size", "class_images"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, is {getattr(self, name)}")
        for name in ("learning_rate", "learning_rate_1d", "weight_decay", "max_grad_norm", "prior_weight"):
            value = getattr(self, name)
            if not isfinite(value) or value < 0:
                raise InputError(f"{name} must be a finite number from 0, is {value}")

    @property
    def with_prior(self) -> bool:
        """Whether the second term of Eq. 3 takes part."""
        return self.class_prompt is not None and self.prior_weight > 0

    def facts(self) -> dict[str, Any]:
        """Return what a delta file records of the run, without fields that are None."""
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        if not self.with_prior:
            for key in ("class_prompt", "class_images", "prior_weight"):
                fields.pop(key, None)
        return {"method": "svdiff", **fields, "selectors": list(self.selectors)}
