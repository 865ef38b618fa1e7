"""The public API of svdiff-delta: spectral shifts as files, and exact arithmetic on them.

Nothing is imported before it is used, so that the light half starts without torch and the command line at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ._util.warned import DeltaWarning as DeltaWarning
    from .baking.bake import Baked as Baked
    from .baking.bake import Loss as Loss
    from .baking.bake import bake as bake
    from .base_model.base import open_base as open_base
    from .base_model.opened import Base as Base
    from .conversion import convert as convert
    from .conversion.rebase import rebase as rebase
    from .conversion.result import Conversion as Conversion
    from .errors import AttachError as AttachError
    from .errors import BaseError as BaseError
    from .errors import BaseMismatchError as BaseMismatchError
    from .errors import CacheError as CacheError
    from .errors import DeltaError as DeltaError
    from .errors import FormatError as FormatError
    from .errors import HeaderError as HeaderError
    from .errors import HubError as HubError
    from .errors import InputError as InputError
    from .errors import MetadataError as MetadataError
    from .errors import MissingExtraError as MissingExtraError
    from .errors import OutputError as OutputError
    from .errors import SelectionError as SelectionError
    from .errors import SlowError as SlowError
    from .errors import TensorError as TensorError
    from .errors import TrainError as TrainError
    from .errors import VersionError as VersionError
    from .format.delta import Delta as Delta
    from .format.dtypes import StoredDtype as StoredDtype
    from .format.lineage import Lineage as Lineage
    from .format.lineage import Record as Record
    from .format.lineage import Source as Source
    from .format.metadata import BaseInfo as BaseInfo
    from .format.metadata import Metadata as Metadata
    from .format.parameter import Parameter as Parameter
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
    from .ops.weights import Weight as Weight
    from .ops.weights import WeightedDelta as WeightedDelta
    from .publish.push import Pushed as Pushed
    from .publish.push import push as push
    from .runtime import Handle as Handle
    from .runtime import attach as attach
    from .runtime import handle_of as handle_of
    from .svd.build import build_basis as build_basis
    from .svd.build import zero_delta as zero_delta
    from .svd.cache import BasisCache as BasisCache
    from .svd.cache import Kept as Kept
    from .svd.calibration import Calibration as Calibration
    from .svd.decomposition import Basis as Basis
    from .svd.energy import Energy as Energy
    from .svd.energy import OutputEnergy as OutputEnergy

_HOME: Final = {
    "AttachError": "errors",
    "Baked": "baking.bake",
    "Base": "base_model.opened",
    "BaseError": "errors",
    "BaseInfo": "format.metadata",
    "BaseMismatchError": "errors",
    "Basis": "svd.decomposition",
    "BasisCache": "svd.cache",
    "CacheError": "errors",
    "Calibration": "svd.calibration",
    "Conversion": "conversion.result",
    "Delta": "format.delta",
    "DeltaError": "errors",
    "DeltaWarning": "_util.warned",
    "Energy": "svd.energy",
    "FormatError": "errors",
    "Handle": "runtime",
    "HeaderError": "errors",
    "HubError": "errors",
    "InputError": "errors",
    "Kept": "svd.cache",
    "Lineage": "format.lineage",
    "Loss": "baking.bake",
    "Metadata": "format.metadata",
    "MetadataError": "errors",
    "MissingExtraError": "errors",
    "OutputEnergy": "svd.energy",
    "OutputError": "errors",
    "Parameter": "format.parameter",
    "Pushed": "publish.push",
    "Record": "format.lineage",
    "SelectionError": "errors",
    "SlowError": "errors",
    "Source": "format.lineage",
    "StoredDtype": "format.dtypes",
    "TensorError": "errors",
    "TrainError": "errors",
    "VersionError": "errors",
    "Weight": "ops.weights",
    "WeightedDelta": "ops.weights",
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
    "AttachError",
    "Baked",
    "Base",
    "BaseError",
    "BaseInfo",
    "BaseMismatchError",
    "Basis",
    "BasisCache",
    "CacheError",
    "Calibration",
    "Conversion",
    "Delta",
    "DeltaError",
    "DeltaWarning",
    "Energy",
    "FormatError",
    "Handle",
    "HeaderError",
    "HubError",
    "InputError",
    "Kept",
    "Lineage",
    "Loss",
    "Metadata",
    "MetadataError",
    "MissingExtraError",
    "OutputEnergy",
    "OutputError",
    "Parameter",
    "Pushed",
    "Record",
    "SelectionError",
    "SlowError",
    "Source",
    "StoredDtype",
    "TensorError",
    "TrainError",
    "VersionError",
    "Weight",
    "WeightedDelta",
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
