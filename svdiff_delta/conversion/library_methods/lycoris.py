"""Read the methods of LyCORIS that are no LoRA, LoHa or LoKr, through LyCORIS' own layers on the base's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.opened import Base
from svdiff_delta.conversion.lazy_tensors import Ref, TensorFile
from svdiff_delta.conversion.module_keys import CORES, LOHA, LOKR, LORA, WEIGHT
from svdiff_delta.conversion.reasons import BIAS
from svdiff_delta.errors import TensorError

from .layers import adapter_tensor, bias_of, hold, library, owner, quiet
from .library_update import LibraryUpdate

if TYPE_CHECKING:
    from svdiff_delta.conversion.adapter_reader import Adapter

MERGE: Final = 'merge it with LyCORIS, then `from_="full"`'
ENDS: Final[Mapping[str, str]] = {
    "oft_blocks": "OFT",
    "a1.weight": "GLoRA",
    "on_input": "(IA)³",
    "lambda_layer": "T-LoRA",
}
"""The tensor that tells a method, and what errors call it."""

PLAIN: Final = LORA | LOHA | CORES | LOKR | {*WEIGHT}
"""Ends of keys of methods that are read by their formulas."""

DECOMPOSED: Final[Mapping[str, str]] = {"T-LoRA": "the largest singular vectors of the base's weight"}
"""Methods whose files lack what LyCORIS takes out of the base anew at each load."""

BLOCK: Final = 4
"""LyCORIS' default of `block_size` of DyLoRA."""


def method_of_module(refs: Mapping[str, Ref]) -> str:
    """Return the method that LyCORIS' own layers are to read, by the ends of a module's keys; empty if it is none.

    Where keys of a method that is read by its formula stand beside it, it is none: the module is not understood.
    """
    if refs.keys() & PLAIN:
        return ""
    return next((method for end, method in ENDS.items() if end in refs), "")


def _dylora_block(refs: Mapping[str, Ref]) -> int | None:
    """Return the ranks in a block of LyCORIS' DyLoRA, whose keys are those of a LoRA; None for all other files."""
    file = next(iter(refs.values())).tensors
    if isinstance(file, TensorFile) and "lora_up.weight" in refs:
        with suppress(ValueError, AttributeError, RecursionError):
            said = json.loads(file.header.metadata.get("ss_network_args", "{}"))
            if said.get("algo") == "dylora":
                return max(1, int(said.get("block_size") or BLOCK))
    return None


def take_method(module: str, refs: Mapping[str, Ref], name: str, base: Base, adapter: Adapter) -> bool:
    """Take the update that LyCORIS' own layer makes of a weight; return whether the module is of such a method.

    Args:
        module: the module's name in the file.
        refs: its tensors by suffix.
        name: the parameter of the base.
        base: the base.
        adapter: where to put it.

    Raises:
        InputError: LyCORIS cannot build or load it.
    """
    block = _dylora_block(refs)
    method = "DyLoRA" if block is not None else method_of_module(refs)
    if not method or (block is None and not _is_known(refs)):
        return False
    where = f"{adapter.what}: LyCORIS' method {method}: {module}"
    builder = _Layer(where, module, dict(refs), base, name, block)
    bias = bias_of(base, name)
    update = LibraryUpdate(name, builder, base.shape(name), DECOMPOSED.get(method, ""), biased=bias is not None)
    if bias is not None and update.changes_bias(base, bias[1]):
        adapter.leave([bias[0]], BIAS)
    adapter.add(name, update, [ref.key for ref in refs.values()])
    return True


def _is_known(refs: Mapping[str, Ref]) -> bool:
    """Tell whether LyCORIS knows a method by a module's keys, and the number of dimensions of its tensors."""
    shapes = {f"x.{end}": torch.empty(ref.shape, device="meta") for end, ref in refs.items()}
    with quiet(0):
        return library("lycoris.modules", "clients").get_module(shapes, "x")[0] is not None


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer of LyCORIS on one weight of the base."""

    where: str
    module: str
    refs: dict[str, Ref]
    base: Base
    name: str
    block: int | None

    def merged(self, weight: Tensor, bias: Tensor | None, seed: int, *, rounded: bool = False) -> nn.Module:  # noqa: ARG002
        """Return the base's layer after LyCORIS' merge into it; see `LayerBuilder`."""
        slot, _, key = self.name.partition(".")
        layer = hold(owner(self.base.components[slot], key)[1], weight, bias)
        tensors = {end: adapter_tensor(ref.tensors, ref.key) for end, ref in self.refs.items()}
        if self.block is not None:
            return self._dylora(layer, tensors)
        made = self._made(layer, tensors).to(weight.dtype).eval()
        made.merge_to(1.0)
        return layer

    def _made(self, layer: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
        """Return LyCORIS' layer with all tensors of the module in it.

        Raises:
            TensorError: LyCORIS takes another number of tensors.
        """
        modules = library("lycoris.modules", "clients")
        cls, values = modules.get_module({f"{self.module}.{end}": value for end, value in tensors.items()}, self.module)
        if extra := sorted(tensors.keys() - {*cls.weight_list}):
            raise TensorError(f"{self.where}: LyCORIS takes no tensor {extra[0]}", fix=MERGE)
        if cls is modules.IA3Module:
            # Its own loader has no place for `on_input` (4.1.3); the layer's state has.
            made = cls(self.module, layer, 1.0, train_on_input=bool(tensors["on_input"]))
            made.load_state_dict(dict(tensors))
            return made
        made = cls.make_module_from_state_dict(self.module, layer, *values)
        self._check_taken(made, tensors)
        return made

    def _check_taken(self, made: Any, tensors: Mapping[str, Tensor]) -> None:
        """Raise TensorError unless the layer holds each tensor; an alpha is a number that it divides."""
        there = made.state_dict()
        for end, value in tensors.items():
            taken = end == "alpha" or (end in there and torch.equal(there[end].to(value.dtype), value))
            if not taken:
                raise TensorError(f"{self.where}: LyCORIS takes no tensor {end}", fix=MERGE)

    def _dylora(self, layer: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return the layer after the merge of DyLoRA's layer with all of its blocks, which has no loader (4.1.3)."""
        up, down = tensors["lora_up.weight"].flatten(1), tensors["lora_down.weight"].flatten(1)
        cls, size = library("lycoris.modules", "clients").DyLoraModule, int(self.block or BLOCK)
        weight: Any = layer.weight
        made = cls(self.module, layer, 1.0, len(down), float(tensors["alpha"]), block_size=size)
        for index, (first, second) in enumerate(zip(made.down_list, made.up_list, strict=True)):
            first.copy_(down[index * size : (index + 1) * size])
            second.copy_(up[:, index * size : (index + 1) * size])
        change, _ = made.to(weight.dtype).get_diff_weight(1.0, weight.shape, rank=len(down) - size)
        weight += change
        return layer
