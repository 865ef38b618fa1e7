"""Run the server: bind first, refuse what is not safe, serve, and finish what was accepted when it is asked to end."""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from types import FrameType
from typing import Final

import uvicorn

from svdiff_delta.errors import InputError, refusal

from .app import LOOPBACK, ServerState, make_app
from .keys import Keys
from .logs import relayed

BACKLOG: Final = 256
ENDING: Final = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))

KEEP_ALIVE: Final = 15
"""Seconds for which a connection without a request is kept."""

LAST_WORDS: Final = 10
"""Seconds to answer in when the time to finish is over; then connections are closed as they are."""

LAST_MOMENT: Final = 0.5
"""The same where a second signal asks not to wait."""

CONNECTIONS: Final = 512
"""Connections at a time; beyond them the answer is 503."""


def is_loopback(host: str) -> bool:
    """Tell whether only programs of this machine reach an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_open(host: str, keys: Keys | None, *, no_auth: bool) -> frozenset[str] | None:
    """Check that strangers cannot use a server unless that is wanted.

    Args:
        host: where it listens.
        keys: whose keys are taken; None takes requests of anyone.
        no_auth: whether anyone may ask, wherever it listens.

    Returns:
        The names under which it may be asked: without keys on loopback only those of this machine, so that no page in
        a browser reaches it under a name of its own; None for any.

    Raises:
        InputError: it would take requests of anyone from other machines.
    """
    if keys is not None or no_auth:
        return None
    if not is_loopback(host):
        raise InputError(
            f"{host}: other machines reach this address, and no keys are asked for",
            fix="give `keys`, listen on 127.0.0.1, or pass `no_auth=True` if anyone may paint here",
        )
    return LOOPBACK | {host.lower(), f"[{host.lower()}]"}


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        InputError: the port is in use, or the address is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        # With the protocol: asyncio sends at once on sockets that say TCP alone; else each answer may wait 40 ms.
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(BACKLOG)
        except BaseException:
            found.close()
            raise
    except OSError as error:
        where = f"{host}:{port}"
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"{where}: is in use by another program", fix="name another `port`") from None
        raise InputError(refusal(where, error, "listened on"), fix="name another `host` or `port`") from None
    return found


class Server(uvicorn.Server):
    """A server that finishes what it has accepted when a signal asks it to end, and then ends without an error.

    Args:
        state: what requests share.
        seconds: how long finishing may take.
    """

    def __init__(self, state: ServerState, seconds: float) -> None:
        config = uvicorn.Config(
            make_app(state),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=ceil(seconds) + LAST_WORDS,
        )
        super().__init__(config)
        self._state, self._seconds = state, seconds
        self.ended_by, self.finished = "", True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and wait for the answers; what is not painted in time is answered with an error."""
        timer = threading.Timer(self._seconds, self._cut_off)
        timer.daemon = True
        timer.start()
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def _cut_off(self) -> None:
        engine = self._state.service.engine
        self.finished = not (engine.painting or engine.waiting)  # before clients hear of it, and the server ends
        engine.drain(0)

    def _end_now(self) -> None:
        self._cut_off()
        time.sleep(LAST_MOMENT)
        self.force_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on the first signal, as `handle_exit` does; a second one does not wait."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in ENDING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take nothing more from now on."""
        del frame
        self._state.backend.draining = True
        self.ended_by = signal.Signals(sig).name
        if self.should_exit:
            threading.Thread(target=self._end_now, daemon=True).start()
        self.should_exit = True


def serve(state: ServerState, listening: socket.socket, *, seconds: float = 60.0) -> str:
    """Serve until a signal asks for the end; then finish what was accepted.

    Args:
        state: what requests share.
        listening: from `bind`.
        seconds: how long finishing may take.

    Returns:
        The signal's name.
    """
    server = Server(state, seconds)
    host, port = listening.getsockname()[:2]
    state.log.event("ready", host=host, port=port, deltas=len(state.service.store.names()))
    with relayed(state.log):
        server.run(sockets=[listening])
    finished = state.service.close(seconds) and server.finished
    state.log.event("ended", by=server.ended_by or None, finished=finished)
    return server.ended_by
