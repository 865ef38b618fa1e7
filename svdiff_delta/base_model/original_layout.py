"""One part of a single file as diffusers lays it out: for each of its weights, which numbers of the file these are.

The library's own converter says it: it is run on stand-ins without values (`recorded`). Nothing is copied; what the
converter only renames or takes a run of rows of is read where it stands, and the rest is put together when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from svdiff_delta._text.printable import shown
from svdiff_delta.errors import BaseError, DeltaError
from svdiff_delta.format.entry import ITEM_SIZE, Entry

from .live_names import LiveNames, known_keys
from .mapped_tensor import FOREIGN_DTYPES, TORCH_DTYPES, Made
from .original_files import how_to_convert
from .original_parts import Part, Tensors
from .original_settings import Settings, known_settings
from .recorded import Origin, Recorder, computed, replay, sources
from .skeleton import build_skeleton, tied_groups

GIVE_CONFIG: Final = "name a folder with the model's configuration as `config`"


@dataclass(frozen=True, eq=False)
class OriginalLayout:
    """Where the weights of one part of a single file are.

    Attributes:
        part: which part, and of what class.
        settings: the configuration of the class.
        entries: where each weight is, by its key in diffusers' layout.
        origins: how each is made of tensors of the file.
        stored: where the file has its own tensors, by its keys.
    """

    part: Part
    settings: Settings
    entries: Mapping[str, Entry]
    origins: Mapping[str, Origin] = field(repr=False)
    stored: Mapping[str, Entry] = field(repr=False)

    def sources(self, key: str) -> set[str]:
        """Return the keys of the file that hold a weight."""
        return sources(self.origins[key])

    def put(self, key: str, source: str, values: Tensor, target: Tensor) -> None:
        """Write a weight into a tensor of the file, where the file holds it.

        Args:
            key: the weight.
            source: the file's key.
            values: the weight's values.
            target: the tensor that the file has under that key, contiguous; the numbers of this weight are changed.
        """
        place, whole = self.entries[key], self.stored[source]
        if not isinstance(place, Made):
            first = (place.start - whole.start) // ITEM_SIZE[whole.dtype]
            target.view(-1)[first : first + values.numel()] = values.reshape(-1)
            return
        where = replay(self.origins[key], partial(_numbered, source, self.stored)).reshape(-1)
        mine = where >= 0
        target.view(-1)[where[mine]] = values.reshape(-1)[mine]


def _numbered(source: str, stored: Mapping[str, Entry], key: str) -> Tensor:
    """Return the number of each value of a tensor of the file, in order; -1 for those of all others."""
    shape = stored[key].shape
    return torch.arange(prod(shape)).view(shape) if key == source else torch.tensor(-1).expand(shape)


def lay_out(
    path: Path, part: Part, entries: Mapping[str, Entry], given: Callable[[Part], Settings | None]
) -> OriginalLayout:
    """Return where the weights of a part of a single file are, under a configuration that fits all of them.

    Args:
        path: the file, for errors.
        part: which part.
        entries: the file's tensors by key.
        given: the configuration that the caller names for a part; None where there is none.

    Raises:
        BaseError: no configuration is known that fits, or the caller's does not; the message says what differs.
        MissingExtraError: diffusers or transformers is needed and not installed.
    """
    mine = {key: entries[key] for key in part.keys(entries)}
    chosen = given(part)
    tried = [chosen] if chosen is not None else list(known_settings(part.class_name, _inner_shapes(part, mine)))
    reasons: list[str] = []
    for settings in tried:
        found = _try(path, part, mine, settings)
        if isinstance(found, OriginalLayout):
            return found
        reasons.append(found)
    told = f" ({reasons[0]})" if reasons else ""
    if chosen is not None:
        raise BaseError(f"{path}: its {part.slot} does not fit the configuration that was named{told}", fix=GIVE_CONFIG)
    raise BaseError(
        f"{path}: is a single file in the original layout of {part.family}, and its {part.slot}, a {part.class_name}, "
        f"has a size that no configuration is known of{told}",
        fix=f"{GIVE_CONFIG}; or {how_to_convert(part.reader)}",
    )


def _inner_shapes(part: Part, entries: Mapping[str, Entry]) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(part.front): entry.shape for key, entry in entries.items()}


def _try(path: Path, part: Part, entries: Mapping[str, Entry], settings: Settings) -> OriginalLayout | str:
    """Return the layout of a part under a configuration; the reason why it does not fit."""
    try:
        model = build_skeleton(f"{path}: {part.slot}", part.library, part.class_name, None, settings)
    except BaseError as error:
        return error.message
    reason = ""
    for front in dict.fromkeys((part.front, "")) if not part.text else (part.front,):
        recorder = Recorder()
        try:
            produced = _converted(part, entries, model, settings, recorder, strip=part.front if not front else "")
        except DeltaError as error:
            reason = reason or error.message
            continue
        unfit = _unfit(part, produced, model)
        if not unfit:
            return _layout(path, part, entries, settings, produced, recorder)
        reason = reason or unfit
    return reason


def _converted(
    part: Part, entries: Mapping[str, Entry], model: nn.Module, settings: Settings, recorder: Recorder, *, strip: str
) -> Tensors:
    """Return what the library makes of stand-ins for a part's tensors.

    Raises:
        BaseError: it fails, as on a file that lacks a part of the model.
    """
    tensors = {}
    for key, entry in entries.items():
        dtype = TORCH_DTYPES.get(entry.dtype) or FOREIGN_DTYPES.get(entry.dtype)
        if dtype is None:
            raise BaseError(f"{key} is {entry.dtype}, a packed number format")
        tensors[key.removeprefix(strip)] = recorder.stand_in(key, entry.shape, dtype)
    try:
        with recorder:
            if model.state_dict().keys() == tensors.keys():  # as `from_single_file` itself looks first
                return tensors
            made = part.convert(tensors, model, settings)
    except DeltaError:
        raise
    except Exception as error:  # noqa: BLE001 - of files that it does not know, a converter raises whatever happens
        reason = f"{type(error).__name__}: {shown(str(error))}"
        raise BaseError(f"diffusers' converter does not take it ({reason})") from None
    return {key: value for key, value in made.items() if isinstance(value, Tensor)}


def _unfit(part: Part, produced: Tensors, model: nn.Module) -> str:
    """Return what of a part does not fit a class; "" if all does."""
    live = LiveNames(model, produced).live
    shapes = {live[key]: tuple(produced[key].shape) for key in live}
    tied, parameters = tied_groups(model), dict(model.named_parameters(remove_duplicate=False))
    for key, value in parameters.items():
        if key not in shapes:
            if not any(twin in shapes for twin in tied.get(key, ())) and key not in part.may_lack:
                return f"{key} is not in the file"
        elif shapes[key] != tuple(value.shape):
            return f"{key} is {list(shapes[key])} in the file and {list(value.shape)} in the class"
    if part.library == "diffusers":
        known = known_keys(model)
        over = [key for key, value in produced.items() if key not in live and key not in known and value.ndim > 1]
        if over:
            return f"{over[0]} has no place in the class"
    return ""


def _layout(
    path: Path, part: Part, entries: Mapping[str, Entry], settings: Settings, produced: Tensors, recorder: Recorder
) -> OriginalLayout:
    model = build_skeleton(part.slot, part.library, part.class_name, None, settings)
    live = LiveNames(model, produced).live
    origins = {key: origin for key in live if (origin := recorder.origin(produced[key])) and sources(origin)}
    found = {key: _entry(path, key, produced[key], origins[key], entries, recorder) for key in origins}
    _check_once(path, found)
    return OriginalLayout(part, settings, found, origins, entries)


def _entry(
    path: Path, key: str, tensor: Tensor, origin: Origin, entries: Mapping[str, Entry], recorder: Recorder
) -> Entry:
    """Return where a weight stands in the file, or how it is put together."""
    own = recorder.viewed.get(id(tensor))
    if own is not None and tensor.is_contiguous() and not isinstance(entries[own], Made):
        size, start = ITEM_SIZE[entries[own].dtype], entries[own].start
        start += int(tensor.storage_offset()) * size
        return Entry(entries[own].dtype, tuple(tensor.shape), start, start + tensor.numel() * size)
    parts = [entries[each] for each in sorted(sources(origin))]
    place = Entry(
        parts[0].dtype, tuple(tensor.shape), min(each.start for each in parts), max(each.stop for each in parts)
    )
    return Made.of(place, partial(_put_together, path, key, origin, entries))


def _put_together(
    path: Path, key: str, origin: Origin, entries: Mapping[str, Entry], read: Callable[[Entry], Tensor]
) -> Tensor:
    if (action := computed(origin)) is not None:
        raise BaseError(
            f"{key}: diffusers computes this weight of others of {path} ({action}), and it cannot be put back",
            fix="leave it out, or convert the file to a folder and name that",
        )
    return replay(origin, lambda other: read(entries[other]))


def _check_once(path: Path, entries: Mapping[str, Entry]) -> None:
    """Raise BaseError if two weights are the same numbers of the file: a change of one would change the other."""
    places = sorted((entry.start, entry.stop, key) for key, entry in entries.items() if not isinstance(entry, Made))
    for (_, stop, first), (start, _, second) in pairwise(places):
        if start < stop:
            raise BaseError(
                f"{path}: diffusers makes both {first} and {second} of the same numbers",
                fix="convert the file to a folder and name that",
            )
