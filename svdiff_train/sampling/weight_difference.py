"""Full-weight results beside deltas: ΔW of a tuned model, and W + Σ wᵢ ΔWᵢ on a pipeline (paper, Fig. 8 and 11)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.base_model.matching import paired
from svdiff_delta.conversion.checkpoint_diff import compare
from svdiff_delta.conversion.dialect import Changes, Job, ShiftReader, WeightChange
from svdiff_delta.conversion.lazy_tensors import OpenedAdapter
from svdiff_delta.conversion.result import check_left_out
from svdiff_delta.conversion.route import resolve_route
from svdiff_delta.errors import AttachError, InputError
from svdiff_delta.format.metadata import KEY
from svdiff_delta.runtime.modules import candidates
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.prepare import Progress
from svdiff_delta.svd.projection import check_same_weights

ASK: Final = "name the folder of a tuned model, or make a delta of it with `convert(..., from_=...)`"
"""The mend where nothing tells what a file is."""


class Difference(Mapping[str, Tensor]):
    """ΔW = W_tuned − W by parameter name, sorted: each in the weight's own shape, float64 on the CPU, read when asked.

    Args:
        what: what errors call it.
        base: the base it is the difference to.
        names: the parameters that differ.
        read: returns one ΔW.
        digests: returns the SHA-256 of each of its files, in order.
        whole: returns a tuned weight as it stands in its file; None where only differences are known, as of LoRA.
        remarks: what was assumed in reading it.
    """

    def __init__(
        self,
        what: str,
        base: Base,
        names: Sequence[str],
        read: Callable[[str], Tensor],
        digests: Callable[[], Sequence[str]],
        whole: Callable[[str], Tensor] | None = None,
        remarks: tuple[str, ...] = (),
    ) -> None:
        self.what, self.base, self.names, self.whole = what, base, tuple(sorted(names)), whole
        self.remarks = remarks
        self._read, self._digests = read, digests

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self._read(name).double()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def identify(self) -> str:
        """Return the SHA-256 of its file, or of those of its files together; they are read."""
        digests = list(self._digests())
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def open_difference(
    path: str | PathLike[str], base: Base, *, cache: BasisCache | None = None, progress: Progress | None = None
) -> Difference:
    """Open what a full fine-tuning, a file of ΔW, or a LoRA changes in a base.

    A tuned model counts with all its parameters that differ, biases and embeddings too; a weight that is the base's own
    rounded to the tuned model's number format does not differ.

    Args:
        path: a tuned pipeline's or model's folder, a file of ΔW, or an adapter that `svdiff convert` reads.
        base: the opened base.
        cache: where bases are kept; for formats whose reader needs it.
        progress: called with elements compared and in all.

    Raises:
        InputError: it changes nothing, or what it changes is not in the base; or it holds shifts, not weights.
        BaseMismatchError: it says itself that it is of another base.
        BaseError: it cannot be opened, or has nothing in common with the base.
    """
    place = Path(fspath(path))
    job = Job(base, cache or BasisCache(), progress=progress)
    if (place / "model_index.json").is_file() or (place / "config.json").is_file():
        return _of_model(place, job)
    opened = OpenedAdapter(place)
    header = opened.header()
    if header is not None and KEY in header.metadata:
        raise InputError(f"{place}: is a delta, no difference of weights", fix="open it with `load`")
    way = resolve_route(opened, base=base, ask=ASK)
    read = cast("Callable[[OpenedAdapter, Job], Changes]", way.read)  # what is no delta has one
    return _of_changes(place, read(opened, job), base)


def _of_model(path: Path, job: Job) -> Difference:
    base, tuned = job.base, paired(open_base(path), job.base)
    found = compare(tuned, job)
    check_left_out(found.left_out, str(path), allow_unmatched=False, hint=" (is it tuned from another base?)")
    if not found.changed:
        raise InputError(f"{path}: has the same weights as the base", fix="name a tuned model")
    slots = sorted({name.partition(".")[0] for name in found.changed})
    files = [file for slot in slots for file in tuned.components[slot].files]

    def read(name: str) -> Tensor:
        return tuned.read(name).double() - base.read(name).double()

    return Difference(
        str(path), base, found.changed, read, lambda: [_digest(file) for file in files], tuned.read, found.remarks
    )


def _of_changes(path: Path, changes: Changes, base: Base) -> Difference:
    check_left_out(changes.left_out, str(path), allow_unmatched=False, hint=changes.hint)
    check_same_weights(base, changes.expected, str(path))

    def read(name: str) -> Tensor:
        match changes.read(name):
            case WeightChange(change):
                return change
            case ShiftReader():
                raise InputError(f"{path}: holds shifts, not weights", fix="make a delta of it with `svdiff convert`")

    if not changes.kinds:
        raise InputError(f"{path}: changes nothing in the base", fix="name what differs from the base")
    read(min(changes.kinds))  # refuses shifts before anything is painted
    return Difference(
        str(path),
        base,
        [*changes.kinds],
        read,
        lambda: [sha256 for sha256, _ in changes.sources()],
        None,
        changes.remarks,
    )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def tuned_weights(pipeline: Any, weighted: Sequence[tuple[Difference, float]]) -> Iterator[None]:
    """Let a live pipeline have the weights W + Σ wᵢ ΔWᵢ while the block runs; then they are again W, bit for bit.

    Sums are in float64, in the order given, and rounded once to the live dtype. One whole tuned model with weight 1 on
    the base's own weights is set as it stands in its file. Copies of the weights that change are kept on the CPU.

    Args:
        pipeline: a live pipeline of the base.
        weighted: differences with their weights; those with weight 0 do nothing.

    Raises:
        AttachError: the pipeline has no such weight, or it is quantized or offloaded; nothing is changed then.
    """
    active = [(difference, float(weight)) for difference, weight in weighted if weight != 0]
    names = sorted({name for difference, _ in active for name in difference})
    live = _live_weights(pipeline, names)
    kept: dict[str, Tensor] = {}
    try:
        for name, tensor in live.items():
            terms = [(difference, weight) for difference, weight in active if name in difference]
            changed = _total(name, tensor, terms)
            kept[name] = tensor.to("cpu", copy=True)
            tensor.copy_(changed)
        yield
    finally:
        for name, original in kept.items():
            live[name].copy_(original)


def _total(name: str, live: Tensor, terms: Sequence[tuple[Difference, float]]) -> Tensor:
    """Return W + Σ wᵢ ΔWᵢ in the live dtype, on the CPU."""
    here = live.cpu()
    first, weight = terms[0]
    if len(terms) == 1 and weight == 1 and first.whole is not None:
        original = first.base.read(name)
        if torch.equal(original.to(here.dtype), here):
            return first.whole(name).to(here.dtype)
    total = here.double()
    for difference, factor in terms:
        total = total + factor * difference[name]
    return total.to(here.dtype)


def _live_weights(pipeline: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors of a live pipeline by the base's parameter names; writing to them changes it."""
    found = {}
    for name in names:
        slot, _, key = name.partition(".")
        tensor = _find(getattr(pipeline, slot, None), key)
        if tensor is None or tensor.device.type == "meta" or not tensor.is_floating_point():
            state = "is not on the live pipeline" if tensor is None else "is offloaded or quantized there"
            raise AttachError(f"{name}: {state}", fix="load the base as it is, and take off what else is on it")
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:
            raise AttachError(
                f"{name}: a delta is on it live, and its weight was dropped", fix='attach that with `mode="fused"`'
            )
        found[name] = tensor.detach()
    return found


def _find(model: object, key: str) -> Tensor | None:
    """Return a parameter or buffer of a model; None if it has none of this name."""
    if not isinstance(model, nn.Module):
        return None
    for each in candidates(model, key):
        if not isinstance(each, str):  # one of several experts whose weights are stacked
            continue
        path, _, attribute = each.rpartition(".")
        try:
            tensor = getattr(model.get_submodule(path), attribute)
        except AttributeError:
            continue
        if isinstance(tensor, Tensor):
            return tensor
    return None
