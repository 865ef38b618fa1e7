"""Find where a weight stands in a file that goes by the original code's names of layers (spec, section 7.10)."""

from __future__ import annotations

from dataclasses import dataclass

from svdiff_delta.format.original_names import Original, original_of, turned

from .key_map import Names
from .low_rank_factors import LayerRows
from .sgm_names import SgmNames


@dataclass(frozen=True)
class Layer:
    """The layer of the original code that holds a weight.

    Attributes:
        name: its name, dotted.
        rows: the weight's rows in it; None if it holds nothing else, in the same order.
    """

    name: str
    rows: LayerRows | None = None


def original_layer(names: Names, component: str, path: str) -> Layer:
    """Return the layer of the original code that holds a transformer's weight; diffusers' own where it is called alike.

    Args:
        names: the base's names.
        component: the component that the weight is of.
        path: its layer's path in diffusers.
    """
    found = original_of(names.base.components[component].class_name, path)
    return Layer(path) if found is None else Layer(found.name, _rows(names, component, path, found))


def _rows(names: Names, component: str, path: str, layer: Original) -> LayerRows | None:
    shapes = [names.base.shape(name) for part in layer.parts if (name := names.dotted(component, part))]
    index = layer.parts.index(path)
    swap = turned(layer, shapes[index]) if len(shapes) == len(layer.parts) else False
    if len(layer.parts) == 1 and not swap:
        return None
    rows = [shape[0] for shape in shapes]
    start = sum(rows[:index])
    return LayerRows(start, start + rows[index], sum(rows), swap)


def sgm_of(names: Names) -> SgmNames:
    """Return the original names of a UNet's layers."""
    return SgmNames(names.paths("unet"))
