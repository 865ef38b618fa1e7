"""Look up the contents of a repository on the Hub before something is pushed to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from svdiff_delta._util.json import JSON, strict_json
from svdiff_delta.errors import InputError, MetadataError
from svdiff_delta.format.metadata import FORMAT
from svdiff_delta.hub_client.download import CONFIG, WEIGHTS, fetch, find
from svdiff_delta.hub_client.errors import client_errors, explain
from svdiff_delta.hub_client.reference import Reference
from svdiff_delta.hub_client.watch import LARGEST_ANSWER, watched

from .license import CARD, LARGEST_CARD

LARGEST_CONFIG: Final = 2**20

_MODELS: Final = frozenset({CONFIG, "model_index.json", "adapter_config.json"})
_SUFFIXES: Final = frozenset({".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".gguf", ".onnx"})


@dataclass(frozen=True)
class Remote:
    """A repository as it is.

    Attributes:
        exists: whether there is one.
        branch: whether it has the branch that was asked for; else the rest is of its main branch.
        commit: the latest commit, if there is one.
        private: whether only its owner sees it.
        files: the paths of its files.
        card: its README.md.
        config: its config.json, if that is of a delta.
        foreign: a file that tells that it is of something else, such as a model; "" if there is none.
    """

    exists: bool = False
    branch: bool = True
    commit: str | None = None
    private: bool = False
    files: frozenset[str] = frozenset()
    card: str | None = None
    config: Mapping[str, JSON] = field(default_factory=dict)
    foreign: str = ""


def look(repository: str, revision: str | None) -> Remote:
    """Return what a repository holds.

    Args:
        repository: its name.
        revision: a branch; None for the main one.

    Raises:
        HubError: the Hub refused or was not reached.
        InputError: its README.md is no text.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    what, branch = Reference(repository, revision), True
    try:
        with watched(what, LARGEST_ANSWER):
            try:
                about = HfApi().model_info(repository, revision=revision)
            except RevisionNotFoundError:
                about, branch = HfApi().model_info(repository), False
    except GatedRepoError as error:
        raise explain(what, error) from None
    except RepositoryNotFoundError:
        return Remote()
    except client_errors() as error:
        raise explain(what, error, sending=True) from None
    files = frozenset(file.rfilename for file in about.siblings or ())
    here = Reference(repository, about.sha)
    config = _config(here) if CONFIG in files else {}
    return Remote(
        exists=True,
        branch=branch,
        commit=about.sha,
        private=bool(about.private),
        files=files,
        card=_card(here) if CARD in files else None,
        config=config if config.get("format") == FORMAT else {},
        foreign="" if config.get("format") == FORMAT else next(filter(_is_foreign, sorted(files)), ""),
    )


def _is_foreign(name: str) -> bool:
    return name != WEIGHTS and (name in _MODELS or PurePosixPath(name).suffix in _SUFFIXES)


def _card(here: Reference) -> str:
    path = fetch(find(Reference(here.repository, here.revision, CARD), largest=LARGEST_CARD))
    try:
        with path.open(encoding="utf-8", newline="") as stream:  # its line breaks stay
            return stream.read().removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise InputError(f"{here}: its README.md is not UTF-8", fix="mend it on the Hub") from None


def _config(here: Reference) -> Mapping[str, JSON]:
    """Return the fields of config.json; none if it is too large or no JSON object, as a delta's never is."""
    found = find(Reference(here.repository, here.revision, CONFIG))
    if found.size > LARGEST_CONFIG:
        return {}
    try:
        fields = strict_json(fetch(found).read_bytes(), CONFIG, MetadataError)
    except MetadataError:
        return {}
    return fields if isinstance(fields, dict) else {}
