"""Put a server on a Ray cluster: replicas that scale with the load, and one front."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from svdiff_delta.errors import InputError
from svdiff_serve.http.keys import read_keys
from svdiff_serve.http.server import check_open
from svdiff_train.ray_cluster import check_ray, joined

from .front import Front
from .painter import Painter
from .settings import RaySettings

NAME: Final = "svdiff"
"""The application's name on the cluster."""

BREATH: Final = 1024
"""Requests that the front holds at a time; how many wait for replicas is said by the settings."""


def build(given: Mapping[str, Any] | RaySettings) -> Any:
    """Return the application, as `serve run svdiff_serve.ray_app:build base=… deltas=…` asks for it.

    Replicas are started and stopped with the load. A request goes to a replica that holds its mix, by Ray's own model
    multiplexing; where none does, to the one that holds the fewest; where all that hold it are full, to any.

    Args:
        given: settings, or a mapping of them.

    Raises:
        InputError: a setting is wrong, or strangers could use the server.
        MissingExtraError: Ray is not installed.
    """
    settings = given if isinstance(given, RaySettings) else RaySettings.read(given)
    settings.check()
    check_open(settings.host, _keys(settings), no_auth=settings.no_auth)
    check_ray()
    from ray import serve

    load = serve.multiplexed(Painter.load, max_num_models_per_replica=settings.kept)
    held = type("Painter", (Painter,), {"load": load, "__module__": __name__, "__doc__": Painter.__doc__})
    painters = serve.deployment(held, name="Painter").options(
        max_ongoing_requests=settings.held,
        max_queued_requests=settings.queue,
        graceful_shutdown_timeout_s=settings.drain,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.batch_size,
            "upscale_delay_s": settings.upscale_after,
            "downscale_delay_s": settings.downscale_after,
        },
    )
    front = serve.deployment(Front, name="Front").options(
        num_replicas=1, max_ongoing_requests=BREATH, ray_actor_options={"num_cpus": 0}
    )
    return front.bind(settings, painters.bind(settings))


def _keys(settings: RaySettings) -> Any:
    return None if settings.keys is None else read_keys(Path(settings.keys))


@contextmanager
def serving(
    settings: RaySettings, *, port: int = 8000, cpus: int | None = None, memory: int | None = None
) -> Iterator[str]:
    """Serve while the block runs, and yield the address.

    Args:
        settings: of the server.
        port: where it listens.
        cpus: CPUs of a cluster of its own; see `joined`.
        memory: bytes of its object store.

    Raises:
        InputError: a setting is wrong, or the port is in use.
        MissingExtraError: Ray is not installed.
    """
    application = build(settings)
    if not 1 <= port < 1 << 16:
        raise InputError(f"port must be from 1 to {(1 << 16) - 1}, is {port}")
    with joined(cpus, memory=memory):
        from ray import serve

        logger = logging.getLogger("ray.serve")
        level = logger.level
        logger.setLevel(logging.WARNING)
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": settings.host, "port": port})
            serve.run(application, name=NAME, route_prefix="/", blocking=False)
            yield f"http://{settings.host}:{port}"
        finally:
            serve.shutdown()
            logger.setLevel(level)
