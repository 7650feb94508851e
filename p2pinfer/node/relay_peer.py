"""Compose a peer that serves no layers: it lets hidden peers be called through it."""

import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from p2pinfer.core.errors import lone_errors
from p2pinfer.core.ids import PeerId
from p2pinfer.node.identity_lock import hold_identity
from p2pinfer.node.inviting import ways_in_told
from p2pinfer.node.listen_port import own_listen
from p2pinfer.node.status_socket import Status, open_status
from p2pinfer.node.swarm_connection import open_swarm_connection
from peers.discovery.directory import Directory
from transports.base import Reach, Relaying

FOLLOWED_MAX: Final = 16
"""Models whose advertisements are passed on: each costs a view of its peers."""

LOOK_S: Final = 1.0
"""How often to look for models that nobody spoke of before."""


@dataclass(frozen=True)
class RelayOptions:
    """Options of a relay."""

    listen: tuple[str, ...] = ()
    """Empty: all interfaces, at the port that is kept beside the key."""
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    network: Reach = field(default_factory=Reach)
    identity: Path | None = None


async def run_relay(
    options: RelayOptions,
    on_ready: Callable[[PeerId, tuple[str, ...]], object],
    say: Callable[[str], None],
) -> None:
    """Relay until cancelled.

    Gossip passes through it, too: hidden peers that know only this one learn of each other.

    Raises:
        UserError: an option cannot be used; the sentence says what to do.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(lone_errors())
        key = stack.enter_context(hold_identity(options.identity))
        chance = random.Random()  # noqa: S311 -- draws a port
        swarm = await stack.enter_async_context(
            open_swarm_connection(
                options.bootstrap,
                replace(options.network, relaying=Relaying.ALWAYS),
                identity=key.identity,
                listen=options.listen or own_listen(key.path, chance, say),
                announce=options.announce,
            )
        )
        transport, directory = swarm.transport, swarm.directory
        about = {"network": options.network.network, "role": "relay", "peer": transport.peer_id}

        def describe() -> Status:
            return {**about, "addresses": [*transport.addresses], "state": "up", "sessions": []}

        ways_in = partial(ways_in_told, options.network, lambda: transport.addresses, directory)
        await stack.enter_async_context(open_status(describe, ways_in))
        directory.listen()
        swarm.stay_in_touch()
        if not swarm.bootstrap:
            swarm.nursery.start_soon(swarm.find_anybody)
        on_ready(transport.peer_id, tuple(transport.addresses))
        await _follow_all(directory)


async def _follow_all(directory: Directory) -> Any:
    """Take part in the gossip of every model that others speak of, for ever."""
    followed: set[str] = set()
    while True:
        for model in directory.models():
            if model not in followed and len(followed) < FOLLOWED_MAX:
                followed.add(model)
                directory.follow(model)
        await trio.sleep(LOOK_S)
