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
    """LoRA on the denoiser."""

    def half(self) -> bool:
        """Return True: the factors stay float32."""
        return True

    def selectors(self, family: Family) -> tuple[str, ...]:
        """Return the attention projections of the denoiser."""
        names = (name for name, _ in getattr(family.pipeline, family.slot).named_modules())
        chosen = tuple(f"{family.slot}.{name}.weight" for name in names if name.endswith(ATTENTION))
        return chosen or (family.slot,)

    def check(self, job: Job) -> None:
        """Find the layers, and the library."""
        _lora_config()
        self._modules(job)

    def _modules(self, job: Job) -> list[str]:
        """Return the names of the layers that get factors."""
        if len(job.family.slots) > 1:
            raise TrainError(
                f"{type(job.family.pipeline).__name__}: lora trains one denoiser, and there are "
                f"{' and '.join(job.family.slots)}",
                fix="use the method svdiff",
            )
        selectors = job.config.selectors or self.selectors(job.family)
        names = choose_kinds(job.base, selectors, allow_missing=job.config.allow_missing)
        slots = {name.partition(".")[0] for name in names}
        if slots != {job.family.slot}:
            raise TrainError(
                f"lora trains {job.family.slot}, and the selectors name {', '.join(sorted(slots))}",
                fix=f"select from {job.family.slot}",
            )
        return [
            name.partition(".")[2].removesuffix(".weight") for name, (kind, _) in names.items() if kind == "spectral"
        ]

    @contextmanager
    def tune(self, job: Job) -> Iterator[TunedFactors]:
        """Add an adapter of rank and alpha `lora_rank`, drawn from the run's seed."""
        modules, rank = self._modules(job), job.config.lora_rank
        model: Any = job.family.denoiser
        with torch.random.fork_rng():
            torch.manual_seed(job.config.seed)
            model.add_adapter(
                _lora_config()(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=modules), "default"
            )
        factors = {key: weight for key, weight in model.named_parameters() if "lora_" in key}
        for weight in factors.values():
            weight.data = weight.data.float()
        try:
            yield TunedFactors(job, model, factors)
        finally:
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

    def __init__(self, job: Job, model: Any, factors: Mapping[str, nn.Parameter]) -> None:
        self.job, self.model, self.factors = job, model, dict(factors)
        self.components = frozenset({job.family.slot})

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

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.model))
        copies = {key: value.detach().cpu().clone() for key, value in layers.items()}
        return TrainedLora(self.job.family, copies, facts)


class TrainedLora:
    """LoRA's factors, as `load_lora_weights` takes them."""

    def __init__(self, family: Family, layers: Mapping[str, Tensor], facts: Mapping[str, JSON]) -> None:
        self.family, self.layers, self.facts = family, layers, facts

    def titled(self, title: str | None) -> TrainedLora:  # noqa: ARG002
        """Return the same: there is no place for a title."""
        return self

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write a folder with `pytorch_lora_weights.safetensors`."""
        with replace_folder(path, overwrite=overwrite) as folder:
            self.family.pipeline.save_lora_weights(
                str(folder), **{f"{self.family.slot}_lora_layers": dict(self.layers)}, safe_serialization=True
            )
