"""Normalize the keys of adapters, as all programs spell them, into component, module path and role.

Names alone are looked at: no tensor is read, and no base is needed. What a path means in a base is another question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

MAIN: Final = ""
"""The component of a key that names none: the denoiser, or the only model that there is."""


class Prefix(NamedTuple):
    """How keys begin in the files of some program.

    Attributes:
        text: the beginning.
        component: the component that it means, as diffusers' pipelines call them; `MAIN` if it does not say it.
        flat: whether the path that follows has underscores for dots.
        by: the programs that write it.
    """

    text: str
    component: str
    flat: bool
    by: str


class Suffix(NamedTuple):
    """How keys end in the files of some program.

    Attributes:
        pattern: the end, a regular expression; what stands before it is the module's path.
        role: what the tensor is of its module, in the words of kohya and LyCORIS.
        by: the programs that write it.
    """

    pattern: str
    role: str
    by: str


PREFIXES: Final = (
    # Dotted: wrappers that say nothing of the component.
    Prefix("base_model.model.", MAIN, False, "PEFT's state dict; ai-toolkit; fal"),
    Prefix("diffusion_model.", MAIN, False, "ComfyUI; ai-toolkit; diffusion-pipe"),
    Prefix("model.diffusion_model.", MAIN, False, "extractions from checkpoints of the original code"),
    Prefix("pipe.dit.", MAIN, False, "DiffSynth"),
    Prefix("conditional_transformer.", MAIN, False, "Ideogram's trainer"),
    # Dotted: components by their name in diffusers.
    Prefix("unet.", "unet", False, "diffusers; SimpleTuner"),
    Prefix("transformer.", "transformer", False, "diffusers; SimpleTuner; ai-toolkit"),
    Prefix("transformer_2.", "transformer_2", False, "diffusers' name of a second expert (Wan 2.2)"),
    Prefix("prior.", "prior", False, "diffusers, for Stable Cascade and Kandinsky"),
    *(Prefix(f"text_encoder{number}.", f"text_encoder{number}", False, "diffusers") for number in ("", "_2", "_3")),
    Prefix("text_encoders.clip_l.transformer.", "clip_l", False, "ComfyUI"),
    Prefix("text_encoders.clip_h.transformer.", "clip_l", False, "ComfyUI"),
    Prefix("text_encoders.clip_g.transformer.", "clip_g", False, "ComfyUI"),
    Prefix("text_encoders.t5xxl.transformer.", "t5xxl", False, "ComfyUI"),
    # Flat: underscores for dots.
    Prefix("lora_unet__", MAIN, True, "Wan Fun; Z-Image files that InvokeAI knows"),
    Prefix("lora_unet_", MAIN, True, "kohya's sd-scripts; musubi-tuner; OneTrainer"),
    Prefix("lora_transformer_", "transformer", True, "OneTrainer"),
    Prefix("lora_prior_unet_", "prior", True, "OneTrainer and ComfyUI, for Stable Cascade"),
    Prefix("lora_prior_te_", "text_encoder", True, "OneTrainer and ComfyUI, for Stable Cascade"),
    *(
        Prefix(f"lora_te{number}_", f"text_encoder{called}", True, "kohya's sd-scripts; OneTrainer")
        for number, called in (("", ""), ("1", ""), ("2", "_2"), ("3", "_3"))
    ),
    Prefix("lycoris_", MAIN, True, "LyCORIS; SimpleTuner"),
)
"""How keys begin; of several that fit the longest has it, and dotted ones may follow each other."""

_LOKR: Final = r"lokr_(?:w1|w2|t2)(?:_[ab])?|lokr_t1"
_LOHA: Final = r"hada_(?:w[12]_[ab]|t[12])"

SUFFIXES: Final = (
    Suffix(r"\.lora_down(?:\.default)?\.weight", "lora_down.weight", "kohya; musubi-tuner; OneTrainer; LyCORIS"),
    Suffix(r"\.lora_up(?:\.default)?\.weight", "lora_up.weight", "kohya; musubi-tuner; OneTrainer; LyCORIS"),
    Suffix(r"\.lora_mid\.weight", "lora_mid.weight", "LyCORIS, for Tucker's form"),
    Suffix(
        r"\.lora_A(?:\.default)?\.weight", "lora_down.weight", "PEFT; diffusers; ai-toolkit; with `default` DiffSynth"
    ),
    Suffix(
        r"\.lora_B(?:\.default)?\.weight", "lora_up.weight", "PEFT; diffusers; ai-toolkit; with `default` DiffSynth"
    ),
    Suffix(r"\.lora_A", "lora_down.weight", "Genmo's Mochi"),
    Suffix(r"\.lora_B", "lora_up.weight", "Genmo's Mochi"),
    Suffix(r"[._]lora(?:_linear_layer)?\.down\.weight", "lora_down.weight", "diffusers before PEFT; Anime-Z"),
    Suffix(r"[._]lora(?:_linear_layer)?\.up\.weight", "lora_up.weight", "diffusers before PEFT; Anime-Z"),
    Suffix(r"(?<=_lora[12])\.down\.weight", "lora_down.weight", "XLabs, for Flux"),
    Suffix(r"(?<=_lora[12])\.up\.weight", "lora_up.weight", "XLabs, for Flux"),
    Suffix(r"\.lora_B(?:\.default)?\.bias", "lora_up.bias", "PEFT with `lora_bias`; BFL's control LoRA"),
    Suffix(r"\.lora_up(?:\.default)?\.bias", "lora_up.bias", "PEFT's `lora_bias` in kohya's spelling"),
    Suffix(r"\.alpha", "alpha", "all but PEFT and ai-toolkit"),
    Suffix(r"\.dora_scale", "dora_scale", "LyCORIS; OneTrainer; diffusers"),
    Suffix(r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?", "dora_scale", "PEFT; diffusers"),
    Suffix(rf"\.(?:{_LOKR})", "", "LyCORIS; ai-toolkit; SimpleTuner"),
    Suffix(rf"\.(?:{_LOHA})", "", "LyCORIS"),
    Suffix(r"\.(?:diff|diff_b|w_norm|b_norm)", "", "LyCORIS; ComfyUI's extraction of differences"),
)
"""How keys end; where no role is given, the end itself is it."""

PIECES: Final = 4
"""Words between dots at the end of a key that decide its role: the longest end has three, and a dot before it."""

_PATTERNS: Final = [(suffix, re.compile(rf"(?:{suffix.pattern})\Z")) for suffix in SUFFIXES]
_BY_LENGTH: Final = sorted(PREFIXES, key=lambda prefix: -len(prefix.text))


@dataclass(frozen=True, slots=True)
class Spelled:
    """A key of an adapter, taken apart.

    Attributes:
        key: the key.
        module: the key without what says the role: the module under the file's own name.
        prefix: what stands before the path.
        component: the component that the prefix means; `MAIN` if it says none.
        path: the module's path as written, with dots, or with underscores for them.
        flat: whether it has underscores for dots.
        role: what the tensor is of its module, as `SUFFIXES` has it.
        by: the programs that write such a beginning; empty if there is none.
    """

    key: str
    module: str
    prefix: str
    component: str
    path: str
    flat: bool
    role: str
    by: str = ""

    @property
    def flattened(self) -> str:
        """The path with underscores for dots."""
        return self.path.replace(".", "_")


def spell(key: str) -> Spelled | None:
    """Take a key apart; None if no rule explains its end.

    Args:
        key: as in the file.
    """
    found = _role(key)
    if found is None:
        return None
    module, role = found
    prefix, component, path, flat, by = _begin(module)
    return Spelled(key, module, prefix, component, path, flat, role, by)


def split_module(module: str) -> Spelled:
    """Take the name of a module apart, as a file has it; its role is empty."""
    prefix, component, path, flat, by = _begin(module)
    return Spelled(module, module, prefix, component, path, flat, "", by)


def _role(key: str) -> tuple[str, str] | None:
    """Return a key's module and role; None if no rule explains its end."""
    length, role = _end("." + ".".join(key.rsplit(".", PIECES)[-PIECES:]) if key.count(".") >= PIECES else key)
    return (key[:-length], role) if 0 < length < len(key) else None


@lru_cache(maxsize=1 << 14)
def _end(tail: str) -> tuple[int, str]:
    """Return the length of a key's end, and its role; 0 if no rule explains it."""
    for suffix, pattern in _PATTERNS:
        if match := pattern.search(tail):
            return len(match[0]), suffix.role or match[0][1:]
    return 0, ""


def _begin(module: str) -> tuple[str, str, str, bool, str]:
    """Return what a module begins with, the component that this means, the path, whether it is flat, and by whom."""
    start, component, by = 0, MAIN, ""
    while True:
        found = next((prefix for prefix in _BY_LENGTH if module.startswith(prefix.text, start)), None)
        if found is None or (found.flat and (start or "." in module)) or len(module) == start + len(found.text):
            return module[:start], component, module[start:], False, by
        start += len(found.text)
        component, by = found.component or component, by or found.by
        if found.flat:
            return module[:start], component, module[start:], True, by
