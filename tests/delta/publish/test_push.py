"""Pushing a delta: what arrives, and what is kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.deltas import random_delta, saved
from support.hub import Hub
from support.pushes import CAT, DOG, LORA, TRAINED, refused, writes

from svdiff_delta import load, push
from svdiff_delta.errors import HubError, InputError
from svdiff_delta.format.file import dumps

# The Hub's library sends LFS files in a way that its HTTP client no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


# What arrives


def test_a_new_repository_has_delta_config_and_card(ours: Hub) -> None:
    done = push(DOG, "owner/dog")
    files = ours.files("owner/dog")
    assert files.keys() == {".gitattributes", "svdiff.safetensors", "config.json", "README.md"}
    assert files["svdiff.safetensors"] == dumps(DOG)
    assert files["README.md"].decode() == done.card
    assert done.files == {name: len(files[name]) for name in done.files}
    assert (done.created, done.changed, done.deleted, done.remarks) == (True, True, (), ())
    assert done.url == f"{ours.url}/owner/dog/commit/{done.revision}"
    assert ours.refs["owner/dog"]["main"] == done.revision
    assert "owner/dog" not in ours.private
    assert ours.summaries == ["Push a delta with svdiff"]


def test_the_config_says_what_is_there(simple: Hub) -> None:
    push(DOG, "owner/dog")
    assert json.loads(simple.files("owner/dog")["config.json"]) == {
        "format": "svdiff-delta",
        "version": 1,
        "library_name": "svdiff-delta",
        "weights": "svdiff.safetensors",
        "sha256": hashlib.sha256(dumps(DOG)).hexdigest(),
        "parameters": 4,
        "numbers": 23,
        "base": {
            "repository": "owner/base",
            "revision": "main",
            "components": {"text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel"},
        },
    }


def test_what_was_pushed_is_loaded(ours: Hub) -> None:
    push(DOG, "owner/dog")
    assert dumps(load("owner/dog")) == dumps(DOG)


def test_a_file_is_pushed_by_its_path(simple: Hub, tmp_path: Path) -> None:
    push(saved(DOG, tmp_path / "dog.safetensors"), "owner/dog")
    assert simple.files("owner/dog")["svdiff.safetensors"] == (tmp_path / "dog.safetensors").read_bytes()


def test_pictures_are_sent_under_other_names_and_without_exif(ours: Hub, picture: Path) -> None:
    push(DOG, "owner/dog", samples=[(picture, "a sks dog at night"), (picture, "a sks dog at sea")])
    files = ours.files("owner/dog")
    assert {"images/sample-1.png", "images/sample-2.png"} < files.keys()
    assert "url: images/sample-2.png" in files["README.md"].decode()
    assert not [raw for raw in files.values() if b"Anna" in raw]


def test_a_lora_copy_is_sent_as_it_is(ours: Hub, lora: Path) -> None:
    push(DOG, "owner/dog", lora=lora)
    files = ours.files("owner/dog")
    assert files[LORA] == lora.read_bytes()
    assert json.loads(files["config.json"])["lora"] == LORA
    assert f"`{LORA}` is a low-rank copy" in files["README.md"].decode()


def test_the_same_push_twice_changes_nothing(ours: Hub, picture: Path, lora: Path) -> None:
    first = push(DOG, "owner/dog", samples=[(picture, "a dog")], lora=lora)
    again = push(DOG, "owner/dog", samples=[(picture, "a dog")], lora=lora)
    assert (again.revision, again.changed, again.created) == (first.revision, False, False)
    assert len(ours.commits["owner/dog"]) == 2  # the first made the repository


def test_the_same_push_elsewhere_is_the_same_bytes(simple: Hub, picture: Path) -> None:
    push(DOG, "owner/dog", samples=[(picture, "a dog")])
    before = simple.files("owner/dog")
    del simple.commits["owner/dog"], simple.refs["owner/dog"]
    push(DOG, "owner/dog", samples=[(picture, "a dog")])
    assert simple.files("owner/dog") == before


def test_a_private_repository_is_made_private(simple: Hub) -> None:
    push(DOG, "owner/dog", private=True)
    assert "owner/dog" in simple.private
    push(CAT, "owner/dog", private=True)
    assert simple.files("owner/dog")["svdiff.safetensors"] == dumps(CAT)


def test_a_branch_that_is_not_there_is_made(simple: Hub) -> None:
    push(DOG, "owner/dog")
    push(CAT, "owner/dog", revision="v2")
    assert load("owner/dog").metadata.title == "dog"
    assert load("owner/dog@v2").metadata.title == "cat"
    push(DOG, "owner/dog@v2")
    assert load("owner/dog@v2").metadata.title == "dog"


def test_a_branch_of_a_new_repository_is_made(simple: Hub) -> None:
    push(DOG, "owner/dog", revision="v1")
    assert simple.files("owner/dog").keys() == {".gitattributes"}
    assert simple.files("owner/dog", "v1")["svdiff.safetensors"] == dumps(DOG)


def test_a_pull_request_leaves_the_main_branch(simple: Hub) -> None:
    push(DOG, "owner/dog")
    done = push(CAT, "owner/dog", create_pr=True)
    assert done.url == f"{simple.url}/owner/dog/discussions/1"
    assert load("owner/dog").metadata.title == "dog"
    assert load("owner/dog@refs/pr/1").metadata.title == "cat"


def test_the_message_of_the_commit_is_given(simple: Hub) -> None:
    push(DOG, "owner/dog", message="Better")
    assert simple.summaries == ["Better"]


def test_a_dry_run_sends_nothing_and_says_what_would_be_sent(simple: Hub, picture: Path) -> None:
    planned = push(DOG, "owner/dog", samples=[(picture, "a dog")], dry_run=True)
    assert not writes(simple)
    assert (planned.revision, planned.url, planned.changed, planned.created) == (None, None, None, True)
    done = push(DOG, "owner/dog", samples=[(picture, "a dog")])
    assert (planned.files, planned.card) == (done.files, done.card)


def test_a_dry_run_needs_no_token(simple: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert push(DOG, "owner/dog", dry_run=True).created


# What is kept


def test_what_the_owner_wrote_is_kept(simple: Hub) -> None:
    push(DOG, "owner/dog")
    files = simple.files("owner/dog")
    mine = (
        files["README.md"].replace(b"# dog", b"# My dog\n\nHe is good.").replace(b"- svdiff\n", b"- pets\n- svdiff\n")
    )
    simple.add("owner/dog", files | {"README.md": mine, "LICENSE": b"mine"})
    push(CAT, "owner/dog")
    card = simple.files("owner/dog")["README.md"]
    assert b"# My dog\n\nHe is good." in card
    assert b"- pets\n- svdiff\n" in card
    assert hashlib.sha256(dumps(CAT)).hexdigest().encode() in card
    assert simple.files("owner/dog")["LICENSE"] == b"mine"


def test_line_breaks_of_the_owner_are_kept(simple: Hub) -> None:
    push(DOG, "owner/dog")
    files = simple.files("owner/dog")
    simple.add("owner/dog", files | {"README.md": files["README.md"] + b"\r\nMine.\r\n"})
    push(CAT, "owner/dog")
    assert simple.files("owner/dog")["README.md"].endswith(b"\r\nMine.\r\n")


def test_a_licence_and_a_prompt_that_the_owner_changed_are_kept(simple: Hub) -> None:
    push(DOG, "owner/dog")
    files = simple.files("owner/dog")
    mine = (
        files["README.md"]
        .replace(b"creativeml-openrail-m", b"cc0-1.0")
        .replace(b"prompt: a photo", b"prompt: the photo")
    )
    simple.add("owner/dog", files | {"README.md": mine})
    card = push(CAT, "owner/dog").card
    assert "license: cc0-1.0" in card
    assert "instance_prompt: the photo of a sks dog" in card
    assert "Trained on: `the photo of a sks dog`" in card


def test_pictures_stay_until_others_come(simple: Hub, picture: Path) -> None:
    push(DOG, "owner/dog", samples=[(picture, "one"), (picture, "two")])
    assert "text: two" in push(CAT, "owner/dog").card
    assert "images/sample-2.png" in simple.files("owner/dog")
    done = push(CAT, "owner/dog", samples=[(picture, "three")])
    assert done.deleted == ("images/sample-2.png",)
    assert "images/sample-2.png" not in simple.files("owner/dog")
    assert "text: two" not in done.card


def test_a_picture_of_the_owner_stays(simple: Hub, picture: Path) -> None:
    push(DOG, "owner/dog")
    simple.add("owner/dog", simple.files("owner/dog") | {"images/mine.png": b"PNG"})
    push(DOG, "owner/dog", samples=[(picture, "one")])
    assert "images/mine.png" in simple.files("owner/dog")


def test_a_lora_copy_of_another_delta_is_taken_away(simple: Hub, lora: Path) -> None:
    push(DOG, "owner/dog", lora=lora)
    assert LORA not in push(DOG, "owner/dog").deleted
    assert json.loads(simple.files("owner/dog")["config.json"])["lora"] == LORA
    done = push(CAT, "owner/dog")
    assert done.deleted == (LORA,)
    assert "is a copy of another delta, and is taken away" in done.remarks[0]
    assert LORA not in simple.files("owner/dog")


def test_what_was_written_meanwhile_is_not_lost(simple: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from svdiff_delta.publish import push as module

    push(DOG, "owner/dog")
    look = module.look

    def look_and_write(*arguments: Any) -> Any:
        found = look(*arguments)
        simple.add("owner/dog", simple.files("owner/dog") | {"mine": b""})
        return found

    monkeypatch.setattr(module, "look", look_and_write)
    assert "it was changed meanwhile (412" in refused(HubError, CAT, "owner/dog")
    assert "mine" in simple.files("owner/dog")


# The licence


def test_the_licence_is_that_of_the_base(simple: Hub) -> None:
    assert "license: creativeml-openrail-m" in push(DOG, "owner/dog").card


def test_a_licence_that_is_given_counts_first(simple: Hub) -> None:
    push(DOG, "owner/dog")
    assert "license: mit" in push(DOG, "owner/dog", license="mit").card


def test_a_licence_that_the_delta_names_counts_before_the_bases(simple: Hub) -> None:
    said = DOG.metadata.with_modelspec("license", "CC-BY-4.0")
    assert "license: cc-by-4.0" in push(random_delta(1, said), "owner/dog").card


def test_a_licence_of_its_own_keeps_name_and_link(simple: Hub) -> None:
    head = b"---\nlicense: other\nlicense_name: flux\nlicense_link: LICENSE.md\n---\n"
    simple.add("owner/base", {"README.md": head})
    card = push(DOG, "owner/dog").card
    assert "license: other\nlicense_name: flux\n" in card
    assert "license_link: https://huggingface.co/owner/base/blob/main/LICENSE.md" in card


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"README.md": b"# base\n"}, "the card of owner/base names none"),
        ({"a": b""}, "has no README.md"),
        ({"README.md": b"---\na: [\n---\n"}, "its metadata are broken"),
        ({"README.md": b"---\nlicense: \xff\n---\n"}, "it is no text"),
        (None, "no such repository"),
    ],
)
def test_without_a_licence_one_has_to_be_given(simple: Hub, files: dict[str, bytes] | None, reason: str) -> None:
    if files is None:
        del simple.commits["owner/base"]
    else:
        simple.add("owner/base", files)
    message = refused(InputError)
    assert "the licence could not be taken from the base" in message
    assert reason in message
    assert "name one with `license`" in message
    assert not writes(simple)
    assert push(DOG, "owner/dog", license="mit").changed


def test_a_base_that_is_embedded_has_no_card_with_a_licence(simple: Hub) -> None:
    metadata = replace(TRAINED, base=replace(TRAINED.base, repository="tiny", revision=None))
    assert "name one with `license`" in refused(InputError, random_delta(1, metadata), "owner/dog")
    assert "base_model" not in push(random_delta(1, metadata), "owner/dog", license="cc-by-4.0").card


@pytest.mark.parametrize("given", ["", " ", "a\nb"])
def test_a_licence_that_is_none_is_refused(simple: Hub, given: str) -> None:
    assert "name one of the Hub's identifiers" in refused(InputError, license=given)


def test_a_licence_that_the_hub_does_not_know_is_said(simple: Hub) -> None:
    assert "the Hub refused this (Invalid metadata in README.md. - " in refused(HubError, license="No Such Licence")


# The base


def test_a_base_that_the_delta_does_not_name_has_to_be_named(simple: Hub) -> None:
    unnamed = random_delta(1, replace(TRAINED, base=replace(TRAINED.base, repository=None, revision=None)))
    assert 'name it with `base_model="owner/repo"`' in refused(InputError, unnamed, "owner/dog")
    assert "base_model: owner/base" in push(unnamed, "owner/dog", base_model="owner/base").card


@pytest.mark.parametrize("name", ["base", "/owner/base", "owner/base/unet", "../base", "owner/ba se"])
def test_a_base_model_has_the_name_of_a_repository(simple: Hub, name: str) -> None:
    assert "write it as owner/repo" in refused(InputError, base_model=name)


def test_a_base_without_an_owner_is_on_no_hub(simple: Hub) -> None:
    legacy = random_delta(1, replace(TRAINED, base=replace(TRAINED.base, repository="gpt2")))
    assert "names no repository of an owner" in refused(InputError, legacy, "owner/dog")
