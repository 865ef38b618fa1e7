"""Read an adapter for spelling it anew: its modules, their alphas, and what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from svdiff_delta.adapters.folders import PEFT_CONFIG as CONFIG
from svdiff_delta.conversion import diffusers as diffusers_dialect
from svdiff_delta.conversion import peft as peft_dialect
from svdiff_delta.conversion.key_map import Names
from svdiff_delta.conversion.lazy_tensors import Modules, OpenedAdapter, TensorFile
from svdiff_delta.conversion.peft_config import PeftConfig, pattern_value, read_config
from svdiff_delta.conversion.spelled_reader import NO_CONFIG, check_network, read_configs, read_modules
from svdiff_delta.errors import InputError

from .fused import ALPHA
from .raw import Raw, alpha_of, take

RECORD: Final = "svdiff.respelled"
"""Key of `__metadata__` with what the way back needs: formats of alphas, ranks of parts that became blocks."""


@dataclass
class Source:
    """One file of an adapter.

    Attributes:
        file: the file.
        modules: its tensors by module and role.
        component: the component that its folder is called by; empty if it is none.
        config: of PEFT's folder; None for any other file.
        alphas: number format and shape of an alpha that stood in a tensor before, by module; None where there was none.
        joined: the ranks of parts, by module, that became blocks.
        kind: the class of the denoiser, if the file was spelled by this program, which knew it; else empty.
    """

    file: TensorFile
    modules: Modules
    component: str = ""
    config: PeftConfig | None = None
    alphas: Mapping[str, Any] = field(default_factory=dict)
    joined: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""

    def tensors(self, module: str, config: PeftConfig, path: str) -> dict[str, Raw]:
        """Return the tensors of a module by role; with an alpha, if its configuration has one.

        Args:
            module: its name in the file.
            config: of its component.
            path: its layer's path, by which the configuration goes.
        """
        found = {role: take(self.file, ref.key) for role, ref in self.modules[module].items()}
        if ALPHA in found or "lora_down.weight" not in found:
            return found
        alpha = pattern_value(config.alphas, path)
        alpha = alpha if alpha is not None else config.alpha if config.alpha is not None else config.default
        said = self.alphas.get(module, self.alphas.get(""))
        if alpha is None or (module in self.alphas and said is None):
            return found
        rank = found["lora_down.weight"].shape[0]
        value = alpha * rank**0.5 if config.root else alpha
        dtype, shape = _format(said)
        return {**found, ALPHA: alpha_of(value, dtype, shape)}


def _format(said: Any) -> tuple[str, tuple[int, ...]]:
    match said:
        case [str(dtype), [*shape]] if all(side == 1 and isinstance(side, int) for side in shape) and len(shape) < 5:
            return dtype, tuple(shape)
    return "F32", ()


def open_source(opened: OpenedAdapter) -> list[Source]:
    """Return the files of an adapter, each with its modules.

    Raises:
        InputError: no rule explains a key, or a field says that the factors mean something else.
        FormatError: a file is broken.
    """
    found = []
    for folder in peft_dialect.folders(opened.path):
        file, config = peft_dialect._open_weights(opened, folder), read_config(folder / CONFIG)
        found.append(_source(file, folder.name, config))
    return found or [_source(opened.file(diffusers_dialect._file(opened.path)))]


def _source(file: TensorFile, component: str = "", config: PeftConfig | None = None) -> Source:
    check_network(file)
    modules, others = read_modules(file)
    if others:
        more = f", and {len(others) - 1:,} more" if len(others) > 1 else ""
        raise InputError(f"{file.name}: no rule explains its key {sorted(others)[0]}{more}")
    if not modules:
        raise InputError(f"{file.name}: holds no adapter")
    record: Any = {}
    with suppress(ValueError, RecursionError):
        record = json.loads(file.header.metadata.get(RECORD, "{}"))
    record = record if isinstance(record, dict) else {}
    alphas, joined, kind = record.get("alphas"), record.get("joined"), record.get("kind")
    return Source(
        file,
        modules,
        component,
        config,
        alphas if isinstance(alphas, dict) else {},
        joined if isinstance(joined, dict) else {},
        kind if isinstance(kind, str) else "",
    )


def configs_of(source: Source, names: Names) -> Mapping[str, PeftConfig]:
    """Return the configuration of each component of a file; those that have none go by `NO_CONFIG`."""
    if source.config is not None:
        return dict.fromkeys(names.base.components, source.config)
    return read_configs(source.file, names)


__all__ = ["NO_CONFIG", "RECORD", "Source", "configs_of", "open_source"]
