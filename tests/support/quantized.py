"""Real models quantized by the libraries themselves, what their weights are, and the same models in float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.format.delta import Delta
from svdiff_delta.svd.cache import BasisCache

from .models import base_delta
from .weights import normal

with warnings.catch_warnings():  # what libraries say of themselves when they are imported is theirs
    warnings.simplefilter("ignore")
    import bitsandbytes as bnb
    import gguf
    import torchao.quantization as ao
    from diffusers.hooks import apply_layerwise_casting
    from diffusers.quantizers.gguf import utils as gguf_utils
    from optimum import quanto

Quantize = Callable[[nn.Module, torch.dtype], None]
"""Quantizes all linear layers of a model in place, to compute in a dtype."""


def _torchao(config: Any, model: nn.Module, dtype: torch.dtype) -> None:
    ao.quantize_(model.to(dtype), config)


def _quanto(kind: Any, model: nn.Module, dtype: torch.dtype) -> None:
    quanto.quantize(model.to(dtype), weights=kind)
    quanto.freeze(model)


def gguf_linear(layer: nn.Linear, kind: str, dtype: torch.dtype) -> nn.Linear:
    """Return what diffusers makes of a linear layer of a GGUF file."""
    given = layer.weight.detach().float().numpy()
    type_ = gguf.GGMLQuantizationType[kind]
    packed = torch.from_numpy(gguf.quants.quantize(given, type_))
    made = gguf_utils.GGUFLinear(layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype)
    made.weight = gguf_utils.GGUFParameter(packed, quant_type=type_)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
    return made


def _gguf(kind: str, model: nn.Module, dtype: torch.dtype) -> None:
    _replaced(lambda layer: gguf_linear(layer, kind, dtype), model.to(dtype))


def _replaced(made: Callable[[nn.Linear], nn.Module], model: nn.Module) -> None:
    """Replace all linear layers but the last one, as transformers does."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name != "lm_head":
                parent._modules[name] = made(child)


def _four_bits(kind: str, nested: bool, model: nn.Module, dtype: torch.dtype) -> None:
    def made(layer: nn.Linear) -> nn.Module:
        options = {"compress_statistics": nested, "quant_type": kind}
        found = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype, **options
        )
        found.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, module=found, **options)
        found.bias = layer.bias
        return found.to("cpu")

    _replaced(made, model.to(dtype))


def _eight_bits(model: nn.Module, dtype: torch.dtype) -> None:
    def made(layer: nn.Linear) -> nn.Module:
        found = bnb.nn.Linear8bitLt(
            layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False
        )
        found.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        found.bias = layer.bias
        return found.to("cpu")

    _replaced(made, model.to(dtype))


def _layerwise(storage: torch.dtype, model: nn.Module, dtype: torch.dtype) -> None:
    apply_layerwise_casting(model, storage_dtype=storage, compute_dtype=dtype)


QUANTIZE: dict[str, Quantize] = {
    "bitsandbytes nf4": partial(_four_bits, "nf4", True),
    "bitsandbytes fp4": partial(_four_bits, "fp4", False),
    "bitsandbytes int8": _eight_bits,
    "torchao int8": partial(_torchao, ao.Int8WeightOnlyConfig()),
    "torchao float8": partial(_torchao, ao.Float8WeightOnlyConfig()),
    "quanto qint8": partial(_quanto, quanto.qint8),
    "quanto qint4": partial(_quanto, quanto.qint4),
    "quanto qfloat8_e4m3fn": partial(_quanto, quanto.qfloat8),
    "GGUF Q8_0": partial(_gguf, "Q8_0"),
    "GGUF Q4_0": partial(_gguf, "Q4_0"),
    "GGUF Q4_1": partial(_gguf, "Q4_1"),
    "GGUF Q5_0": partial(_gguf, "Q5_0"),
    "GGUF Q5_1": partial(_gguf, "Q5_1"),
    "GGUF BF16": partial(_gguf, "BF16"),
    "layerwise casting to float8_e4m3fn": partial(_layerwise, torch.float8_e4m3fn),
    "layerwise casting to float8_e5m2": partial(_layerwise, torch.float8_e5m2),
}
"""What quantizes a model, by the name that users know the scheme by."""

LAYERS = ("*.0.self_attn.q_proj.weight", "*.0.mlp.up_proj.weight", "*.0.mlp.down_proj.weight")
"""A square layer, one with more rows than columns, and one with fewer."""


def llama() -> Any:
    """A tiny language model whose weights float16 holds exactly."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=40, num_key_value_heads=1, attention_bias=True, **sizes)
    model = transformers.LlamaForCausalLM(config).requires_grad_(False).eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.data = (parameter.data + 0.1 * normal(*parameter.shape, seed=index)).half().float()
    return model


@cache
def case(folder: Path) -> tuple[Any, Base, Delta]:
    """The model, its files in a folder, and a delta on three of its layers."""
    model = llama()
    model.save_pretrained(folder)
    base = open_base(folder)
    return model, base, base_delta(base, *LAYERS, size=0.3)


def quantized(model: nn.Module, scheme: str, dtype: torch.dtype = torch.float32) -> Any:
    """A quantized copy."""
    twin = copy.deepcopy(model)
    QUANTIZE[scheme](twin, dtype)
    return twin.requires_grad_(False)


IDS = torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(2))


def run(model: Any, ids: Tensor = IDS) -> Tensor:
    """What the language model computes."""
    return torch.as_tensor(model(input_ids=ids).logits)


def values(module: nn.Module) -> Tensor:
    """A layer's weight in float64 by its library's own reader, one that is no part of what is tested where there is."""
    weight: Any = module._parameters["weight"]
    if isinstance(weight, bnb.nn.Params4bit | bnb.nn.Int8Params):
        return torch.as_tensor(
            module(torch.eye(module.in_features)) - (0 if module.bias is None else module.bias)
        ).T.double()
    if isinstance(weight, gguf_utils.GGUFParameter):
        return torch.from_numpy(gguf.quants.dequantize(weight.as_tensor().numpy(), weight.quant_type)).double()
    if hasattr(weight, "dequantize") and type(weight) not in (Tensor, nn.Parameter):
        return torch.as_tensor(weight.dequantize()).double()
    return weight.detach().double()


def bits(module: nn.Module) -> list[bytes]:
    """All that a layer stores for its weight, byte by byte."""
    weight: Any = module._parameters["weight"]
    if hasattr(weight, "__tensor_flatten__"):
        return [each for name in weight.__tensor_flatten__()[0] for each in _bytes(getattr(weight, name))]
    return _bytes(weight.as_tensor() if isinstance(weight, gguf_utils.GGUFParameter) else weight.detach())


def _bytes(tensor: Any) -> list[bytes]:
    if type(tensor) not in (Tensor, nn.Parameter):
        return [each for name in tensor.__tensor_flatten__()[0] for each in _bytes(getattr(tensor, name))]
    return [tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()]


def changed(matrix: Tensor, original: Tensor, shift: Tensor, start: int) -> Tensor:
    """ΔW in resident form by a float64 SVD of the original: of the quantized matrix, but for the tail from `start`."""
    U, sigma, Vt = torch.linalg.svd(original.double(), full_matrices=False)
    change = torch.maximum(shift, -sigma)
    gain = torch.where(torch.arange(len(sigma)) < start, change / sigma, 0.0)
    tail = torch.where(torch.arange(len(sigma)) < start, 0.0, change)
    rows, columns = matrix.shape
    main = U * gain @ (U.T @ matrix) if rows <= columns else (matrix @ Vt.T) * gain @ Vt
    return main + U * tail @ Vt


def shifted_copy(model: Any, packed: nn.Module, delta: Delta, shifts: dict[str, Tensor] | None = None) -> Any:
    """The quantized model in float64 with W̃ + ΔW in resident form; gradients flow to `shifts` where they are given."""
    truth = copy.deepcopy(model).double()
    for path, module in packed.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            layer = truth.get_submodule(path)
            layer.weight.data = values(module)
            if getattr(module, "bias", None) is not None:  # some schemes round it too
                layer.bias.data = module.bias.detach().double()
    for name, parameter in delta.metadata.parameters.items():
        path = name.partition(".")[2].removesuffix(".weight")
        layer, original = truth.get_submodule(path), model.get_submodule(path).weight
        basis = BasisCache().get(parameter.fingerprint)
        assert basis is not None
        given = torch.from_numpy(delta[name].astype(np.float64)) if shifts is None else shifts[name]
        weight = layer.weight.detach() + changed(layer.weight.detach(), original, given, basis.split[0])
        del layer.weight
        layer.weight = weight
    return truth


def relative(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())
