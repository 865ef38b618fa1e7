"""Servers that lie about sizes, that drip, that send in circles, and that say again what they were told."""

from __future__ import annotations

import io
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.downloads import FILES, RAW
from support.hub import TOKEN, Hub
from support.pushes import DOG

from svdiff_delta import load, pull, push
from svdiff_delta.errors import DeltaError, HubError
from svdiff_delta.format.file import dumps
from svdiff_delta.hub_client import watch
from svdiff_delta.hub_client.errors import guard_logs
from svdiff_delta.publish.license import licence_of_base

SOON = 3.0  # seconds; the server would go on for five


@pytest.fixture
def cat(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub.add("alice/cat", FILES)
    monkeypatch.setenv(watch.PATIENCE_VARIABLE, "0.3")
    return hub


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What the Hub's library logs."""
    from huggingface_hub.utils import logging as theirs

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    theirs.get_logger().addHandler(handler)
    yield stream
    theirs.get_logger().removeHandler(handler)


def refused(work: Callable[[], object]) -> str:
    start = time.monotonic()
    with pytest.raises(HubError) as caught:
        work()
    assert time.monotonic() - start < SOON
    return str(caught.value)


def pulled() -> object:
    return pull("alice/cat")


@pytest.mark.parametrize(
    ("kind", "where"), [("drip", "GET .*svdiff"), ("drip heads", "GET .*svdiff"), ("drip heads", "HEAD")]
)
def test_a_server_that_drips_is_given_up(cat: Hub, cache: Path, kind: str, where: str) -> None:
    cat.fail(where, kind)
    message = refused(pulled)
    assert "alice/cat" in message
    assert (
        "the server sends less than 1,000 bytes a second over 0.3 s: try again later, or set SVDIFF_HUB_SPEED"
        in message
    )
    assert not list(cache.rglob("svdiff.safetensors"))


def test_after_that_the_hub_is_asked_as_before(cat: Hub) -> None:
    cat.fail("HEAD", "drip heads", times=1)
    refused(pulled)
    assert dumps(load("alice/cat")) == RAW


def test_while_the_hub_drips_the_cache_is_opened(cat: Hub) -> None:
    pulled()
    cat.fail("HEAD", "drip heads")
    assert dumps(load("alice/cat")) == RAW


def test_no_other_program_downloads_what_is_counted(cat: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    xet = {"X-Xet-Hash": "ab" * 32, "X-Xet-Refresh-Route": f"{cat.url}/api/models/alice/cat/xet-read-token/main"}
    cat.fail("HEAD .*svdiff", "heads", headers=xet)
    assert dumps(load("alice/cat")) == RAW
    assert not [asked for asked in cat.asked if "xet" in asked]


@pytest.mark.parametrize(("speed", "given_up"), [("1000000", True), ("0", False)])
def test_how_slow_a_server_may_be_is_set(cat: Hub, monkeypatch: pytest.MonkeyPatch, speed: str, given_up: bool) -> None:
    monkeypatch.setenv(watch.SPEED_VARIABLE, speed)
    cat.fail("GET .*svdiff", "stall")  # for longer than is waited
    if given_up:
        assert "less than 1,000,000 bytes a second" in refused(pulled)
    else:
        assert dumps(load("alice/cat")) == RAW


@pytest.mark.parametrize("text", ["fast", "-1", "nan", "inf"])
def test_a_setting_that_is_none_is_named(cat: Hub, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(watch.SPEED_VARIABLE, text)
    assert f"SVDIFF_HUB_SPEED: {text!r} is no number from 0: set it to a number" in refused(pulled)


@pytest.mark.parametrize(("kind", "most"), [("endless", 1_048_576), ("bomb", 1_048_576)])
def test_what_is_larger_than_the_hub_said_is_given_up(
    cat: Hub, cache: Path, kind: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(watch.PATIENCE_VARIABLE, "30")  # a busy machine may be slow, and size is the question
    cat.fail("GET .*svdiff", kind)
    assert f"the server sends more than {most:,} bytes" in refused(pulled)
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < 2 * most


def test_a_list_of_files_is_no_larger_than_lists_are(cat: Hub) -> None:
    cat.fail("GET /api/models", "endless")
    assert "the server sends more than 33,554,432 bytes" in refused(lambda: load("alice/cat/nothing.safetensors"))


@pytest.mark.parametrize("where", ["HEAD .*svdiff", "GET .*svdiff"])
def test_a_server_that_sends_in_a_circle_is_given_up(cat: Hub, where: str) -> None:
    place = f"{cat.url}/alice/cat/resolve/main/svdiff.safetensors"
    cat.fail(where, status=302, headers={"Location": place})
    assert "the server sends on and on, from one address to another" in refused(pulled)
    assert len(cat.asked) < 50


def test_a_download_that_breaks_off_again_and_again_ends(
    cat: Hub, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MOST_ANSWERS", 4)
    cat.fail("GET .*svdiff", "cut")
    assert "the server breaks off, or sends on, again and again" in refused(pulled)


# Tokens


def work_of(kind: str) -> Callable[[], object]:
    return {
        "pull": pulled,
        "load": lambda: load("alice/cat/old"),
        "push": lambda: push(DOG, "owner/dog", license="mit"),
        "licence": lambda: licence_of_base("alice/cat"),
    }[kind]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 418, 429, 500])
@pytest.mark.parametrize("kind", ["pull", "load", "push", "licence"])
def test_a_token_that_a_server_says_again_is_in_no_message(
    cat: Hub, token: str, waits: list[float], kind: str, status: int, logged: io.StringIO
) -> None:
    cat.fail("", "echo", status=status)
    with pytest.raises(DeltaError) as caught:
        work_of(kind)()
    shown = "".join(traceback.format_exception(caught.value)) + str(caught.value.args) + caught.value.fix
    assert TOKEN not in shown + logged.getvalue()
    assert "\x1b" not in str(caught.value) + logged.getvalue()


@pytest.mark.parametrize("step", ["POST /api/repos/create", "POST .*preupload", "POST .*commit", "GET /api/models"])
def test_nor_while_something_is_sent(cat: Hub, token: str, waits: list[float], step: str) -> None:
    cat.fail(step, "echo", status=400)
    with pytest.raises(HubError, match=r"\*\*\*") as caught:
        push(DOG, "owner/dog", license="mit")
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


def test_nor_in_a_file_that_it_sends(cat: Hub, token: str) -> None:
    cat.add("alice/cat", {"svdiff.safetensors": f'{{"{TOKEN}":'.encode()})
    with pytest.raises(DeltaError) as caught:
        load("alice/cat")
    assert TOKEN not in str(caught.value)


def test_nor_in_the_names_of_its_files(cat: Hub, token: str) -> None:
    cat.add("alice/other", {f"{TOKEN}.txt": b""})
    assert "it has ***.txt" in refused(lambda: load("alice/other"))


def test_nor_in_where_it_says_a_commit_is(cat: Hub, token: str) -> None:
    cat.address = f"{cat.url}/owner/dog/commit/\x1b{TOKEN}"
    assert (push(DOG, "owner/dog", license="mit").url or "").endswith("/\\x1b***")


def test_nor_in_what_the_hubs_library_logs(token: str, logged: io.StringIO) -> None:
    guard_logs()
    guard_logs()
    logging.getLogger("huggingface_hub.utils._http").warning("it said %s\x1b[2J\nand hf_%s", TOKEN, "aB3" * 11)
    assert logged.getvalue() == "it said ***\\x1b[2J\nand ***\n"
