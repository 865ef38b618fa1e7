"""Commands about the basis cache."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from svdiff_delta._text.printable import counted
from svdiff_delta.errors import CacheError, SelectionError

from . import devices, options
from .printing import echo, echo_json
from .progress import Bar
from .references import needs, open_reference, say

if TYPE_CHECKING:
    import torch

    from svdiff_delta import Base
    from svdiff_delta.format.parameter import Parameter
    from svdiff_delta.svd.cache import BasisCache, Kept

DAY = 86_400.0
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class Size(click.ParamType[int]):
    """A number of bytes, such as 500MB, 20G or 4GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", str(value).upper())
        if match is None or match[2] not in UNITS:
            self.fail(f"{value!r} is not a size; write it as 500MB, 20GB or 4GiB", param, ctx)
        return int(float(match[1]) * UNITS[match[2]])


@click.group()
def basis() -> None:
    """The singular vectors of a base, kept on disk.

    They lie in the folder `basis` of SVDIFF_HOME, by default the platform's cache folder.
    """


@basis.command()
@click.argument("base", metavar="BASE")
@click.argument("selectors", metavar="[SELECTOR]...", nargs=-1)
@devices.device("basis build", "Where to compute")
@click.option("--workers", type=click.IntRange(1), help="Weights at once [default: one a core; on a GPU 2 to 8].")
@options.allow_missing
@click.option("--two-sided", is_flag=True, help="Keep both factors: four times the disk, half the products.")
@options.as_json
@options.single_files
@options.quiet
def build(
    base: str,
    selectors: tuple[str, ...],
    device: str | None,
    workers: int | None,
    allow_missing: bool,
    two_sided: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compute the bases of BASE's weights, all or those that a SELECTOR names, and keep them.

    What is there already is not computed again, so an interrupted build can be repeated. Several processes with one
    SVDIFF_HOME, such as those of torchrun, share the work. In the end it says how many of the values in the files of
    the chosen components stand in weights that can be shifted: embeddings and biases do not.

    \b
        svdiff basis build tiny unet-ca
        torchrun --nproc_per_node 4 -m svdiff_cli basis build sd15
    """
    opened = open_reference(base)
    from svdiff_delta.svd.build import build_basis

    needs("torch", "torch")
    cache = _cache(two_sided=two_sided, device=devices.device_for("basis build", device))
    with Bar("computing bases", quiet=quiet or as_json) as bar:
        parameters = build_basis(
            opened, *selectors, allow_missing=allow_missing, cache=cache, progress=bar, workers=workers
        )
    _tell_built(opened, parameters, cache, as_json=as_json, quiet=quiet)


def _tell_built(
    base: Base, parameters: Mapping[str, Parameter], cache: BasisCache, *, as_json: bool, quiet: bool
) -> None:
    """Say what was kept, and how much of the base that covers.

    Raises:
        SelectionError: no weight has a basis.
        CacheError: not all could be kept.
    """
    from svdiff_delta.base_model.coverage import count_values, remarks

    keys = {parameter.fingerprint for parameter in parameters.values() if parameter.kind == "spectral"}
    if not keys:
        raise SelectionError(
            f"{base.path}: none of the {len(parameters)} weights that are chosen has singular values, all are norms",
            fix="choose others; norms are shifted without a basis",
        )
    kept = [path.stat().st_size for path in map(cache.path, keys) if path.is_file()]
    covered, values = count_values(base, parameters)
    if as_json:
        facts = {"folder": str(cache.root), "bases": len(kept), "bytes": sum(kept)}
        echo_json({**facts, "covered": covered, "values": values})
    for remark in remarks(base, parameters):
        say(f"note: {remark}", quiet=quiet or as_json)
    if not (quiet or as_json):
        echo(f"{counted(len(kept), 'basis', 'bases')}, {sum(kept):,} bytes in {cache.root}")
        echo(f"the chosen weights cover {covered:,} of {values:,} values ({covered / values:.1%})")
    if len(kept) < len(keys):
        raise CacheError(
            f"{cache.root}: {len(keys) - len(kept)} of {len(keys)} bases could not be kept",
            fix="free some space or mend the folder's rights, or set SVDIFF_HOME to another",
        )


@basis.command("ls")
@options.as_json
def list_(as_json: bool) -> None:
    """List what is kept, the one that was not used for longest first."""
    cache = _cache()
    entries = cache.entries()
    if as_json:
        rows = [{"file": str(entry.path), "bytes": entry.bytes, "used": entry.used} for entry in entries]
        echo_json({"folder": str(cache.root), "entries": rows})
        return
    for entry in entries:
        days = (time.time() - entry.used) / DAY
        echo(f"{entry.path.stem}  {entry.bytes:>13,} bytes  used {days:.1f} days ago")
    echo(_sum_of(entries, cache))


@basis.command()
@options.as_json
def verify(as_json: bool) -> None:
    """Read every entry, and name those that are damaged: they are computed again when they are needed."""
    cache = _cache()
    damaged = {str(path): reason for path, reason in cache.damaged()}
    entries = cache.entries()
    if as_json:
        echo_json({"folder": str(cache.root), "entries": len(entries), "damaged": damaged})
    else:
        for path, reason in damaged.items():
            echo(f"{path}: {reason}")
        echo(f"{counted(len(entries), 'entry', 'entries')}, {len(damaged)} damaged")
    if damaged:
        raise CacheError(
            f"{cache.root}: {len(damaged)} of {len(entries)} entries are damaged",
            fix="delete them, or leave it to the next command that needs them",
        )


@basis.command()
@click.option("--max-size", type=Size(), required=True, help="What may stay, such as 20GB.")
@options.dry_run
@options.as_json
@options.quiet
def prune(max_size: int, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Remove the entries that were not used for longest until the rest takes at most --max-size.

    \b
        svdiff basis prune --max-size 20GB
    """
    cache = _cache()
    removed = cache.prune(max_size, dry_run=dry_run)
    size = sum(entry.bytes for entry in removed)
    if as_json:
        rows = [str(entry.path) for entry in removed]
        echo_json({"folder": str(cache.root), "removed": rows, "bytes": size, "dry_run": dry_run})
    elif not quiet:
        verb = "would remove" if dry_run else "removed"
        echo(f"{verb} {counted(len(removed), 'entry', 'entries')}, {size:,} bytes, from {cache.root}")


def _cache(*, two_sided: bool = False, device: str | torch.device = "cpu") -> BasisCache:
    needs("torch", "torch")
    from svdiff_delta.svd.cache import BasisCache

    return BasisCache(two_sided=two_sided, device=device)


def _sum_of(entries: list[Kept], cache: BasisCache) -> str:
    return (
        f"{counted(len(entries), 'entry', 'entries')}, {sum(entry.bytes for entry in entries):,} bytes in {cache.root}"
    )
