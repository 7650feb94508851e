"""Ask a router for port 4001 by each protocol, and give it back: run on a host of the lab.

It waits for a line of input after each.
"""

import json
import sys

import trio

from transports.port_mapping.gateway import find_gateway
from transports.port_mapping.keeper import all_ways, own_host_towards
from transports.port_mapping.messages import NONCE_BYTES

PORT = 4001


async def ask() -> None:
    """Print a line of JSON for each protocol."""
    router = await find_gateway()
    assert router, "the lab gives each host one"
    own_host = own_host_towards(router)
    assert own_host, "there is a way to the router"
    for way in all_ways(router, own_host, PORT, bytes(range(NONCE_BYTES))):
        holder = await way()
        granted = await holder.map()
        found = {"way": holder.way, "address": granted.address, "lease_s": granted.lease_s}
        found["is_lost"] = await holder.is_lost()
        found["is_same_again"] = await holder.map() == granted
        sys.stdout.write(f"{json.dumps(found)}\n")
        sys.stdout.flush()
        sys.stdin.readline()
        await holder.unmap()
        sys.stdout.write("closed\n")
        sys.stdout.flush()
        sys.stdin.readline()


if __name__ == "__main__":
    trio.run(ask)
