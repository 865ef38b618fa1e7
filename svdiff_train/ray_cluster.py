"""Join a Ray cluster for a while, or start one on this machine, which listens to no other and reports nothing."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

from svdiff_delta.errors import InputError, MissingExtraError

LOOPBACK: Final = "127.0.0.1"
ADDRESS: Final = "RAY_ADDRESS"
"""The variable that names a cluster, as Ray's own programs read it."""

QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # else Ray tells its makers about the cluster
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # tasks without a GPU leave CUDA_VISIBLE_DEVICES alone, as will be usual
}
"""Variables that count unless they were set before."""

LOCAL: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""The variable by which Ray takes the loopback address; with that address alone it would listen to other machines."""

JOINING: Final = "RAY_AUTH_TOKEN"
"""The variable of what programs must say to join a cluster; unset, Ray would leave one in the home folder."""


def check_ray() -> None:
    """Check that Ray is installed.

    Raises:
        MissingExtraError: it is not.
    """
    if find_spec("ray") is None:
        raise MissingExtraError("ray", "ray")


@contextmanager
def joined(cpus: int | None = None, *, memory: int | None = None) -> Iterator[None]:
    """Be in a cluster: the one that this process is in, else the one that RAY_ADDRESS names, else one of its own.

    One of its own is on the loopback address, without a dashboard, and ends with the block. Usage statistics are off
    unless RAY_USAGE_STATS_ENABLED says otherwise.

    Args:
        cpus: how many tasks of one CPU run in a cluster of its own; as many as there are cores if not given.
        memory: bytes of its object store; as Ray thinks best if not given.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: the cluster cannot be joined.
    """
    check_ray()
    address = os.environ.get(ADDRESS)
    for name, value in (QUIET if address else {**QUIET, LOCAL: "0", JOINING: secrets.token_hex(32)}).items():
        os.environ.setdefault(name, value)
    import ray
    from ray._private import ray_constants

    if ray.is_initialized():
        yield
        return
    given: dict[str, Any] = {"address": address}
    if not address:
        # Another library may have imported Ray, which had looked at the variable then.
        ray_constants.ENABLE_RAY_CLUSTER = os.environ[LOCAL] != "0"
        given = {"address": "local", "include_dashboard": False, "_node_ip_address": LOOPBACK}
        given |= {"num_cpus": cpus, "object_store_memory": memory}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**given, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the cluster at {address or 'this machine'} cannot be joined: {error}", fix=f"look at {ADDRESS}"
        ) from None
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's own would end the program without cleaning up
    try:
        yield
    finally:
        ray.shutdown()
