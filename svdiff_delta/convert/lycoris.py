"""LyCORIS' files: `lycoris_<path>` or kohya's names, with LoCon, LoHa, LoKr, full differences and norms."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from svdiff_delta.parameter import Parameter

from .dialect import Dialect
from .difference import peek
from .energy import LEAST
from .groups import LOHA, LOKR
from .kohya import KohyaTarget, begins, plain_layer, read
from .lowrank import Keys, adapter_writer
from .names import Names

SUFFIXES: Final = (*LOHA, *LOKR, "diff", "diff_b", "w_norm", "b_norm")
"""What only LyCORIS writes."""


def recognizes(path: Path) -> bool:
    """Tell whether a file has keys of LyCORIS."""
    header = peek(path)
    return begins(path, "lycoris_") or (
        begins(path, "lora_")
        and header is not None
        and any(key.partition(".")[2] in SUFFIXES for key in header.entries)
    )


class LycorisTarget(KohyaTarget):
    """Where weights stand in a LyCORIS file: `lycoris_` for the denoiser or a sole model, kohya's for text encoders."""

    name = "lycoris"
    common_alpha = False

    def prepare(self, names: Names) -> None:
        """Take the base's names."""
        self._names, self._sgm = names, None
        self._second = "text_encoder_2" in names.base.components

    def place(self, name: str, parameter: Parameter) -> Keys | str:
        """Return where a parameter's update stands, or why it has no place."""
        if parameter.kind == "spectral" and (reason := plain_layer(parameter)):
            return reason
        module = self.module(name)
        if module is None:
            return "LyCORIS has no name for it"
        if parameter.kind == "elementwise":
            return Keys(whole=f"{module}.w_norm")
        return Keys(f"{module}.lora_up.weight", f"{module}.lora_down.weight", f"{module}.alpha")

    def module(self, name: str) -> str | None:
        """Return the flat name of the module that a parameter is of; None if it has none."""
        component, _, key = name.partition(".")
        if component == self._names.main:
            return f"lycoris_{key.removesuffix('.weight').replace('.', '_')}"
        return super().module(name) if component in self._prefixes() else None

    def strings(self, ranks: dict[str, int], alpha: int) -> dict[str, str]:  # noqa: ARG002 - others need them
        """Return nothing: LyCORIS has no metadata of its own."""
        return {}


lycoris: Final = Dialect(
    "LyCORIS: LoCon with norms; LoHa, LoKr and full differences are read",
    recognizes,
    read,
    adapter_writer(LycorisTarget),
    min_energy=LEAST,
)
