"""LoRA through PEFT: low-rank factors beside the chosen layers. The baseline that most people know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from svdiff_delta._util.atomic import replace_folder
from svdiff_delta._util.json import JSON
from svdiff_delta.base_model.weight_selection import choose_kinds
from svdiff_delta.errors import MissingExtraError, TrainError
from svdiff_train.families import Family

from .method import Job, Place, whole, without_gradient

ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""The layers that diffusers' own training examples put LoRA on."""


class Lora:
    """LoRA on the denoiser; where experts share out the timesteps, on each of them."""

    def half(self) -> bool:
        """Return True: the factors stay float32."""
        return True

    def selectors(self, family: Family) -> tuple[str, ...]:
        """Return the attention projections of the denoiser, or of all experts."""
        chosen = tuple(
            f"{slot}.{name}.weight"
            for slot in family.slots
            for name, _ in getattr(family.pipeline, slot).named_modules()
            if name.endswith(ATTENTION)
        )
        return chosen or family.slots

    def check(self, job: Job) -> None:
        """Find the layers, and the library."""
        _lora_config()
        self._modules(job)

    def _modules(self, job: Job) -> dict[str, list[str]]:
        """Return the names of the layers that get factors, by denoiser."""
        selectors = job.config.selectors or self.selectors(job.family)
        names = choose_kinds(job.base, selectors, allow_missing=job.config.allow_missing)
        slots = {name.partition(".")[0] for name in names}
        if not slots <= {*job.family.slots}:
            raise TrainError(
                f"lora trains {' and '.join(job.family.slots)}, and the selectors name {', '.join(sorted(slots))}",
                fix=f"select from {' and '.join(job.family.slots)}",
            )
        found: dict[str, list[str]] = {slot: [] for slot in job.family.slots if slot in slots}
        for name, (kind, _) in names.items():
            slot, _, key = name.partition(".")
            if kind == "spectral":
                found[slot].append(key.removesuffix(".weight"))
        return {slot: modules for slot, modules in found.items() if modules}

    @contextmanager
    def tune(self, job: Job) -> Iterator[TunedFactors]:
        """Add an adapter of rank and alpha `lora_rank`, drawn from the run's seed."""
        rank, models = job.config.lora_rank, dict[str, Any]()
        try:
            with torch.random.fork_rng():
                torch.manual_seed(job.config.seed)
                for slot, modules in self._modules(job).items():
                    models[slot] = getattr(job.family.pipeline, slot)
                    models[slot].add_adapter(
                        _lora_config()(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=modules),
                        "default",
                    )
            yield TunedFactors(job, models)
        finally:
            for model in models.values():
                model.delete_adapters("default")


def _lora_config() -> Any:
    """Return PEFT's class of settings."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise MissingExtraError("peft", "train") from None
    return LoraConfig


class TunedFactors:
    """LoRA's factors on a live model."""

    computes_in_half = False  # PEFT would compute with its factors in their own float32

    def __init__(self, job: Job, models: Mapping[str, Any]) -> None:
        self.job, self.models, self.factors = job, dict(models), dict[str, nn.Parameter]()
        self.components = frozenset(models)
        for slot, model in models.items():
            before = f"{slot}." if len(job.family.slots) > 1 else ""
            self.factors |= {before + key: weight for key, weight in model.named_parameters() if "lora_" in key}
        for weight in self.factors.values():
            weight.data = weight.data.float()

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the factors."""
        return self.factors

    def places(self) -> Mapping[str, Place]:
        """Return the factors, each a parameter of its own."""
        return whole(self.factors)

    def untouched(self) -> list[str]:
        """Return the names of those that have no gradient."""
        return without_gradient(self.factors)

    def groups(self) -> Sequence[dict[str, Any]]:
        """Return all factors with one rate."""
        return [{"params": list(self.factors.values()), "lr": self.job.config.rate}]

    def mask_gradients(self) -> None:
        """Do nothing: all factors are trained."""

    def clipped_count(self) -> None:
        """Return None: there are no shifts."""
        return

    def result(self, facts: Mapping[str, JSON]) -> TrainedLora:
        """Return the factors as they are now."""
        from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        layers = {
            slot: convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
            for slot, model in self.models.items()
        }
        copies = {
            slot: {key: value.detach().cpu().clone() for key, value in own.items()} for slot, own in layers.items()
        }
        return TrainedLora(self.job.family, copies, facts)


class TrainedLora:
    """LoRA's factors, as `load_lora_weights` takes them.

    Args:
        family: of the pipeline.
        layers: the factors of each denoiser.
        facts: of the run.
    """

    def __init__(self, family: Family, layers: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, JSON]) -> None:
        self.family, self.layers, self.facts = family, layers, facts

    def titled(self, title: str | None) -> TrainedLora:  # noqa: ARG002
        """Return the same: there is no place for a title."""
        return self

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write a folder with `pytorch_lora_weights.safetensors`; those of a second expert are in a sub-folder.

        diffusers loads that with `load_lora_weights(path, subfolder="transformer_2", load_into_transformer_2=True)`.
        """
        first = self.family.slots[0]
        with replace_folder(path, overwrite=overwrite) as folder:
            for slot, layers in self.layers.items():
                self.family.pipeline.save_lora_weights(
                    str(folder if slot == first else folder / slot),
                    **{f"{first}_lora_layers": dict(layers)},
                    safe_serialization=True,
                )
