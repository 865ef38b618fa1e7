"""`python -m tools.docs_site FOLDER`: what `make docs` builds the site from, with the reference of every public name.

The site keeps the layout of the repository: it starts with README.md, and every file that a page links to comes along.
So one relative link works in the repository and on the site. One that leads nowhere fails here: the builder itself
looks only at links to pages.
"""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Final

ROOT: Final = Path(__file__).parents[1]
MARK: Final = "<!-- every public name -->"
MIXER_MARK: Final = "<!-- the mixer -->"
MIXER: Final = ROOT / "js" / "dist" / "mixer.html"
FENCE: Final = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK: Final = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")

ROOMS: Final = {
    "format": "Deltas",
    "io": "Deltas",
    "ops": "Arithmetic",
    "base_model": "Bases",
    "svd": "Bases",
    "runtime": "Live models",
    "baking": "Other formats",
    "conversion": "Other formats",
    "publish": "The Hub",
    "errors": "Errors",
    "_util": "Errors",
}
"""The heading under which names stand, by the room that they are defined in; the headings in their order."""


def lay_out(folder: Path) -> None:
    """Lay out in a folder, which is emptied first, all files that the site is built from.

    Raises:
        SystemExit: a link leads nowhere, or a public name has no docstring.
    """
    import svdiff_delta

    refuse("public names without a docstring", undocumented(svdiff_delta))
    paths = linked(ROOT)
    refuse("links that lead nowhere", broken(ROOT, paths))
    shutil.rmtree(folder, ignore_errors=True)
    for path in sorted(paths):
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, place)
    page = folder / "docs" / "reference.md"
    page.write_text(page.read_text("utf-8").replace(MARK, reference(svdiff_delta)), "utf-8")
    add_mixer(folder, MIXER)


def add_mixer(folder: Path, built: Path) -> bool:
    """Put the mixer beside the pages and link it, where it was built; return whether it was."""
    if not built.is_file():
        return False
    shutil.copyfile(built, folder / "mixer.html")
    page = folder / "docs" / "browser.md"
    link = "**[Open the mixer](../mixer.html)**, or save it to your disk: it is one file, and works from there as well."
    page.write_text(page.read_text("utf-8").replace(MIXER_MARK, link), "utf-8")
    return True


def refuse(what: str, found: Iterable[str]) -> None:
    """End the program if anything was found.

    Raises:
        SystemExit: something was.
    """
    listed = ", ".join(found)
    if listed:
        raise SystemExit(f"{what}: {listed}")


def linked(root: Path) -> set[str]:
    """Return all files of the site by their paths in the repository: the pages, and what is reached from them."""
    waiting = ["README.md", *(path.relative_to(root).as_posix() for path in (root / "docs").iterdir())]
    found: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path not in found and (root / path).is_file():
            found.add(path)
            waiting.extend(target.relative_to(root).as_posix() for _, target in targets(root, path))
    return found


def broken(root: Path, paths: Iterable[str]) -> Iterator[str]:
    """Yield every link of pages that leads to no file of the repository, with its page."""
    for path in sorted(paths):
        yield from (f"{path} -> {link}" for link, target in targets(root, path) if not target.is_file())


def targets(root: Path, path: str) -> Iterator[tuple[str, Path]]:
    """Yield the links of a page that stay in the repository, each with the file that it leads to."""
    if not path.endswith(".md"):
        return
    text = FENCE.sub("", (root / path).read_text("utf-8"))
    for link in LINK.findall(text):
        target = (root / path).parent.joinpath(link).resolve()
        if "://" not in link and target.is_relative_to(root):
            yield link, target


def undocumented(package: ModuleType) -> Iterator[str]:
    """Yield every public name of a package that has no docstring of its own, and such members of its public classes."""
    for name in public(package):
        value = getattr(package, name)
        if not docstring(package, name):
            yield name
        if inspect.isclass(value):
            yield from (f"{name}.{member}" for member, own in vars(value).items() if is_bare(member, own))


def docstring(package: ModuleType, name: str) -> str | None:
    """Return the docstring of a public name: its own, not an inherited or generated one, or the text below an alias."""
    value = getattr(package, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        text = value.__doc__
        return None if text is None or text.startswith(f"{name}(") else text  # which dataclasses generate
    body = ast.parse(inspect.getsource(import_module(f".{home(package, name)}", package.__name__))).body
    for statement, below in pairwise(body):
        if name in assigned(statement) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            return str(below.value.value)
    return None


def assigned(statement: ast.stmt) -> set[str]:
    """Return the names that a statement of a module assigns to."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def home(package: ModuleType, name: str) -> str:
    """Return the module that a lazily imported name comes from, below its package."""
    return str(vars(package)["_HOME"][name])


def is_bare(member: str, value: object) -> bool:
    """Return whether a member of a class is public, is a function or property, and has no docstring."""
    of_kind = inspect.isfunction(value) or isinstance(value, (property, classmethod, staticmethod))
    return of_kind and not member.startswith("_") and not value.__doc__


def public(package: ModuleType) -> list[str]:
    """Return the public names of a package that are not about the package itself."""
    return [name for name in package.__all__ if not name.startswith("__")]


def reference(package: ModuleType) -> str:
    """Return Markdown in which mkdocstrings shows every public name of a package, grouped by room."""
    groups: dict[str, list[str]] = {heading: [] for heading in ROOMS.values()}
    for name in public(package):
        groups.setdefault(ROOMS.get(home(package, name).split(".")[0], "More"), []).append(name)
    parts = (
        f"## {heading}\n\n" + "\n\n".join(f"::: {package.__name__}.{name}" for name in names)
        for heading, names in groups.items()
        if names
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))
