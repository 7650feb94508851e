"""Which peers run on this machine, so that their addresses need not be typed."""

from collections.abc import Sequence

import trio
from attrs import frozen

from p2pinfer.core.ids import PeerId
from p2pinfer.logs import note
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
    port_mapping: str = ""
    """What became of asking the router for a port, in words."""


def peers_here(network: str) -> list[Here]:
    """Return the peers of a network that run on this machine now."""
    return [_here(said) for said in trio.run(ask_all) if is_peer_of(said, network)]


def _here(said: Status) -> Here:
    """Read a status; a peer of an older release says neither its own addresses nor advice."""
    own = [each for each in said.get("own_addresses") or () if isinstance(each, str)]
    addresses = tuple(dict.fromkeys([*own, *said["addresses"]]))
    return Here(
        PeerId(said["peer"]),
        addresses,
        str(said.get("advice", "")),
        str(said.get("port_mapping", "")),
    )


def ways_in(named: Sequence[str], network: str) -> tuple[str, ...]:
    """Return the named addresses, or if there are none, those of the peers on this machine.

    Where all peers here are of other networks, a note says how to reach these.
    """
    if named:
        return tuple(named)
    here = peers_here(network)
    if not here and (others := _networks_here()):
        names = ", ".join(f"--network {name}" for name in others)
        note(f"the peers on this machine are not of the network {network}; to reach them: {names}")
    return tuple(_from_here(each) for each in here if each.addresses)


def _networks_here() -> list[str]:
    """Return of which networks peers run on this machine."""
    running = trio.run(ask_all)
    return sorted({said["network"] for said in running if is_peer_of(said, said.get("network"))})


def _from_here(here: Here) -> str:
    """Return an address of this machine itself: not every router leads back to an announced one."""
    own = {address.host for address in machine_addresses()}
    return next(
        (a for a in here.addresses if own.intersection(a.split("/")[2:3])), here.addresses[0]
    )


def is_peer_of(said: Status, network: object) -> bool:
    """Whether a process is a peer of a network; another release's malformed status is not."""
    match said:
        case {"role": "peer", "network": name, "peer": str(), "addresses": [*addresses]}:
            return name == network and all(isinstance(each, str) for each in addresses)
    return False
