"""What the README shows is so: its example runs, its commands parse, its table and its links are complete."""

from __future__ import annotations

import json
import re
import shlex
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from support.commands import svdiff
from support.hub import Hub, folder_files

from svdiff_cli.main import main
from svdiff_delta import load, open_base, push
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps
from svdiff_delta.svd.build import zero_delta
from svdiff_train.tiny import base_path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def fences(language: str, page: str = README) -> list[str]:
    """Return the contents of all fences in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    """Return every `svdiff` command line in a shell fence, and those in the text that have arguments."""
    shown = [line for text in fences("sh") for line in text.replace("\\\n", "").splitlines()]
    return [line for line in [*shown, *re.findall(r"`(svdiff [^`]* -[^`]*)`", README)] if line.startswith("svdiff ")]


def leaves(group: click.Group, path: str = "svdiff") -> Iterator[str]:
    """Yield every command of a group that is not a group itself, by its whole name."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path} {name}")
        else:
            yield f"{path} {name}"


def parse(group: click.Group, words: list[str], parent: click.Context | None = None) -> click.Context:
    """Let click parse a command line without running it."""
    command = group.get_command(click.Context(group), words[0])
    assert command is not None, f"there is no command {words[0]!r}"
    if isinstance(command, click.Group):
        return parse(command, words[1:], parent)
    return command.make_context(words[0], words[1:], parent)


def test_the_library_example_runs_offline_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the example needs the network")

    example, _ = fences("python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert load("dog.safetensors").metadata.base.repository == "tiny"
    with Image.open("both.png") as picture:
        assert picture.size == (64, 64)
    assert (tmp_path / "baked" / "model_index.json").is_file()


def test_the_library_example_has_about_ten_lines() -> None:
    example, _ = fences("python")
    lines = [line for line in example.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 12


def serve_dog(hub: Hub, folder: Path | None = None) -> None:
    """Put the embedded base, or another one, and a delta of it on a Hub, under the names of the example."""
    folder = folder or base_path()
    zero = zero_delta(open_base(folder), "mid-ca")
    shifted = {name: shift + np.float32(0.2) for name, shift in zero.items()}
    base = replace(zero.metadata.base, repository="alice/base", revision=hub.add("alice/base", folder_files(folder)))
    dog = Delta(shifted, replace(zero.metadata, base=base, training={"prompt": "a photo of a sks dog"}))
    hub.add("alice/dog", {"svdiff.safetensors": dumps(dog)})


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base as diffusers saves it in half precision: the text encoder's configuration says so."""
    folder = tmp_path_factory.mktemp("half") / "base"
    DiffusionPipeline.from_pretrained(base_path(), dtype=torch.float16).save_pretrained(folder)
    assert json.loads((folder / "text_encoder" / "config.json").read_text())["dtype"] == "float16"
    return folder


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pipelines take three steps where nothing else is said: whether lines run does not hang on it."""
    from diffusers import StableDiffusionPipeline

    paint = StableDiffusionPipeline.__call__
    monkeypatch.setattr(StableDiffusionPipeline, "__call__", partialmethod(paint, num_inference_steps=3))


def check_picture(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.size == (64, 64)


def test_from_the_name_of_a_repository_to_a_picture_in_five_lines(
    hub: Hub, few_steps: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, example = fences("python")
    assert len(list(filter(None, example.splitlines()))) == 5
    serve_dog(hub)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    check_picture(tmp_path / "dog.png")


def test_the_five_lines_paint_with_a_base_in_half_precision(
    hub: Hub, half: Path, few_steps: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, example = fences("python")
    serve_dog(hub, half)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="same dtype"):  # what diffusers loads of such a base by itself does not run
        DiffusionPipeline.from_pretrained("alice/base")("a dog")
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    check_picture(tmp_path / "dog.png")


def test_the_lines_of_a_card_paint_with_a_base_in_half_precision(
    hub: Hub, token: str, half: Path, few_steps: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_dog(hub, half)
    push(load("alice/dog"), "owner/dog", license="mit")
    (code,) = fences("python", hub.files("owner/dog")["README.md"].decode())
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "card", "exec"), {"__name__": "card"})
    check_picture(tmp_path / "picture.png")


def test_the_lines_of_a_card_run_as_they_stand(
    hub: Hub, token: str, few_steps: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_dog(hub)
    push(load("alice/dog"), "owner/dog", license="mit")
    card = hub.files("owner/dog")["README.md"].decode()
    (code,) = fences("python", card)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "card", "exec"), {"__name__": "card"})
    check_picture(tmp_path / "picture.png")
    (line,) = (line for text in fences("sh", card) for line in text.splitlines() if line.startswith("svdiff"))
    outcome = svdiff(*shlex.split(line)[1:], "--force", "--steps", "2")
    assert outcome.code == 0, outcome.err
    check_picture(tmp_path / "picture.png")


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_parses(line: str) -> None:
    parse(main, shlex.split(line, comments=True)[1:])


def test_a_wrong_command_line_would_be_noticed() -> None:
    with pytest.raises(click.UsageError):
        parse(main, ["scale", "dog.safetensors", "--by", "0.5", "-o", "half.safetensors"])
    with pytest.raises(AssertionError, match="no command"):
        parse(main, ["conjure", "dog.safetensors"])


def test_the_table_lists_every_command_and_no_other() -> None:
    assert sorted(re.findall(r"^\| `(svdiff [a-z ]+)` \| \S", README, re.MULTILINE)) == sorted(leaves(main))


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(fences("sh"))))
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "spec/v1/spec.md", "spec/CHANGELOG.md"]
)
def test_every_link_to_a_page_leads_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text("utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []
