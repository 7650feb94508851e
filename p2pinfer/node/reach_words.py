"""How peers are reached, in words: others as seen from here, and this machine's own."""

import re
from collections.abc import Iterable, Sequence

from attrs import frozen

from p2pinfer.core.ids import PeerId
from p2pinfer.core.trust import short
from p2pinfer.core.ways import DIRECTLY, NOT_AT_ALL, PUNCHED, is_behind_relays, relays_in
from transports.base import Reachability

_PORT = re.compile(r"/tcp/(\d+)")
_HOST = re.compile(r"/(?:ip4|ip6)/([^/]+)/")


def way_to(addresses: Sequence[str], relay: PeerId | None, *, is_connected: bool) -> str:
    """Say how another peer is reached.

    Args:
        addresses: that it advertises.
        relay: which carries the connection with it, if one does.
        is_connected: whether there is a connection.
    """
    if not addresses:
        return NOT_AT_ALL
    if not is_behind_relays(addresses):
        return DIRECTLY
    if is_connected and relay is None:
        return PUNCHED
    relays = (relay,) if relay else relays_in(addresses)
    return f"through relay {_named(relays, 'or')}"


@frozen
class OwnReach:
    """How others reach this machine's peer, and what would make it better."""

    words: str
    advice: str = ""
    """Empty if there is nothing to do."""


def own_reach(
    reachability: Reachability, addresses: Sequence[str], own_addresses: Iterable[str]
) -> OwnReach:
    """Say how others reach a peer of this machine.

    Args:
        reachability: what others found when they were asked to dial it.
        addresses: that it tells others.
        own_addresses: of its machine's interfaces.
    """
    own = list(own_addresses)
    relays = relays_in(addresses)
    ports = dict.fromkeys(port for each in own for port in _PORT.findall(each)[:1])
    forward = (
        f"forward TCP port {' or '.join(ports) or 'of the peer'} in the router to this machine,"
        " and let it through the firewall"
    )
    if reachability is Reachability.PUBLIC:
        hosts = {host for each in own for host in _HOST.findall(each)[:1]}
        if any(set(_HOST.findall(each)[:1]) & hosts for each in addresses):
            return OwnReach("others dial it directly")
        told = dict.fromkeys(port for each in addresses for port in _PORT.findall(each)[:1])
        return OwnReach(f"others dial it through the router's forwarded port {' or '.join(told)}")
    if relays:
        words = f"others call it through relay {_named(relays, 'or')}"
        if reachability is Reachability.UNKNOWN:
            return OwnReach(f"{words}; whether they can dial it is not known yet")
        return OwnReach(words, f"to be dialled without a relay, {forward}")
    if reachability is Reachability.HIDDEN:
        relay = "or run p2pinfer relay on a machine that others can dial"
        return OwnReach("nobody can call it", f"{forward}, {relay}")
    return OwnReach("others dial its machine's own addresses; nobody was asked whether they can")


def _named(peers: Iterable[PeerId], word: str) -> str:
    """Return short names in a sentence."""
    *most, last = map(short, peers)
    return f"{', '.join(most)} {word} {last}" if most else last
