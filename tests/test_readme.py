"""What the README shows is so: its examples run, its commands parse, its table and its links are complete."""

from __future__ import annotations

import json
import re
import shlex
import socket
from functools import partialmethod
from pathlib import Path

import click
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from support.commands import svdiff
from support.hub import Hub
from support.pages import ROOT, command_lines, fences, leaves, links, parse, run_page
from support.serving import serve_dog

from svdiff_cli.main import main
from svdiff_delta import load, push
from svdiff_train.tiny import base_path

README = (ROOT / "README.md").read_text("utf-8")
HUB = (ROOT / "docs" / "hub.md").read_text("utf-8")


def test_all_of_it_runs_offline_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the example needs the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "svdiff_train").symlink_to(ROOT / "svdiff_train")  # as in a clone
    run_page(ROOT / "README.md", tmp_path)
    assert load(tmp_path / "dog.safetensors").metadata.base.repository == "tiny"
    check_picture(tmp_path / "both.png")
    for folder in ("baked", "sum-model"):
        assert (tmp_path / folder / "model_index.json").is_file()


def test_the_library_example_has_about_ten_lines() -> None:
    (example,) = fences(README, "python")
    lines = [line for line in example.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 12


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
    (example,) = fences(HUB, "python")
    assert len(list(filter(None, example.splitlines()))) == 5
    serve_dog(hub)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "hub.md", "exec"), {"__name__": "hub"})
    check_picture(tmp_path / "dog.png")


def test_the_five_lines_paint_with_a_base_in_half_precision(
    hub: Hub, half: Path, few_steps: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = fences(HUB, "python")
    serve_dog(hub, half)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="same dtype"):  # what diffusers loads of such a base by itself does not run
        DiffusionPipeline.from_pretrained("alice/base")("a dog")
    exec(compile(example, "hub.md", "exec"), {"__name__": "hub"})
    check_picture(tmp_path / "dog.png")


def test_the_lines_of_a_card_paint_with_a_base_in_half_precision(
    hub: Hub, token: str, half: Path, few_steps: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_dog(hub, half)
    push(load("alice/dog"), "owner/dog", license="mit")
    (code,) = fences(hub.files("owner/dog")["README.md"].decode(), "python")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "card", "exec"), {"__name__": "card"})
    check_picture(tmp_path / "picture.png")


def test_the_lines_of_a_card_run_as_they_stand(
    hub: Hub, token: str, few_steps: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_dog(hub)
    push(load("alice/dog"), "owner/dog", license="mit")
    card = hub.files("owner/dog")["README.md"].decode()
    (code,) = fences(card, "python")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "card", "exec"), {"__name__": "card"})
    check_picture(tmp_path / "picture.png")
    (line,) = (line for text in fences(card, "sh") for line in text.splitlines() if line.startswith("svdiff"))
    outcome = svdiff(*shlex.split(line)[1:], "--force", "--steps", "2")
    assert outcome.code == 0, outcome.err
    check_picture(tmp_path / "picture.png")


@pytest.mark.parametrize("line", command_lines(README))
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
    targets = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(fences(README, "sh"))))
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "spec/v1/spec.md", "spec/CHANGELOG.md"]
)
def test_every_link_to_a_page_leads_somewhere(page: str) -> None:
    path = ROOT / page
    local = links(path.read_text("utf-8"))

    assert [link for link in local if not (path.parent / link).exists()] == []


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 2_000


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def test_the_map_of_the_sources_is_true() -> None:
    (tree,) = re.findall(r"^```\n(svdiff_delta/.*?)^```$", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    top, above, rooms = "", "", []
    for indent, names in re.findall(r"^( *)([\w./]+(?:, [\w./]+)*)  ", tree, re.MULTILINE):
        parent = {0: "", 2: top, 4: above}[len(indent)]
        paths = [parent + name for name in names.split(", ")]
        top, above = (paths[0], above) if not indent else (top, paths[0] if len(indent) == 2 else above)
        rooms.extend(paths)
    assert [room for room in rooms if not (ROOT / room).exists()] == []
    for package in ("svdiff_delta", "svdiff_train"):
        folders = {path.parent.relative_to(ROOT).as_posix() + "/" for path in (ROOT / package).glob("*/__init__.py")}
        assert folders <= {*rooms}


def test_every_file_that_contributing_names_is_there() -> None:
    named = [path for path in re.findall(r"`([\w./-]+\.(?:py|md|toml|yml))`", CONTRIBUTING) if "/" in path]
    roots = (ROOT, ROOT / "svdiff_delta", ROOT / "reproduce" / "paper")
    assert len(named) > 15
    assert [path for path in named if not any((root / path).is_file() for root in roots)] == []
