"""All tests and claims about a card, one section after the other, each in a process of its own.

    python -m benchmarks.gpu [--sections tests,bases,step,…] [--json FILE] [--folder FOLDER] [--seconds N] [--dry]

All of it takes at most `--seconds`; a section that is not done by then is ended, and counts as missed. Exits with 1 if
a limit is missed or a section did not end well, with 2 if there is no card.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .script import NO_CARD, arguments, no_card

SECTIONS = ("tests", "bases", "step", "forward", "changes")
"""In the order in which they run: tests marked `gpu`, then the scripts; the first that needs the folder makes it."""
SECONDS = 240.0


def main() -> None:
    """Run the sections that were asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which, by commas")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of all of them together")
    given = parser.parse_args()
    wanted = [name for name in SECTIONS if name in given.sections.split(",")]
    if odd := sorted(set(given.sections.split(",")) - set(SECTIONS)):
        parser.error(f"there is no section {odd[0]!r}; there are {', '.join(SECTIONS)}")
    if not given.dry and (line := no_card()):
        print(line, file=sys.stderr)
        sys.exit(NO_CARD)
    end = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "unet"
        found = [section(name, folder, Path(temporary) / name, end, dry=given.dry) for name in wanted]
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    missed = [f"{each['section']}: {name}" for each in found for name in each["missed"]]
    print(f"\n{'; '.join(missed) or 'no limit'} missed")
    sys.exit(1 if missed else 0)


def section(name: str, folder: Path, out: Path, end: float, *, dry: bool) -> dict[str, Any]:
    """Run one section; return its figures as JSON has them, with what was missed."""
    print(f"\n{name}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.gpu.{name}", "--folder", str(folder), "--json", str(out)]
    command += ["--dry"] if dry else []
    if name == "tests":
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"] + (["--collect-only"] if dry else [])
    begun = time.monotonic()
    try:
        # Without a workspace of its own cuBLAS does not give the same bits each time.
        environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if name == "tests" else None
        status = subprocess.run(command, env=environment, timeout=max(0.0, end - begun)).returncode
    except subprocess.TimeoutExpired:
        status = None
    ended = {None: ["not done in time"], 0: [], 1: []}.get(status, [f"ended with {status}"])
    figures: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"section": name, "figures": []}
    missed = [each["name"] for each in figures["figures"] if each["met"] is False]
    if status == 1 and not missed:
        ended = ["a test failed" if name == "tests" else "ended with an error"]
    return {**figures, "seconds": time.monotonic() - begun, "missed": [*missed, *ended]}


if __name__ == "__main__":
    main()
