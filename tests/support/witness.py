"""Load LoRA with the code of other programs, in a process of its own: InvokeAI's readers, and DiffSynth's loader.

Only their code for LoRA runs. What its packages import beside, such as web servers and settings, is not installed, and
has empty modules in its place here; none of that is called.

Usage: witness.py FILES OUT, where FILES is JSON: {name: [program, reader, adapter's file, file of the base's weights]}.
OUT gets a safetensors file with ΔW by `name|layer`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

EMPTY = (
    "invokeai.app",
    "invokeai.backend.model_manager",
    "invokeai.backend.quantization",
    "invokeai.backend.util.devices",
    "invokeai.backend.util.logging",
    "invokeai.backend.patches.layers.flux_control_lora_layer",
)
"""Modules that the readers import and do not need."""

ALPHA = ("lora_model_from_flux_diffusers_state_dict", "lora_model_from_flux2_diffusers_state_dict")
"""Readers that must be told an alpha, None for what the file says."""


class _Nothing:
    """Does nothing, whatever is called of it."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: _Nothing()


class _Any(type):
    """A class that has whatever is asked of it."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: _Nothing()


class _Anything(ModuleType):
    """A module that has whatever is asked of it."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = _Any(name, (), {})
        setattr(self, name, found)
        return found


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds empty modules in the place of what is not needed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        is_empty = any(name == empty or name.startswith(f"{empty}.") for empty in EMPTY)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_empty else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it empty."""


def invokeai(reader: str, adapter: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ΔW by InvokeAI's name of the layer; `reader` is a module and a function of it."""
    module, _, function = reader.partition(":")
    found = importlib.import_module(f"invokeai.backend.patches.lora_conversions.{module}")
    arguments = {"alpha": None} if function in ALPHA else {}
    patch = getattr(found, function)(adapter, **arguments)
    return {name: layer.get_weight(torch.empty(0)).float() * layer.scale() for name, layer in patch.layers.items()}


def diffsynth(reader: str, adapter: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ΔW by name of the layer, of a model whose layers are called as in the file of weights."""
    root = importlib.util.find_spec("diffsynth")
    assert root is not None
    assert root.submodule_search_locations is not None
    path = Path(root.submodule_search_locations[0], "utils/lora/general.py")
    spec = importlib.util.spec_from_file_location("diffsynth_general", path)
    assert spec is not None
    assert spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    model = _tree({name: value for name, value in weights.items() if value.dim() == 2})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loader.GeneralLoRALoader(torch_dtype=torch.float64).fuse_lora_to_base_model(model, adapter)
    changes = {name: value - before[name] for name, value in model.state_dict().items()}
    return {name.removesuffix(".weight"): change.float() for name, change in changes.items() if change.any()}


def _tree(weights: dict[str, Tensor]) -> nn.Module:
    """Return linear layers under these names, in float64."""
    root = nn.Module()
    for name, value in weights.items():
        *parents, last = name.removesuffix(".weight").split(".")
        place = root
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = place.get_submodule(parent)
        layer = nn.Linear(value.shape[1], value.shape[0], bias=False, dtype=torch.float64)
        layer.weight.data.copy_(value)
        place.add_module(last, layer)
    return root


def main(files: Path, out: Path) -> None:
    """Read all files, each with its program."""
    sys.meta_path.insert(0, _Finder())
    found: dict[str, Tensor] = {}
    for name, (program, reader, adapter, weights) in json.loads(files.read_text()).items():
        run = {"invokeai": invokeai, "diffsynth": diffsynth}[program]
        for layer, change in run(reader, load_file(adapter), load_file(weights)).items():
            found[f"{name}|{layer}"] = change.contiguous()
    save_file(found, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
