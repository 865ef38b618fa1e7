"""The processes that Ray has started for this one, by what they do."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

REPLICA = "ray::ServeReplica:svdiff:Painter"
"""How the command lines of replicas that paint begin."""


def _status() -> dict[int, tuple[int, str]]:
    """Parent and command line of each process of this machine."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                found[int(folder.name)] = parent, (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, ValueError):
                continue  # it ended while we looked
    return found


def ours(what: str) -> list[int]:
    """Return the processes below this one whose command lines begin so, such as `ray::ServeReplica`."""
    status = _status()

    def is_below(number: int) -> bool:
        while number in status and number > 1:
            if number == os.getpid():
                return True
            number = status[number][0]
        return False

    return [number for number, (_, line) in status.items() if line.startswith(what) and is_below(number)]


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def kill(number: int) -> None:
    """End a process as a lack of memory would."""
    os.kill(number, signal.SIGKILL)


def listening() -> list[tuple[str, str]]:
    """The sockets of all processes below this one that listen for TCP: the process, and the address in hexadecimal."""
    owners = {}
    for number in ours(""):
        name = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:60]
        for link in Path(f"/proc/{number}/fd").glob("*"):
            with suppress(OSError):  # it was closed while we looked
                owners[str(link.readlink())] = name
    lines = [line for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    fields = [line.split() for line in lines]
    return [
        (owners[f"socket:[{each[9]}]"], each[1].partition(":")[0])
        for each in fields
        if each[3] == "0A" and f"socket:[{each[9]}]" in owners
    ]
