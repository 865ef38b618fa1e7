"""Measure the house: modules flat at the top, layers of the contract, the longest chain of imports, circles.

    python benchmarks/structure.py [TREE ...]

Each TREE is a checkout of the project (this one if none is given); several stand side by side. The graph is
import-linter's, with imports inside functions, without those that only type checkers see. A chain is counted twice: of
modules, and of rooms, where all modules of a package below `svdiff_delta` count as one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
GRAPH = """
import json, sys
sys.path[:0] = sys.argv[1:]
import grimp
graph = grimp.build_graph("svdiff_delta", exclude_type_checking_imports=True, cache_dir=None)
print(json.dumps({module: sorted(graph.find_modules_directly_imported_by(module)) for module in graph.modules}))
"""


def imports(tree: Path) -> dict[str, list[str]]:
    """Return which modules of the library each of its modules imports."""
    paths = [str(tree), str(tree / "cli")]
    found: dict[str, list[str]] = json.loads(
        subprocess.check_output([sys.executable, "-c", GRAPH, *paths], cwd=tree, text=True)
    )
    return found


def rooms(graph: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the graph of top-level modules and packages."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    found: dict[str, set[str]] = {}
    for module, imported in graph.items():
        found.setdefault(room(module), set()).update({room(other) for other in imported} - {room(module)})
    return {name: sorted(others) for name, others in found.items()}


def longest(graph: dict[str, list[str]]) -> list[str]:
    """Return the longest chain of imports; a circle is an error."""
    chains: dict[str, list[str]] = {}
    for module in TopologicalSorter(graph).static_order():
        below = [chains[other] for other in graph.get(module, [])]
        chains[module] = [module, *max(below, key=len, default=[])]
    return max(chains.values(), key=len)


def measure(tree: Path) -> dict[str, str]:
    """Return all figures of a checkout."""
    graph = imports(tree)
    settings = tomllib.loads((tree / "pyproject.toml").read_text("utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = max(len(contract["layers"]) for contract in contracts if contract["type"] == "layers")
    light = sum(len(contract["source_modules"]) for contract in contracts if contract["type"] == "forbidden")
    flat = {name: len([*(tree / name).glob("[!_]*.py")]) for name in ("svdiff_delta", "svdiff_train")}
    try:
        modules, of_rooms, circles = longest(graph), longest(rooms(graph)), "none"
    except CycleError as error:
        modules, of_rooms, circles = [], [], " > ".join(error.args[1])
    return {
        "modules flat in svdiff_delta (6)": str(flat["svdiff_delta"]),
        "modules flat in svdiff_train (6)": str(flat["svdiff_train"]),
        "layers in the contract (12)": str(layers),
        "names of the light half": str(light),
        "circles (none)": circles,
        "longest chain of rooms (12)": f"{len(of_rooms)}",
        "longest chain of modules (12)": f"{len(modules)}",
        "": " > ".join(module.removeprefix("svdiff_delta.") for module in modules),
    }


def main() -> None:
    trees = [Path(name).resolve() for name in sys.argv[1:]] or [ROOT]
    found = [measure(tree) for tree in trees]
    for name in found[0]:
        print(f"{name:<36}" + "".join(f"  {figures[name]:>8}" for figures in found))


if __name__ == "__main__":
    main()
