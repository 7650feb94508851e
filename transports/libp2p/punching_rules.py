"""What DCUtR says, and which addresses a peer may be made to dial, how often; no sockets, no clock.

Two hidden peers that talk through a relay tell each other at which addresses the Internet sees
them, and dial each other at the same moment: https://github.com/libp2p/specs/blob/master/relay/DCUtR.md
What the other side names is a claim: it may be a third party's address. So only addresses of the
Internet are dialled, never one of a private network or of this peer's own site, few of them,
seldom, and on few hosts. By IPv6 there is no NAT, but a home's router lets in answers alone: the
same two dials open both.
"""

import ipaddress
import re
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from transports.libp2p import protobuf
from transports.libp2p.dialling import REACHED
from transports.libp2p.reach_inquiry import family_of, is_global

DCUTR: Final = "/libp2p/dcutr"

MESSAGE_BYTES_MAX = 4096
"""As the specification has it."""

CONNECT: Final = 100
SYNC: Final = 300

ADDRESSES_MAX = 4
"""Dialled at once for one peer."""

HOSTS_MAX: Final = {"ip4": 2, "ip6": 1}
"""Which these may be on: a home has one public address, or had another one a moment ago; by IPv6 a
machine says the one that it dials from."""

SITE_BITS = 48
"""Of an IPv6 address: what shares them with this peer's may be of its own home (RFC 6177)."""

DIALS_PER_ADDRESS_MAX = 8
"""In one try: where a NAT refuses what comes too early, the next one a moment later gets in."""

TRIES_MAX = 3
"""For one peer in `REST_S`: 97.6 % of what succeeds does so at the first (arXiv 2510.27500)."""

REST_S = 600.0
"""After which a peer may be tried again."""

AT_ONCE_MAX = 8
"""Tries under way."""

WINDOW_S = 60.0
"""For the two rates below."""

TRIES_IN_WINDOW_MAX = 30
"""For all peers together, whose names cost nothing."""

TRIES_PER_HOST_MAX = 6
"""In a window, at one host, for all peers: so a third party sees three dials a second at most."""

PORT_MIN = 1024
"""At this peer's own public address: below are its router's own services, which are no peer."""

_TYPE, _ADDRESSES, _SWAPPED = 1, 2, 1001

_ADDRESSES_READ_MAX = 16
"""Of one message; the rest is ignored."""

_PLACE: Final = re.compile(r"/(ip[46])/([0-9A-Fa-f.:]+)/tcp/(\d{1,5})(?:/p2p/\w+)?", re.ASCII)

Place = tuple[str, int]
"""An IP address and a port."""


@dataclass(frozen=True)
class HolePunch:
    """A message of DCUtR."""

    kind: int
    addresses: tuple[str, ...] = ()
    """At which its sender is seen."""
    swapped: bool = False
    """Who called is the server in this try, against the specification. Only peers of ours say and
    understand so; others skip the field."""


def encode(message: HolePunch) -> bytes:
    """Encode a message, without its length."""
    fields = [protobuf.number(_TYPE, message.kind)]
    fields += [protobuf.data(_ADDRESSES, Multiaddr(each).to_bytes()) for each in message.addresses]
    if message.swapped:
        fields.append(protobuf.number(_SWAPPED, 1))
    return b"".join(fields)


def decode(body: bytes) -> HolePunch:
    """Return a message; addresses that cannot be read are left out.

    Raises:
        ValueError: it is none.
    """
    fields = protobuf.parse(body)
    kind = protobuf.number_of(fields, _TYPE)
    if kind not in (CONNECT, SYNC):
        raise ValueError(f"a message of the unknown type {kind}")
    found = []
    for raw in protobuf.all_data_of(fields, _ADDRESSES)[:_ADDRESSES_READ_MAX]:
        try:
            found.append(str(Multiaddr(raw)))
        except Exception:  # noqa: BLE001, S112 - the library raises anything, and it is a claim
            continue
    swapped = protobuf.number_of(fields, _SWAPPED) == 1
    return HolePunch(kind, tuple(found), swapped)


def place_of(address: str) -> Place | None:
    """Return the host and port in a multiaddr, None if it is not a number and plain TCP."""
    match = _PLACE.fullmatch(address)
    if match is None:
        return None
    try:
        host = ipaddress.ip_address(match[2])
    except ValueError:
        return None
    return (str(host), int(match[3])) if match[1] == f"ip{host.version}" else None


def choose(
    theirs: Iterable[str], own_hosts: Collection[str], families: Collection[str]
) -> list[Place]:
    """Return where a peer may be dialled, of what it says.

    Args:
        theirs: multiaddrs.
        own_hosts: this machine's addresses, and those at which others see it.
        families: ``ip4``, ``ip6``: those that this machine dials by.
    """
    found: dict[Place, None] = {}
    hosts: dict[str, str] = {}
    for address in theirs:
        place = place_of(address)
        if place is None or not _may_be_dialled(place[0], own_hosts):
            continue
        host, port = place
        family = family_of(host)
        least = PORT_MIN if host in own_hosts else 1
        is_known = host in hosts or Counter(hosts.values())[family] < HOSTS_MAX[family]
        if family in families and least <= port < 1 << 16 and is_known:
            hosts[host] = family
            found[place] = None
    return list(found)[:ADDRESSES_MAX]


def _may_be_dialled(host: str, own_hosts: Collection[str]) -> bool:
    """Whether an address is of the Internet, and by IPv6 of another site."""
    own = [each for each in own_hosts if family_of(each) == "ip6"]
    sites = [ipaddress.IPv6Network((each, SITE_BITS), strict=False) for each in own]
    return is_global(host) and not any(ipaddress.ip_address(host) in site for site in sites)


def public(addresses: Iterable[str]) -> list[str]:
    """Return the addresses of the Internet that are given as numbers and lead through no relay."""
    found = []
    for address in addresses:
        match = REACHED.fullmatch(address)
        if not match or "/p2p-circuit" in address or not is_global(match[2]):
            continue
        if family_of(match[2]) == match[1]:
            found.append(address)
    return found[:ADDRESSES_MAX]


def hosts_of(places: Iterable[Place]) -> tuple[str, ...]:
    """Return the hosts of some places, each once."""
    return tuple(dict.fromkeys(host for host, _ in places))


@dataclass(frozen=True)
class PunchStatistics:
    """What came of the circuits over which this peer was called, so far."""

    reversed: int = 0
    """The caller was public, and was dialled."""
    punched: tuple[int, ...] = (0,) * TRIES_MAX
    """A hole was punched, at the first try, the second, and so on."""
    in_vain: int = 0
    """The circuit stayed."""


@dataclass
class Ledger:
    """How often this peer has tried lately, for which peers and at which hosts."""

    _tries: deque[tuple[float, str, Sequence[str]]] = field(default_factory=deque)
    _under_way: int = 0
    begun: int = 0
    """Tries so far."""
    won: int = 0
    """Those of them after which the peer was connected without a relay."""

    @property
    def lost(self) -> int:
        """Tries that are over, and were in vain."""
        return self.begun - self._under_way - self.won

    def begin(self, peer: str, hosts: Sequence[str], now: float) -> bool:
        """Count a try, if it may begin. Then `end` must be called."""
        while self._tries and self._tries[0][0] <= now - REST_S:
            self._tries.popleft()
        recent = [each for each in self._tries if each[0] > now - WINDOW_S]
        if (
            self._under_way >= AT_ONCE_MAX
            or len(recent) >= TRIES_IN_WINDOW_MAX
            or sum(each[1] == peer for each in self._tries) >= TRIES_MAX
            or any(sum(host in each[2] for each in recent) >= TRIES_PER_HOST_MAX for host in hosts)
        ):
            return False
        self._tries.append((now, peer, hosts))
        self._under_way += 1
        self.begun += 1
        return True

    def end(self, peer: str, *, succeeded: bool) -> None:
        """Note how a try ended: a peer that has proved its id there may be tried again."""
        self._under_way -= 1
        self.won += succeeded
        if succeeded:  # it goes on counting for its hosts
            self._tries = deque(
                (at, "" if each == peer else each, hosts) for at, each, hosts in self._tries
            )
