"""Open a base: a diffusers pipeline, one component, a transformers model or one file of weights."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

from svdiff_delta._util.reading import system_errors
from svdiff_delta.errors import BaseError, HubError, InputError
from svdiff_delta.hub_client.names import REPOSITORY, REVISION, is_repository, is_revision
from svdiff_delta.hub_client.reference import Reference, locate

from .component import check_suffix, open_model, open_pipeline
from .hub_model import find_model
from .open_original import open_single
from .opened import Base as Base


def open_base(
    path: str | PathLike[str],
    *,
    component: str | None = None,
    variant: str | None = None,
    repository: str | None = None,
    revision: str | None = None,
    fetch: bool = True,
    config: str | PathLike[str] | None = None,
    dequantize: bool = False,
) -> Base:
    """Open a base lazily; only its configuration and headers are read.

    Args:
        path: a diffusers pipeline's folder, a component's or transformers model's folder, a safetensors file in the
            layout of one of them, or `owner/repo[@revision][/path]` on the Hub. What exists as a path is one; `hf://`
            in front forces the Hub. Of a repository only safetensors files, configurations and tokenizer texts are
            fetched.
        component: what to call the one component of a folder or file that is not a pipeline.
        variant: which files to read, such as "fp16", where a model has several; components that lack it are read
            without.
        repository: the name to record in delta files, such as `owner/repo`; never a local path.
        revision: the commit to record.
        fetch: whether the Hub may be asked; else only its local cache is.
        config: where the configuration of a single file is that says none: a model's or pipeline's folder, or a
            repository on the Hub. Without it those of published models and of the class are tried, and one is taken
            only if all weights fit it. What a folder says by itself is not changed.
        dequantize: whether a single file that is quantized (GGUF, fp8) is read as float32 numbers, as its own library
            does; deltas say so. Without it such a file is refused.

    Raises:
        InputError: `repository` or `revision` is no name that the Hub allows.
        BaseError: nothing is there, only pickles or other variants are, the layout is another one, or the Hub refused;
            the message says how to mend it.
    """
    _check_names(repository, revision)
    with system_errors(path, BaseError):
        return _open(path, component, variant, repository, revision, fetch, config, dequantize)


def _open(
    path: str | PathLike[str],
    component: str | None,
    variant: str | None,
    repository: str | None,
    revision: str | None,
    fetch: bool,
    config: str | PathLike[str] | None,
    dequantize: bool,
) -> Base:
    place = _place(path)
    if isinstance(place, Reference):
        origin = find_model(place, variant, fetch=fetch)
        path, repository, revision = origin.path, repository or origin.repository, revision or origin.revision
    path = Path(path)
    if dequantize and not path.is_file():
        raise BaseError(f"{path}: is a folder, and only single files are dequantized", fix="use the unquantized base")
    if path.is_file():
        check_suffix(path)
        return Base(
            path, open_single(path, component, config, fetch=fetch, dequantize=dequantize), False, repository, revision
        )
    if (path / "model_index.json").is_file():
        return Base(path, open_pipeline(path, variant), True, repository, revision)
    if (path / "config.json").is_file():
        name, single = open_model(path, variant)
        return Base(path, {component or name: single}, False, repository, revision)
    raise BaseError(f"{path}: holds neither model_index.json nor config.json", fix="name a model's own folder")


def _check_names(repository: str | None, revision: str | None) -> None:
    """Refuse what no delta file may record, before anything is trained on it."""
    if repository is not None and not is_repository(repository):
        raise InputError(f"repository: {repository!r} is no name of the Hub", fix=f"give {REPOSITORY}")
    if revision is not None and not is_revision(revision):
        raise InputError(f"revision: {revision!r} is no name of the Hub", fix=f"give {REVISION}")


def _place(path: str | PathLike[str]) -> Path | Reference:
    try:
        place = locate(fspath(path))
    except HubError as error:
        raise BaseError(error.message, fix=error.fix) from None
    if isinstance(place, Path) and not place.exists():
        raise BaseError(
            f"{path}: there is no such file or folder",
            fix="name a local folder, owner/repo on the Hub, or the word tiny",
        )
    return place
