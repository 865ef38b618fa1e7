"""Names from files stay below their folder; paths that contain each other are found; links that leave are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from svdiff_delta._util.paths import Places, below, check_apart, check_links, complaint, contains
from svdiff_delta.errors import BaseError, InputError

PLAIN = ["unet", "text_encoder_2", "model-00001-of-00002.safetensors", "ünet", "a b", ".hidden", "console", "com10"]
NOT_PLAIN = {
    "nothing": "",
    "this folder": ".",
    "the one above": "..",
    "a way up": "../out",
    "a sub-folder": "a/b",
    "an absolute path": "/etc",
    "a Windows path": "a\\b",
    "a UNC path": "\\\\host\\share",
    "a drive": "C:",
    "a stream": "a:b",
    "a NUL": "a\0b",
    "a line break": "a\nb",
    "half a surrogate": "a\udc80",
    "a device": "NUL",
    "a device with a suffix": "com1.safetensors",
    "a name that Windows cuts": "unet.",
    "a blank that Windows cuts": "unet ",
    "a pattern": "*",
    "a name that is too long": "x" * 256,
    "bytes that are too many": "ü" * 128,
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_name_is_a_path_in_its_folder(name: str) -> None:
    assert below(Path("base"), name, source="index.json") == Path("base") / name


@pytest.mark.parametrize("name", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_what_is_no_plain_name_is_refused_and_its_file_named(name: str) -> None:
    assert complaint(name)
    with pytest.raises(BaseError, match=r"^index\.json: .* is no name of a file in base: "):
        below(Path("base"), name, source="index.json", error=BaseError)


@pytest.mark.parametrize("name", [None, 3, ["unet"], {"a": "b"}])
def test_what_is_no_text_is_no_name(name: object) -> None:
    with pytest.raises(InputError, match="it is no text"):
        below(Path("base"), name, source="index.json")


def test_a_deep_name_may_have_folders_each_of_them_plain() -> None:
    assert below(Path("base"), "a/b/c", source="x", deep=True) == Path("base/a/b/c")
    for name in ("a/../b", "/a", "a//b", "a/", "a/nul/b"):
        with pytest.raises(InputError):
            below(Path("base"), name, source="x", deep=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a", "a"), ("a", "a/b"), ("a/b/c", "a"), ("a/../a/b", "a"), ("link", "a/b"), ("link/new", "a"), (".", "a")],
)
def test_paths_that_contain_each_other_are_found_both_ways(tmp_path: Path, one: str, other: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    assert contains(tmp_path / one, tmp_path / other)
    assert contains(tmp_path / other, tmp_path / one)


@pytest.mark.parametrize(("one", "other"), [("a", "ab"), ("a/b", "a/c"), ("new", "a"), ("a/b", "c/b")])
def test_paths_beside_each_other_are_apart(tmp_path: Path, one: str, other: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert not contains(tmp_path / one, tmp_path / other)
    assert not contains(tmp_path / other, tmp_path / one)


def test_a_hard_link_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    os.link(tmp_path / "a", tmp_path / "b")
    assert contains(tmp_path / "a", tmp_path / "b")


def test_of_many_paths_the_one_that_meets_another_is_named(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    places = Places()
    places.add(tmp_path / "link", "the first")
    places.add(tmp_path / "c" / "d", "the second")
    found = {
        name: places.meet(tmp_path / name) for name in ("a", "a/b", "a/b/x", "a/c", "ab", "c", "c/d/e", "x", "x\0")
    }
    assert found == {
        **dict.fromkeys(("a", "a/b", "a/b/x"), "the first"),
        **dict.fromkeys(("c", "c/d/e"), "the second"),
        **dict.fromkeys(("a/c", "ab", "x", "x\0")),
    }


def test_an_output_that_is_an_input_is_refused_and_both_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "link").symlink_to("a")
    check_apart(tmp_path / "new", [tmp_path / "a"])
    with pytest.raises(InputError, match=r"link: is what it would be made of \(.*a\): choose another output"):
        check_apart(tmp_path / "link", [tmp_path / "nowhere", tmp_path / "a"])


def test_an_output_in_or_around_an_input_is_refused_also_where_it_does_not_exist_yet(tmp_path: Path) -> None:
    (tmp_path / "base" / "unet").mkdir(parents=True)
    for output, what in (("base/new", "lies in"), ("base/unet/new", "lies in"), (".", "holds")):
        with pytest.raises(InputError, match=f"{what} what it would be made of"):
            check_apart(tmp_path / output, [tmp_path / "base"])


def test_an_input_that_is_not_there_stands_in_no_way(tmp_path: Path) -> None:
    check_apart(tmp_path / "owner", [tmp_path / "owner" / "repository"])


def test_a_link_within_its_folder_may_be_copied(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "a").write_bytes(b"")
    (tmp_path / "base" / "b").symlink_to("a")
    (tmp_path / "name").symlink_to("base")
    check_links(tmp_path / "base", tmp_path / "base" / "b")
    check_links(tmp_path / "name", tmp_path / "name" / "b")


@pytest.mark.parametrize("target", ["../secret", "{folder}/secret", "../base2/a", "up/secret"])
def test_a_link_that_leaves_its_folder_is_refused_with_the_mend(tmp_path: Path, target: str) -> None:
    for name in ("base", "base2"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "up").symlink_to("..")
    (tmp_path / "base" / "link").symlink_to(target.format(folder=tmp_path))
    with pytest.raises(BaseError, match=r"link: is a link that leads out of .*base, to .*\(cp -rL .* COPY\)"):
        check_links(tmp_path / "base", tmp_path / "base" / "link", error=BaseError)


def test_the_links_of_a_snapshot_in_the_cache_of_the_hub_may_be_copied(tmp_path: Path) -> None:
    store = tmp_path / "models--owner--repo"
    unet = store / "snapshots" / "c0" / "unet"
    unet.mkdir(parents=True)
    (unet / "config.json").symlink_to("../../../blobs/b0")
    (unet / "other").symlink_to("../../../../models--else--x/blobs/b0")
    check_links(unet.parent, unet / "config.json")
    check_links(unet, unet / "config.json")
    with pytest.raises(InputError):
        check_links(unet.parent, unet / "other")
