"""The unit of work: one row converted. A plain function of what can be pickled, for whatever runs it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from svdiff_delta._util.interrupted import interruptions_kept
from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion import convert, convert_directly
from svdiff_delta.conversion.respell import respell
from svdiff_delta.conversion.result import Conversion, DirectConversion
from svdiff_delta.errors import DeltaError
from svdiff_delta.svd.calibration import Calibration
from svdiff_delta.svd.decomposition import one_thread
from svdiff_delta.svd.energy import total_energy
from svdiff_train.calibrate import calibration_from

from .row import Row, hash_path

Status = Literal["converted", "passed over", "failed"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a row.

    Attributes:
        key: the row's key.
        row: the row as the manifest describes it.
        status: "converted", "passed over" (it was converted before), or "failed".
        error: why it failed.
        captured: the share of the change that was captured; in a low-rank copy of a delta, that is retained.
        retained: the share of the delta's change that the output holds, where one dialect became another through it.
        parameters: how many weights were converted.
        bytes: the size of the output.
        unchanged: weights in which nothing changes.
        left_out: what could not be carried over, with the reason.
        remarks: what was assumed, and what to know about the output.
        states: what the input and the base were: see `Row.states`.
        output_sha256: of the output; of one from an earlier run if the row failed now.
        seconds: how long it took.
    """

    key: str
    row: Mapping[str, Any]
    status: Status
    error: str | None = None
    captured: float | None = None
    retained: float | None = None
    parameters: int | None = None
    bytes: int | None = None
    unchanged: int | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    states: Mapping[str, str] = field(default_factory=dict)
    output_sha256: str | None = None
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """Return it as a line of a report has it: without what there is nothing to say of."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {}, ())}


def convert_one(
    row: Row | Mapping[str, Any], *, overwrite: bool = False, before: Mapping[str, Any] | None = None
) -> Result:
    """Convert one file as a row says. It never raises what is wrong with a file: that stands in the result.

    Torch computes on one thread, so that the result does not depend on how many such functions run side by side.

    Args:
        row: the row, or a mapping with the keys of a manifest.
        overwrite: whether an existing output may be replaced.
        before: the line of a report on this row. Where its output, input and base are still what it says, the row is
            passed over; an output that is what it says may be replaced.

    Raises:
        InputError: the mapping is no row.
    """
    row = row if isinstance(row, Row) else Row.parse(row)
    begun = time.monotonic()
    about: dict[str, Any] = {"key": row.key, "row": row.described()}
    stale = _intact(row, before)
    try:
        base = row.open_base() if row.base or not row.is_respelling() else None
        about["states"] = row.states(base)
        if before and stale and before.get("status") == "converted" and before.get("states") == about["states"]:
            kept = {name: before[name] for name in _KEPT if name in before}
            return Result(**about, status="passed over", **kept, output_sha256=stale)
        if base is None or row.is_respelling():
            with interruptions_kept():
                facts = _respelled(row, base, overwrite=overwrite or stale is not None)
            return Result(**about, status="converted", **facts, seconds=_since(begun))
        with interruptions_kept(), one_thread():
            found = _converted(row, base, overwrite=overwrite or stale is not None)
        return Result(**about, status="converted", **_facts(row, found), seconds=_since(begun))
    except DeltaError as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one file, it never stops the rest
        why = f"{type(error).__name__}: {error}"
    return Result(**about, status="failed", error=why, output_sha256=stale, seconds=_since(begun))


def _converted(row: Row, base: Base, *, overwrite: bool) -> Conversion | DirectConversion:
    """Convert through a delta, or directly where the row says so."""
    shared: dict[str, Any] = {
        "to": row.to,
        "base": base,
        "from_": row.from_,
        "output": row.place(row.output),
        "dtype": row.dtype,
        "rank": row.rank,
        "energy": row.energy,
        "max_rank": row.max_rank,
        "allow_unmatched": row.allow_unmatched,
        "component": row.component,
        "embeddings": row.embeddings,
        "made_on": row.open_made_on(),
        "title": row.title,
        "overwrite": overwrite,
    }
    if row.direct:
        return convert_directly(row.source(), **shared, min_energy=row.min_energy or 0.0)
    return convert(row.source(), **shared, min_energy=row.min_energy, calibration=_calibration(row, base))


def _respelled(row: Row, base: Base | None, *, overwrite: bool) -> dict[str, Any]:
    """Spell an adapter anew; return what a line says of it."""
    output = row.place(row.output)
    found = respell(
        row.source(),
        to=row.to,
        base=base,
        output=output,
        component=row.component,
        title=row.title,
        allow_unmatched=row.allow_unmatched,
        overwrite=overwrite,
    )
    return {
        "parameters": found.layers,
        "bytes": found.size,
        "left_out": dict(found.left_out),
        "remarks": found.remarks,
        "output_sha256": hash_path(output),
    }


def _calibration(row: Row, base: Base) -> Calibration | None:
    if row.calibrate is None:
        return None
    return calibration_from(row.place(row.calibrate), base, steps=row.calibrate_steps, device=row.device)


_KEPT: Final = ("captured", "retained", "parameters", "bytes", "unchanged", "left_out", "remarks", "seconds")
"""What the line on an earlier run says that still holds."""


def _intact(row: Row, before: Mapping[str, Any] | None) -> str | None:
    """Return the SHA-256 of the output if it is the one that a report tells of."""
    output, said = row.place(row.output), (before or {}).get("output_sha256")
    return said if said is not None and output.exists() and hash_path(output) == said else None


def _facts(row: Row, found: Conversion | DirectConversion) -> dict[str, Any]:
    output = row.place(row.output)
    return {
        "captured": found.captured,
        "retained": total_energy(found.retained.values()).captured if found.retained else None,
        "parameters": len(found.layers),
        "bytes": found.size if found.size is not None else output.stat().st_size,
        "unchanged": found.unchanged,
        "left_out": dict(found.left_out),
        "remarks": found.remarks,
        "output_sha256": hash_path(output),
    }


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 3)
