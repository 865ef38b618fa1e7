"""Read and write PEFT's folders: `adapter_config.json`, `adapter_model.safetensors` (spec, section 7.10)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from svdiff_delta._util.atomic import replace_folder
from svdiff_delta._util.limits import CONFIGURATION
from svdiff_delta._util.paths import below
from svdiff_delta._util.reading import read_bytes
from svdiff_delta.adapters.folders import PEFT_CONFIG as CONFIG
from svdiff_delta.adapters.folders import PEFT_PICKLE as PICKLE
from svdiff_delta.adapters.folders import PEFT_WEIGHTS as WEIGHTS
from svdiff_delta.base_model.component import aliases
from svdiff_delta.base_model.kinds import base_kinds
from svdiff_delta.errors import BaseError, InputError, TensorError
from svdiff_delta.format.foreign import method_of
from svdiff_delta.format.parameter import Kind, Parameter

from .adapter_reader import Adapter, document, unexplained, width
from .adapter_writer import adapter_writer
from .convolutions import ALL_PLAIN
from .copies import check_copy, same_as_base
from .dialect import Changes, Dialect, Job
from .energy_limits import LEAST
from .key_map import EXPERT, Names
from .lazy_tensors import Modules, OpenedAdapter, Ref, TensorFile
from .library_methods.peft import component_of, read_method
from .peft_config import PeftConfig, low_rank_config, read_config, read_method_config
from .peft_parameters import ExpertKeys, has_module, read_parameters
from .reasons import BIAS, NO_MAGNITUDE, NO_MODULE
from .weight_updates import Decomposed, LowRank, Update, Whole
from .write_target import Keys, Part, Target

PREFIX: Final = "base_model.model."
CONVERT_PICKLE: Final = (
    "convert it once where you trust it, with `PeftModel.from_pretrained(MODEL, FOLDER).save_pretrained(NEW)`"
)

Kinds = Mapping[str, tuple[Kind, int]]
"""Kind and axis by parameter name."""

PARTS: Final = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_embedding_A": "embedding_down",
    "lora_embedding_B": "embedding_up",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_B.bias": "up_bias",
    "lora_velora_embed": "backward",  # VeLoRA's, for gradients alone
}
"""What the end of a key says the tensor is; other keys hold a whole weight or bias that was trained beside."""

_KEY: Final = re.compile(r"(?P<path>.+?)\.(?P<part>lora_[A-Za-z_]+(?:\.\w+)?)")


def folders(path: Path) -> list[Path]:
    """Return the adapters in a folder: itself, or those of its folders that are one, by name."""
    path = path.parent if path.name in (WEIGHTS, CONFIG) else path
    if not path.is_dir():
        return []
    inner = sorted(found for found in path.iterdir() if (found / CONFIG).is_file())
    return [path] if (path / CONFIG).is_file() else inner


def recognizes(source: OpenedAdapter) -> bool:
    """Tell whether this is PEFT's folder, or holds some, one for each component."""
    return bool(folders(source.path))


def read(source: OpenedAdapter, job: Job) -> Changes:
    """Return the changes that PEFT's folder makes, or those that the folders in it make, one for each component.

    Raises:
        InputError: it is no such folder, or its configuration is of another method than LoRA.
        FormatError: a file is broken, or its tensors do not fit each other.
        BaseMismatchError: nothing in it fits the base.
    """
    found = folders(source.path)
    if not found:
        raise InputError(f"{source.name}: has no {CONFIG}", fix=f"name the folder with {CONFIG} and {WEIGHTS}")
    names, adapter, kinds = (
        Names(job.base),
        Adapter(source.name, [], prefix=PREFIX),
        base_kinds(job.base, on_request=True),
    )
    for folder in found:
        method = read_method_config(folder / CONFIG, made_on=job.made_on is not None)
        config = read_config(folder / CONFIG, parameters=True) if method is None else None
        file = _open_weights(source, folder)
        adapter.files.append(file)
        adapter.extra[CONFIG] = hashlib.sha256(read_bytes(folder / CONFIG, CONFIGURATION.bytes)).hexdigest()
        component = _told(folder, file, job) or _likely(file, names, adapter, by_method=method is not None)
        if method is not None:
            _read_others(read_method(method, file, component, job, adapter), Modules(), component, names, adapter)
        elif config is not None:
            _read_folder(file, config, component, names, kinds, adapter)
    return adapter.changes(job)


def _open_weights(source: OpenedAdapter, folder: Path) -> TensorFile:
    if (folder / PICKLE).is_file() and not (folder / WEIGHTS).exists():
        raise InputError(
            f"{folder}: has its weights only as a pickle ({PICKLE}), which is never opened", fix=CONVERT_PICKLE
        )
    return source.file(folder / WEIGHTS)


def _told(folder: Path, file: TensorFile, job: Job) -> str | None:
    """Return the component that an adapter is of: the one its folder is called by, is asked for, or its file names."""
    parts, said = job.base.components, document(file)
    if folder.name in parts:
        return folder.name
    meant = {name.partition(".")[0] for name in said.parameters} & {*parts} if said else set()
    return job.component or (meant.pop() if len(meant) == 1 else None)


def _likely(file: TensorFile, names: Names, adapter: Adapter, *, by_method: bool) -> str:
    """Return the component that has most layers of an adapter; of two experts, which have the same, the first."""
    found = component_of(file, names) if by_method else _fullest(file, names)
    if found == names.main and EXPERT in names.base.components:
        adapter.remarks.append(f"its keys name no expert: taken for {names.main}; `component` names the other")
    return found


def _fullest(file: TensorFile, names: Names) -> str:
    parts = names.base.components
    paths = {match["path"] for key in file.keys() if (match := _KEY.fullmatch(key.removeprefix(PREFIX)))}  # noqa: SIM118
    fitting = {part: sum(names.dotted(part, path) is not None for path in paths) for part in parts}
    if not any(fitting.values()):  # of parameters that are no layer's weight, such as stacked experts
        fitting = {part: sum(has_module(parts[part], path) for path in paths) for part in parts}
    return max(fitting, key=lambda part: fitting[part])


def _read_folder(
    file: TensorFile, config: PeftConfig, component: str, names: Names, kinds: Kinds, adapter: Adapter
) -> None:
    """Take the updates of one folder. Whether a weight is stored transposed its layer's class says, as in PEFT."""
    modules, others = Modules(), {}
    for key in file.keys():  # noqa: SIM118 - it is no mapping
        inner = key.removeprefix(PREFIX)
        match = _KEY.fullmatch(inner)
        if match and match["part"] in PARTS:
            modules.take(match["path"], PARTS[match["part"]], Ref(file, key))
        else:
            others[inner] = Ref(file, key)
    parameters = read_parameters(modules, config, component, names, adapter)
    for path, refs in modules.items():
        if path not in parameters:
            _read_module(component, path, refs, config, names, kinds, adapter)
    _read_others(others, modules, component, names, adapter)
    if not config.has_alpha:
        adapter.remarks.append(f"{CONFIG} gives no lora_alpha: taken to be 8, as PEFT does")


def _read_others(others: Mapping[str, Ref], modules: Modules, component: str, names: Names, adapter: Adapter) -> None:
    """Take weights that were trained as a whole, and say why other keys are left out."""
    for inner, ref in others.items():
        path, leaf = _whole(inner)
        name = names.dotted(component, path, leaf)
        if _is_copy(inner) or (name is not None and path in modules and leaf == "weight"):
            check_copy(ref, names.base, name or f"{component}.{path}.{leaf}", adapter)
        elif name is not None:
            _read_whole(name, leaf, ref, names, adapter)
        elif owner := modules.owner(inner):
            adapter.spoil([ref.key], names.dotted(component, owner))
        else:
            is_layer = leaf in ("weight", "bias") and not method_of(inner)
            adapter.leave([ref.key], NO_MODULE if is_layer else unexplained(ref.key))


def _read_module(
    component: str,
    path: str,
    refs: Mapping[str, Ref],
    config: PeftConfig,
    names: Names,
    kinds: Kinds,
    adapter: Adapter,
) -> None:
    """Take the update of one module, if it is whole."""
    down, keys = refs.get("down") or refs.get("embedding_up"), [ref.key for ref in refs.values()]
    adapter.widths[f"{component}.{path}"] = width(down) if down else 0
    name = names.dotted(component, path)
    update = _update(path, refs, config, transposed=_stored_transposed(kinds, name))
    if name is None:
        adapter.leave(keys, names.tied(component, path) or NO_MODULE)
    elif update is None:
        adapter.leave(keys, "lacks lora_A or lora_B")
    elif config.dora and "magnitude" not in refs:
        adapter.leave(keys, NO_MAGNITUDE)
    else:
        adapter.add(name, update, keys)
        if "up_bias" in refs and refs["up_bias"].read().any():
            adapter.leave([refs["up_bias"].key], BIAS)


def _whole(inner: str) -> tuple[str, str]:
    """Return path and leaf of a tensor that stands in the place of one of the base's, or beside a LoRA on it."""
    path, _, leaf = inner.rpartition(".")
    return re.sub(r"\.(modules_to_save(\.\w+)?|base_layer)$", "", path), leaf


def _is_copy(inner: str) -> bool:
    return inner.rpartition(".")[0].endswith(".base_layer")


def _read_whole(name: str, leaf: str, ref: Ref, names: Names, adapter: Adapter) -> None:
    """Take a weight or bias that was trained as a whole (modules_to_save, bias): it replaces the base's."""
    if same_as_base(ref, names.base, name):
        adapter.remarks.append(f"{ref.key} is the base's own, and no change")
    elif leaf != "bias":
        adapter.add(name, Whole(ref, replaces=True), [ref.key])
    else:
        adapter.leave([ref.key], BIAS)


def _stored_transposed(kinds: Kinds, name: str | None) -> bool:
    return name is not None and name in kinds and kinds[name][1] == 1


def _update(path: str, refs: Mapping[str, Ref], config: PeftConfig, *, transposed: bool) -> Update | None:
    if "embedding_down" in refs and "embedding_up" in refs:
        up, down, transposed = refs["embedding_up"], refs["embedding_down"], True
    elif "up" in refs and "down" in refs:
        up, down = refs["up"], refs["down"]
    else:
        return None
    rank, said = down.length, config.rank(path)
    if said is not None and said != rank:
        raise TensorError(f"{down}: has rank {rank}, {CONFIG} says {said:g}", fix="fetch both files again")
    update: Update = LowRank(up, down, config.scale(path, rank), transposed=transposed)
    # With a transposed weight the outputs, which have the magnitudes, are the columns.
    return Decomposed(update, refs["magnitude"], int(transposed)) if "magnitude" in refs else update


class PeftTarget(Target):
    """The key of each weight in PEFT's folders: one folder, or one for each component that the delta shifts."""

    name = "peft"
    grouped = "divided"
    by_peft = True
    stacks = True

    def place(self, name: str, parameter: Parameter) -> Keys | str:
        """Return where a parameter's update stands, or why it has no place."""
        if parameter.kind == "elementwise":
            return "is a norm, for which only lycoris has a place"
        if len(parameter.shape) > 2 and parameter.axis != 0:
            return "is a transposed convolution, for which this dialect has no place"
        component, _, key = name.partition(".")
        if expert := self.expert(name):
            return self._experts.place(component, expert, parameter)
        path = f"{PREFIX}{self._path(component, key)}"
        if self._is_embedding(name):
            return Keys(f"{path}.lora_embedding_B", f"{path}.lora_embedding_A", transposed=True, file=component)
        return Keys(f"{path}.lora_B.weight", f"{path}.lora_A.weight", file=component)

    def _config(self, component: str, ranks: Mapping[str, int]) -> dict[str, Any]:
        info = self.names.base.info
        stacks = {expert.stack: rank for name, rank in ranks.items() if (expert := self.expert(name))}
        plain = [name for name in ranks if not self.expert(name)]
        paths = {self._path(component, name.partition(".")[2]): ranks[name] for name in plain}
        layers = [self._path(component, f"{path}.weight") for path in self.names.paths(component)]
        return {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": info.repository,
            "revision": info.revision,
            "inference_mode": True,
            "fan_in_fan_out": any(map(self._is_transposed, plain)),
            **low_rank_config(paths, layers, stacks),
        }

    @cached_property
    def _experts(self) -> ExpertKeys:
        return ExpertKeys(self, PREFIX)

    @cached_property
    def _kinds(self) -> Kinds | None:
        """The kinds of the base's weights; None if it does not say the classes of its layers."""
        try:
            return base_kinds(self.names.base)
        except BaseError:
            return None

    def _is_plain(self, name: str) -> bool:
        """Tell whether a weight is of a linear layer or convolution, without the class being built."""
        component, _, key = name.partition(".")
        kind = self.names.base.components[component].class_name
        return kind in ALL_PLAIN and not key.startswith("class_embedding.")

    def _is_embedding(self, name: str) -> bool:
        return not self._is_plain(name) and self._kinds is not None and name not in self._kinds

    def _is_transposed(self, name: str) -> bool:
        return not self._is_plain(name) and self._kinds is not None and _stored_transposed(self._kinds, name)

    def _path(self, component: str, key: str) -> str:
        """Return the path of a weight's layer in the live model, which is what PEFT looks for."""
        live = self.names.base.components[component].live(key)
        return (key if live in aliases(key) else live).removesuffix(".weight")

    def write(self, job: Job, parts: Mapping[str, Part]) -> int:
        """Write the folder, if there is an output; return the size of all its files."""
        configs = {
            component: json.dumps(self._config(component, part.ranks), indent=2, sort_keys=True).encode() + b"\n"
            for component, part in parts.items()
        }
        if job.output is not None:
            with replace_folder(job.output, overwrite=job.overwrite) as folder:
                for component, part in parts.items():
                    place = folder if len(parts) == 1 else below(folder, component, source="the delta")
                    place.mkdir(exist_ok=True)
                    (place / CONFIG).write_bytes(configs[component])
                    with (place / WEIGHTS).open("wb") as stream:
                        part.copy(stream)
        return sum(part.size + len(configs[component]) for component, part in parts.items())


peft: Final = Dialect(
    "PEFT's folder with a LoRA", recognizes, read, adapter_writer(PeftTarget), min_energy=LEAST, low_rank=True
)
