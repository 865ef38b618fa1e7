"""Read the settings of a server on Ray, which must be the same for all of its replicas."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import msgspec

from svdiff_delta.errors import InputError
from svdiff_serve.settings import DRAIN, HOST, WATCH_EVERY, Defaults, Limits, ServiceSettings


class RaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a server on Ray is told; all machines of the cluster must see the paths.

    Attributes:
        base: a folder, a repository on the Hub, or `tiny`.
        deltas: folders that are watched, and deltas on the Hub; as one text, they are separated by commas.
        name: what requests call the base; `base`, or the name of its folder, if not given.
        min_replicas: replicas that are always there.
        max_replicas: replicas at most.
        upscale_after: seconds of load after which another replica is started.
        downscale_after: seconds of leisure after which one is stopped.
        cpus: CPUs that a replica reserves, and threads that it computes with.
        gpus: the share of GPUs that a replica reserves.
        device: where a replica computes; the GPU it has reserved, else the CPU, if not given.
        dtype: number format of the model.
        batch_size: pictures that a replica paints at a time.
        queue: requests that may wait, all replicas together.
        gain_memory: MB of δ on the device of a replica.
        kept: mixes by which a replica is known to others.
        watch_every: seconds between looks at the deltas.
        keys: a file of API keys.
        host: where the cluster listens for HTTP.
        no_auth: whether anyone may ask, wherever it listens.
        public_url: how addresses of pictures begin.
        rate: pictures of a key in a minute; 0 for any number.
        max_pixels, max_steps, max_pictures, max_body: what a request may ask for.
        deadline: seconds after which a request is given up.
        drain: seconds that a replica has to finish in when it is stopped.
        steps, guidance, scheduler: what counts where a request does not say.
        log_prompts: whether prompts may be written into the log.
    """

    base: str
    deltas: tuple[str, ...] = ()
    name: str = ""
    min_replicas: int = 1
    max_replicas: int = 2
    upscale_after: float = 10.0
    downscale_after: float = 300.0
    cpus: int = 1
    gpus: float = 0.0
    device: str | None = None
    dtype: Literal["F32", "F16", "BF16"] = "F32"
    batch_size: int = ServiceSettings.batch_size
    queue: int = ServiceSettings.queue_size
    gain_memory: int = ServiceSettings.gain_bytes >> 20
    kept: int = 1024
    watch_every: float = WATCH_EVERY
    keys: str | None = None
    host: str = HOST
    no_auth: bool = False
    public_url: str = ""
    rate: float = Limits.rate
    max_pixels: int = Limits.pixels
    max_steps: int = Limits.steps
    max_pictures: int = Limits.pictures
    max_body: int = Limits.body
    deadline: float = Limits.seconds
    drain: float = DRAIN
    steps: int = Defaults.steps
    guidance: float | None = None
    scheduler: str | None = None
    log_prompts: bool = False

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> RaySettings:
        """Return the settings that a mapping gives, as keys and values of a file or of Ray's command line.

        Raises:
            InputError: a key is unknown or missing, or a value is none that it can have.
        """
        values = dict(given)
        if isinstance(values.get("deltas"), str):
            values["deltas"] = [text for text in values["deltas"].split(",") if text]
        try:
            found = msgspec.convert(values, cls, strict=False)
        except msgspec.ValidationError as error:
            raise InputError(f"settings of a server on Ray: {error}", fix="`RaySettings` says what each is") from None
        found.check()
        return found

    def check(self) -> None:
        """Check that the settings go together.

        Raises:
            InputError: they do not.
        """
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not (isfinite(value) and value >= least):
                raise InputError(f"{name} must be at least {least}, is {value}")
        if not self.deltas:
            raise InputError("no deltas are served", fix="name a folder of them, or owner/repo on the Hub")
        if self.max_replicas < self.min_replicas:
            raise InputError(
                f"max_replicas is {self.max_replicas}, less than min_replicas, {self.min_replicas}",
                fix=f"give `max_replicas={self.min_replicas}`",
            )

    @property
    def called(self) -> str:
        """What requests call the base."""
        return self.name or (Path(self.base).resolve().name if Path(self.base).exists() else self.base)

    @property
    def held(self) -> int:
        """Requests that a replica holds at most: one batch is painted, one waits."""
        return 2 * self.batch_size

    @property
    def limits(self) -> Limits:
        """What requests may ask for."""
        return Limits(
            pixels=self.max_pixels,
            steps=self.max_steps,
            pictures=self.max_pictures,
            body=self.max_body,
            rate=self.rate,
            seconds=self.deadline,
        )

    @property
    def defaults(self) -> Defaults:
        """What counts where requests do not say."""
        return Defaults(steps=self.steps, guidance=self.guidance, scheduler=self.scheduler)


_LEAST: dict[str, float] = {
    **dict.fromkeys(["min_replicas", "max_replicas", "cpus", "batch_size", "queue", "kept", "steps"], 1),
    **dict.fromkeys(["max_pixels", "max_steps", "max_pictures", "max_body", "drain"], 1),
    **dict.fromkeys(["upscale_after", "downscale_after", "gpus", "gain_memory", "rate"], 0),
    **dict.fromkeys(["watch_every", "deadline"], 0.1),
}
"""The least that settings may be."""
