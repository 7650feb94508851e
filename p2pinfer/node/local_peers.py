"""Which peers run on this machine, so that their addresses need not be typed."""

from collections.abc import Sequence

import trio
from attrs import frozen

from p2pinfer.core.ids import PeerId
from p2pinfer.node.status_socket import Status, ask_all
from transports.interfaces import machine_addresses


@frozen
class Here:
    """A peer that runs on this machine."""

    peer: PeerId
    addresses: tuple[str, ...]
    """Its machine's own, where it tells them, then those that it tells others."""
    advice: str = ""
    """What would let others reach it better, in words."""


def peers_here(network: str) -> list[Here]:
    """Return the peers of a network that run on this machine now."""
    return [_here(said) for said in trio.run(ask_all) if is_peer_of(said, network)]


def _here(said: Status) -> Here:
    """Read a status; a peer of an older release says neither its own addresses nor advice."""
    own = [each for each in said.get("own_addresses") or () if isinstance(each, str)]
    addresses = tuple(dict.fromkeys([*own, *said["addresses"]]))
    return Here(PeerId(said["peer"]), addresses, str(said.get("advice", "")))


def ways_in(named: Sequence[str], network: str) -> tuple[str, ...]:
    """Return the named addresses, or if there are none, those of the peers on this machine."""
    return tuple(named) or tuple(_from_here(h) for h in peers_here(network) if h.addresses)


def _from_here(here: Here) -> str:
    """Return an address of this machine itself: not every router leads back to an announced one."""
    own = {address.host for address in machine_addresses()}
    return next(
        (a for a in here.addresses if own.intersection(a.split("/")[2:3])), here.addresses[0]
    )


def is_peer_of(said: Status, network: str) -> bool:
    """Whether a process is a peer of a network; another release's malformed status is not."""
    match said:
        case {"role": "peer", "network": name, "peer": str(), "addresses": [*addresses]}:
            return name == network and all(isinstance(each, str) for each in addresses)
    return False
