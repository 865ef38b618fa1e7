"""Plan a bake: check base, deltas and disk before the first byte is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final, Literal, cast

from svdiff_delta._util.atomic import check_output
from svdiff_delta._util.paths import check_apart, check_links
from svdiff_delta.base_model.component import Component
from svdiff_delta.base_model.layout import PICKLE_SUFFIXES, is_index, part_folders, shard_names, variants
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import BaseError, InputError, OutputError
from svdiff_delta.format.container import header_bytes
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import FLOATING, VARIANT_DTYPES, Dtype
from svdiff_delta.format.entry import ITEM_SIZE
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.ops.combine import combine_parameters, note_weight
from svdiff_delta.ops.weights import WeightedDelta, weigh
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.prepare import Progress
from svdiff_delta.svd.verify import VerifiedBase, prepare_base, verify_base

WEIGHT_SUFFIXES: Final = PICKLE_SUFFIXES | {".safetensors", ".onnx", ".msgpack", ".h5", ".pb"}

TORCH_NAMES: Final[Mapping[str, str]] = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What torch and transformers call dtypes."""

Unchanged = Literal["copy", "hardlink", "symlink"]
"""How files that the bake does not change come to the output."""

LIBRARIES: Final = 400_000_000  # bytes that Python and torch take before they do anything
PER_NUMBER: Final = 24  # bytes: of two weights at a time, as stored and twice in float32


@dataclass(frozen=True)
class Item:
    """One file of the output.

    Attributes:
        source: the base's file.
        target: its path within the output; "." where the output is a file.
        slot: the component whose weights it holds and gets rewritten; None if it is taken as it is.
        settings: whether it is a component's configuration or index, in which a new dtype must be written.
        bytes: its size in the output.
        body: that of its tensors alone, where it is rewritten.
    """

    source: Path
    target: Path
    slot: str | None
    settings: bool
    bytes: int
    body: int = 0


@dataclass(frozen=True)
class Plan:
    """A bake that can begin.

    Attributes:
        base: the base.
        output: the folder or file to write.
        deltas: what is baked in.
        factors: the factor on each parameter of each of them.
        parameters: what is shifted, by sorted name, with the runs of all deltas.
        keys: parameter name by component and the base's own key.
        items: the files of the output.
        dtype: the dtype of all floating-point weights; None keeps the base's.
        unchanged: how files that are not changed come to the output.
        cache: where bases are kept.
    """

    base: Base
    output: Path
    deltas: Sequence[Delta]
    factors: Sequence[Mapping[str, float]]
    parameters: dict[str, Parameter]
    keys: dict[tuple[str, str], str]
    items: Sequence[Item]
    dtype: Dtype | None
    unchanged: Unchanged
    cache: BasisCache

    @property
    def bytes(self) -> int:
        """What the output takes on the disk, without what is linked."""
        return sum(item.bytes for item in self.items if item.slot or item.settings or self.unchanged == "copy")

    @property
    def memory(self) -> int:
        """About how many bytes of memory are needed at most."""
        sizes = [PER_NUMBER * prod(p.shape) + 8 * p.size**2 for p in self.parameters.values() if p.kind == "spectral"]
        return LIBRARIES + max(sizes, default=0)

    @property
    def missing(self) -> list[str]:
        """The parameters whose bases are not in the cache, and would be computed first."""
        return [
            name
            for name, parameter in self.parameters.items()
            if parameter.kind == "spectral" and not self.cache.path(parameter.fingerprint).exists()
        ]

    @property
    def variant(self) -> str | None:
        """The variant in the names of the weight files, such as fp16."""
        files = (path.name for component in self.base.components.values() for path in component.files)
        return next(iter(variants(files)), None)

    @property
    def written_dtype(self) -> Dtype:
        """The number format of the output's largest tensor."""
        if self.dtype is not None:
            return self.dtype
        entries = [entry for part in self.base.components.values() for _, entry in part.location.values()]
        largest = max(entries, key=lambda entry: prod(entry.shape) if entry.dtype in TORCH_NAMES else -1)
        return cast("Dtype", largest.dtype)

    @property
    def loading(self) -> str:
        """The call that loads the output, where it takes more than the folder's name; else empty."""
        given, dtype, (first, *_) = [], self.written_dtype, self.base.components.values()
        if first.original is not None:
            return ""  # every program loads it as it loaded the base
        if self.variant:
            given.append(f'variant="{self.variant}"')
        if dtype in ("F16", "BF16") and (self.dtype or self.variant or self._narrow):
            given.append(f"dtype=torch.{TORCH_NAMES[dtype]}")
        name = "DiffusionPipeline" if self.base.pipeline else first.class_name
        return f'{name}.from_pretrained("{self.output}", {", ".join(given)})' if given and name else ""

    @property
    def _narrow(self) -> bool:
        """Whether a text encoder's configuration asks for half precision, which diffusers gives to no other part."""
        said = (part.config.get("dtype", part.config.get("torch_dtype")) for part in self.base.components.values())
        return any(name in ("float16", "bfloat16") for name in said)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person would take wrongly: files whose names say another number format than they hold."""
        said = VARIANT_DTYPES.get(self.variant or "")
        if self.dtype is None or said in (None, self.dtype):
            return ()
        return (f"the files are called {self.variant}, as in the base, and hold {self.dtype}",)

    @property
    def free(self) -> int:
        """The free bytes on the output's disk."""
        return shutil.disk_usage(self.output.absolute().parent).free

    def check_space(self) -> None:
        """Raise OutputError if the disk has not enough free space for the output."""
        if (free := self.free) < self.bytes:
            raise OutputError(
                f"{self.output}: needs {self.bytes:,} bytes, its disk has {free:,} left",
                fix='free some space, choose another output, or link what is not changed with `unchanged="symlink"`',
            )

    def check_identity(self) -> None:
        """Check every delta against the base's weights, without their bases.

        Raises:
            BaseMismatchError: a delta was made for another base.
            BaseError: a weight in the base cannot be used.
        """
        verify_base(self.base, self.deltas)

    def check_weights(self, progress: Progress | None = None) -> VerifiedBase:
        """Check every delta against the base's weights, and see to it that every basis is in the cache.

        Returns:
            The base as `write_bake` takes it.

        Raises:
            BaseMismatchError: a delta was made for another base.
            BaseError: a weight in the base cannot be used.
            TensorError: a δ is not projected on the runs of its basis.
        """
        return prepare_base(self.base, self.deltas, self.cache, progress)


def plan_bake(
    base: Base,
    deltas: Sequence[WeightedDelta],
    output: Path,
    *,
    dtype: Dtype | None = None,
    overwrite: bool = False,
    unchanged: Unchanged = "copy",
    cache: BasisCache | None = None,
) -> Plan:
    """Return what `bake` would do with these arguments; no weight is read.

    Raises:
        OutputError: the output exists, its folder does not, or the disk has too little space.
        InputError: there is no delta, a weight is not finite, or the output is the base, lies in it or holds it.
        SelectionError: a selector of a weight is unknown or matches nothing.
        BaseMismatchError: the deltas disagree about a weight, or two names shift the same one.
        BaseError: the base lacks a parameter, names a part outside of it, or holds links that lead out of it.
    """
    check_output(output, overwrite=overwrite, folder=not base.path.is_file())
    check_apart(output, base.files)
    pairs = weigh(deltas)
    if not pairs:
        raise InputError("there is nothing to bake", fix="give at least one delta")
    factors = [weight.by_name(delta.metadata) for delta, weight in pairs]
    parameters = combine_parameters([delta for delta, _ in pairs])
    keys: dict[tuple[str, str], str] = {}
    for name in parameters:
        slot, _, stored = base.stored_name(name).partition(".")
        note_weight(keys, (slot, stored), name)
        keys |= {(slot, key): name for key in base.twins(name)}  # tied weights stay tied
    rewritten = {*base.components} if dtype else {slot for slot, _ in keys}
    items = list(_items(base, rewritten, dtype))
    plan = Plan(
        base,
        output,
        [delta for delta, _ in pairs],
        factors,
        parameters,
        keys,
        items,
        dtype,
        unchanged,
        cache or BasisCache(),
    )
    for item in items if base.path.is_dir() else ():
        check_links(base.path, item.source, error=BaseError)
    plan.check_space()
    return plan


def _items(base: Base, rewritten: set[str], dtype: Dtype | None) -> Iterator[Item]:
    """Yield the files of the output: settings and tokenizers first, then weights."""
    if base.path.is_file():
        name, component = next(iter(base.components.items()))  # all of them are in the one file
        yield _weights_item(name, component, base.path, Path(), dtype)
        return
    if base.pipeline:
        for path in [base.path / "model_index.json", *sorted(base.path.glob("LICENSE*"))]:
            yield _settings_item(path, Path(path.name), edited=False)
        for name, part in part_folders(base.path).items():
            if name not in base.components:
                yield from _settings_of(part, Path(name), edited=False)
    for name, component in base.components.items():
        folder = Path(name) if base.pipeline else Path()
        if component.folder is not None:
            beside = {path.name for path in component.files}
            for item in _settings_of(component.folder, folder, edited=dtype is not None):
                # Files of other variants and pickles stay behind, and so do their indices.
                if not is_index(item.source.name) or shard_names(item.source) <= beside:
                    yield item
        for path in component.files:
            if name in rewritten:
                yield _weights_item(name, component, path, folder / path.name, dtype)
            else:
                yield Item(path, folder / path.name, None, False, path.stat().st_size)


def _settings_of(folder: Path, target: Path, *, edited: bool) -> Iterator[Item]:
    """Yield what a component's folder has beside its weights; nothing if there is no such folder."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and path.suffix not in WEIGHT_SUFFIXES and not path.name.startswith("."):
            yield _settings_item(path, target / path.name, edited=edited)


def _settings_item(path: Path, target: Path, *, edited: bool) -> Item:
    settings = edited and (path.name == "config.json" or is_index(path.name))
    return Item(path, target, None, settings, path.stat().st_size)


def _weights_item(slot: str, component: Component, path: Path, target: Path, dtype: Dtype | None) -> Item:
    layout, metadata, sizes = layout_of(component, path, dtype)
    body = sum(sizes[key] if key in sizes else prod(shape) * ITEM_SIZE[kind] for key, kind, shape in layout)
    return Item(path, target, slot, False, len(header_bytes(layout, metadata, sizes)) + body, body)


def layout_of(
    component: Component, path: Path, dtype: Dtype | None
) -> tuple[list[tuple[str, str, tuple[int, ...]]], dict[str, str], dict[str, int]]:
    """Return (key, dtype, shape) of a weight file's tensors in the output, in the file's order, and its metadata.

    And the bytes of those whose dtype is not in the specification's list, by key: they are passed on as they are.
    """
    header = component.headers[path]
    layout = [
        (key, dtype if dtype and entry.dtype in FLOATING else entry.dtype, entry.shape)
        for key, entry in header.entries.items()
    ]
    sizes = {key: item.stop - item.start for key, item in header.entries.items() if item.dtype not in ITEM_SIZE}
    return layout, header.metadata, sizes
