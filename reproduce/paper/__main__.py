"""`python -m reproduce.paper`: measure what is not measured yet, and write the report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from svdiff_delta._util.ticker import Ticker

from .lab import base_digest
from .measure import measure
from .plan import all_cells, quick_cells, search_cells, trainings
from .report import write_report


def say(line: str) -> None:
    """Tell whoever waits."""
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.paper", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("reports"), help="folder of the report, its cells and pictures"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("paper-out"), help="folder of trainings, which may be deleted"
    )
    parser.add_argument("--quick", action="store_true", help="one subject and one seed, in a report of its own")
    parser.add_argument("--search", action="store_true", help="measure what recipes are chosen by, no experiment")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--minutes", type=float, help="begin no cell after so many minutes")
    parser.add_argument("--only", help="letters of experiments, such as ab")
    parser.add_argument("--base", help="fingerprint of a former embedded base: report what was measured on it, no more")
    args = parser.parse_args(argv)
    cells = quick_cells() if args.quick else all_cells()
    if args.base is not None:
        print(f"wrote {write_report(args.out, cells, args.base, search_cells())}")
        return
    base = base_digest()
    wanted = search_cells() if args.search else cells
    chosen = [cell for cell in wanted if args.only is None or cell.experiment in args.only]
    missing = [cell for cell in chosen if cell.known(args.out, base) is None]
    say(f"{len(missing)} of {len(chosen)} cells to measure, {trainings(missing)} trainings")
    limit = None if args.minutes is None else args.minutes * 60
    with Ticker("measuring") as ticker:
        ended = count(1)

        def tell(line: str) -> None:
            say(line)
            ticker.tell(next(ended), len(missing))

        measure(missing, args.work, args.out, base, args.jobs, limit, tell)
    print(f"wrote {write_report(args.out, cells, base, search_cells())}")


if __name__ == "__main__":
    main()
