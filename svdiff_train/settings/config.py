"""One training run, described and checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from svdiff_delta._util.typed import build
from svdiff_delta.errors import InputError

from .concept import Concept, check_concepts, check_fields
from .prompt_templates import ABOVE, BESIDE, check_templates

Precision = Literal["no", "fp16", "bf16"]
MethodName = Literal["svdiff", "full", "lora", "kv"]
Crop = Literal["center", "random"]
Quantization = Literal["no", "nf4", "int8", "float8", "qint8", "qint4", "qfloat8"]
UnmixMaps = Literal["attention", "share"]
WeightingScheme = Literal["none", "sigma_sqrt", "logit_normal", "mode", "cosmap"]

RATES: Final[Mapping[str, float]] = {"svdiff": 1e-3, "full": 5e-6, "lora": 1e-4, "kv": 1e-5}
"""The learning rate of each method where none is given: the paper's, and what diffusers' own examples take for LoRA."""

RATE_1D: Final = 1e-6
"""The learning rate of δ on norm weights where none is given: the author's."""

BATCH_SIZES: Final[Mapping[str, int]] = {"svdiff": 1, "full": 1, "lora": 1, "kv": 2}
"""The batch of each method where none is given: Custom Diffusion's is 2."""

EMA_DECAY: Final = 0.9999
"""What the running mean keeps of itself where it is not said: diffusers' own."""

MIX_PROBABILITY: Final = 0.6
"""How often samples are mixed where it is not said: the paper's."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train and how. The defaults are the paper's and its author's.

    A run learns one concept, which `prompt`, `class_prompt` and `token` describe, or several, which are `concepts`.

    Attributes:
        prompt: describes the subject's pictures, with its rare token: "a photo of a V1 dog".
        class_prompt: describes its class, "a photo of a dog"; None trains without prior preservation.
        token: the rare token, which prompt and captions must have; None takes what the class prompt lacks.
        method: "svdiff"; or, as baselines, "full" (DreamBooth), "lora", "kv" (Custom Diffusion: keys and values of
            the cross-attention, and the tokens' embeddings).
        selectors: which weights are trained, as `select` takes them; None takes what the method trains by itself.
        allow_missing: whether weights that selectors name and that the base's files name otherwise than its model's
            class are left out.
        steps: optimizer steps.
        batch_size: pictures of the subject per step and process; as many of the class come with them. None takes the
            method's own.
        accumulate: batches whose gradients make one step.
        processes: how many share out a step; None takes those that were started. Fewer, whose number divides it, do the
            work of all: one process repeats a run of two.
        learning_rate: of δ on singular values, or of whatever else is trained; None takes what the base's card names
            (`advice`), else the method's own.
        learning_rate_1d: of δ on norm weights; None as above.
        schedule: how the learning rate goes, by diffusers' names: "constant", "linear", "cosine", …
        schedule_steps: the steps it is planned for; None takes `steps`. A run that may be prolonged says more.
        warmup: steps in which it rises from zero.
        weight_decay: of AdamW.
        max_grad_norm: the gradient is clipped to it.
        prior_weight: λ in Eq. 3.
        class_images: how many pictures of the class are generated.
        snr_gamma: γ of min-SNR weighting, of diffusion; None for none.
        weighting_scheme: how flow matching draws timesteps and weights the loss, by diffusers' names: "none",
            "sigma_sqrt", "logit_normal", "mode" or "cosmap"; None takes that of the family's own training.
        logit_mean: of "logit_normal"; None takes 0.
        logit_std: of "logit_normal"; None takes 1.
        mode_scale: of "mode"; None takes 1.29.
        num_frames: frames of each clip, for models of moving pictures; None takes the pipeline's own.
        seed: of all draws.
        resolution: side of the training pictures in pixels; None takes the model's own.
        crop: where pictures are cut to size.
        flip: whether half of the pictures are mirrored.
        buckets: whether pictures keep about their own shape, at the same number of pixels.
        mixed_precision: "no", or the dtype that the model runs in.
        gradient_checkpointing: compute activations again in the backward pass, to save memory.
        quantization: "no", or what the denoiser's frozen weights are stored in, as `memory/quantization.py` has it.
        cache_latents: encode all pictures before the first step, keep what comes out on disk, and let the autoencoder
            go; it comes back where pictures are painted.
        pre_compute_text_embeddings: the same for prompts and the text encoders.
        compile: run the denoiser through `torch.compile`.
        train_rank: train only the shifts of so many largest singular values of each weight; None for all.
        revive: let shifts that made a singular value negative come back, by the projected gradient.
        lora_rank: rank of LoRA's factors, which is its alpha too.
        use_ema: whether the result is the running mean of what is trained, and not what the last step left.
        ema_decay: what that mean keeps of itself at a step, at most: its beginning is shorter; None takes 0.9999.
        concepts: what is learned together, in place of `prompt`, `class_prompt`, `token` and a folder of pictures: of
            each sample, one of them at random. Either all have class prompts or none.
        mix_probability: of Cut-Mix, that a sample shows two concepts, cut and pasted (section 3.3); None takes 0.6
            where there are several concepts, 0 turns it off.
        mix_beside: wordings of mixed samples whose `{first}` is left of `{second}`; None takes the paper's two.
        mix_above: the same where it is above.
        unmix_weight: of the unmix regularization: on mixed samples, the squared cross-attention of each concept's
            token on the other one's half; None and 0 leave it out. Of 1, 10 and 100, 10 did best in the report's
            search, but not better than none. Families without cross-attention take no other than 0.
        unmix_maps: what of each map is squared: "attention", as it is, or "share": of all the attention that a token
            gets, the part on the other one's half. None takes the first.
        unmix_layers: which cross-attention it looks at, by globs on the modules' names or parts of them; None for all.
        unmix_resolutions: which maps it looks at, by the sides that they have in square pictures; None for all.
    """

    prompt: str = ""
    class_prompt: str | None = None
    token: str | None = None
    method: MethodName = "svdiff"
    selectors: tuple[str, ...] | None = None
    allow_missing: bool = False
    steps: int = 500
    batch_size: int | None = None
    accumulate: int = 1
    processes: int | None = None
    learning_rate: float | None = None
    learning_rate_1d: float | None = None
    schedule: str = "constant"
    schedule_steps: int | None = None
    warmup: int = 0
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    prior_weight: float = 1.0
    class_images: int = 200
    snr_gamma: float | None = None
    weighting_scheme: WeightingScheme | None = None
    logit_mean: float | None = None
    logit_std: float | None = None
    mode_scale: float | None = None
    num_frames: int | None = None
    seed: int = 0
    resolution: int | None = None
    crop: Crop = "center"
    flip: bool = False
    buckets: bool = False
    mixed_precision: Precision = "no"
    gradient_checkpointing: bool = False
    quantization: Quantization = "no"
    cache_latents: bool = False
    pre_compute_text_embeddings: bool = False
    compile: bool = False
    train_rank: int | None = None
    revive: bool = False
    lora_rank: int = 4
    use_ema: bool = False
    ema_decay: float | None = None
    concepts: tuple[Concept, ...] | None = None
    mix_probability: float | None = None
    mix_beside: tuple[str, ...] | None = None
    mix_above: tuple[str, ...] | None = None
    unmix_weight: float | None = None
    unmix_maps: UnmixMaps | None = None
    unmix_layers: tuple[str, ...] | None = None
    unmix_resolutions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._check_subjects()
        for name, kinds in CHOICES.items():
            if getattr(self, name) not in get_args(kinds):
                raise InputError(f"{name} {getattr(self, name)!r} is unknown", fix=f"use {', '.join(get_args(kinds))}")
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, is {value}")
        for name in NUMBERS:
            value = getattr(self, name)
            if value is not None and (not isfinite(value) or value < 0):
                raise InputError(f"{name} must be a finite number from 0, is {value}")
        self._check_timesteps()
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be from 0 to 2^63 - 1, is {self.seed}")
        if self.horizon < self.steps:
            raise InputError(f"schedule_steps must be at least steps ({self.steps}), is {self.schedule_steps}")
        if not 0 <= self.warmup <= self.horizon:
            raise InputError(f"warmup must be from 0 to steps, is {self.warmup}")
        self._check_method()
        self._check_mixing()
        self._check_memory()

    def _check_timesteps(self) -> None:
        schemes = get_args(WeightingScheme)
        if self.weighting_scheme is not None and self.weighting_scheme not in schemes:
            raise InputError(f"weighting_scheme {self.weighting_scheme!r} is unknown", fix=f"use {', '.join(schemes)}")
        for name, scheme in (("logit_mean", "logit_normal"), ("logit_std", "logit_normal"), ("mode_scale", "mode")):
            value = getattr(self, name)
            if value is None:
                continue
            if not isfinite(value):
                raise InputError(f"{name} must be a finite number, is {value}")
            if self.weighting_scheme != scheme:
                raise InputError(
                    f"{name} is of weighting_scheme {scheme!r}", fix=f"set weighting_scheme to it, or leave out {name}"
                )
        if self.logit_std is not None and self.logit_std <= 0:
            raise InputError(f"logit_std must be above 0, is {self.logit_std}")

    def _check_subjects(self) -> None:
        if self.concepts is not None:
            if not self.concepts:
                raise InputError("concepts is empty", fix="give at least one, or a prompt")
            if said := [name for name in ("prompt", "class_prompt", "token") if getattr(self, name)]:
                raise InputError(f"{said[0]} and concepts are both given", fix="let each concept say its own")
        subjects = self.subjects()
        if len(subjects) > 1:
            check_concepts(subjects)

    def _check_mixing(self) -> None:
        for name, templates in (("mix_beside", self.mix_beside), ("mix_above", self.mix_above)):
            if templates is not None:
                check_templates(name, templates)
        if self.mix_probability is not None and not 0 <= self.mix_probability <= 1:
            raise InputError(f"mix_probability must be from 0 to 1, is {self.mix_probability}")
        if any(side < 1 for side in self.unmix_resolutions or ()):
            raise InputError("unmix_resolutions must be at least 1")
        said = [name for name in MIXING if getattr(self, name)]
        if said and len(self.subjects()) < 2:
            raise InputError(f"{said[0]} is for several concepts, and there is one", fix="give two concepts or more")
        if said and self.mixing == 0:
            raise InputError(f"{said[0]} is for mixed samples, and mix_probability is 0", fix=f"leave out {said[0]}")
        if self.unmix_maps not in (None, *get_args(UnmixMaps)):
            raise InputError(f"unmix_maps {self.unmix_maps!r} is unknown", fix=f"use {', '.join(get_args(UnmixMaps))}")
        if self.unmix_weight is None and (self.unmix_maps or self.unmix_layers or self.unmix_resolutions):
            what = "unmix_maps" if self.unmix_maps else "unmix_layers or unmix_resolutions"
            raise InputError(f"{what} without unmix_weight does nothing", fix="give it too")
        if self.unmix and self.compile:
            raise InputError("unmix reads what goes on inside the denoiser", fix="leave out compile")
        if self.unmix:
            self._need_tokens("the unmix regularization looks for each concept's token")

    def _need_tokens(self, why: str) -> None:
        if None in self.tokens():
            raise InputError(f"{why}, and none is named", fix="say `token`, or a class prompt that lacks it")

    def _check_memory(self) -> None:
        """Refuse what the outputs of frozen models cannot be kept for, and a mean without its setting."""
        if self.ema_decay is not None and not self.use_ema:
            raise InputError("ema_decay without use_ema does nothing", fix="give use_ema too")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay must be from 0 to below 1, is {self.ema_decay}")
        drawn = [name for name in CACHED if getattr(self, name)]
        if drawn and self.mixing:
            raise InputError(
                f"{drawn[0]} is for samples that come again, and mixed ones are drawn anew",
                fix=f"leave out {drawn[0]}, or set mix_probability to 0",
            )
        if self.cache_latents and self.crop == "random":
            raise InputError(
                "cache_latents is for pictures that come again, and every random cut is another",
                fix="leave out cache_latents, or set crop to center",
            )

    def _check_method(self) -> None:
        if self.quantization != "no" and self.method != "svdiff":
            raise InputError(
                f"quantization is for spectral shifts beside frozen weights, the method is {self.method}",
                fix="leave out quantization",
            )
        for name in ("train_rank", "revive"):
            if getattr(self, name) and self.method != "svdiff":
                raise InputError(f"{name} is for spectral shifts, the method is {self.method}", fix=f"leave out {name}")
        if self.method == "kv":
            self._need_tokens("kv trains the embedding of a token")

    def subjects(self, images: Path | None = None) -> tuple[Concept, ...]:
        """Return the concepts, or the one that `prompt`, `class_prompt` and `token` describe.

        Args:
            images: the folder of that one's pictures.
        """
        if self.concepts is not None:
            return self.concepts
        return (Concept(images or Path(), self.prompt, self.class_prompt, self.token),)

    def tokens(self) -> tuple[str | None, ...]:
        """Return the token of every concept; None for one of which nothing says which it is."""
        return tuple(concept.find_token() for concept in self.subjects())

    @property
    def with_prior(self) -> bool:
        """Whether the second term of Eq. 3 takes part."""
        return self.subjects()[0].class_prompt is not None and self.prior_weight > 0

    @property
    def mixing(self) -> float:
        """The probability that a sample shows two concepts."""
        if len(self.subjects()) < 2:
            return 0.0
        return MIX_PROBABILITY if self.mix_probability is None else self.mix_probability

    @property
    def unmix(self) -> float:
        """The weight of the unmix regularization."""
        return self.unmix_weight or 0.0

    @property
    def templates(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The wordings of mixed samples: of those side by side, and of those one above the other."""
        return self.mix_beside or BESIDE, self.mix_above or ABOVE

    @property
    def batch(self) -> int:
        """Pictures of the subject per batch and process."""
        return BATCH_SIZES[self.method] if self.batch_size is None else self.batch_size

    @property
    def rate(self) -> float:
        """The learning rate."""
        return RATES[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def decay(self) -> float:
        """What the running mean keeps of itself at a step, at most."""
        return EMA_DECAY if self.ema_decay is None else self.ema_decay

    @property
    def horizon(self) -> int:
        """The steps that the schedule is planned for."""
        return self.schedule_steps or self.steps

    @property
    def rate_1d(self) -> float:
        """The learning rate of norm weights."""
        return RATE_1D if self.learning_rate_1d is None else self.learning_rate_1d

    def find_token(self) -> str | None:
        """Return the token of the only concept; None if nothing says which it is.

        Raises:
            InputError: the prompt does not have it, or has nothing that the class prompt lacks; or there are several
                concepts.
        """
        if len(self.subjects()) > 1:
            raise InputError("there are several concepts", fix="ask for `tokens`")
        return self.tokens()[0]

    def facts(self) -> dict[str, Any]:
        """Return what a result records of the run: every setting that is not the default, and what all runs have.

        Of concepts it says how they are called, never where their pictures are; `from_facts` takes them with `images`.
        """
        filled = replace(self, batch_size=self.batch, learning_rate=self.rate, learning_rate_1d=self.rate_1d)
        values = asdict(filled)
        kept = {name: values[name] for name in ALWAYS}
        kept |= {name: value for name, value in values.items() if name in DEFAULTS and value != DEFAULTS[name]}
        kept = {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}
        if self.with_prior:
            kept |= {name: values[name] for name in PRIOR}
        else:
            kept = {name: value for name, value in kept.items() if name not in PRIOR}
        if self.concepts is not None:
            kept = {name: value for name, value in kept.items() if name not in ("prompt", "class_prompt")}
            kept["concepts"] = [concept.facts(with_prior=self.with_prior) for concept in self.concepts]
        if len(self.subjects()) > 1:
            kept["mix_probability"] = self.mixing
        if not self.unmix:
            kept.pop("unmix_weight", None)
        if self.processes == 1:
            kept.pop("processes", None)
        if self.horizon == self.steps or (self.schedule in ENDLESS and self.warmup <= self.steps):
            kept.pop("schedule_steps", None)
        return kept

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Return the run that `facts` describes; what is no setting is passed over.

        Raises:
            InputError: a setting is missing or has a value that cannot be.
        """
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in facts.items() if name in known
        }
        if not values.get("prompt") and not values.get("concepts"):
            raise InputError("the run's description is incomplete (it has no prompt)", fix="say a prompt, or concepts")
        for concept in values.get("concepts") or ():
            check_fields(concept)
        return build(cls, values)


CHOICES: Final[Mapping[str, Any]] = {
    "method": MethodName,
    "crop": Crop,
    "mixed_precision": Precision,
    "quantization": Quantization,
}
"""Settings that are one of a few words."""

CACHED: Final = ("cache_latents", "pre_compute_text_embeddings")
"""Settings that let frozen models go once what they give is known."""

ALWAYS: Final = (
    "method", "prompt", "steps", "batch_size", "learning_rate", "learning_rate_1d",
    "weight_decay", "max_grad_norm", "seed", "mixed_precision",
)  # fmt: skip
"""Settings that are recorded whatever they are."""

COUNTS: Final = (
    "steps", "batch_size", "accumulate", "processes", "schedule_steps", "class_images", "train_rank", "lora_rank",
    "resolution", "num_frames",
)  # fmt: skip
"""Settings that are at least 1."""

ENDLESS: Final = ("constant", "constant_with_warmup")
"""Schedules that do not depend on how many steps there are."""

NUMBERS: Final = (
    "learning_rate", "learning_rate_1d", "weight_decay", "max_grad_norm", "prior_weight", "snr_gamma", "unmix_weight",
)  # fmt: skip
"""Settings that are finite numbers from 0."""

MIXING: Final = (
    "mix_probability", "mix_beside", "mix_above", "unmix_weight", "unmix_maps", "unmix_layers", "unmix_resolutions",
)  # fmt: skip
"""Settings that only runs with several concepts have."""

PRIOR: Final = ("class_prompt", "class_images", "prior_weight")
"""Settings that are recorded of runs with prior preservation only."""

DEFAULTS: Final = {
    field.name: field.default for field in fields(TrainConfig) if field.name not in ("concepts", *ALWAYS, *PRIOR)
}
"""Every other setting's default; it is recorded where it differs."""
