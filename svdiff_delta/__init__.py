"""The public API of svdiff-delta: spectral shifts as files, and exact arithmetic on them.

Nothing is imported before it is used, so that the light half starts without torch and the command line at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .baking.bake import Baked as Baked
    from .baking.bake import bake as bake
    from .base_model.base import Base as Base
    from .base_model.base import open_base as open_base
    from .conversion import convert as convert
    from .conversion.rebase import rebase as rebase
    from .conversion.result import Conversion as Conversion
    from .errors import DeltaError as DeltaError
    from .format.delta import Delta as Delta
    from .io import load as load
    from .io import pull as pull
    from .io import save as save
    from .ops.arithmetic import add as add
    from .ops.arithmetic import interpolate as interpolate
    from .ops.arithmetic import scale as scale
    from .ops.arithmetic import style_mix as style_mix
    from .ops.merge import merge as merge
    from .ops.quantize import quantize as quantize
    from .ops.select import select as select
    from .ops.truncate import truncate as truncate
    from .publish.push import push as push
    from .runtime import Handle as Handle
    from .runtime import attach as attach
    from .runtime import handle_of as handle_of
    from .svd.build import build_basis as build_basis
    from .svd.build import zero_delta as zero_delta
    from .svd.decomposition import Basis as Basis

_HOME: Final = {
    "Baked": "baking.bake",
    "Base": "base_model.base",
    "Basis": "svd.decomposition",
    "Conversion": "conversion.result",
    "Delta": "format.delta",
    "DeltaError": "errors",
    "Handle": "runtime",
    "add": "ops.arithmetic",
    "attach": "runtime",
    "bake": "baking.bake",
    "build_basis": "svd.build",
    "convert": "conversion",
    "handle_of": "runtime",
    "interpolate": "ops.arithmetic",
    "load": "io",
    "merge": "ops.merge",
    "open_base": "base_model.base",
    "pull": "io",
    "push": "publish.push",
    "quantize": "ops.quantize",
    "rebase": "conversion.rebase",
    "save": "io",
    "scale": "ops.arithmetic",
    "select": "ops.select",
    "style_mix": "ops.arithmetic",
    "truncate": "ops.truncate",
    "zero_delta": "svd.build",
}

__all__ = [
    "Baked",
    "Base",
    "Basis",
    "Conversion",
    "Delta",
    "DeltaError",
    "Handle",
    "__version__",
    "add",
    "attach",
    "bake",
    "build_basis",
    "convert",
    "handle_of",
    "interpolate",
    "load",
    "merge",
    "open_base",
    "pull",
    "push",
    "quantize",
    "rebase",
    "save",
    "scale",
    "select",
    "style_mix",
    "truncate",
    "zero_delta",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
