"""From a libp2p host's first listener to its last word."""

from collections.abc import Sequence
from typing import Any

import trio
from libp2p.abc import IHost
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from p2pinfer.core.errors import UserError
from transports.libp2p.host import connections
from transports.libp2p.muxer import Connection

LAST_WORDS_S = 0.02
"""At the end, for gossip to hand what was just published to its neighbours' streams."""

FLUSH_S_MAX = 0.5
"""At the end, for what was sent to leave this machine."""


async def run_host(
    host: IHost, listening: Sequence[Multiaddr], task_status: trio.TaskStatus[None]
) -> None:
    """Run a host until cancelled.

    Raises:
        UserError: it cannot listen on one of the addresses.
    """
    async with host.run(listen_addrs=listening):
        for address in listening:
            if str(address) not in host.get_network().listeners:
                raise UserError(f"Cannot listen on {address}: choose another address or port.")
        task_status.started()
        await trio.sleep_forever()


async def leave(host: IHost) -> None:
    """Let what was sent leave, then close every connection without a wait, and the ports."""
    swarm: Any = host.get_network()
    with trio.move_on_after(FLUSH_S_MAX, shield=True):
        await trio.sleep(LAST_WORDS_S)
        async with trio.open_nursery() as nursery:
            for conn in swarm.get_connections():
                muxed = conn.muxed_conn
                nursery.start_soon(
                    muxed.wait_flushed if isinstance(muxed, Connection) else conn.close
                )
    for conn in connections(host):
        conn.leave()
    with trio.CancelScope(shield=True):
        for listener in list(swarm.listeners.values()):
            await listener.close()  # when cancelled, libp2p leaves them open
