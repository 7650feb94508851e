"""What DCUtR says, and which addresses a peer may be made to dial, how often; no sockets, no clock.

Two hidden peers that talk through a relay tell each other at which addresses the Internet sees
them, and dial each other at the same moment: https://github.com/libp2p/specs/blob/master/relay/DCUtR.md
What the other side names is a claim: it may be a third party's address, or one of this home.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from transports.libp2p import protobuf

CONNECT: Final = 100
SYNC: Final = 300

ADDRESSES_MAX = 4
"""Dialled at once for one peer."""

TRIES_MAX = 2
"""For one peer in `REST_S`: 97.6 % of what succeeds does so at the first (arXiv 2510.27500)."""

REST_S = 600.0
"""After which a peer may be tried again."""

AT_ONCE_MAX = 8
"""Tries under way."""

TRIES_PER_MINUTE_MAX = 30
"""Over all peers, whose names cost nothing: so a third party sees 120 dials a minute at most."""

PEERS_MAX = 1024
"""Whose tries are remembered."""

PORT_MIN = 1024
"""A peer listens on no lower port of a private address; printers and routers do."""

_PLACE: Final = re.compile(r"/ip4/([0-9.]+)/tcp/(\d+)(?:/p2p/\w+)?")

Place = tuple[str, int]
"""An IPv4 address and a port."""


def encode(kind: int, addresses: Sequence[str] = ()) -> bytes:
    """Encode a message of DCUtR, without its length."""
    observed = b"".join(protobuf.data(2, Multiaddr(each).to_bytes()) for each in addresses)
    return protobuf.number(1, kind) + observed


def decode(message: bytes) -> tuple[int, list[str]]:
    """Return a message's kind and its addresses; those that cannot be read are left out.

    Raises:
        ValueError: it is no such message.
    """
    fields = protobuf.parse(message)
    found = []
    for raw in protobuf.all_data_of(fields, 2):
        try:
            found.append(str(Multiaddr(raw)))
        except Exception:  # noqa: BLE001, S112 - the library raises anything, and it is a claim
            continue
    return protobuf.number_of(fields, 1), found


def places(addresses: Iterable[str]) -> list[Place]:
    """Return the addresses of IPv4 and TCP, each once."""
    found: dict[Place, None] = {}
    for address in addresses:
        if match := _PLACE.fullmatch(address):
            found[match[1], int(match[2])] = None
    return list(found)


def choose(theirs: Iterable[str], ours: Iterable[str]) -> list[Place]:
    """Return where a peer may be dialled, of what it says and of what is known of this one.

    Public addresses; private ones only if both are seen at one public address, and then in this
    peer's own network, at a port that no service of the system has.
    """
    own = places(ours)
    told = places(theirs)
    ours_public = {host for host, _ in own if _is_public(host)}
    one_home = any(host in ours_public for host, _ in told)
    networks = {_network(host) for host, _ in own if _is_private(host)}
    return [
        (host, port)
        for host, port in told
        if _is_public(host)
        or (one_home and _is_private(host) and port >= PORT_MIN and _network(host) in networks)
    ][:ADDRESSES_MAX]


def _is_public(host: str) -> bool:
    try:
        found = ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast


def _is_private(host: str) -> bool:
    try:
        found = ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return found.is_private and not (
        found.is_loopback or found.is_link_local or found.is_unspecified or found.is_reserved
    )


def _network(host: str) -> str:
    return host.rpartition(".")[0]


@dataclass
class Ledger:
    """How often which peers were tried."""

    _tries: dict[str, list[float]] = field(default_factory=dict)
    _recent: list[float] = field(default_factory=list)
    _under_way: int = 0

    def begin(self, peer: str, now: float) -> int:
        """Return the number of a try that may begin, from 1; 0 if none may. Then call `end`."""
        self._recent = [at for at in self._recent if now - at < 60.0]
        tried = [at for at in self._tries.pop(peer, []) if now - at < REST_S]
        self._tries[peer] = tried
        if len(self._tries) > PEERS_MAX:
            del self._tries[next(iter(self._tries))]
        if (
            len(tried) >= TRIES_MAX
            or self._under_way >= AT_ONCE_MAX
            or len(self._recent) >= TRIES_PER_MINUTE_MAX
        ):
            return 0
        tried.append(now)
        self._recent.append(now)
        self._under_way += 1
        return len(tried)

    def end(self, peer: str, *, succeeded: bool) -> None:
        """Note how a try ended: a peer that has proved its id there may be tried again."""
        self._under_way -= 1
        if succeeded:
            self._tries.pop(peer, None)
