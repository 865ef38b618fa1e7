"""`svdiff train --push-to-hub`: what is sent after a run, what is refused before it, and what is left to do."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from support.commands import Outcome, svdiff
from support.hub import Hub

from svdiff_delta import load
from svdiff_delta.format.file import dumps
from svdiff_train.tiny import pictures_path

PROMPT = "a photo of a sks cat"
RUN = ("train", "tiny", pictures_path("black_cat"), "--prompt", PROMPT, "--select", "unet-ca-kv", "--steps", "1")


def run(output: Path, *more: str, name: str = "cat") -> Outcome:
    return svdiff(*map(str, RUN), "-o", str(output / f"{name}.safetensors"), "--license", "apache-2.0", *more)


def test_a_run_is_pushed_with_its_card_and_a_picture_of_what_was_learned(hub: Hub, token: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--push-to-hub=owner/cat")
    assert done.code == 0, done.err
    files = hub.files("owner/cat")
    assert files["svdiff.safetensors"] == dumps(load(tmp_path / "cat.safetensors"))
    assert "images/sample-1.png" in files
    assert f"text: {PROMPT}" in files["README.md"].decode()
    assert done.out.splitlines()[-1].startswith("pushed to owner/cat: see ")


@pytest.mark.slow
def test_without_a_name_it_goes_to_the_tokens_owner_called_as_the_output(hub: Hub, token: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--validate", "a sks cat at night", "--json", "--push-to-hub", name="night-cat")
    assert done.code == 0, done.err
    assert json.loads(done.out)["repository"] == "owner/night-cat"
    assert "text: a sks cat at night" in hub.files("owner/night-cat")["README.md"].decode()


def test_without_network_all_is_there_and_the_command_that_pushes_it_is_said(
    hub: Hub, token: str, tmp_path: Path
) -> None:
    hub.fail("POST .*/commit/")
    done = run(tmp_path, "--push-to-hub=owner/cat", "-q")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "is written, and was not pushed" in done.err
    hub.faults.clear()
    command = shlex.split(done.err[done.err.index("run `") + 5 :].rstrip("`\n"))
    assert command[:2] == ["svdiff", "push"]
    assert svdiff(*command[1:]).code == 0
    assert {"svdiff.safetensors", "images/sample-1.png"} <= hub.files("owner/cat").keys()


def test_a_push_is_refused_before_the_run_where_it_would_fail_after(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    done = run(tmp_path, "--push-to-hub=owner/cat")
    assert (done.code, "needs a token" in done.err) == (1, True)
    done = svdiff(*map(str, RUN), "-o", str(tmp_path / "cat.safetensors"), "--push-to-hub=owner/cat")
    assert (done.code, "name one with --license" in done.err) == (1, True)
    for more, why in (
        ((), "--license is of what is pushed: give --push-to-hub too"),
        (("--push-to-hub=cat",), "is no repository: write --push-to-hub=owner/repo"),
        (("--push-to-hub=owner/cat", "--method", "lora"), "the method lora makes none"),
    ):
        done = run(tmp_path, *more)
        assert (done.code, why in done.err) == (1, True)
    assert not [*tmp_path.glob("cat*")]
