"""Read and write kohya's files, `lora_unet_<path>.lora_down.weight` and the like (spec, section 7.10)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from svdiff_delta.errors import InputError
from svdiff_delta.format.foreign import method_of
from svdiff_delta.format.parameter import Parameter

from .adapter_reader import NO_MODULE, Adapter, unexplained, width
from .adapter_writer import adapter_writer
from .dialect import Changes, Dialect, Job
from .energy_limits import LEAST
from .key_map import PREFIXES, Names
from .lazy_tensors import Modules, OpenedAdapter, Ref, TensorFile
from .module_keys import INPUTS, read_group
from .sgm_names import SgmNames
from .unread_adapters import MERGE
from .write_target import Keys, Target

TEXT: Final = ("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_")


def begins(source: OpenedAdapter, *starts: str) -> bool:
    """Tell whether a file has keys that begin so."""
    header = source.header()
    return header is not None and any(key.startswith(starts) for key in header.entries)


def recognizes(source: OpenedAdapter) -> bool:
    """Tell whether a file has kohya's keys."""
    return begins(source, "lora_unet_", "lora_transformer_", *TEXT)


def read(source: OpenedAdapter, job: Job) -> Changes:
    """Return the changes of a file with keys of kohya or LyCORIS.

    Raises:
        InputError, FormatError: it cannot be read, or its tensors do not fit each other.
        BaseMismatchError: nothing in it fits the base.
    """
    adapter = read_modules(source.file(), Names(job.base))
    return adapter.changes(job)


def read_modules(file: TensorFile, names: Names) -> Adapter:
    """Return the updates in a file whose keys are a module's flat name, a dot and a suffix."""
    _check_algorithm(file)
    adapter = Adapter(file.name, [file])
    modules = Modules()
    for key in file.keys():  # noqa: SIM118 - it is no mapping
        module, _, suffix = key.partition(".")
        modules.take(module, suffix, Ref(file, key))
    for module, refs in modules.items():
        adapter.widths[module] = max((width(refs[suffix]) for suffix in INPUTS if suffix in refs), default=0)
        for missing in read_module(module, refs, names, adapter):
            adapter.assume_scale(module, missing)
    return adapter


def _check_algorithm(file: TensorFile) -> None:
    """Raise InputError for LyCORIS' DyLoRA: its keys are those of a LoRA, and its scale is not alpha by rank."""
    with suppress(ValueError, AttributeError, RecursionError):
        if json.loads(file.header.metadata.get("ss_network_args", "{}")).get("algo") == "dylora":
            raise InputError(
                f"{file.name}: is of LyCORIS' method DyLoRA, which has another scale than LoRA at each rank", fix=MERGE
            )


def read_module(module: str, refs: Mapping[str, Ref], names: Names, adapter: Adapter) -> list[str]:
    """Take the updates of one module, all of them or none; return what was assumed.

    Args:
        module: its flat name.
        refs: its tensors by suffix.
        names: the base's names.
        adapter: where to put them.
    """
    keys, place = [ref.key for ref in refs.values()], place_of(module, names)
    if place is None:
        is_known = module.startswith(tuple(f"{prefix}_" for prefix in PREFIXES))
        adapter.left_out |= {key: NO_MODULE if is_known and not method_of(key) else unexplained(key) for key in keys}
        return []
    group, name = read_group(refs), names.dotted(*place)
    if group.unused:
        adapter.spoil([refs[suffix].key for suffix in group.unused], name, keys)
        return []
    for leaf, update in (("weight", group.weight), ("bias", group.bias)):
        name = names.dotted(*place, leaf)
        if update is not None and name is None:
            adapter.left_out[f"{module} ({leaf})"] = NO_MODULE
        elif update is not None and name is not None:
            adapter.add(name, update, keys if leaf == "weight" else ())
    return group.remarks


def place_of(module: str, names: Names) -> tuple[str, str] | None:
    """Return component and path of a module by its flat name."""
    for prefix in sorted(PREFIXES, key=len, reverse=True):
        if module.startswith(f"{prefix}_"):
            component = names.component(prefix)
            path = names.underscored(component, module.removeprefix(f"{prefix}_")) if component else None
            return None if component is None or path is None else (component, path)
    return None


class KohyaTarget(Target):
    """The key of each weight in a kohya file."""

    name = "kohya"
    common_alpha = True

    def __init__(self, names: Names) -> None:
        super().__init__(names)
        if "transformer" in names.base.components:
            raise InputError(
                "kohya's names of a transformer's layers are not those of diffusers", fix='use `to="diffusers"`'
            )
        is_sdxl = "unet" in names.base.components and names.dotted("unet", "add_embedding.linear_1")
        self._sgm = SgmNames(names.paths("unet")) if is_sdxl else None

    def place(self, name: str, parameter: Parameter) -> Keys | str:
        """Return where a parameter's update stands, or why it has no place."""
        if reason := plain_layer(parameter):
            return reason
        module = self.module(name)
        if module is None:
            return "kohya has no name for it"
        return Keys(f"{module}.lora_up.weight", f"{module}.lora_down.weight", f"{module}.alpha")

    def module(self, name: str) -> str | None:
        """Return the flat name of the module that a parameter is of; None if it has none."""
        component, _, key = name.partition(".")
        path = key.removesuffix(".weight")
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


def text_module(names: Names, component: str, path: str) -> str | None:
    """Return the flat name of a module of a text encoder; None if it has none."""
    prefixes = {"text_encoder": "lora_te"}
    if "text_encoder_2" in names.base.components:
        prefixes = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    if component not in prefixes or path == "text_projection":
        return None  # kohya does not train that, and diffusers takes it at one rank only
    return f"{prefixes[component]}_{names.long(component, path).replace('.', '_')}"


def plain_layer(parameter: Parameter) -> str:
    """Return why a weight has no place beside linear layers and convolutions; empty if it has one."""
    if parameter.kind == "elementwise":
        return "is a norm, for which only lycoris has a place"
    if parameter.axis != 0:
        return "is stored transposed, for which this dialect has no place"
    return ""


kohya: Final = Dialect(
    "LoRA as kohya's scripts, AUTOMATIC1111 and ComfyUI have it",
    recognizes,
    read,
    adapter_writer(KohyaTarget),
    min_energy=LEAST,
    low_rank=True,
)
