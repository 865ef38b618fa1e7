"""Commands about the basis cache."""

from __future__ import annotations

import json

import click

from . import options
from .progress import Bar
from .references import open_reference


@click.group()
def basis() -> None:
    """The singular vectors of a base, kept on disk."""


@basis.command()
@click.argument("base", metavar="BASE")
@click.argument("selectors", metavar="[SELECTOR]...", nargs=-1)
@options.as_json
@options.quiet
def build(base: str, selectors: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Compute the bases of BASE's weights, all or those that a SELECTOR names, and keep them.

    They are kept in the folder `basis` of SVDIFF_HOME, by default the platform's cache folder. What is there already
    is not computed again, so an interrupted build can be repeated.
    """
    opened = open_reference(base)
    from svdiff_delta.build import build_basis
    from svdiff_delta.cache import BasisCache

    cache = BasisCache()
    with Bar("computing bases", quiet=quiet or as_json) as bar:
        parameters = build_basis(opened, *selectors, cache=cache, progress=bar)
    spectral = [parameter for parameter in parameters.values() if parameter.kind == "spectral"]
    size = sum(cache.path(key).stat().st_size for key in {parameter.fingerprint for parameter in spectral})
    if as_json:
        click.echo(json.dumps({"folder": str(cache.root), "bases": len(spectral), "bytes": size}))
    elif not quiet:
        click.echo(f"{len(spectral)} bases, {size:,} bytes in {cache.root}")
