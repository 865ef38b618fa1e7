"""Read and write kohya's files, `lora_unet_<path>.lora_down.weight` and the like (spec, section 7.10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from svdiff_delta.format.parameter import Parameter

from .adapter_writer import adapter_writer
from .dialect import Dialect
from .energy_limits import LEAST
from .key_map import Names
from .lazy_tensors import OpenedAdapter
from .original_target import original_layer
from .sgm_names import SgmNames
from .spelled_reader import begins, read
from .text_names import text_module
from .write_target import Keys, Target, plain_layer, unknown_names

TEXT: Final = ("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_")


def recognizes(source: OpenedAdapter) -> bool:
    """Tell whether a file has kohya's keys."""
    return begins(source, "lora_unet_", "lora_transformer_", *TEXT)


class KohyaTarget(Target):
    """The key of each weight in a kohya file."""

    name = "kohya"
    common_alpha = True

    def __init__(self, names: Names) -> None:
        super().__init__(names)
        unet = names.base.components.get("unet")
        is_sdxl = unet is not None and "add_embedding.linear_1.weight" in unet.location
        self._sgm = SgmNames(names.paths("unet")) if is_sdxl else None

    @property
    def remark(self) -> str:
        """A remark on a denoiser whose names in kohya's scripts are not known."""
        return unknown_names(self.names, "kohya's scripts")

    def place(self, name: str, parameter: Parameter) -> Keys | str:
        """Return where a parameter's update stands, or why it has no place."""
        if reason := plain_layer(parameter):
            return reason
        component, _, key = name.partition(".")
        path = key.removesuffix(".weight")
        if reason := self.second(component):
            return reason
        if component == self.denoiser and self.names.is_transformer:
            layer = original_layer(self.names, component, path)
            module, rows = f"lora_unet_{layer.name.replace('.', '_')}", layer.rows
        elif (found := self._module(component, path)) is not None:
            module, rows = found, None
        else:
            return "kohya has no name for it"
        return Keys(f"{module}.lora_up.weight", f"{module}.lora_down.weight", f"{module}.alpha", rows=rows)

    def _module(self, component: str, path: str) -> str | None:
        """Return the flat name of a module of a UNet or text encoder; None if it has none."""
        if component == "unet":
            original = self._sgm.name(path) if self._sgm else path
            return None if original is None else f"lora_unet_{original.replace('.', '_')}"
        return text_module(self.names, component, path)

    def strings(self, ranks: Mapping[str, int], alpha: int) -> dict[str, str]:
        """Return what kohya's tools look for in the metadata."""
        most = max(ranks.values(), default=0)
        version = self.family.strings() if self.family else {}
        network = {"ss_network_module": "networks.lora", "ss_network_dim": str(most), "ss_network_alpha": str(alpha)}
        return {**version, **network}


kohya: Final = Dialect(
    "LoRA as kohya's scripts, AUTOMATIC1111 and ComfyUI have it",
    recognizes,
    read,
    adapter_writer(KohyaTarget),
    min_energy=LEAST,
    low_rank=True,
)
