"""Store the frozen weights of a denoiser's linear layers in fewer bits, each scheme by its own library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import nn

from svdiff_delta.errors import MissingExtraError
from svdiff_train.settings.config import Quantization

Quantize = Callable[[Any, nn.Module, torch.dtype], None]
"""Quantizes the linear layers of a model in place by a library, to compute in a dtype."""


def _four_bits(library: Any, model: nn.Module, dtype: torch.dtype) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                parent._modules[name] = _four_bit_layer(library, child, dtype)


def _four_bit_layer(library: Any, layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    made = library.nn.Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype, quant_type="nf4"
    )
    made.weight = library.nn.Params4bit(layer.weight.data, requires_grad=False, module=made, quant_type="nf4")
    made.bias = layer.bias
    quantized: nn.Module = made.to(layer.weight.device)
    return quantized


def _torchao(config: str, library: Any, model: nn.Module, dtype: torch.dtype) -> None:  # noqa: ARG001
    library.quantize_(model, getattr(library, config)())


def _quanto(kind: str, library: Any, model: nn.Module, dtype: torch.dtype) -> None:  # noqa: ARG001
    others = [name for name, module in model.named_modules() if name and not isinstance(module, nn.Linear)]
    library.quantize(model, weights=getattr(library, kind), exclude=others)
    library.freeze(model)


class Scheme:
    """A way to store weights.

    Args:
        package: what has to be installed.
        module: what is imported of it.
        quantize: does it.
    """

    def __init__(self, package: str, module: str, quantize: Quantize) -> None:
        self.package, self.module, self._quantize = package, module, quantize

    def apply(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Quantize a model's linear layers in place.

        Raises:
            MissingExtraError: the library is not installed.
        """
        if find_spec(self.module.partition(".")[0]) is None:
            raise MissingExtraError(self.package, "quantized")
        from importlib import import_module

        try:
            library = import_module(self.module)
        except ImportError:  # another package of that name space is there
            raise MissingExtraError(self.package, "quantized") from None
        self._quantize(library, model, dtype)


SCHEMES: Final[Mapping[Quantization, Scheme]] = {
    "nf4": Scheme("bitsandbytes", "bitsandbytes", _four_bits),
    "int8": Scheme("torchao", "torchao.quantization", partial(_torchao, "Int8WeightOnlyConfig")),
    "float8": Scheme("torchao", "torchao.quantization", partial(_torchao, "Float8WeightOnlyConfig")),
    "qint8": Scheme("optimum-quanto", "optimum.quanto", partial(_quanto, "qint8")),
    "qint4": Scheme("optimum-quanto", "optimum.quanto", partial(_quanto, "qint4")),
    "qfloat8": Scheme("optimum-quanto", "optimum.quanto", partial(_quanto, "qfloat8")),
}
"""How weights can be stored, by the words of `TrainConfig.quantization`, as `docs/quantized.md` calls them."""


def quantize(model: nn.Module, quantization: Quantization, dtype: torch.dtype) -> None:
    """Quantize a model's linear layers in place; "no" leaves it as it is.

    Args:
        model: the denoiser.
        quantization: the scheme.
        dtype: what its layers compute in.

    Raises:
        MissingExtraError: the scheme's library is not installed.
    """
    if quantization != "no":
        SCHEMES[quantization].apply(model.requires_grad_(False), dtype)
