"""`python -m reproduce.paper`: play the plan from where it stands, and write the report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .carry_out import carry_out
from .lab import base_digest
from .planner import paper_plan
from .quick import quick_plan
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
    parser.add_argument("--quick", action="store_true", help="a few small claims, in a report of its own")
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--minutes", type=float, help="begin no cell after so many minutes; 0 only writes the report")
    args = parser.parse_args(argv)
    plan = quick_plan() if args.quick else paper_plan()
    if args.minutes != 0:
        carry_out(plan, args.work, args.out, base_digest(), args.jobs, args.minutes, say)
    print(f"wrote {write_report(args.out, plan, base_digest())}")


if __name__ == "__main__":
    main()
