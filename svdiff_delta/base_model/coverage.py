"""Compare the weight names of a base's files with those of its models' classes, and count what δ covers.

What a library only renames when it loads a model has a place (`live_names`). What it splits or merges has none, nor has
what the class calls otherwise for another reason: nothing says the kind of the one, and the files lack the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Final

from svdiff_delta.errors import BaseError
from svdiff_delta.format.dtypes import FLOATING
from svdiff_delta.format.entry import Entry

from .component import Component, aliases
from .kinds import class_kinds, class_shapes, whole_key
from .opened import Base
from .quantized import quantized

SHOWN: Final = 3
"""How many names a line shows."""

NORM_LEAVES: Final = ("weight", "gamma")
"""What a vector is called that may be a norm's weight; TensorFlow's is gamma. All others are biases and tables."""

SAVE_AGAIN: Final[Mapping[str, str]] = {
    "diffusers": "save_pretrained(NEW)",
    "transformers": "save_pretrained(NEW, save_original_format=False)",
}
"""How each library writes a model under the names of its class; transformers 5 writes the old names by itself."""


def strange_keys(component: Component) -> list[str]:
    """Return the keys of a component's files that could be a shifted weight's and are none that its class has.

    Raises:
        BaseError: the class is not known.
        MissingExtraError: diffusers or transformers is needed and not installed.
    """
    model, names = component.skeleton, component.names
    live = {**names.live, **names.parts} if names else {}
    changed = {*names.changed} if names else set[str]()
    known = {key for key, _ in model.named_parameters(remove_duplicate=False)} | {
        key for key, _ in model.named_buffers()
    }
    return [
        key
        for key, (_, entry) in sorted(component.location.items())
        if _could_be_shifted(key, entry) and key not in live and not (known.intersection(aliases(key)) - changed)
    ]


def lost_weights(base: Base) -> dict[str, tuple[int, ...]]:
    """Return the shapes of weights that can be shifted and that the files must hold under other names, by name.

    Where the files hold nothing that the class has no place for, what they lack is nowhere: tied, or made anew.

    Raises:
        BaseError, MissingExtraError: as `strange_keys`.
    """
    found: dict[str, tuple[int, ...]] = {}
    for slot, component in base.components.items():
        lacking = _lacking(component)
        if lacking and strange_keys(component):
            found |= {f"{slot}.{key}": shape for key, shape in lacking.items()}
    return found


def misnamed(base: Base) -> dict[str, str]:
    """Return why a weight of the files cannot be shifted, by name, where the class has it under another name.

    Raises:
        BaseError, MissingExtraError: as `strange_keys`.
    """
    found: dict[str, str] = {}
    for slot in {name.partition(".")[0]: None for name in lost_weights(base)}:
        component = base.components[slot]
        for key in strange_keys(component):
            found[f"{slot}.{key}"] = _why_no_place(component, key)
    return found


def _why_no_place(component: Component, key: str) -> str:
    change = component.names.changed.get(key) if component.names else None
    named = f"has no place in {component.class_name}, which names it otherwise"
    return f"{changed_words(component, change) if change else named}: {save_again(component)}"


def changed_words(component: Component, change: str) -> str:
    """Return in words why a weight that a library takes apart, or puts together with others, has no place."""
    place, library = f"has no place in {component.class_name}", component.library
    return f"{place}: {library} makes other weights of it on loading ({change})"


def lost_error(base: Base, names: Sequence[str]) -> BaseError:
    """Return the error that says which weights would be left out, all of one component, and what mends it."""
    slot = names[0].partition(".")[0]
    component = base.components[slot]
    mine = [name for name in names if name.startswith(f"{slot}.")]
    left = f"weight{'s' * (len(mine) > 1)} that can be shifted would be left out"
    mend = "use the unquantized base" if "quantization_config" in component.config else save_again(component)
    return BaseError(
        f"{base.path}: {places_line(slot, component)}; its class {_verb(component)}, so {len(mine)} {left}: "
        f"{_listed(mine)}",
        fix=f"{mend}, select others, or leave them out with `allow_missing=True`",
    )


def _verb(component: Component) -> str:
    changed = component.names.changed if component.names else {}
    otherwise = any(key in changed for key in strange_keys(component))
    return "has them split, merged or turned" if otherwise else "names them otherwise"


def save_again(component: Component) -> str:
    """Return how a component comes to be saved under the names of its class."""
    name = component.class_name
    return f"load it with `{name}.from_pretrained(FOLDER)` and save it again with `{SAVE_AGAIN[component.library]}`"


def places_line(slot: str, component: Component) -> str:
    """Return how many weights of a component's files have no place in its class, and the first of them."""
    strange = strange_keys(component)
    whole = sum(_could_be_shifted(key, entry) for key, (_, entry) in component.location.items())
    have = "has" if len(strange) == 1 else "have"
    return f"{len(strange)} of {whole} weights of {slot} {have} no place in {component.class_name}: {_listed(strange)}"


def remarks(base: Base, names: Iterable[str]) -> list[str]:
    """Return lines on what these parameters leave out: weights that have no place in a class, and stacked experts."""
    chosen = [*names]
    slots = {name.partition(".")[0]: None for name in chosen}
    parts = {slot: base.components[slot] for slot in slots}
    lines = [places_line(slot, part) for slot, part in parts.items() if strange_keys(part)]
    return lines + experts_lines(base, chosen)


def experts_lines(base: Base, names: Iterable[str]) -> list[str]:
    """Return one line for each component whose experts are stacked in a way not known, with the share that is covered.

    Raises:
        BaseError, MissingExtraError: as `strange_keys`.
    """
    chosen, lines = [*names], list[str]()
    for slot in {name.partition(".")[0]: None for name in chosen}:
        if not _stacked(base.components[slot]):
            continue
        covered, values = count_values(base, [name for name in chosen if name.startswith(f"{slot}.")])
        lines.append(
            f"the experts of {slot} are stacked in tensors of many matrices, which are not shifted: what is chosen "
            f"covers {covered / values:.1%} of its values"
        )
    return lines


def _stacked(component: Component) -> bool:
    """Tell whether a class has experts in tensors of more than two dimensions that nothing says the kind of."""
    slices = ((key, whole_key(key)) for key, _, _ in class_kinds(component.skeleton))
    known = {whole for key, whole in slices if key != whole and component.stored_parts(key)}
    stacked = (key for key, value in component.skeleton.named_parameters() if "expert" in key and value.ndim > 2)
    return any(key not in known for key in stacked)


def count_values(base: Base, names: Iterable[str]) -> tuple[int, int]:
    """Return how many values these parameters hold, and how many all tensors of their components do."""
    chosen = [*names]
    slots = {name.partition(".")[0]: None for name in chosen}
    whole = sum(prod(entry.shape) for slot in slots for _, entry in base.components[slot].location.values())
    return sum(prod(base.shape(name)) for name in chosen), whole


def _lacking(component: Component) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the class's shiftable weights that the files hold neither plain nor quantized, by key."""
    # A weight that is computed, as torch's parametrizations do, is no parameter, and no file has it.
    shapes = class_shapes(component.skeleton)
    return {
        key: shapes[key]
        for key, _, _ in class_kinds(component.skeleton)
        if key in shapes and not component.stored_parts(key)
        if not quantized(whole_key(key), component.dtypes, component.config)
    }


def _could_be_shifted(key: str, entry: Entry) -> bool:
    leaf = key.rpartition(".")[2]
    if entry.dtype not in FLOATING or not entry.shape:
        return False
    return leaf in NORM_LEAVES if len(entry.shape) == 1 else not leaf.endswith("bias")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
