"""Map the names that other formats use to the base's own parameter names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Final

from svdiff_delta.base_model.component import aliases
from svdiff_delta.base_model.opened import Base

from .sgm_names import SgmNames

MAIN: Final = ("unet", "transformer")
"""Components that adapters are made for first of all."""

EXPERT: Final = "transformer_2"
"""The second denoiser of a pipeline, for which all programs take a file of its own, under the names of the first."""

PREFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "lora_unet": MAIN,
    "lora_transformer": ("transformer",),
    "lora_te": ("text_encoder",),
    "lora_te1": ("text_encoder",),
    "lora_te2": ("text_encoder_2",),
    "lora_te3": ("text_encoder_3",),
    "lycoris": MAIN,
}
"""The components that kohya's and LyCORIS' prefixes mean; of several the one that the base has."""

CLIP: Final = ("embeddings.", "encoder.", "final_layer_norm.")
"""How the keys of CLIP's text model begin below `text_model.`."""


class Names:
    """Finds parameters of one base.

    Args:
        base: the base.
        main: the component that an adapter is for that does not say so; found from the base if not given.
    """

    def __init__(self, base: Base, main: str | None = None) -> None:
        self.base = base
        self._main = main

    @property
    def main(self) -> str:
        """The component that an adapter is for that does not say so."""
        if self._main is not None:
            return self._main
        found = [name for name in MAIN if name in self.base.components]
        return found[0] if found else next(iter(self.base.components))

    @property
    def is_transformer(self) -> bool:
        """Tell whether the main component is a transformer of diffusers, whatever it is called."""
        return bool(re.search(r"Transformer\dDModel$", self.base.components[self.main].class_name))

    def component(self, prefix: str) -> str | None:
        """Return the component that a prefix of kohya or LyCORIS means in this base; None if it has none such."""
        if prefix == "lycoris":
            return self.main
        return next((name for name in PREFIXES[prefix] if name in self.base.components), None)

    def paths(self, component: str) -> Iterator[str]:
        """Yield the path of each module of a component that has a weight or bias."""
        seen = set()
        for key in self.base.components[component].location:
            path, _, leaf = key.rpartition(".")
            if leaf in ("weight", "bias") and path not in seen:
                seen.add(path)
                yield path

    def dotted(self, component: str, path: str, leaf: str = "weight") -> str | None:
        """Return the parameter of a module by its path; None if the base has no such one."""
        found = self.base.components.get(component)
        if found is None:
            return None
        key = found.in_class(f"{path}.{leaf}") or found.named(f"{path}.{leaf}")
        return f"{component}.{key}" if key else None

    def tied(self, component: str, path: str) -> str:
        """Return in words which weight of the base a module's is tied to; empty if it is to none."""
        stored = self.base.components[component].stored(f"{path}.weight")
        return f"the base ties it to {component}.{stored}, which a change of it alone is not" if stored else ""

    def underscored(self, component: str, flat: str) -> str | None:
        """Return the path of the module whose name with underscores for dots, in diffusers' or SGM's way, is `flat`.

        None if the base has no such module, or several.
        """
        return self._flat[component].get(flat)

    @cached_property
    def _flat(self) -> dict[str, dict[str, str | None]]:
        return {component: self._flattened(component) for component in self.base.components}

    def _flattened(self, component: str) -> dict[str, str | None]:
        found: dict[str, str | None] = {}

        def add(name: str, path: str) -> None:
            flat = name.replace(".", "_")
            found[flat] = path if found.get(flat, path) == path else None

        paths = [*self.paths(component)]
        original = SgmNames(paths)
        for path in paths:
            for name in aliases(path):
                add(name, path)
            if component == "unet" and (other := original.name(path)):
                add(other, path)
        return found

    def long(self, component: str, key: str) -> str:
        """Return a key as other programs spell it: CLIP's with the `text_model.` level that transformers 5 dropped."""
        clip = self.base.components[component].class_name.startswith("CLIPTextModel")
        return f"text_model.{key}" if clip and f"{key}.".startswith(CLIP) else key

    def short(self, path: str) -> str:
        """Return a path without CLIP's `text_model.` level: PEFT matches it whether the live model has that or not."""
        return path.removeprefix("text_model.")
