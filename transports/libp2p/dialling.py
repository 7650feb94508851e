"""Before and after a dial: names are resolved, and failures explained in words that help."""

import os
import re
import socket
from typing import Final

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from p2pinfer.core.errors import PeerUnavailable, UserError
from p2pinfer.core.ids import PeerId

NAMES_MAX: Final = 8
"""Addresses tried for one name; the rest are ignored."""

REACHED: Final = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/]+)(/tcp/\d+.*)")
"""What can be dialled: the host, and the rest."""

CIRCUIT: Final = re.compile(r"(/.+/p2p/(\w+))/p2p-circuit/p2p/(\w+)", re.ASCII)
"""A relay's address, its id, and the peer behind it."""

_FAMILIES: Final = {
    "dns": socket.AF_UNSPEC,
    "dns4": socket.AF_INET,
    "dns6": socket.AF_INET6,
}

_OTHER_ID: Final = re.compile(r"remote_peer_id_from_pubkey=(\w+)")


async def numeric(address: str) -> list[str]:
    """Return the addresses that a name resolves to; a numeric address is returned as it is.

    The machine's own resolver is asked, so that its hosts file and local names count.

    Raises:
        OSError: the name is unknown.
        ValueError: it is not a valid name.
    """
    found = REACHED.fullmatch(address)
    if not found or found[1] not in _FAMILIES:
        return [address]
    kind, name, rest = found.groups()
    known = await trio.socket.getaddrinfo(name, None, _FAMILIES[kind], socket.SOCK_STREAM)
    hosts = dict.fromkeys((family, str(place[0])) for family, *_, place in known)
    return [
        f"/{'ip4' if family == socket.AF_INET else 'ip6'}/{host}{rest}" for family, host in hosts
    ][:NAMES_MAX]


def parse_address(address: str) -> Multiaddr:
    """Return the multiaddr that a text is; raises UserError."""
    try:
        return Multiaddr(address)
    except ValueError as error:
        raise UserError(f"{address!r} is not a multiaddr: {error}.") from error


def libp2p_id(peer: PeerId) -> ID:
    """Return libp2p's own form of a peer's id; raises PeerUnavailable where there is none."""
    try:
        return ID.from_string(peer)
    except ValueError as error:
        raise PeerUnavailable(peer, f"{peer!r} is not a peer id") from error


def place(address: str) -> str:
    """Return an address without the id of the peer that is expected there."""
    return address.partition("/p2p/")[0]


def relay_of(address: str) -> PeerId | None:
    """Return the relay that an address leads through, if it does."""
    found = CIRCUIT.fullmatch(address)
    return PeerId(found[2]) if found else None


def through(circuit: str) -> str:
    """Return a circuit's address without the peers' ids."""
    return f"{place(circuit)}/p2p-circuit"


def explain(error: BaseException, *, private: bool) -> str:
    """Explain why a dial failed; ``private`` is whether this side has a network key."""
    text = root(error)
    if "protocols not supported" in text and "noise" in text:
        if private:
            return (
                "it does not belong to this private network: it has no network key, or one of"
                " another kind"
            )
        return "it belongs to a private network: give that network's key file with --network-key"
    if other := _OTHER_ID.search(text):
        return f"another peer is there: {other[1]}"
    if "Connection closed" in text:
        if private:
            return (
                "it refused the handshake: perhaps it has another network key, or it is no member"
                " any more, or this machine is none"
            )
        return "it hung up during the handshake: it is not a peer, or accepts no more connections"
    return text


def root(error: BaseException) -> str:
    """Describe the root cause in a chain of exceptions, and in groups of them."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(root(each) for each in error.exceptions))
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno:  # its own text repeats the address
        text = os.strerror(error.errno) if error.errno > 0 else error.strerror or text
        return text[:1].lower() + text[1:]
    return text
