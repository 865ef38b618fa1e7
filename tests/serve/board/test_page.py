"""What the board gives out: the page, what it may load, the list of deltas, their cards, and who may ask."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from support.board import varied
from support.served import server, service, shifted

from svdiff_delta.errors import InputError
from svdiff_delta.format.file import dumps, save
from svdiff_serve.board.card import SIDE, Thumbnails, card_of
from svdiff_serve.http.keys import Keys, read_keys
from svdiff_serve.service import Service

KEY = "alice-secret-0123456789"


def rows(page: httpx.Client) -> dict[str, Any]:
    return {row["name"]: row for row in page.get("board/deltas").json()["deltas"]}


def test_the_page_may_load_nothing_from_elsewhere(page: httpx.Client) -> None:
    answer = page.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    for path in ("/", "board/base", "board/deltas", "board/profile?name=dog", "board/picture?name=none&number=0"):
        headers = page.get(path).headers
        assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")


@pytest.mark.parametrize(
    "name", ["../__init__.py", "..%2f__init__.py", "%2e%2e/mix.py", "index.html/", "INDEX.HTML", "a.py", "none.js", "."]
)
def test_no_other_file_is_given_out(page: httpx.Client, name: str) -> None:
    assert page.get(f"page/{name}", follow_redirects=False).status_code in (307, 404)


def test_the_board_says_what_the_base_is(page: httpx.Client, board_service: Service) -> None:
    base = page.get("board/base").json()
    assert (base["name"], base["width"], base["height"], base["steps"]) == ("tiny", 64, 64, 4)
    assert (base["dtype"], base["layers"]) == ("F32", board_service.live.layers)
    assert base["bytes"] > 10_000_000
    assert base["limits"]["steps"] == 400


def test_deltas_that_cannot_be_used_are_listed_with_the_reason(page: httpx.Client) -> None:
    found = rows(page)
    assert found["dog"]["fault"] == ""
    assert "made for another base" in found["other"]["fault"]
    assert (found["other"]["parameters"], found["other"]["components"]) == (found["wide"]["parameters"], ["unet"])
    assert "391 of 391 parameters do not fit" in found["sd15"]["fault"]
    assert (found["broken"]["parameters"], found["broken"]["sha256"] is None) == (0, False)
    assert "not a safetensors file" in found["broken"]["fault"]


def test_a_list_that_has_not_changed_is_not_sent_again(page: httpx.Client) -> None:
    version = page.get("board/deltas").json()["version"]
    answer = page.get("board/deltas", params={"version": version})
    assert (answer.status_code, answer.content) == (204, b"")


def test_a_card_gives_prompt_captions_and_its_own_pictures(page: httpx.Client) -> None:
    row = rows(page)["carded/svdiff"]
    assert (row["title"], row["prompt"]) == ("A bird", "a photo of a sks bird")
    assert row["captions"] == ["a sks bird in <b>snow</b>", "a sks bird at night"]  # text, which no page takes for HTML
    for number, size in ((0, (64, 64)), (1, (384, 256))):
        answer = page.get("board/picture", params={"name": "carded/svdiff", "number": number})
        with Image.open(io.BytesIO(answer.content)) as image:
            assert (image.size, answer.headers["content-type"]) == (size, f"image/{image.format.lower()}")  # type: ignore[union-attr]
    for number in ("2", "-1", "x", "00001"):
        assert page.get("board/picture", params={"name": "carded/svdiff", "number": number}).status_code == 404


def test_a_card_counts_for_its_own_delta_alone(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    for name in ("a", "b"):
        save(shifted(0.1), tmp_path / f"{name}.safetensors")
    (tmp_path / "README.md").write_text("---\ninstance_prompt: which of them?\n---\n")
    picture.save(tmp_path / "a.png")
    card = card_of(tmp_path / "a.safetensors")
    assert (card.prompt, [each.path.name for each in card.pictures]) == (None, ["a.png"])
    assert card_of(tmp_path / "b.safetensors").pictures == ()
    (tmp_path / "b.safetensors").unlink()
    assert card_of(tmp_path / "a.safetensors").prompt == "which of them?"


@pytest.mark.parametrize(
    "place", ["../secret.png", "/etc/secret.png", "link.png", "https://evil.example/x.png", "a\0.png"]
)
def test_a_card_leads_to_no_file_outside_its_folder(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "delta"
    folder.mkdir()
    save(shifted(0.1), folder / "svdiff.safetensors")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "README.md").write_text(f"---\nwidget:\n- output:\n    url: {place!r}\n---\n")
    assert card_of(folder / "svdiff.safetensors").pictures == ()


@pytest.mark.parametrize(
    "text", ["---\n[\n---\n", "---\nwidget: 3\n---\n", "---\nwidget: [3, {output: 4}]\n---\n", "\xff", ""]
)
def test_a_broken_card_is_none(tmp_path: Path, text: str) -> None:
    save(shifted(0.1), tmp_path / "svdiff.safetensors")
    (tmp_path / "README.md").write_bytes(text.encode("latin-1"))
    assert card_of(tmp_path / "svdiff.safetensors").pictures == ()


def test_a_picture_is_made_anew_of_its_pixels(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    facts = PngInfo()
    facts.add_text("prompt", "a secret")
    Image.new("RGB", (3 * SIDE, 20), (1, 2, 3)).save(tmp_path / "a.png", pnginfo=facts)
    kind, content = Thumbnails().show(tmp_path / "a.png")
    assert (kind, b"secret" in content) == ("image/jpeg", False)
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (SIDE, round(20 / 3))
    (tmp_path / "a.webp").write_bytes(b"RIFF no picture")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png", "BMP")
    for broken in ("a.webp", "b.png", "none.png"):
        with pytest.raises(InputError):
            Thumbnails().show(tmp_path / broken)


def test_the_page_needs_no_key_and_all_data_do(board_service: Service, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"alice {KEY}\n")
    keys: Keys = read_keys(tmp_path / "keys")
    paths = [
        "base",
        "deltas",
        "picture?name=dog&number=0",
        "profile?name=dog",
        "interference?a=dog&b=cat",
        "lineage?name=both",
    ]
    with server(board_service, keys=keys) as (url, _, _), httpx.Client(base_url=url, timeout=60) as page:
        assert page.get("/").status_code == page.get("page/index.html").status_code == 200
        assert {page.get(f"board/{path}").status_code for path in paths} == {401}
        for path in ("check", "preview", "export", "open"):
            assert page.post(f"board/{path}", json={}).status_code == 401
        with_key = {"authorization": f"Bearer {KEY}"}
        assert page.get("board/base", headers=with_key).status_code == 200


def test_a_server_may_have_no_board(board_service: Service) -> None:
    with server(board_service, board=False) as (url, _, _):
        assert [httpx.get(f"{url}/{path}").status_code for path in ("", "board/base", "v1/models")] == [404, 404, 200]


def test_pages_of_other_sites_cannot_ask(page: httpx.Client) -> None:
    """What a browser sends there without asking first is not taken, nor is a name that leads here from elsewhere."""
    for path in ("check", "preview", "export"):
        plain = page.post(f"board/{path}", content=b"{}", headers={"content-type": "text/plain"})
        assert plain.status_code == 415
    assert page.post("board/open", content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    assert page.get("board/base", headers={"host": "evil.example"}).status_code == 421


def test_too_large_a_body_is_not_read(page: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    assert page.post("board/check", content=b" " * 300_000, headers=headers).status_code == 413


def test_what_comes_into_the_folder_comes_onto_the_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svdiff_serve.board.listing.FRESH", -1.0)
    folder = tmp_path / "deltas"
    folder.mkdir()
    with service(folder) as found, server(found) as (url, _, _), httpx.Client(base_url=url, timeout=60) as page:
        empty = page.get("board/deltas").json()
        assert empty["deltas"] == []
        (folder / "new.safetensors").write_bytes(dumps(varied("mid", 3)))
        found.store.refresh()
        answer = page.get("board/deltas", params={"version": empty["version"]})
        assert [row["name"] for row in answer.json()["deltas"]] == ["new"]
