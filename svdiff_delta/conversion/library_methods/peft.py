"""Read the methods of PEFT that are no LoRA, through PEFT's own layers on the base's weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.opened import Base
from svdiff_delta.conversion.adapter_reader import Adapter
from svdiff_delta.conversion.dialect import Job
from svdiff_delta.conversion.key_map import Names
from svdiff_delta.conversion.lazy_tensors import Ref, TensorFile
from svdiff_delta.conversion.peft_config import pattern_value
from svdiff_delta.conversion.reasons import BIAS, NO_MODULE
from svdiff_delta.conversion.weight_updates import Hadamard, Kronecker, Update
from svdiff_delta.errors import InputError, TensorError

from .layers import FAILURES, adapter_tensor, bias_of, container, hold, hollow, library, owner, quiet
from .library_update import LibraryUpdate, refusal
from .peft_method import MERGE, PeftMethod

SHARED: Final = "base_model."
PREFIX: Final = "base_model.model."
DEFAULT_ALPHA: Final = 8
"""PEFT's default of `alpha` and `r` of LoHa and LoKr."""


# --- The tensors ---


@dataclass
class _Keys:
    """The keys of a file, by what is below PEFT's prefix.

    Attributes:
        layers: by path of the layer, the keys that the method has for it.
        shared: keys of no layer.
        whole: keys of weights and biases that were trained beside, by what is below the prefix.
    """

    layers: dict[str, list[str]] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)
    whole: dict[str, Ref] = field(default_factory=dict)


def _sorted_keys(file: TensorFile, component: str, names: Names) -> _Keys:
    found = _Keys()
    for key in file.keys():  # noqa: SIM118 - it is no mapping
        inner = key.removeprefix(PREFIX)
        path = _path_in(inner, component, names)
        rest = inner[len(path) + 1 :] if path else inner
        if rest in ("weight", "bias") or rest.startswith(("modules_to_save.", "base_layer.")):
            found.whole[inner] = Ref(file, key)
        elif path:
            found.layers.setdefault(path, []).append(key)
        else:
            found.shared.append(key)
    return found


def _path_in(inner: str, component: str, names: Names) -> str:
    """Return the path of the base's layer that a key begins with; empty if it begins with none."""
    path = inner
    while path := path.rpartition(".")[0]:
        if names.dotted(component, path) is not None:
            return path
    return ""


def component_of(file: TensorFile, names: Names) -> str:
    """Return the component that has most of the layers that the keys of a file begin with."""
    inner = [key.removeprefix(PREFIX) for key in file.keys()]  # noqa: SIM118 - it is no mapping
    parts = names.base.components
    fitting = {part: sum(bool(_path_in(key, part, names)) for key in inner) for part in parts}
    return max(fitting, key=lambda part: fitting[part])


def read_method(method: PeftMethod, file: TensorFile, component: str, job: Job, adapter: Adapter) -> dict[str, Ref]:
    """Take the updates that a method makes of a base's weights.

    Returns:
        The tensors of weights and biases that were trained beside, by what is below PEFT's prefix.

    Raises:
        InputError: PEFT cannot build or load it, or its tensors are not all that it needs, or more than it takes.
    """
    names = Names(job.base)
    keys = _sorted_keys(file, component, names)
    if method.shares or any(key.startswith(SHARED) and not key.startswith(PREFIX) for key in keys.shared):
        _read_shared(_SharedLayers(method, file, component, job, keys), adapter)
        return keys.whole
    adapter.leave(keys.shared, NO_MODULE)
    for path, own in sorted(keys.layers.items()):
        name = str(names.dotted(component, path))
        if plain := _plain(method, file, path, own, job.base.shape(name)):
            adapter.add(name, plain, own)
        else:
            _add(name, _Layer(method, file, path, own, job.base, name), method, job.base, adapter, own)
    return keys.whole


def _add(
    name: str, builder: _Layer | _SharedLayer, method: PeftMethod, base: Base, adapter: Adapter, keys: Iterable[str]
) -> None:
    """Take the update of a layer, and list its bias if PEFT changes that too."""
    bias = bias_of(base, name)
    update = LibraryUpdate(name, builder, base.shape(name), method.anew, biased=bias is not None)
    if bias is not None and update.changes_bias(base, bias[1]):
        adapter.leave([bias[0]], BIAS)
    adapter.add(name, update, keys)


def _read_shared(layers: _SharedLayers, adapter: Adapter) -> None:
    for path, name in layers.paths().items():
        keys = layers.keys.layers.get(path, [])
        _add(name, _SharedLayer(layers, path), layers.method, layers.job.base, adapter, keys)


# --- Layers of PEFT ---


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer of PEFT on one weight of the base."""

    method: PeftMethod
    file: TensorFile
    path: str
    keys: list[str]
    base: Base
    name: str

    @property
    def where(self) -> str:
        """The layer, as errors call it."""
        return f"{self.method.title}: {self.path}"

    def merged(self, weight: Tensor, bias: Tensor | None, seed: int, *, rounded: bool = False) -> nn.Module:  # noqa: ARG002
        """Return the base's layer after PEFT's merge into it; see `LayerBuilder`."""
        slot, _, key = self.name.partition(".")
        _, layer = owner(self.base.components[slot], key)
        root = container({self.path: hold(layer, weight, bias)})
        tensors = {key: adapter_tensor(self.file, key) for key in self.keys}
        model = _built(self.method.config([self.path]), root, tensors, weight.dtype, self.where)
        return _unwrapped(model.merge_and_unload(), self.path)


def _built(config: Any, root: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype, where: str) -> Any:
    """Return PEFT's model of a container with an adapter's tensors in it, each of them taken.

    Raises:
        TensorError: a tensor was not taken, or one that PEFT saves is not there.
    """
    peft = library("peft", "train")
    model = peft.get_peft_model(root, config)
    model.to(dtype).eval()
    peft.set_peft_model_state_dict(model, dict(tensors))
    # What PEFT would save of this model is what it takes of a file.
    there = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    for key, value in sorted(tensors.items()):
        if key not in there or not torch.equal(there[key].to(value.dtype), value):
            raise TensorError(f"{where}: PEFT takes no tensor {key}", fix=MERGE)
    if missing := sorted(there.keys() - tensors.keys()):
        raise TensorError(f"{where}: lacks {missing[0]}", fix="fetch the file again")
    return model


def _unwrapped(root: nn.Module, path: str) -> nn.Module:
    layer = root.get_submodule(path)
    base = getattr(layer, "get_base_layer", None)
    return layer if base is None else base()


class _SharedLayers:
    """The layers of a method that share tensors, built together on layers without values, one weight at a time.

    Args:
        method: the method.
        file: its tensors.
        component: the component of the base that it is of.
        job: the conversion.
        keys: the keys of the file.
    """

    def __init__(self, method: PeftMethod, file: TensorFile, component: str, job: Job, keys: _Keys) -> None:
        self.method, self.file, self.job, self.keys = method, file, job, keys
        self._component = component
        self._models: dict[tuple[torch.dtype, int, bool], Any] = {}

    def paths(self) -> dict[str, str]:
        """Return the parameter of each layer that PEFT puts its own on, by path.

        Raises:
            InputError: PEFT cannot build them.
        """
        with quiet(0):
            try:
                model = self.model(torch.float32, 0)
            except FAILURES as error:
                raise refusal(self.method.title, error) from None
        layer = library("peft.tuners.tuners_utils", "train").BaseTunerLayer
        found = [path for path, module in model.base_model.model.named_modules() if isinstance(module, layer)]
        return {path: self._parameter(path) for path in found}

    def model(self, dtype: torch.dtype, seed: int, *, rounded: bool = False) -> Any:
        """Return PEFT's model, built once for each dtype and seed."""
        if (dtype, seed, rounded) not in self._models:
            own = (key for keys in self.keys.layers.values() for key in keys)
            tensors = {key: adapter_tensor(self.file, key) for key in (*self.keys.shared, *own)}
            layers = sorted(self.keys.layers) if self.method.anew else None
            root = container(self._layers(dtype, layers, float(seed), rounded=rounded))
            model = _built(self.method.config(layers), root, tensors, dtype, self.method.title)
            self._models[dtype, seed, rounded] = model
        return self._models[dtype, seed, rounded]

    def _layers(
        self, dtype: torch.dtype, only: list[str] | None, value: float, *, rounded: bool
    ) -> dict[str, nn.Module]:
        """Return the layers of the class in its order, of which none is to look at the weights of others.

        They hold one number throughout, another one in each of two builds; those that are decomposed their weights.
        """
        skeleton = self.job.base.components[self._component].skeleton
        if only is None:
            return {
                path: hollow(module, dtype, value)
                for path, module in skeleton.named_modules()
                if isinstance(module._parameters.get("weight"), Tensor)
            }
        found = {}
        for path in only:
            weight = (self.job.made_on or self.job.base).read(self._parameter(path))
            own = (weight.bfloat16() if rounded else weight).to(dtype)
            found[path] = hold(owner(self.job.base.components[self._component], f"{path}.weight")[1], own, None)
        return found

    def _parameter(self, path: str) -> str:
        """Return the parameter of a layer.

        Raises:
            InputError: the base's files lack its weight.
        """
        stored = self.job.base.components[self._component].stored(f"{path}.weight")
        if stored is None:
            raise InputError(f"{self.method.title}: the base has no {path}", fix="name the base that it was made for")
        return f"{self._component}.{stored}"


@dataclass(frozen=True, eq=False)
class _SharedLayer:
    """One of the layers that share tensors."""

    layers: _SharedLayers
    path: str

    @property
    def where(self) -> str:
        """The layer, as errors call it."""
        return f"{self.layers.method.title}: {self.path}"

    def merged(self, weight: Tensor, bias: Tensor | None, seed: int, *, rounded: bool = False) -> nn.Module:
        """Return the base's layer after PEFT's merge into it; see `LayerBuilder`."""
        model = self.layers.model(weight.dtype, seed, rounded=rounded)
        layer = model.base_model.model.get_submodule(self.path)
        inner = layer.get_base_layer()
        empty = dict(inner._parameters)
        inner._parameters["weight"] = nn.Parameter(weight.clone(), requires_grad=False)
        if bias is not None:
            inner._parameters["bias"] = nn.Parameter(bias.to(weight.dtype, copy=True), requires_grad=False)
        try:
            layer.merge()
            merged = nn.Module()
            merged._parameters.update(inner._parameters)
            return merged
        finally:
            layer.merged_adapters.clear()
            inner._parameters.update(empty)


# --- LoHa and LoKr of matrices, whose formulas are ours too: they have low-rank factors without a decomposition ---


def _plain(
    method: PeftMethod, file: TensorFile, path: str, keys: Iterable[str], shape: tuple[int, ...]
) -> Update | None:
    """Return the update of a LoHa or LoKr on a matrix; None for all else."""
    refs = {key.rpartition(".")[2]: Ref(file, key) for key in keys}
    if len(shape) != 2 or method.name not in ("LOHA", "LOKR"):
        return None
    scale = _ratio(method.fields, path)
    if refs.keys() == {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}:
        pairs = [(refs[f"hada_{factor}_a"], refs[f"hada_{factor}_b"]) for factor in ("w1", "w2")]
        return Hadamard((pairs[0][0], pairs[1][0]), (pairs[0][1], pairs[1][1]), scale)
    halves = [
        tuple(refs[key] for key in names if key in refs)
        for names in (("lokr_w1", "lokr_w1_a", "lokr_w1_b"), ("lokr_w2", "lokr_w2_a", "lokr_w2_b"))
    ]
    whole = len(refs) == len(halves[0]) + len(halves[1])
    return Kronecker(halves[0], halves[1], scale) if all(halves) and whole else None


def _ratio(fields: Mapping[str, Any], path: str) -> float:
    """Return alpha / r of a layer, whichever patterns it matches."""
    values = []
    for name in ("alpha", "r"):
        pattern = pattern_value(fields.get("alpha_pattern" if name == "alpha" else "rank_pattern") or {}, path)
        values.append(fields.get(name, DEFAULT_ALPHA) if pattern is None else pattern)
    return float(values[0]) / float(values[1])
