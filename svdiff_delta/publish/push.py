"""Exchange on the Hub: push a delta to a repository with its card, pull one from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Final

from svdiff_delta._text.printable import printable
from svdiff_delta._text.tokens import strike
from svdiff_delta.errors import HubError, InputError, OutputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.hub_client.errors import LOGIN, client_errors, explain, guard_logs
from svdiff_delta.hub_client.reference import Reference, is_commit, read_reference
from svdiff_delta.io import load

from .card import LIBRARY, prompt_in
from .card_metadata import parse_card
from .contents import Contents, make_contents
from .license import CARD, Licence, licence_in, licence_of_base
from .private import check_private
from .publication import publication
from .remote import Remote, look

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

MESSAGE: Final = "Push a delta with svdiff"


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do.

    Attributes:
        repository: where to.
        revision: the new commit, or the one that was there already; None if nothing was sent.
        url: of the commit, or of the pull request.
        files: the bytes of each file by path.
        deleted: what is taken away.
        card: README.md.
        created: whether the repository is new.
        changed: whether anything there is another than before; None if nothing was sent.
        remarks: what to know about it.
    """

    repository: str
    revision: str | None
    url: str | None
    files: Mapping[str, int]
    deleted: tuple[str, ...]
    card: str
    created: bool
    changed: bool | None
    remarks: tuple[str, ...]


def push(
    delta: Delta | str | PathLike[str],
    repository: str,
    *,
    instance_prompt: str | None = None,
    license: str | None = None,  # noqa: A002 - what model cards call it
    base_model: str | None = None,
    samples: Sequence[tuple[str | PathLike[str], str]] = (),
    lora: str | PathLike[str] | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str = MESSAGE,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Publish a delta in a repository on the Hub, which is made if there is none.

    It sends `svdiff.safetensors`, `config.json` (by which the Hub counts downloads) and a card, `README.md`, made from
    what the delta says of itself, in one commit. On a next push the card keeps what its owner wrote. Everything is
    checked, and looked up, before anything is sent.

    Args:
        delta: what to publish, or its file.
        repository: `owner/repo`, or `owner/repo@branch`.
        instance_prompt: the prompt that calls what the delta was trained on; if not given that of the card which is
            there, or of the training.
        license: an identifier of the Hub, such as "apache-2.0"; if not given that of the card which is there, of the
            delta, or of the base's card.
        base_model: the base's repository, if the delta does not name it.
        samples: pictures (PNG or JPEG) with their prompts. They get names by number; text and EXIF are left out.
        lora: a copy as LoRA, a file that `convert(..., to="diffusers")` wrote.
        private: make the repository private, if it is new.
        revision: the branch, made if there is none; the main one if not given.
        create_pr: send it as a pull request.
        message: of the commit.
        overwrite: whether it may go into a repository of something else, such as a model, whose `config.json` is
            lost then.
        dry_run: check everything and say what would be sent.

    Raises:
        InputError: something cannot be published as it is, or no licence is known.
        HubError: no token, no right, or the Hub refused or was not reached.
        OutputError: the repository is of something else, or is public and should be private.
        FormatError: the delta is broken.
    """
    target = _target(repository, revision, create_pr=create_pr)
    if not dry_run:
        _check_token(target)
    opened = delta if isinstance(delta, Delta) else load(delta)
    # What is wrong on this side is found before the Hub is asked.
    check_private([message, license or ""], "the commit's message or licence")
    about = publication(
        opened, target.repository, prompt=instance_prompt, base_model=base_model, samples=samples, lora=lora
    )
    remote = look(target.repository, target.revision)
    _check_remote(target, remote, private=private, create_pr=create_pr, overwrite=overwrite)
    about = replace(about, prompt=instance_prompt or prompt_in(remote.card) or about.prompt)
    contents = make_contents(about, _licence(license, remote, opened, about.base_model), remote)
    planned = _planned(target, contents, remote)
    return planned if dry_run else _send(planned, target, contents, remote, private, create_pr, message)


def _target(text: str, revision: str | None, *, create_pr: bool) -> Reference:
    """Return the repository and branch to push to."""
    target = read_reference(text)
    if target.path or "/" not in target.repository:
        raise InputError(f"{text}: is no repository to push to", fix="write owner/repo, or owner/repo@branch")
    if revision is not None and target.revision not in (None, revision):
        raise InputError(f"{text}: and the revision {revision} are two", fix="name one branch")
    if revision is not None:
        target = read_reference(f"{target.repository}@{revision.replace('/', '%2F')}")
    if is_commit(target.revision):
        raise InputError(f"{target}: nothing can be pushed to a commit", fix="name a branch")
    if create_pr and target.revision not in (None, "main"):
        raise InputError(f"{target}: a pull request goes to the main branch", fix="leave the revision away")
    return target


def _check_token(target: Reference) -> None:
    from huggingface_hub import get_token

    if not get_token():
        raise HubError(f"{target}: pushing needs a token, and there is none", fix=LOGIN)


def _check_remote(target: Reference, remote: Remote, *, private: bool, create_pr: bool, overwrite: bool) -> None:
    if private and remote.exists and not remote.private:
        raise OutputError(
            f"{target}: is public already", fix="make it private on its settings page, or push without `private=True`"
        )
    if remote.foreign and not overwrite:
        raise OutputError(
            f"{target}: is a repository of something else, such as a model: it has {remote.foreign}",
            fix="name another repository, or push there nevertheless with `overwrite=True`",
        )
    if create_pr and not remote.exists:
        raise HubError(f"{target}: there is no such repository for a pull request", fix=f"check the name, and {LOGIN}")


def _licence(given: str | None, remote: Remote, delta: Delta, base: str | None) -> Licence:
    """Return the licence: as given, else that of the card which is there, of the delta, or of the base."""
    if given is not None:
        if not given.strip() or not given.isprintable():
            raise InputError(f"license: {given!r} is none", fix="name one of the Hub's identifiers, such as apache-2.0")
        return Licence(given)
    there = licence_in(parse_card(remote.card or "").fields)
    if there is not None:
        return there
    said = delta.metadata.modelspec.get("license", "")
    if said and all(char.isalnum() or char in "-." for char in said):
        return Licence(said.lower())
    if base is None:
        raise InputError(
            "no licence is known: the base has no card on the Hub", fix="name one with `license`, such as apache-2.0"
        )
    return licence_of_base(base)


def _planned(target: Reference, contents: Contents, remote: Remote) -> Pushed:
    card = contents.files[CARD]
    return Pushed(
        repository=target.repository,
        revision=None,
        url=None,
        files=contents.sizes(),
        deleted=contents.deleted,
        card=card.decode() if isinstance(card, bytes) else "",
        created=not remote.exists,
        changed=None,
        remarks=contents.remarks,
    )


def _send(
    planned: Pushed,
    target: Reference,
    contents: Contents,
    remote: Remote,
    private: bool,
    create_pr: bool,
    message: str,
) -> Pushed:
    from huggingface_hub import HfApi

    guard_logs()
    api = HfApi(library_name=LIBRARY)
    try:
        if not remote.exists:
            api.create_repo(target.repository, private=private or None)
        if not remote.branch or (not remote.exists and target.revision not in (None, "main")):
            api.create_branch(target.repository, branch=target.revision or "main", exist_ok=True)
        info = _commit(api, target, contents, remote, create_pr=create_pr, message=message)
    except client_errors() as error:
        raise explain(target, error, sending=True) from None
    url = printable(strike(str(info.pr_url or info.commit_url)))  # the server's words
    return replace(planned, revision=info.oid, url=url, changed=info.oid != remote.commit)


def _commit(
    api: HfApi, target: Reference, contents: Contents, remote: Remote, *, create_pr: bool, message: str
) -> CommitInfo:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=raw) for name, raw in contents.files.items()
    ]
    operations += [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in contents.deleted]
    return api.create_commit(
        target.repository,
        operations,
        commit_message=message,
        revision=target.revision,
        create_pr=create_pr,
        parent_commit=remote.commit,  # so that nothing that was written meanwhile is lost
    )
