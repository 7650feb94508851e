"""Compose a peer that serves no layers: it lets hidden peers be called through it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import trio

from p2pinfer.core.advertisement import Advertisement, without_layers
from p2pinfer.core.ids import PeerId
from p2pinfer.node.bystander import open_bystander
from peers.discovery.directory import Directory
from transports.base import Reach, Relaying, Transport

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
    always = replace(options, network=replace(options.network, relaying=Relaying.ALWAYS))
    async with open_bystander(always, say, "relay") as swarm:
        transport, directory = swarm.transport, swarm.directory
        directory.listen()
        swarm.stay_in_touch()
        if not swarm.bootstrap:
            swarm.nursery.start_soon(swarm.find_anybody)
        on_ready(transport.peer_id, tuple(transport.addresses))
        try:
            await _follow_all(directory, transport)
        finally:
            directory.leave()


async def _follow_all(directory: Directory, transport: Transport) -> Any:
    """Take part in the gossip of every model that others speak of, for ever.

    With the first of them this relay tells others of itself, for those who look for one.
    """
    followed: set[str] = set()
    while True:
        if followed and not directory.advertises:
            directory.advertise(_about(directory, transport))
        for model in directory.models():
            if model not in followed and len(followed) < FOLLOWED_MAX:
                followed.add(model)
                directory.follow(model)
        await trio.sleep(LOOK_S)


def _about(directory: Directory, transport: Transport) -> Advertisement:
    """Return what a relay says of itself, beside what another says of a model."""
    other = directory.peers()[0]
    return without_layers(
        tuple(transport.addresses),
        transport.peer_id,
        other.model,
        other.model_name,
        other.layers,
        other.context,
    )
