"""Deltas on the Hub: what is fetched, that it is what the Hub says, and what is said when it cannot be."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.deltas import random_delta
from support.downloads import FILES, RAW
from support.hub import TOKEN, Hub, fill_cache, share_blobs

from svdiff_delta import load, pull
from svdiff_delta.errors import DeltaError, FormatError, HubError, InputError
from svdiff_delta.format.file import dumps
from svdiff_delta.hub_client import download
from svdiff_delta.hub_client.reference import Reference, locate

DAMAGED = RAW[:-1] + bytes([RAW[-1] ^ 1])


def refused(reference: str, kind: type[DeltaError] = HubError) -> str:
    with pytest.raises(kind) as caught:
        load(reference)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=["regular", "lfs"])
def stored(request: pytest.FixtureRequest, hub: Hub) -> Hub:
    """A hub with a delta, in git itself or apart from it."""
    hub.large = (".safetensors",) if request.param == "lfs" else ()
    hub.add("alice/cat", FILES)
    return hub


def test_a_delta_is_opened_by_the_name_of_its_repository(stored: Hub) -> None:
    assert dumps(load("alice/cat")) == RAW


def test_only_the_delta_is_fetched(stored: Hub) -> None:
    load("alice/cat")
    assert len(stored.sent) == 1
    assert stored.sent[0] in ("svdiff.safetensors", hashlib.sha256(RAW).hexdigest())


def test_a_download_is_counted_by_the_head_of_its_config(hub: Hub) -> None:
    commit = hub.add("alice/cat", FILES)
    load("alice/cat")
    load("alice/cat")
    assert [asked for asked in hub.asked if "config.json" in asked] == [f"HEAD /alice/cat/resolve/{commit}/config.json"]


def test_a_repository_without_a_config_is_opened_too(hub: Hub) -> None:
    hub.add("alice/cat", {"svdiff.safetensors": RAW})
    assert load("alice/cat").metadata.title == "dog"


def test_a_revision_is_what_is_opened(hub: Hub) -> None:
    old = hub.add("alice/cat", {"svdiff.safetensors": dumps(random_delta(3, title="old"))})
    hub.add("alice/cat", FILES, ref="v1")
    assert [load(f"alice/cat@{revision}").metadata.title for revision in ("main", old, "v1")] == ["old", "old", "dog"]


def test_a_file_or_a_folder_of_a_repository_is_opened(hub: Hub) -> None:
    hub.add("alice/cat", FILES | {"other.safetensors": RAW})
    titles = [load(f"alice/cat/{path}").metadata.title for path in ("old", "other.safetensors")]
    assert titles == ["old", "dog"]


def test_a_path_that_exists_wins_unless_hf_forces_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("alice/cat", FILES)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alice").mkdir()
    (tmp_path / "alice" / "cat").write_bytes(FILES["old/svdiff.safetensors"])
    assert load("alice/cat").metadata.title == "old"
    assert not hub.asked
    assert load("hf://alice/cat").metadata.title == "dog"


def test_only_a_string_names_something_on_the_hub(hub: Hub) -> None:
    hub.add("alice/cat", FILES)
    with pytest.raises(InputError, match="there is no such file"):
        load(Path("alice/cat"))
    assert not hub.asked


def test_a_branch_that_was_opened_opens_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("alice/cat", FILES, ref="v1")
    load("alice/cat@v1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert dumps(load("alice/cat@v1")) == RAW


def test_a_branch_that_moved_to_a_commit_of_the_cache_is_remembered(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.add("alice/cat", {"svdiff.safetensors": dumps(random_delta(3, title="old"))})
    load(f"alice/cat@{first}")
    load("alice/cat")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("alice/cat").metadata.title == "old"


def test_a_commit_that_is_here_is_not_asked_about(hub: Hub) -> None:
    commit = hub.add("alice/cat", FILES)
    load(f"alice/cat@{commit}")
    hub.asked.clear()
    load(f"alice/cat@{commit}")
    assert not hub.asked


@pytest.mark.parametrize("status", [429, 500, 503])
def test_while_the_hub_has_a_problem_the_cache_is_opened_at_once(hub: Hub, status: int, waits: list[float]) -> None:
    hub.add("alice/cat", FILES)
    load("alice/cat")
    hub.fail("", status=status)
    assert dumps(load("alice/cat")) == RAW
    assert not waits


# What goes wrong on the way


def test_a_problem_that_passes_is_waited_for(hub: Hub, waits: list[float]) -> None:
    hub.add("alice/cat", FILES)
    hub.fail("HEAD .*svdiff.safetensors", status=503, times=2)
    assert dumps(load("alice/cat")) == RAW
    assert len(waits) == 1


def test_as_long_as_the_hub_says_is_waited_for(hub: Hub, waits: list[float]) -> None:
    hub.add("alice/cat", FILES)
    hub.fail("HEAD .*svdiff.safetensors", status=429, headers={"Retry-After": "7"}, times=2)
    assert dumps(load("alice/cat")) == RAW
    assert waits == [8.0]  # the Hub's library adds one


def test_a_hub_that_was_asked_too_often_says_when_to_try_again(hub: Hub, waits: list[float]) -> None:
    hub.add("alice/cat", FILES)
    hub.fail("", status=429, headers={"Retry-After": "7"})
    assert refused("alice/cat") == "alice/cat: the Hub was asked too often (429): try again in 7 s"


def test_a_hub_that_has_a_problem_is_said(hub: Hub, waits: list[float]) -> None:
    hub.add("alice/cat", FILES)
    hub.fail("", status=500)
    assert refused("alice/cat") == "alice/cat: the Hub has a problem of its own (500): try again later"
    assert 0 < sum(waits) < 60


@pytest.mark.parametrize("kind", ["cut", "stall"])
def test_a_download_that_stops_half_way_is_gone_on_with(
    hub: Hub, kind: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.add("alice/cat", FILES)
    hub.fail("GET .*svdiff.safetensors", kind, times=2)
    assert dumps(load("alice/cat")) == RAW
    assert hub.sent == ["svdiff.safetensors"] * 3


@pytest.mark.parametrize(("kind", "name"), [("cut", "RemoteProtocolError"), ("stall", "ReadTimeout")])
def test_a_connection_that_always_breaks_is_said(
    hub: Hub, kind: str, name: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.02)
    hub.add("alice/cat", FILES | {"svdiff.safetensors": b"xx"})
    hub.fail("GET .*svdiff.safetensors", kind)
    assert f"the connection to the Hub broke off ({name})" in refused("alice/cat")


def test_a_damaged_download_is_refused_and_not_kept(stored: Hub) -> None:
    stored.fail("GET .*(svdiff.safetensors|cdn)", "flip", times=1)
    message = refused("alice/cat")
    assert "the download is damaged" in message
    assert "fetch it again" in message
    assert dumps(load("alice/cat")) == RAW


def test_a_damaged_file_of_the_cache_is_fetched_again(stored: Hub, cache: Path) -> None:
    load("alice/cat")
    (blob,) = [path for path in cache.rglob("blobs/*") if path.stat().st_size == len(RAW)]
    blob.write_bytes(DAMAGED)
    assert dumps(load("alice/cat")) == RAW
    assert len(stored.sent) == 2


def test_a_damaged_file_of_the_cache_is_not_opened_without_a_network(unreachable: Path) -> None:
    fill_cache(unreachable, "alice/cat", FILES)
    (blob,) = [path for path in unreachable.rglob("blobs/*") if path.read_bytes() == RAW]
    blob.write_bytes(DAMAGED)
    assert "the Hub was not reached" in refused("alice/cat")


def test_a_delta_that_is_kept_once_for_several_repositories_is_what_its_blob_says(unreachable: Path) -> None:
    commit = fill_cache(unreachable, "alice/cat", FILES)
    share_blobs(unreachable)
    for reference in ("alice/cat", f"alice/cat@{commit}"):
        assert dumps(load(reference)) == RAW


def test_what_is_damaged_where_it_is_kept_once_is_fetched_again(stored: Hub, cache: Path) -> None:
    load("alice/cat")
    share_blobs(cache)
    (kept,) = [path for path in cache.glob("blobs/*/*") if path.stat().st_size == len(RAW)]
    kept.write_bytes(DAMAGED)
    assert dumps(load("alice/cat")) == RAW
    assert not kept.exists()  # else the Hub's library would take it once more
    assert len(stored.sent) == 2


def test_more_than_was_said_is_refused_and_not_kept(hub: Hub, waits: list[float]) -> None:
    hub.add("alice/cat", FILES)
    hub.fail("GET .*svdiff.safetensors", "grow", times=1)
    assert "has another size than the Hub said" in refused("alice/cat")
    assert dumps(load("alice/cat")) == RAW


def test_what_is_too_large_for_a_delta_is_not_fetched(hub: Hub) -> None:
    hub.add("alice/cat", FILES)
    with pytest.raises(HubError, match=rf"has {len(RAW):,} bytes, and no delta has more than {len(RAW) - 1:,}"):
        download.find(Reference("alice/cat", None, "svdiff.safetensors"), largest=len(RAW) - 1)
    assert not hub.sent


def test_a_size_of_gigabytes_is_refused(hub: Hub) -> None:
    hub.large = (".safetensors",)
    hub.add("alice/cat", FILES)
    hub.fail("HEAD .*svdiff.safetensors", "heads", headers={"X-Linked-Size": str(2**40)})
    assert "and no delta has more than 1,073,741,824" in refused("alice/cat")
    assert not hub.sent


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"../../../../.bashrc"'},
        {"ETag": ""},
        {"X-Repo-Commit": "../../evil"},
        {"X-Repo-Commit": "main"},
        {"X-Linked-Size": "many"},
    ],
)
def test_an_answer_that_no_hub_gives_is_refused(hub: Hub, cache: Path, headers: dict[str, str]) -> None:
    hub.add("alice/cat", FILES)
    hub.fail("HEAD", "heads", headers=headers)
    assert "does not answer as a Hub does" in refused("alice/cat")
    assert not hub.sent
    assert not list(cache.parent.rglob("*evil*"))


def test_the_token_goes_to_the_hub_only(hub: Hub, token: str) -> None:
    hub.large = (".safetensors",)
    hub.add("alice/cat", FILES)
    load("alice/cat")
    assert ("127.0.0.1", TOKEN) in hub.tokens
    assert {said for host, said in hub.tokens if host == "localhost"} == {""}


# What is not there


def test_a_repository_without_a_delta_says_what_is_in_it(hub: Hub) -> None:
    hub.add("alice/base", {"config.json": b"{}", "model.safetensors": b"", "a.txt": b""})
    message = refused("alice/base")
    assert message == (
        "alice/base: has no svdiff.safetensors; it has a.txt, config.json, model.safetensors: "
        "name one of its files, such as alice/base/model.safetensors"
    )


def test_of_many_files_some_are_named(hub: Hub) -> None:
    hub.add("alice/base", {f"{i}.txt": b"" for i in range(30)})
    message = refused("alice/base@main")
    assert "it has 0.txt, 1.txt" in message
    assert "and 22 more: name a repository with a delta" in message


def test_a_file_that_is_no_delta_is_refused_as_any_file_is(hub: Hub) -> None:
    hub.add("alice/cat", {"svdiff.safetensors": b"\x80\x04."})
    assert refused("alice/cat", FormatError).startswith("alice/cat: ")


def test_a_repository_that_is_not_there_is_refused(hub: Hub) -> None:
    message = refused("alice/nothing")
    assert "no such file or folder, and no such repository on the Hub" in message
    assert "hf auth login" in message


def test_a_revision_that_is_not_there_is_refused(hub: Hub) -> None:
    hub.add("alice/cat", FILES)
    assert "the repository has no revision 'v9'" in refused("alice/cat@v9")


def test_a_restricted_repository_says_how_to_get_in(hub: Hub) -> None:
    hub.add("alice/cat", FILES)
    hub.gated.add("alice/cat")
    assert "access to it is restricted: ask for it" in refused("alice/cat")


def test_a_private_repository_needs_a_token_with_the_right(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("owner/cat", FILES)
    hub.private.add("owner/cat")
    assert "for a private repository log in" in refused("owner/cat")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert dumps(load("owner/cat")) == RAW


def test_a_token_that_the_hub_does_not_know_is_said(hub: Hub) -> None:
    hub.add("alice/cat", FILES)
    invalid = {"X-Error-Message": "Invalid credentials in Authorization header"}
    hub.fail("", status=401, headers=invalid)
    assert "the Hub does not accept the token (401: Invalid credentials" in refused("alice/cat")


def test_without_a_right_it_is_said(hub: Hub) -> None:
    hub.add("alice/cat", FILES)
    hub.fail("", status=403)
    assert "the token has no right to do this (403" in refused("alice/cat")


def test_without_a_network_and_a_cache_it_is_said_what_to_do(unreachable: Path) -> None:
    message = refused("alice/cat")
    assert "not in the local Hub cache, and the Hub was not reached" in message
    assert "go online without HF_HUB_OFFLINE" in message


def test_a_hub_that_does_not_answer_is_said_without_waiting(
    cache: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"  # nothing listens there
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert "the Hub was not reached" in refused("alice/cat")
    assert not waits


@pytest.mark.parametrize("name", ["weights.bin", "evil.py", "a.pt", "a.ckpt"])
def test_files_that_can_run_are_never_fetched(hub: Hub, name: str) -> None:
    hub.add("alice/cat", FILES)
    assert "are never fetched" in refused(f"alice/cat/{name}")
    assert not hub.asked


TRICKS = [
    "alice/cat/../../etc/passwd",
    "alice/cat/..",
    "alice/../cat",
    "alice/cat@../../etc",
    "alice/cat@..%2F..%2Fetc/svdiff.safetensors",
    "alice/cat@%2Fetc",
    "alice/cat/a//b.safetensors",
    "alice/cat/..\\..\\b.safetensors",
    "alice/cat/C:\\b.safetensors",
    "alice/cat/a\nb.safetensors",
    "alice/cat/a\x00.safetensors",
    "alice/cat@v1@v2",
]


@pytest.mark.parametrize("text", TRICKS)
def test_a_name_that_leads_elsewhere_names_nothing_on_the_hub(hub: Hub, text: str) -> None:
    assert isinstance(locate(text), Path)
    for reference in (f"hf://{text}", text):
        with pytest.raises(DeltaError):
            load(reference)
    with pytest.raises(InputError, match="names no repository, or no file of one"):
        pull(text)
    assert not hub.asked
