"""Read and write LyCORIS' files: LoCon, LoHa, LoKr, full differences and norms, under its names or kohya's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from svdiff_delta.format.parameter import Parameter

from .adapter_writer import adapter_writer
from .dialect import Dialect
from .energy_limits import LEAST
from .lazy_tensors import OpenedAdapter
from .module_keys import CORES, LOHA, LOKR
from .spelled_reader import begins, read
from .text_names import text_module
from .write_target import Keys, Target, plain_layer

SUFFIXES: Final = (*LOHA, *CORES, *LOKR, "diff", "diff_b", "w_norm", "b_norm")
"""What only LyCORIS writes."""

TEXT_NORM: Final = (
    "is a norm of a text encoder, for which ComfyUI and Forge have no name, and AUTOMATIC1111 refuses the file"
)
WEB: Final = 'AUTOMATIC1111 does not know the keys of the UNet in this file: for it use `to="kohya"`'


def recognizes(source: OpenedAdapter) -> bool:
    """Tell whether a file has keys of LyCORIS."""
    header = source.header()
    return begins(source, "lycoris_") or (
        begins(source, "lora_")
        and header is not None
        and any(key.partition(".")[2] in SUFFIXES for key in header.entries)
    )


class LycorisTarget(Target):
    """The keys of a LyCORIS file: `lycoris_` for the denoiser or a sole model, kohya's for text encoders."""

    name = "lycoris"
    grouped = "whole"

    @property
    def remark(self) -> str:
        """A remark on programs that do not read the file."""
        return WEB if self.names.main == "unet" else ""

    def place(self, name: str, parameter: Parameter) -> Keys | str:
        """Return where a parameter's update stands, or why it has no place."""
        if parameter.kind == "spectral" and (reason := plain_layer(parameter)):
            return reason
        if reason := self.second(name.partition(".")[0]):
            return reason
        module = self.module(name)
        if module is None:
            return "LyCORIS has no name for it"
        if parameter.kind == "elementwise" and not module.startswith("lycoris_"):
            return TEXT_NORM
        if parameter.kind == "elementwise":
            return Keys(whole=f"{module}.w_norm")
        return Keys(f"{module}.lora_up.weight", f"{module}.lora_down.weight", f"{module}.alpha")

    def module(self, name: str) -> str | None:
        """Return the flat name of the module that a parameter is of; None if it has none."""
        component, _, key = name.partition(".")
        path = key.removesuffix(".weight")
        if component == self.denoiser:
            return f"lycoris_{path.replace('.', '_')}"
        return text_module(self.names, component, path)

    def strings(self, ranks: Mapping[str, int], alpha: int) -> dict[str, str]:  # noqa: ARG002 - others need them
        """Return by what AUTOMATIC1111 and others know which models the file is for."""
        return self.family.strings() if self.family else {}


lycoris: Final = Dialect(
    "LyCORIS: LoCon with norms; LoHa, LoKr and full differences are read",
    recognizes,
    read,
    adapter_writer(LycorisTarget),
    min_energy=LEAST,
    low_rank=True,
)
