"""The site's pages: links, names without docstrings, and a place for each page."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import yaml
from support.pages import ROOT

import svdiff_delta
from tools.docs_site import add_mixer, broken, lay_out, linked, public, reference, undocumented


def test_every_public_name_is_documented_and_in_the_reference_once() -> None:
    assert [*undocumented(svdiff_delta)] == []
    shown = [line.removeprefix("::: svdiff_delta.") for line in reference(svdiff_delta).splitlines() if ":::" in line]
    assert sorted(shown) == sorted(public(svdiff_delta))


def test_names_and_members_without_a_docstring_of_their_own_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "__init__.py").write_text("__all__ = [*'ABCDEFG', '__version__']\n")
    (tmp_path / "shown" / "parts.py").write_text(
        "from dataclasses import dataclass\n"
        "class A:\n    'Has one.'\n    def bare(self): pass\n    def _own(self): pass\n"
        "class B(A): pass\n"  # inherits A's
        "@dataclass\nclass C:\n    x: int\n"  # gets one that is generated
        "def D(): pass\n"
        "def E(): 'Has one.'\n"
        "F = int | str\n'Has one.'\n"
        "G = int | bytes\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    package, parts = import_module("shown"), import_module("shown.parts")
    vars(package).update(_HOME=dict.fromkeys("ABCDEFG", "parts"), **{name: vars(parts)[name] for name in "ABCDEFG"})
    assert [*undocumented(package)] == ["A.bare", "B", "C", "D", "G"]


def test_links_that_lead_nowhere_are_found_and_code_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("[a](docs/a.md#part) ![p](no.png)\n\n```python\nf[0](x)\n```\n")
    (tmp_path / "docs" / "a.md").write_text("[b](../docs) [c](https://example.org/c) [d](../d.json)\n")
    (tmp_path / "d.json").write_text("{}")
    assert linked(tmp_path) == {"README.md", "docs/a.md", "d.json"}
    assert [*broken(tmp_path, linked(tmp_path))] == ["README.md -> no.png", "docs/a.md -> ../docs"]


def test_the_site_has_a_place_for_every_page_and_a_page_at_every_place(tmp_path: Path) -> None:
    lay_out(tmp_path)

    def leaves(entries: list) -> list[str]:
        values = [value for entry in entries for value in entry.values()]
        return [leaf for value in values for leaf in (leaves(value) if isinstance(value, list) else [value])]

    places = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert [place for place in places if not (tmp_path / place).is_file()] == []
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= {*places}
    assert "::: svdiff_delta.attach" in (tmp_path / "docs" / "reference.md").read_text("utf-8")


def test_a_name_without_a_docstring_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.docs_site.undocumented", lambda _: iter(["attach"]))
    with pytest.raises(SystemExit, match="without a docstring: attach"):
        lay_out(tmp_path / "pages")
    assert not (tmp_path / "pages").exists()


def test_the_mixer_comes_along_and_is_linked_where_it_was_built(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "browser.md"
    page.write_text((ROOT / "docs" / "browser.md").read_text("utf-8"), "utf-8")
    assert not add_mixer(tmp_path, tmp_path / "nothing.html")
    assert "](../mixer.html)" not in page.read_text("utf-8")
    built = tmp_path / "built.html"
    built.write_text("<p>mixer", "utf-8")
    assert add_mixer(tmp_path, built)
    assert "](../mixer.html)" in page.read_text("utf-8")
    assert (tmp_path / "mixer.html").read_text("utf-8") == "<p>mixer"
