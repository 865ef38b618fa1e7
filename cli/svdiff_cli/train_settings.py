"""Name every setting of a run as an option of `svdiff train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class Setting:
    """One field of `TrainConfig` as an option; what is not given is left to the run file, then to the config.

    Attributes:
        name: of the field.
        kind: the option's type; bool makes a flag.
        help: what it says in the help text.
        default: what the help text names as default.
        many: whether it may be given several times.
        flag: what the option is called, if not as the field.
        metavar: names of its values, if it takes several at once.
    """

    name: str
    kind: Any
    help: str
    default: str = ""
    many: bool = False
    flag: str = ""
    metavar: tuple[str, ...] = ()

    def __call__(self, command: Callable[..., Any]) -> Callable[..., Any]:
        """Add the option to a command."""
        flag = self.flag or f"--{self.name.replace('_', '-')}"
        more: dict[str, Any] = {"is_flag": True} if self.kind is bool else {"type": self.kind, "multiple": self.many}
        if self.metavar:
            more |= {"nargs": len(self.metavar), "metavar": " ".join(self.metavar)}
        text = f"{self.help} [default: {self.default}]" if self.default else self.help
        return click.option(flag, self.name, default=None, help=text, **more)(command)


SETTINGS = (
    Setting("prompt", str, "Describes the pictures, with a rare token: 'a photo of a V1 dog'."),
    Setting("class_prompt", str, "Describes the class, 'a photo of a dog'; turns prior preservation on."),
    Setting("token", str, "The rare token that prompt and captions must have.", "what the class prompt lacks"),
    Setting(
        "method",
        click.Choice(["svdiff", "full", "lora", "kv"]),
        "Shifts, or a baseline: all weights, LoRA, Custom Diffusion's K and V.",
        "svdiff",
    ),
    Setting(
        "selectors",
        str,
        "What is trained; may be given several times.",
        "all layers of the denoiser",
        many=True,
        flag="--select",
    ),
    Setting("allow_missing", bool, "Leave out weights that BASE's files name otherwise than its model's class."),
    Setting("steps", click.IntRange(1), "Optimizer steps.", "500"),
    Setting("batch_size", click.IntRange(1), "Pictures of the subject per batch and process.", "1; of kv 2"),
    Setting("accumulate", click.IntRange(1), "Batches that make one step.", "1"),
    Setting(
        "processes",
        click.IntRange(1),
        "How many share out a step. Fewer, whose number divides it, do the work of all.",
        "as many as torchrun started",
    ),
    Setting(
        "learning_rate",
        float,
        "Of shifts of singular values, or of what the method trains.",
        "0.001; of full 5e-06, of lora 0.0001, of kv 1e-05; on tiny 0.02, as its card names",
    ),
    Setting("learning_rate_1d", float, "Of shifts of norm weights.", "1e-06; on tiny 0.004"),
    Setting("schedule", str, "How the rate goes: constant, linear, cosine, …", "constant"),
    Setting(
        "schedule_steps",
        click.IntRange(1),
        "Steps that it is planned for: give more than --steps if the run may become longer.",
        "--steps",
    ),
    Setting("warmup", click.IntRange(0), "Steps in which the rate rises.", "0"),
    Setting("weight_decay", float, "Of AdamW.", "0.01"),
    Setting("max_grad_norm", float, "Gradients are clipped to it.", "1.0"),
    Setting("prior_weight", float, "λ of Eq. 3.", "1.0"),
    Setting("class_images", click.IntRange(1), "Pictures of the class to paint.", "200"),
    Setting("snr_gamma", float, "γ of min-SNR weighting, of diffusion; 5 is usual.", "none"),
    Setting(
        "weighting_scheme",
        click.Choice(["none", "sigma_sqrt", "logit_normal", "mode", "cosmap"]),
        "How flow matching draws timesteps and weights the loss, by diffusers' names.",
        "the family's own: none, of SD 3 logit_normal",
    ),
    Setting("logit_mean", float, "Of logit_normal.", "0"),
    Setting("logit_std", float, "Of logit_normal.", "1"),
    Setting("mode_scale", float, "Of mode.", "1.29"),
    Setting("num_frames", click.IntRange(1), "Frames of each clip, for video models.", "the pipeline's"),
    Setting("seed", click.IntRange(0, 2**53 - 1), "Of all draws.", "0"),
    Setting("resolution", click.IntRange(8), "Side of the pictures in pixels.", "the model's"),
    Setting("crop", click.Choice(["center", "random"]), "Where pictures are cut to size.", "center"),
    Setting("flip", bool, "Mirror half of the pictures."),
    Setting("buckets", bool, "Let pictures keep about their own shape."),
    Setting("mixed_precision", click.Choice(["no", "fp16", "bf16"]), "What the model computes in.", "no"),
    Setting("gradient_checkpointing", bool, "Save memory, and compute twice."),
    Setting(
        "quantization",
        click.Choice(["no", "nf4", "int8", "float8", "qint8", "qint4", "qfloat8"]),
        "What the denoiser's frozen weights are stored in: by bitsandbytes, torchao (int8, float8) or quanto.",
        "no",
    ),
    Setting("cache_latents", bool, "Encode all pictures first, keep that on disk, and let the autoencoder go."),
    Setting("pre_compute_text_embeddings", bool, "The same for prompts and the text encoders."),
    Setting("compile", bool, "Run the denoiser through torch.compile."),
    Setting("train_rank", click.IntRange(1), "Shift only so many largest singular values of each weight.", "all"),
    Setting("revive", bool, "Let shifts below −σ come back (projected gradient)."),
    Setting("lora_rank", click.IntRange(1), "Rank of LoRA.", "4"),
    Setting("use_ema", bool, "Give the running mean of the steps, not what the last one left."),
    Setting("ema_decay", float, "What that mean keeps of itself at a step, at most.", "0.9999"),
    Setting(
        "concepts",
        str,
        "One of several concepts, in place of IMAGES and --prompt; '' for no class prompt. Once for each concept.",
        many=True,
        flag="--concept",
        metavar=("IMAGES", "PROMPT", "CLASS_PROMPT"),
    ),
    Setting(
        "mix_probability",
        click.FloatRange(0, 1),
        "Of Cut-Mix: that a sample shows two concepts, cut and pasted.",
        "0.6 with several concepts",
    ),
    Setting(
        "mix_beside",
        str,
        "Describes mixed samples with {first} left of {second}; may be given several times.",
        "the paper's two wordings",
        many=True,
    ),
    Setting(
        "mix_above",
        str,
        "Describes mixed samples with {first} above {second}; may be given several times.",
        "as for beside",
        many=True,
    ),
    Setting(
        "unmix_weight",
        float,
        "Of the attention of each concept's token on the other's half. 0 goes on without, as models without "
        "cross-attention (SD 3, Flux) need; 10 did best of 1, 10 and 100 on the embedded base, and worse than 0.",
        "0",
    ),
    Setting(
        "unmix_maps",
        click.Choice(["attention", "share"]),
        "What is kept small: that attention itself, or its share of all that the token gets.",
        "attention",
    ),
    Setting(
        "unmix_layers",
        str,
        "Which cross-attention that is, by glob or part of the name; may be given several times.",
        "all",
        many=True,
        flag="--unmix-layer",
    ),
    Setting(
        "unmix_resolutions",
        click.IntRange(1),
        "Which maps those are, by the side they have in square pictures; may be given several times.",
        "all",
        many=True,
        flag="--unmix-resolution",
    ),
)
"""Every setting of a run."""


def settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for every setting."""
    for setting in reversed(SETTINGS):
        command = setting(command)
    return command
