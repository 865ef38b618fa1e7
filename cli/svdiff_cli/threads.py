"""How many threads a command computes with, and how they wait for each other."""

from __future__ import annotations

import os
from typing import Final

import click

COUNT: Final = "OMP_NUM_THREADS"
WAITING: Final = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What says how threads of OpenMP wait: of any of its libraries, of GNU's, of LLVM's and Intel's."""


def wait_quietly() -> None:
    """Let threads that wait for others sleep, unless the user says how they wait; of use before torch is loaded.

    Threads that wait in a loop take the cores from those they wait for, wherever anything else runs.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def compute_on_one() -> None:
    """Let torch compute on one thread until the command ends, unless the user says on how many.

    For the embedded base: its layers are so small that waking a second thread takes longer than it saves. A step of
    training took 0.12 s on one thread and 0.21 s on two that sleep while they wait; beside a busy process, 0.17 s on
    one and 0.44 s on two that wait in a loop for a moment (`benchmarks/busy.py`).
    """
    if COUNT in os.environ:
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    click.get_current_context().call_on_close(lambda: torch.set_num_threads(before))
