"""One training run, described and checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from typing import Any, Final, Literal, Self, get_args

from svdiff_delta.errors import InputError

Precision = Literal["no", "fp16", "bf16"]
MethodName = Literal["svdiff", "full", "lora", "kv"]
Crop = Literal["center", "random"]

RATES: Final[Mapping[str, float]] = {"svdiff": 1e-3, "full": 5e-6, "lora": 1e-4, "kv": 1e-5}
"""The learning rate of each method where none is given: the paper's, and what diffusers' own examples take for LoRA."""

BATCH_SIZES: Final[Mapping[str, int]] = {"svdiff": 1, "full": 1, "lora": 1, "kv": 2}
"""The batch of each method where none is given: Custom Diffusion's is 2."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train and how. The defaults are the paper's and its author's.

    Attributes:
        prompt: describes the subject's pictures, with its rare token: "a photo of a V1 dog".
        class_prompt: describes its class, "a photo of a dog"; None trains without prior preservation.
        token: the rare token, which prompt and captions must have; None takes what the class prompt lacks.
        method: "svdiff"; or, as baselines, "full" (DreamBooth), "lora", "kv" (Custom Diffusion: keys and values of
            the cross-attention, and the token's embedding).
        selectors: which weights are trained, as `select` takes them; None takes what the method trains by itself.
        steps: optimizer steps.
        batch_size: pictures of the subject per step and process; as many of the class come with them. None takes the
            method's own.
        accumulate: batches whose gradients make one step.
        learning_rate: of δ on singular values, or of whatever else is trained; None takes the method's own.
        learning_rate_1d: of δ on norm weights.
        schedule: how the learning rate goes, by diffusers' names: "constant", "linear", "cosine", …
        warmup: steps in which it rises from zero.
        weight_decay: of AdamW.
        max_grad_norm: the gradient is clipped to it.
        prior_weight: λ in Eq. 3.
        class_images: how many pictures of the class are generated.
        snr_gamma: γ of min-SNR weighting; None for none.
        seed: of all draws.
        resolution: side of the training pictures in pixels; None takes the model's own.
        crop: where pictures are cut to size.
        flip: whether half of the pictures are mirrored.
        buckets: whether pictures keep about their own shape, at the same number of pixels.
        mixed_precision: "no", or the dtype that the model runs in.
        gradient_checkpointing: compute activations again in the backward pass, to save memory.
        compile: run the denoiser through `torch.compile`.
        train_rank: train only the shifts of so many largest singular values of each weight; None for all.
        revive: let shifts that made a singular value negative come back, by the projected gradient.
        lora_rank: rank of LoRA's factors, which is its alpha too.
    """

    prompt: str
    class_prompt: str | None = None
    token: str | None = None
    method: MethodName = "svdiff"
    selectors: tuple[str, ...] | None = None
    steps: int = 500
    batch_size: int | None = None
    accumulate: int = 1
    learning_rate: float | None = None
    learning_rate_1d: float = 1e-6
    schedule: str = "constant"
    warmup: int = 0
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    prior_weight: float = 1.0
    class_images: int = 200
    snr_gamma: float | None = None
    seed: int = 0
    resolution: int | None = None
    crop: Crop = "center"
    flip: bool = False
    buckets: bool = False
    mixed_precision: Precision = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    train_rank: int | None = None
    revive: bool = False
    lora_rank: int = 4

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InputError("the prompt is empty", fix="describe the pictures, such as 'a photo of a V1 dog'")
        for name, kinds in (("method", MethodName), ("crop", Crop), ("mixed_precision", Precision)):
            if getattr(self, name) not in get_args(kinds):
                raise InputError(f"{name} {getattr(self, name)!r} is unknown", fix=f"use {', '.join(get_args(kinds))}")
        for name in ("steps", "batch_size", "accumulate", "class_images", "train_rank", "lora_rank", "resolution"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, is {value}")
        for name in ("learning_rate", "learning_rate_1d", "weight_decay", "max_grad_norm", "prior_weight", "snr_gamma"):
            value = getattr(self, name)
            if value is not None and (not isfinite(value) or value < 0):
                raise InputError(f"{name} must be a finite number from 0, is {value}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be from 0 to 2^63 - 1, is {self.seed}")
        if not 0 <= self.warmup <= self.steps:
            raise InputError(f"warmup must be from 0 to steps, is {self.warmup}")
        self._check_method()
        self.find_token()

    def _check_method(self) -> None:
        for name in ("train_rank", "revive"):
            if getattr(self, name) and self.method != "svdiff":
                raise InputError(f"{name} is for spectral shifts, the method is {self.method}", fix=f"leave out {name}")
        if self.method == "kv" and self.find_token() is None:
            raise InputError("kv trains the embedding of a token, and none is named", fix="say `token`")

    @property
    def with_prior(self) -> bool:
        """Whether the second term of Eq. 3 takes part."""
        return self.class_prompt is not None and self.prior_weight > 0

    @property
    def batch(self) -> int:
        """Pictures of the subject per batch and process."""
        return BATCH_SIZES[self.method] if self.batch_size is None else self.batch_size

    @property
    def rate(self) -> float:
        """The learning rate."""
        return RATES[self.method] if self.learning_rate is None else self.learning_rate

    def find_token(self) -> str | None:
        """Return the concept's token; None if nothing says which it is.

        Raises:
            InputError: the prompt does not have it, or has nothing that the class prompt lacks.
        """
        words = self.prompt.split()
        if self.token is not None:
            if self.token not in words:
                raise InputError(
                    f"the prompt {self.prompt!r} does not have the token {self.token!r}", fix="put it into the prompt"
                )
            return self.token
        if self.class_prompt is None:
            return None
        own = [word for word in words if word not in self.class_prompt.split()]
        if not own:
            raise InputError(
                f"the prompt {self.prompt!r} has no word that the class prompt lacks, so nothing names the subject",
                fix="give the subject a rare token, such as V1",
            )
        return own[0]

    def facts(self) -> dict[str, Any]:
        """Return what a result records of the run: every setting that is not the default, and what all runs have."""
        filled = replace(self, batch_size=self.batch, learning_rate=self.rate)
        values = asdict(filled)
        kept = {name: values[name] for name in ALWAYS}
        kept |= {name: value for name, value in values.items() if name in DEFAULTS and value != DEFAULTS[name]}
        if self.with_prior:
            kept |= {name: values[name] for name in PRIOR}
        else:
            kept = {name: value for name, value in kept.items() if name not in PRIOR}
        if self.selectors is not None:
            kept["selectors"] = list(self.selectors)
        return kept

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Return the run that `facts` describes; what is no setting is passed over.

        Raises:
            InputError: a setting is missing or has a value that cannot be.
        """
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if name == "selectors" else value for name, value in facts.items() if name in known
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"the run's description is incomplete ({error})") from None


ALWAYS: Final = (
    "method", "prompt", "steps", "batch_size", "learning_rate", "learning_rate_1d",
    "weight_decay", "max_grad_norm", "seed", "mixed_precision",
)  # fmt: skip
"""Settings that are recorded whatever they are."""

PRIOR: Final = ("class_prompt", "class_images", "prior_weight")
"""Settings that are recorded of runs with prior preservation only."""

DEFAULTS: Final = {
    field.name: field.default for field in fields(TrainConfig) if field.name not in ("prompt", *ALWAYS, *PRIOR)
}
"""Every other setting's default; it is recorded where it differs."""
