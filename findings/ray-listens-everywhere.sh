#!/usr/bin/env bash
# A Ray cluster that is told to be on the loopback address, and a deployment of Ray Serve on one that is there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'ray[serve]==2.60.0' 2>/dev/null
cat >"$folder/listening.py" <<'P'
import os
import sys
from pathlib import Path

import ray
from ray import serve


def listening():
    """The processes below this one that listen for TCP on more than loopback addresses."""
    parents, names = {}, {}
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                parents[each.name] = (each / "stat").read_text().rpartition(")")[2].split()[1]
                names[each.name] = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode().split("/")[-1].split(" ")[0]
            except OSError:
                continue
    owners = {}
    for number in parents:
        above = number
        while above in parents and above != str(os.getpid()):
            above = parents[above]
        if above != str(os.getpid()):
            continue
        for link in Path(f"/proc/{number}/fd").glob("*"):
            try:
                owners[str(link.readlink())] = names[number]
            except OSError:
                continue
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            owner = owners.get(f"socket:[{fields[9]}]")
            if fields[3] == "0A" and owner and fields[1].partition(":")[0] not in loopback:
                found.add(owner)
    return found


@serve.deployment
class Nothing:
    async def __call__(self, request):
        return ""


ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", num_cpus=1, logging_level="CRITICAL")
if sys.argv[1] == "serve":
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": 8123})
    serve.run(Nothing.bind())
print(sys.argv[1], sorted(listening()))
P
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef
run() { "$folder/venv/bin/python" -W ignore "$folder/listening.py" "$1" 2>/dev/null | grep "^$1 "; }
plain=$(run plain)
replicas=$(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 run serve)
"$folder/venv/bin/pip" list 2>/dev/null | grep '^ray '
echo "expected: no process of a cluster at 127.0.0.1 listens to other machines"
echo "seen:     with that address alone: $plain"
echo "seen:     with RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 on Linux, and a deployment: $replicas"
grep -q gcs_server <<<"$plain" && grep -q ServeReplica <<<"$replicas" && ! grep -q gcs_server <<<"$replicas"
