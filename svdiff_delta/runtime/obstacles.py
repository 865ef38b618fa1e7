"""Refuse layers that cannot take a live δ: weights that nobody here can read, and projections that were fused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.experts import ExpertWeight
from svdiff_delta.base_model.kinds import weight_of
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import AttachError

from .claim import claim_of
from .factored_ops import narrow
from .live_weight import SLOT
from .modules import LiveKeys, layer
from .quantized import KNOWN, PLAIN, quantized_weight
from .sharded import is_sharded

FUSED: Final[Mapping[str, tuple[str, ...]]] = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
"""The layers that diffusers' `fuse_qkv_projections` makes, and those whose weights it copies into them (0.42)."""

SCHEMES: Final[Mapping[str, str]] = {
    "bitsandbytes": "bitsandbytes",
    "diffusers.quantizers.gguf": "GGUF",
    "gguf": "GGUF",
    "hqq": "HQQ",
    "optimum.quanto": "quanto",
    "torch.distributed": "sharded",
    "torchao": "torchao",
}
"""What a weight's class says of it, by the package that it comes from."""

GUARDED: Final = "svdiff_guarded"
"""The attribute of an attention layer that lists its shifted projections."""

LOADED: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The dtypes of weights that are no format to store them in."""

LOAD: Final = "_load_from_state_dict"
"""The method by which torch loads one layer's weights."""


def check_storage(name: str, module: nn.Module) -> None:
    """Check that a layer's weight is a plain tensor of floating-point numbers, or quantized in a known scheme.

    Raises:
        AttachError: it is quantized otherwise or stored in float8, the message names the scheme; or it is of experts
            that are sharded.
    """
    if isinstance(module, ExpertWeight) and is_sharded(module.stack):
        raise AttachError(
            f"{name}: the live weight is of experts that are sharded over processes",
            fix="leave the experts out with `select`, or attach to a model that is not sharded",
        )
    weight = weight_of(module)
    scheme = scheme_of(weight)
    if scheme is None or quantized_weight(module) is not None or (is_sharded(weight) and weight.dtype in LOADED):
        return
    if narrow(weight.dtype) and type(weight) in PLAIN:
        raise AttachError(
            f"{name}: the live weight is stored in {scheme}",
            fix="attach before `enable_layerwise_casting`, or load the model in F16, BF16 or F32",
        )
    raise AttachError(
        f"{name}: the live weight is quantized ({scheme})",
        fix=f"load the model in F16, BF16 or F32, or quantized by {KNOWN}; or use `bake` on its unquantized base",
    )


def check_bases(
    models: Mapping[str, nn.Module],
    names: Iterable[str],
    *,
    given: Base | None,
    found: Base | None,
    keys: LiveKeys,
) -> None:
    """Check that an unquantized base is named where weights are quantized: δ is about its singular values.

    Args:
        models: the models by component.
        names: the parameters that are to be shifted.
        given: the base that was named.
        found: that, or the one that the models say they came from.
        keys: what the layers are called on the live models where that is another name (`live_keys`).

    Raises:
        AttachError: none is named; of weights that are only cast, or sharded, none is found either.
    """
    for name in names:
        module = layer(models, name, keys)
        if found is None and is_sharded(module.stack if isinstance(module, ExpertWeight) else weight_of(module)):
            raise AttachError(
                f"{name}: the live weight is sharded over processes, and the files it came from were not found",
                fix="name its base, as in `attach(model, delta, base=open_base(...))`",
            )
        stored = quantized_weight(module)
        if stored is not None and (found if stored.cast else given) is None:
            raise AttachError(
                f"{name}: the live weight is quantized ({stored.scheme}), and δ shifts the singular values of what it "
                "was before",
                fix="name the unquantized base, as in `attach(model, delta, base=open_base(...))`",
            )


def check_fusable(name: str, module: nn.Module) -> None:
    """Check that ΔW can be fused into a layer's weight.

    Raises:
        AttachError: it is quantized, or sharded over processes.
    """
    if is_sharded(weight_of(module)):
        raise AttachError(
            f"{name}: the live weight is sharded over processes, nothing can be fused into it",
            fix='use `mode="live"`, or fuse before the model is sharded',
        )
    if (stored := quantized_weight(module)) is not None:
        raise AttachError(
            f"{name}: the live weight is quantized ({stored.scheme}), nothing can be fused into it",
            fix='use `mode="live"`, or `bake` on the unquantized base and quantize that',
        )


def scheme_of(weight: Tensor) -> str | None:
    """Return in words how a weight is stored if it is no plain tensor of floating-point numbers; None if it is."""
    cls, dtype = type(weight), str(weight.dtype).removeprefix("torch.")
    if cls not in PLAIN:
        package = next((word for prefix, word in SCHEMES.items() if cls.__module__.startswith(prefix)), cls.__module__)
        return f"{package}: {cls.__name__}"
    return dtype if not weight.dtype.is_floating_point or narrow(weight.dtype) else None


def parents_of(models: Iterable[nn.Module]) -> dict[nn.Module, list[tuple[str, nn.Module]]]:
    """Return for each module the attributes by which others hold it, and who they are."""
    found: dict[nn.Module, list[tuple[str, nn.Module]]] = {}
    for model in models:
        for parent in model.modules():
            for attribute, child in parent.named_children():
                found.setdefault(child, []).append((attribute, parent))
    return found


def check_projection(name: str, module: nn.Module, parents: Mapping[nn.Module, list[tuple[str, nn.Module]]]) -> None:
    """Check that a layer's weight was not copied into a fused projection, which runs in its place.

    Raises:
        AttachError: it was.
    """
    for attribute, parent in parents.get(module, ()):
        for fused, parts in FUSED.items():
            if attribute in parts and hasattr(parent, fused) and getattr(parent, "fused_projections", False):
                raise AttachError(
                    f"{name}: its weight was copied into the fused projection `{fused}`, which is run in its place",
                    fix="call `unfuse_qkv_projections()` first, or bake the delta",
                )


def fusers_of(module: nn.Module, parents: Mapping[nn.Module, list[tuple[str, nn.Module]]]) -> tuple[nn.Module, ...]:
    """Return the attention layers that could copy a layer's weight into a fused projection."""
    parts = {part for group in FUSED.values() for part in group}
    return tuple(
        parent for at, parent in parents.get(module, ()) if at in parts and hasattr(parent, "fuse_projections")
    )


class FusionGuard:
    """Refuses to fuse the projections of an attention layer while one of them has a delta on it: a site of its own.

    Args:
        name: the parameter that is shifted.
        module: the projection.
        parent: the attention layer.
    """

    def __init__(self, name: str, module: nn.Module, parent: nn.Module) -> None:
        self._name, self._module, self._parent = name, module, parent

    def put(self) -> None:
        """Refuse from now on."""
        self._guards().append(self)
        self._parent.__dict__["fuse_projections"] = self._refuse

    def _guards(self) -> list[FusionGuard]:
        return cast("list[FusionGuard]", self._parent.__dict__.setdefault(GUARDED, []))

    def _refuse(self, *args: Any, **options: Any) -> Any:
        shifted = next((guard for guard in self._guards() if is_shifted(guard._module)), None)
        if shifted is None:  # this is a copy of a model whose weights hold W + ΔW
            return cast("Any", type(self._parent)).fuse_projections(self._parent, *args, **options)
        raise AttachError(
            f"{shifted._name}: has a delta on it, which projections that are fused now would leave out",
            fix="detach the delta first, or bake it and load that model",
        )

    def check(self, *, force: bool = False) -> None:
        """Accept every state: a guard holds no weight that others could have changed."""

    def read(self) -> None:
        """Read nothing: a guard needs no values to be taken off."""

    def restore(self) -> None:
        """Let projections be fused again, once none has a delta on it."""
        if GUARDED not in self._parent.__dict__:
            return
        guards = self._guards()
        guards[:] = [guard for guard in guards if guard is not self]
        if not guards:
            for attribute in ("fuse_projections", GUARDED):
                self._parent.__dict__.pop(attribute, None)


class LoadGuard:
    """Refuses to load another weight into a layer while it has a delta on it: a site of its own.

    Args:
        name: the parameter that is shifted.
        module: the layer.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name, self._module = name, module

    def put(self) -> None:
        """Refuse from now on."""
        self._module.__dict__[LOAD] = self._load

    def _load(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if is_shifted(self._module) and self._replaces(state, f"{prefix}weight"):
            raise AttachError(
                f"{self._name}: a weight cannot be loaded while a delta is on it",
                fix="detach the delta first, then load",
            )
        getattr(type(self._module), LOAD)(self._module, state, prefix, *rest)

    def _replaces(self, state: Mapping[str, Any], key: str) -> bool:
        """Tell whether a state holds another weight for the layer; of a quantized one it may hold several parts."""
        if quantized_weight(self._module) is not None:
            return any(other.startswith(key) for other in state)
        loaded = state.get(key)
        return loaded is not None and not is_there(self._module, loaded)

    def check(self, *, force: bool = False) -> None:
        """Accept every state: a guard holds no weight that others could have changed."""

    def read(self) -> None:
        """Read nothing: a guard needs no values to be taken off."""

    def restore(self) -> None:
        """Let weights be loaded again."""
        if getattr(self._module.__dict__.get(LOAD), "__self__", None) is self:
            self._module.__dict__.pop(LOAD, None)


def is_shifted(module: nn.Module) -> bool:
    """Tell whether a delta is on a layer."""
    if claim_of(module) is not None:
        return True
    shift: Any = (module.owner if isinstance(module, ExpertWeight) else module)._modules.get(SLOT)
    return shift is not None and (not isinstance(module, ExpertWeight) or shift.shift_of(module) is not None)


def is_there(module: nn.Module, loaded: Any) -> bool:
    """Tell whether a layer holds the very weight that is to be loaded."""
    weight = weight_of(module).data
    same = isinstance(loaded, Tensor) and loaded.shape == weight.shape and loaded.device.type != "meta"
    return same and weight.device.type != "meta" and torch.equal(weight, loaded.to(weight))
