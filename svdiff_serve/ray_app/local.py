"""Keep a replica of a cluster on the loopback address from listening to other machines."""

from __future__ import annotations

from functools import partial
from typing import Any

from svdiff_train.ray_cluster import LOOPBACK

ANYWHERE = "[::]"
"""The address at which replicas of Ray 2.60 listen for one another, wherever their node is."""


def listen_where_the_node_does() -> None:
    """Have this process, a replica that is being made, listen on the loopback address if its node is there.

    Ray has no setting for it: its replicas listen to all machines, and trust to the token that whoever calls must say.
    """
    from ray.serve._private import replica
    from ray.util import get_node_ip_address

    if get_node_ip_address() == LOOPBACK and hasattr(replica, "add_port_to_grpc_server"):
        replica.add_port_to_grpc_server = partial(_add_port, replica.add_port_to_grpc_server)


def _add_port(add: Any, server: Any, address: str) -> Any:
    return add(server, address.replace(ANYWHERE, LOOPBACK))
