#!/usr/bin/env bash
# TCP_NODELAY of the connections of uvicorn, started as one process and on the socket that it opens for several.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet uvicorn==0.54.0 2>/dev/null
cd "$folder"
venv/bin/python - <<'P'
import platform
import socket
import sys
import threading
import time
from importlib.metadata import version

import uvicorn


async def app(scope, receive, send):
    """Never asked: a connection is enough."""


def delays(sockets):
    """Return whether a connection to uvicorn waits for acknowledgements before it sends little (Nagle)."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", loop="asyncio", lifespan="off")
    own = [config.bind_socket()] if sockets else None
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": own})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    address = server.servers[0].sockets[0].getsockname()
    with socket.create_connection(address):
        while not server.server_state.connections:
            time.sleep(0.01)
        (connection,) = server.server_state.connections
        found = connection.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    server.should_exit = True
    thread.join()
    return not found


one, several = delays(False), delays(True)
print("uvicorn", version("uvicorn"), "python", platform.python_version())
print("expected: asyncio turns Nagle's algorithm off on every TCP connection, however the socket came to be")
said = {False: "off", True: "on"}
print(f"seen: {said[one]} in one process; {said[several]} with `--workers` and `--reload`, whose socket is opened without",
      "IPPROTO_TCP, for which asyncio asks")
sys.exit(0 if (one, several) == (False, True) else "this has changed")
P
