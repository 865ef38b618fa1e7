"""Doing all rows of a manifest on Ray Data: on the processes of one machine, or on a cluster's."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Final

from svdiff_delta.errors import InputError
from svdiff_train.ray_cluster import check_ray, joined

from .run import Task, Watch, convert_task, run_manifest
from .work import Result

TOGETHER: Final = 16
"""Rows of one task of Ray at most: they are noted in the report together."""

TASKS_OF_A_PROCESS: Final = 8
"""Tasks that each process gets at least, so that all end at about the same time."""

ATTEMPTS: Final = 3
"""How often a row is begun whose process dies."""


def run_manifest_on_ray(
    path: Path,
    report: Path | None = None,
    *,
    jobs: int | None = None,
    gpus: float = 0.0,
    attempts: int = ATTEMPTS,
    overwrite: bool = False,
    dry_run: bool = False,
    watch: Watch | None = None,
) -> list[Result]:
    """Convert all files of a manifest on Ray Data, and return what became of each row, in order.

    It is `run_manifest` in all else: the same checks, rows, report, and going on from it. All machines of a cluster
    must see the manifest's paths. What only the Hub has is fetched where it is converted, and is not looked at before.

    A process that dies takes its task with it, and other processes begin each of its rows again, one by one, so that a
    row that ends every process fails alone.

    Args:
        path: the manifest.
        report: where the report is read and written; see `run_manifest`.
        jobs: rows that are converted at a time; as many as the cluster has CPUs if not given.
        gpus: the share of a GPU that a row needs.
        attempts: how often a row is begun whose process dies.
        overwrite: do every row anew.
        dry_run: only check; Ray is not started.
        watch: called after each row.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: as `run_manifest`, or the cluster cannot be joined.
        OutputError: the report cannot be written.
    """
    check_ray()
    if jobs is not None and jobs < 1:
        raise InputError(f"there must be at least 1 row at a time, not {jobs}", fix="give `jobs=1`")
    if attempts < 1:
        raise InputError(f"attempts must be at least 1, is {attempts}")
    share = partial(_share_out, jobs=jobs, gpus=gpus, attempts=attempts)
    return run_manifest(path, report, overwrite=overwrite, dry_run=dry_run, watch=watch, share=share)


def _share_out(
    tasks: Sequence[Task], *, jobs: int | None, gpus: float, attempts: int
) -> Generator[tuple[int, Result | None]]:
    """Yield the index and result of every task as Ray has done it; None where its process died each time."""
    left = dict(enumerate(tasks))
    with joined(jobs):
        import ray

        at_once = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))
        together = min(TOGETHER, ceil(len(tasks) / (TASKS_OF_A_PROCESS * at_once)))
        for attempt in range(attempts):
            for index, result in _round(list(left.items()), 1 if attempt else together, jobs, gpus):
                del left[index]
                yield index, result
            if not left:
                return
            # What a dead process has written of these is this run's own.
            left = {index: (row, True, before) for index, (row, _, before) in left.items()}
    for index in left:
        yield index, None


def _round(
    items: Sequence[tuple[int, Task]], together: int, jobs: int | None, gpus: float
) -> Iterator[tuple[int, Result]]:
    """Yield what comes of items as Ray has done them; those whose process died are left out."""
    import ray.data
    from ray.exceptions import RayError

    needs: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus or None}
    with _context():
        rows = [{"task": pickle.dumps(item)} for item in items]
        data = ray.data.from_items(rows, override_num_blocks=ceil(len(rows) / together))
        pool = ray.data.TaskPoolStrategy(size=jobs)
        with warnings.catch_warnings():
            # Ray Data would begin tasks again for ever, as if nothing of them were there; this is the way to say no.
            warnings.simplefilter("ignore", DeprecationWarning)
            done = data.map_batches(
                convert_block, batch_size=None, batch_format="pyarrow", compute=pool, max_retries=0, **needs
            )
        try:
            for block in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for raw in block.column("result").to_pylist():
                    yield pickle.loads(raw)  # noqa: S301 - what this program wrote a moment ago
        except RayError as error:
            logging.getLogger(__name__).warning("what was left is begun again: %s", type(error).__name__)


@contextmanager
def _context() -> Iterator[None]:
    """Let Ray Data go on where a task dies, and draw nothing."""
    from ray.data import DataContext

    context = DataContext.get_current()
    wanted = {"max_errored_blocks": -1, "enable_progress_bars": False, "print_on_execution_start": False}
    before = {name: getattr(context, name) for name in wanted}
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        logger.setLevel(logging.CRITICAL)  # it prints the traceback of each task that dies, of which the report tells
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


def convert_block(block: Any) -> Mapping[str, list[bytes]]:
    """Convert the rows of a block, as Ray's workers are asked for it.

    Args:
        block: an Arrow table, whose column `task` has pairs of an index and the arguments of `convert_task`.

    Returns:
        The column `result`, of pairs of an index and a Result.
    """
    found = []
    for raw in block.column("task").to_pylist():
        index, task = pickle.loads(raw)  # noqa: S301 - what `_round` wrote
        found.append(pickle.dumps((index, convert_task(*task))))
    return {"result": found}
