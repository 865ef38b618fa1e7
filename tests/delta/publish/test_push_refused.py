"""Pushing a delta: what is refused, what goes wrong on the way, and that nothing private is in it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file
from support.deltas import random_delta, saved
from support.hub import TOKEN, Hub
from support.pushes import CAT, DOG, TRAINED, refused, writes

from svdiff_delta import push
from svdiff_delta.errors import HubError, InputError, OutputError
from svdiff_delta.format.file import dumps
from svdiff_delta.format.lineage import Lineage, Record, Source

# The Hub's library sends LFS files in a way that its HTTP client no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


# Privacy

PATHS = [
    "/home/anna/dog",
    "/Users/anna/x",
    "see C:\\Users\\anna",
    "~/pictures/dog",
    "/tmp/run-1/x",
    "file:///mnt/data/x",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("place", ["training", "modelspec", "foreign", "lineage title"])
def test_a_local_path_in_the_metadata_is_refused(simple: Hub, path: str, place: str) -> None:
    metadata = {
        "training": replace(TRAINED, training={"images": path}),
        "modelspec": TRAINED.with_modelspec("description", path),
        "foreign": replace(TRAINED, foreign={"ss_output": path}),
        "lineage title": TRAINED.with_title(path),
    }[place]
    message = refused(InputError, random_delta(1, metadata, title=metadata.title), "owner/dog")
    assert "the delta's metadata: names the local path" in message
    assert not simple.asked


def test_the_home_folder_is_refused_wherever_it_is(
    simple: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/odd/anna")
    assert "names the local path" in refused(InputError, instance_prompt="in /odd/anna/pictures")


def test_addresses_and_fractions_are_no_paths(simple: Hub) -> None:
    text = "see https://example.org/home/dog, 3/4 and and/or; a/home/b"
    assert push(random_delta(1, TRAINED.with_modelspec("description", text)), "owner/dog").changed


def test_a_lora_copy_that_names_a_path_is_refused(simple: Hub, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"a.lora_A.weight": np.zeros((1, 1), "f4")}, path, {"ss_dataset": "/home/anna/pictures"})
    assert "names the local path /home/anna/pictures" in refused(InputError, lora=path)


@pytest.mark.parametrize("secret", ["/content/drive/MyDrive/x", "\\\\server\\share", "hf_" + "aB3" * 11, "$HOME/x"])
@pytest.mark.parametrize("place", ["title", "arguments", "source", "base", "extra", "class", "name", "lora key"])
def test_what_is_private_is_found_in_every_string(simple: Hub, tmp_path: Path, secret: str, place: str) -> None:
    digest = "ab" * 32
    record = Record("add", {"note": [{"deep": secret}]} if place == "arguments" else {}, (digest,))
    sources = {digest: Source(digest, secret if place == "source" else None, None, None, {})}
    base = replace(TRAINED.base, extra={secret: 1} if place == "base" else {})
    base = replace(base, components={**base.components, "vae": secret if place == "class" else ""})
    metadata = replace(
        TRAINED, lineage=Lineage(record, sources), base=base, extra={"x": {"y": secret}} if place == "extra" else {}
    )
    parameters = dict(TRAINED.parameters)
    if place == "name":
        parameters[f"unet.{secret}"] = parameters.pop(min(parameters))
    delta = random_delta(1, replace(metadata, parameters=parameters), title=secret if place == "title" else "dog")
    lora = tmp_path / "lora.safetensors"
    save_file({f"{secret}.lora_A": np.zeros((1, 1), "f4"), "b.lora_B": np.zeros((1, 1), "f4")}, lora)
    message = refused(InputError, delta, "owner/dog", lora=lora if place == "lora key" else None)
    assert "which would be published: take it out" in message
    assert "aB3aB3" not in message
    assert not simple.asked


def test_what_is_private_in_a_commits_message_is_refused(simple: Hub) -> None:
    assert "names the local path /kaggle/working/x" in refused(InputError, message="from /kaggle/working/x")
    assert not simple.asked


def test_what_the_owner_published_before_is_no_hindrance_and_what_is_new_is(simple: Hub) -> None:
    card = "---\nlicense: mit\n---\n# dog\n\nPut it into ~/deltas/dog.\n"
    simple.add("owner/dog", {"README.md": card.encode()})
    assert push(DOG, "owner/dog").changed
    assert b"~/deltas/dog" in simple.files("owner/dog")["README.md"]


def test_what_a_bases_card_says_of_its_licence_is_looked_through_too(simple: Hub) -> None:
    simple.add("owner/base", {"README.md": b"---\nlicense: other\nlicense_name: /home/anna/x\n---\n"})
    assert "README.md: names the local path /home/anna/x" in refused(InputError)
    assert not writes(simple)


def test_nothing_of_this_machine_is_sent(simple: Hub, picture: Path, tmp_path: Path, lora: Path) -> None:
    push(saved(DOG, tmp_path / "dog.safetensors"), "owner/dog", samples=[(picture, "a dog")], lora=lora)
    sent = b"".join(simple.files("owner/dog").values())
    for secret in (TOKEN, str(tmp_path), str(Path.home()), "Anna", tmp_path.name):
        assert secret.encode() not in sent


# What cannot be


def test_without_a_token_it_is_said_what_to_do(simple: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    message = refused(HubError)
    assert (
        message == "owner/dog: pushing needs a token, and there is none: log in with `hf auth login`, or set HF_TOKEN"
    )
    assert not simple.asked


def test_a_token_that_the_hub_does_not_know_is_said(simple: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_Unknown")
    assert "the Hub does not accept the token (401" in refused(HubError)


def test_without_a_right_it_is_said(simple: Hub) -> None:
    message = refused(HubError, DOG, "other/dog")
    assert "the token has no right to do this (403: You don't have the rights" in message
    assert "name a repository of your own" in message


def test_without_a_right_to_a_repository_that_is_there_it_is_said(ours: Hub) -> None:
    ours.add("other/dog", {"README.md": b"# dog\n"})
    assert "the token has no right to do this (403" in refused(HubError, DOG, "other/dog")
    assert ours.files("other/dog") == {"README.md": b"# dog\n"}


def test_without_a_network_it_is_said(cache: Path, token: str) -> None:
    assert refused(HubError) == "owner/dog: the Hub was not reached: go online without HF_HUB_OFFLINE"


def test_a_public_repository_does_not_pass_for_a_private_one(simple: Hub) -> None:
    push(DOG, "owner/dog")
    simple.asked.clear()
    assert "is public already: make it private on its settings page" in refused(OutputError, private=True)
    assert not writes(simple)


def test_a_repository_that_appears_meanwhile_is_not_pushed_to(simple: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from svdiff_delta.publish import push as module
    from svdiff_delta.publish.remote import Remote

    simple.add("owner/dog", {"mine": b""})
    monkeypatch.setattr(module, "look", lambda *_: Remote())
    assert "it was changed meanwhile (409" in refused(HubError, private=True)
    assert simple.files("owner/dog") == {"mine": b""}


@pytest.mark.parametrize("name", ["config.json", "model_index.json", "unet/model.safetensors", "a.ckpt"])
def test_a_repository_of_a_model_is_pushed_to_on_request_only(simple: Hub, name: str) -> None:
    simple.add("owner/dog", {name: b'{"model_type": "x"}', "README.md": b"# model\n"})
    message = refused(OutputError)
    assert f"is a repository of something else, such as a model: it has {name}" in message
    assert "`overwrite=True`" in message
    assert not writes(simple)
    assert push(DOG, "owner/dog", overwrite=True).changed


@pytest.mark.parametrize("raw", [b"[", b"[]", b"\xff", b" " * (2**20 + 1)])
def test_a_config_that_is_none_is_of_something_else(simple: Hub, raw: bytes) -> None:
    simple.add("owner/dog", {"config.json": raw})
    assert "it has config.json" in refused(OutputError)


def test_a_delta_that_was_uploaded_by_hand_is_no_model(simple: Hub) -> None:
    simple.add("owner/dog", {"svdiff.safetensors": dumps(CAT), "README.md": b"# dog\n"})
    assert push(DOG, "owner/dog").changed


@pytest.mark.parametrize(
    ("repository", "options", "reason"),
    [
        ("dog", {}, "is no repository to push to"),
        ("owner/dog/svdiff.safetensors", {}, "is no repository to push to"),
        ("owner/../dog", {}, "names no repository"),
        ("owner/dog", {"revision": "../../x"}, "names no repository"),
        ("owner/dog@v1", {"revision": "v2"}, "name one branch"),
        ("owner/dog@" + "a" * 40, {}, "nothing can be pushed to a commit"),
        ("owner/dog@v1", {"create_pr": True}, "a pull request goes to the main branch"),
    ],
)
def test_a_target_that_cannot_be_is_refused(simple: Hub, repository: str, options: dict[str, Any], reason: str) -> None:
    assert reason in refused(InputError, DOG, repository, **options)
    assert not simple.asked


def test_a_name_that_no_repository_can_have_is_said(simple: Hub) -> None:
    assert "names no repository" in refused(HubError, DOG, "owner/-dog-")


def test_a_pull_request_needs_a_repository(simple: Hub) -> None:
    assert "there is no such repository for a pull request" in refused(HubError, create_pr=True)
    assert not writes(simple)


def test_pictures_are_checked_before_anything_is_asked(simple: Hub, tmp_path: Path) -> None:
    assert "could not be read" in refused(InputError, samples=[(tmp_path / "none.png", "a dog")])
    assert not simple.asked


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.write_bytes(b"\x80\x04."), "is not a safetensors file"),
        (lambda path: path.mkdir(), "there is no such file"),
        (lambda path: save_file({"a": np.zeros(1, "f4")}, path), "holds no LoRA"),
    ],
)
def test_a_lora_copy_that_is_none_is_refused(simple: Hub, tmp_path: Path, write: Any, reason: str) -> None:
    write(tmp_path / "lora")
    message = refused(InputError, lora=tmp_path / "lora")
    assert reason in message
    assert '`convert(..., to="diffusers")`' in message
    assert not simple.asked


def test_a_card_that_is_no_text_is_refused(simple: Hub) -> None:
    simple.add("owner/dog", {"README.md": b"\xff"})
    assert "its README.md is not UTF-8: mend it on the Hub" in refused(InputError)


def test_a_restricted_repository_is_said(simple: Hub) -> None:
    push(DOG, "owner/dog")
    simple.gated.add("owner/dog")
    assert "access to it is restricted" in refused(HubError, CAT, "owner/dog")


# What goes wrong on the way

STEPS = ["api/repos/create", "api/validate-yaml", "preupload", "objects/batch", "lfs/", "commit"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [
        (403, {}, "the token has no right to do this (403)"),
        (429, {"Retry-After": "30"}, "the Hub was asked too often (429): try again in 30 s"),
        (500, {}, "the Hub has a problem of its own (500): try again later"),
    ],
)
def test_a_step_that_fails_is_said(
    simple: Hub, step: str, status: int, headers: dict[str, str], reason: str, waits: list[float]
) -> None:
    simple.large = (".safetensors",)
    simple.fail(f"(POST|PUT) .*{step}", status=status, headers=headers)
    message = refused(HubError)
    if step == "api/validate-yaml":  # of which the Hub's library expects JSON
        reason = "the server does not answer as a Hub does"
    assert reason in message
    assert not {"svdiff.safetensors"} & simple.commits.get("owner/dog", {}).keys()


@pytest.mark.parametrize("step", ["preupload", "objects/batch", "lfs/"])
def test_a_step_that_fails_once_is_done_again(simple: Hub, step: str, waits: list[float]) -> None:
    simple.large = (".safetensors",)
    simple.fail(f"(POST|PUT) .*{step}", status=503, times=1)
    push(DOG, "owner/dog")
    assert waits == [1]
    assert simple.files("owner/dog")["svdiff.safetensors"] == dumps(DOG)


@pytest.mark.parametrize("step", ["api/models/owner/dog$", "commit"])
def test_a_connection_that_breaks_is_said(simple: Hub, step: str) -> None:
    simple.fail(step, "cut")
    message = refused(HubError)
    assert re.search(r"owner/dog: the connection to the Hub broke off \(\w+\): do it again", message)
