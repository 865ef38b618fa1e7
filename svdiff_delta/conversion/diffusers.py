"""Read and write diffusers' `pytorch_lora_weights.safetensors`, in all its spellings (spec, section 7.10)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from svdiff_delta._util.json import JSON, as_object, canonical_json, strict_json
from svdiff_delta.errors import MetadataError
from svdiff_delta.format.parameter import Parameter

from .adapter_reader import BIAS, NO_HALF, NO_MAGNITUDE, NO_MODULE, Adapter, width
from .adapter_writer import adapter_writer
from .dialect import Changes, Dialect, Job
from .energy_limits import LEAST
from .key_map import Names
from .kohya import plain_layer
from .lazy_tensors import Modules, OpenedAdapter, Ref, TensorFile, Tensors
from .module_keys import decomposed
from .peft_config import PeftConfig, low_rank_config, parse_config
from .weight_updates import Decomposed, LowRank, Update
from .write_target import Keys, Target

WEIGHTS: Final = "pytorch_lora_weights.safetensors"
CONFIG: Final = "lora_adapter_metadata"
"""Key of `__metadata__` with the configuration of each component, as PEFT has it."""

_KEY: Final = re.compile(
    r"(?P<path>.+?)"
    r"(?:[._]lora(?:_linear_layer)?\.(?P<old>down|up)\.weight"
    r"|\.lora_(?P<new>A|B)(?:\.default)?\.weight"
    r"|\.lora_(?P<bias>B)(?:\.default)?\.bias"
    r"|\.(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
    r"|\.(?P<dora>dora_scale)"
    r"|\.(?P<alpha>alpha))"
)
WEB: Final = (
    'web UIs (AUTOMATIC1111, Forge, ComfyUI) do not read this file, or not all of it: for them use `to="kohya"`'
)
TEXT: Final[Mapping[str, str]] = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""Attention layers of text encoders, as older versions of diffusers called them."""


def recognizes(source: OpenedAdapter) -> bool:
    """Tell whether this is diffusers' file, or the folder with it."""
    header = source.header(_file(source.path))
    return header is not None and any(
        (match := _KEY.fullmatch(key)) and not match["alpha"] and not key.startswith("lora_") for key in header.entries
    )


def _file(path: Path) -> Path:
    return path / WEIGHTS if (path / WEIGHTS).is_file() else path


def read(source: OpenedAdapter, job: Job) -> Changes:
    """Return the changes of diffusers' file.

    Raises:
        InputError, FormatError: it cannot be read, or its tensors do not fit each other.
        BaseMismatchError: nothing in it fits the base.
    """
    file = source.file(_file(source.path))
    adapter, names = Adapter(source.name, [file]), Names(job.base)
    read_tensors(file, _configs(file, names), names, adapter)
    return adapter.changes(job)


def read_tensors(
    tensors: Tensors, configs: Mapping[str, PeftConfig], names: Names, adapter: Adapter, *, scaled: bool = False
) -> None:
    """Take the updates of tensors under diffusers' keys.

    Args:
        tensors: the tensors.
        configs: the configuration of each component, where there is one.
        names: the base's names.
        adapter: where to put them.
        scaled: whether alpha is in the factors already, so that none is missing.
    """
    modules, unknown = Modules(), []
    for key in tensors.keys():  # noqa: SIM118 - it is no mapping
        match = _KEY.fullmatch(key)
        if match is None:
            unknown.append(key)
        else:
            modules.take(match["path"], _part(match), Ref(tensors, key))
    for path, refs in modules.items():
        adapter.widths[path] = width(refs["down"]) if "down" in refs else 0
        place = _place(path, names)
        if place is None:
            adapter.leave((ref.key for ref in refs.values()), NO_MODULE)
        elif _read_module(*place, refs, configs, adapter) and not scaled:
            adapter.assume_scale(path)
    for key in unknown:
        adapter.spoil([key], _owner(key, names))


def _read_module(
    component: str, name: str, refs: Mapping[str, Ref], configs: Mapping[str, PeftConfig], adapter: Adapter
) -> bool:
    """Take the update of one module, if it is whole; tell whether nothing says its scale."""
    config, keys = configs.get(component, PeftConfig(default=None)), [ref.key for ref in refs.values()]
    update = _update(name.partition(".")[2].removesuffix(".weight"), refs, config)
    if update is None:
        adapter.leave(keys, NO_HALF)
        return False
    if config.dora and not isinstance(update, Decomposed):
        adapter.leave(keys, NO_MAGNITUDE)
        return False
    adapter.add(name, update, keys)
    if "bias" in refs and refs["bias"].read().any():
        adapter.leave([refs["bias"].key], BIAS)
    return "alpha" not in refs and config.alpha is None


def _owner(key: str, names: Names) -> str | None:
    """Return the parameter of the layer that a key without a rule begins with; None if it begins with none."""
    path = key
    while path := path.rpartition(".")[0]:
        if place := _place(path.removesuffix("_lora"), names):
            return place[1]
    return None


def _part(match: re.Match[str]) -> str:
    if match["old"]:
        return match["old"]
    if match["new"]:
        return {"A": "down", "B": "up"}[match["new"]]
    return "bias" if match["bias"] else match["magnitude"] or match["dora"] or "alpha"


def _update(path: str, refs: Mapping[str, Ref], config: PeftConfig) -> Update | None:
    if "up" not in refs or "down" not in refs:
        return None
    rank = refs["down"].length
    scale = refs["alpha"].number() / max(1, rank) if "alpha" in refs else config.scale(path, rank)
    update = LowRank(refs["up"], refs["down"], scale)
    if "dora_scale" in refs:
        return decomposed(update, refs["dora_scale"])
    return Decomposed(update, refs["lora_magnitude_vector"]) if "lora_magnitude_vector" in refs else update


def _place(path: str, names: Names) -> tuple[str, str] | None:
    """Return component and parameter of a path; without a component's name it is of the main one."""
    component, _, inner = path.partition(".")
    if component not in names.base.components:
        component, inner = names.main, path
    for candidate in _spellings(inner):
        if name := names.dotted(component, candidate):
            return component, name
    return None


def _spellings(path: str) -> Iterator[str]:
    """Yield today's names of a layer, by an old one or its own."""
    yield path
    path = path.replace(".processor.", ".")
    yield path
    if path.endswith(".to_out"):
        yield f"{path}.0"
    parent, _, last = path.rpartition(".")
    if last in TEXT:
        yield f"{parent}.{TEXT[last]}"


def _configs(file: TensorFile, names: Names) -> dict[str, PeftConfig]:
    """Return the configuration of each component in the file's metadata; of the main one where none is named."""
    text = file.header.metadata.get(CONFIG)
    if text is None:
        return {}
    where = f"{file.path}: {CONFIG}"
    fields = as_object(strict_json(text.encode("utf-8", "surrogatepass"), where, MetadataError), where)
    parts: dict[str, dict[str, object]] = defaultdict(dict)
    for key, value in fields.items():
        component, dot, name = key.partition(".")
        parts[component if dot else names.main][name if dot else key] = value
    return {part: parse_config(found, f"{where}: {part}", default=None) for part, found in parts.items()}


class DiffusersTarget(Target):
    """The key of each weight in diffusers' file."""

    name = "diffusers"
    by_peft = True

    @property
    def remark(self) -> str:
        """A remark on programs that do not read the file."""
        return WEB if self.names.main == "unet" else ""

    def place(self, name: str, parameter: Parameter) -> Keys | str:
        """Return where a parameter's update stands, or why it has no place."""
        if reason := plain_layer(parameter):
            return reason
        component, _, key = name.partition(".")
        path = self._path(component, key)
        return Keys(f"{component}.{path}.lora_B.weight", f"{component}.{path}.lora_A.weight")

    def _path(self, component: str, key: str) -> str:
        return self.names.long(component, key).removesuffix(".weight")

    def strings(self, ranks: Mapping[str, int], alpha: int) -> dict[str, str]:  # noqa: ARG002 - others need it
        """Return each component's configuration: without it diffusers would guess scales from ranks."""
        fields: dict[str, JSON] = {}
        for component in sorted({name.partition(".")[0] for name in ranks}):
            mine = {
                self.names.short(name.partition(".")[2].removesuffix(".weight")): rank
                for name, rank in ranks.items()
                if name.startswith(f"{component}.")
            }
            config = low_rank_config(mine, [*map(self.names.short, self.names.paths(component))])
            fields |= {f"{component}.{key}": value for key, value in config.items()}
        return {CONFIG: canonical_json(fields).decode()}


diffusers: Final = Dialect(
    "diffusers' pytorch_lora_weights.safetensors",
    recognizes,
    read,
    adapter_writer(DiffusersTarget),
    min_energy=LEAST,
    low_rank=True,
)
