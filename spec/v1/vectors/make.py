"""Write the conformance vectors: `python make.py [FOLDER]`, into its own folder if none is given.

It needs Python's standard library and nothing else, and writes the same bytes each time.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from maker import bases, broken_container, broken_document, operations, valid
from maker.container import JSON
from maker.delta import file_bytes


def slug(number: int, about: str) -> str:
    """Return a file's name: its number, and the beginning of what it is about."""
    words = re.sub(r"[^a-z0-9]+", "-", about.lower()).strip("-")
    return f"{number:02d}-{words[:40].strip('-')}" if words else f"{number:02d}"


def dumped(value: JSON) -> str:
    """Return JSON with one line for each item of the outermost array."""
    if not isinstance(value, dict):
        raise TypeError
    parts = []
    for key, item in value.items():
        texts = [json.dumps(row, ensure_ascii=False) for row in item] if isinstance(item, list) else []
        body = "[\n" + ",\n".join(texts) + "\n]" if texts else json.dumps(item, ensure_ascii=False)
        parts.append(f"{json.dumps(key)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def vectors() -> dict[str, bytes]:
    """Return the content of every file by its path."""
    files: dict[str, bytes] = {}
    for number, case in enumerate(valid.cases(), 1):
        path = f"valid/{slug(number, case.about)}"
        files[f"{path}.safetensors"] = case.raw or file_bytes(case.delta)
        files[f"{path}.json"] = dumped(valid.expected(case)).encode()
    rows = []
    for number, broken in enumerate([*broken_container.cases(), *broken_document.cases()], 1):
        path = f"invalid/{slug(number, broken.about)}.safetensors"
        files[path] = broken.raw
        about = {"file": path, "about": broken.about, "rule": broken.rule, "error": broken.error}
        rows.append({**about, "names": list(broken.names)})
    files["invalid.json"] = dumped({"files": rows}).encode()
    manifest, inputs = operations.manifest()
    files["operations.json"] = dumped(manifest).encode()
    files |= {f"operations/{name}.safetensors": raw for name, raw in inputs.items()}
    files["basis.json"] = dumped(bases.manifest()).encode()
    return files


def main(arguments: Sequence[str]) -> None:
    """Write all files."""
    folder = Path(arguments[0]) if arguments else Path(__file__).parent
    for path, content in vectors().items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


if __name__ == "__main__":
    main(sys.argv[1:])
