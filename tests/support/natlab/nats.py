"""NATs: what they translate, what they let in, what they forget; the words are RFC 4787's."""

import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.support.natlab.links import Link
from tests.support.natlab.packets import ICMP, TCP, UDP, Endpoint, Packet

ENDPOINT_INDEPENDENT: Final = "endpoint-independent"
"""Mapping: one outside port for an inside port, whatever is spoken to. Filtering: lets all in."""
ADDRESS: Final = "address-dependent"
"""Another outside port for each address; only addresses that were spoken to are let in."""
ADDRESS_AND_PORT: Final = "address-and-port-dependent"
"""The same for each address and port. As mapping this is what is called a symmetric NAT."""

MAPPINGS_MAX = 4096
"""Of one NAT; the one longest unused is then forgotten, as by a home router."""

NAT_PMP_PORT = 5351
"""RFC 6886, section 3."""

SYMMETRIC: Final[dict[str, Any]] = {"mapping": ADDRESS_AND_PORT, "preserves_ports": False}
KINDS: Final[dict[str, dict[str, Any]]] = {
    "home router": {},
    "home router with RST": {"refuses": True},
    "ports not kept": {"preserves_ports": False},
    "open filter": {"filtering": ENDPOINT_INDEPENDENT},
    "address filter": {"filtering": ADDRESS},
    "symmetric": SYMMETRIC,
}
"""Six that are common, as options of `Nat`; they make 21 pairs."""


@dataclass
class Mapping:
    """An outside port that stands for an inside endpoint."""

    inside: Endpoint
    outside: int
    peers: dict[Endpoint, None] = field(default_factory=dict)
    """What the inside has spoken to."""
    used_at: float = 0.0
    is_forward: bool = False
    """By the owner's order, or by NAT-PMP: everybody is let in."""


class Nat:
    """Address and port translation at the border of a private network."""

    def __init__(
        self,
        name: str,
        address: str,
        behind: "Nat | None",
        link: Link,
        *,
        now: Callable[[], float],
        chance: random.Random,
        mapping: str = ENDPOINT_INDEPENDENT,
        filtering: str = ADDRESS_AND_PORT,
        preserves_ports: bool = True,
        hairpins: bool = False,
        refuses: bool = False,
        tcp_idle_s: float = 7200.0,
        udp_idle_s: float = 120.0,
        inner: str = "",
        speaks_nat_pmp: bool = False,
    ) -> None:
        """Make one; the defaults are those of most home routers.

        Args:
            name: for people.
            address: its outer one.
            behind: the NAT that it is behind, if any: a carrier's.
            link: of its outer side.
            now: the time in seconds.
            chance: draws ports.
            mapping: which outside port is taken for what is sent.
            filtering: what is let in.
            preserves_ports: takes the inside's port where that is free; else a random one.
            hairpins: lets the inside reach its own outer address.
            refuses: answers an unwanted TCP packet with RST; most are silent.
            tcp_idle_s: after which a TCP mapping is forgotten.
            udp_idle_s: the same for UDP.
            inner: its address inside, which is the hosts' gateway.
            speaks_nat_pmp: opens ports on request there (RFC 6886), as many home routers do.
        """
        self.name, self.address, self.behind, self.link = name, address, behind, link
        self.mapping, self.filtering = mapping, filtering
        self.preserves_ports, self.hairpins, self.refuses = preserves_ports, hairpins, refuses
        self.idle_s = {TCP: tcp_idle_s, UDP: udp_idle_s, ICMP: 60.0}
        self.inner = inner
        self.services: dict[int, Callable[[Packet], bytes | None]] = {}
        """What answers at the inner address, by UDP port."""
        self.dropped = 0
        self._now, self._chance = now, chance
        self._started = now() - 1000  # as routers that run for long
        self._by_key: dict[tuple[Any, ...], Mapping] = {}
        self._by_port: dict[tuple[int, int], Mapping] = {}
        if speaks_nat_pmp:
            self.services[NAT_PMP_PORT] = self._nat_pmp

    @property
    def outer(self) -> bytes:
        """Its outer address as packets have it."""
        return socket.inet_aton(self.address)

    @property
    def uptime_s(self) -> int:
        """Seconds since it last lost its ports."""
        return int(self._now() - self._started)

    def forward(self, port: int, inside: tuple[str, int], protocol: int = TCP) -> None:
        """Let everybody reach an inside endpoint at an outside port."""
        endpoint = socket.inet_aton(inside[0]), inside[1]
        found = Mapping(endpoint, port, is_forward=True)
        self._by_port[protocol, port] = found
        self._by_key[protocol, endpoint] = found

    def unforward(self, port: int, protocol: int = TCP) -> None:
        """Take an order back."""
        if found := self._by_port.get((protocol, port)):
            self._drop(protocol, found)

    @property
    def forwards(self) -> dict[int, tuple[str, int]]:
        """The inside endpoint of each TCP port that is forwarded."""
        return {
            port: (socket.inet_ntoa(each.inside[0]), each.inside[1])
            for (protocol, port), each in list(self._by_port.items())
            if protocol == TCP and each.is_forward
        }

    def forget(self, *, forwards: bool = False) -> None:
        """Lose all mappings, as when a router restarts; those that were ordered only if told."""
        kept = {
            key: each for key, each in self._by_port.items() if each.is_forward and not forwards
        }
        self._by_port = kept
        self._by_key = {(key[0], each.inside): each for key, each in kept.items()}
        self._started = self._now()

    def renumber(self, address: str) -> None:
        """Take another outer address, as providers give each day; use `Internet.renumber`."""
        self.address = address
        self.forget()

    def answer(self, packet: Packet) -> Packet | None:
        """Answer what is sent to the inner address."""
        service = self.services.get(packet.destination[1]) if packet.protocol == UDP else None
        body = service(packet) if service else None
        return None if body is None else packet.reply(body)

    def outward(self, packet: Packet) -> None:
        """Translate what leaves."""
        found = self._map(packet)
        found.used_at = self._now()
        found.peers[packet.destination] = None
        packet.source = (self.outer, found.outside)

    def inward(self, packet: Packet) -> bool:
        """Translate what arrives; False drops it."""
        found = self._by_port.get((packet.protocol, packet.destination[1]))
        if found and self._is_over(packet.protocol, found):
            self._drop(packet.protocol, found)
            found = None
        if found is None or not self._lets_in(found, packet.source):
            self.dropped += 1
            return False
        found.used_at = self._now()
        packet.destination = found.inside
        return True

    def _is_over(self, protocol: int, found: Mapping) -> bool:
        return not found.is_forward and self._now() - found.used_at > self.idle_s[protocol]

    def _lets_in(self, found: Mapping, source: Endpoint) -> bool:
        if found.is_forward or self.filtering == ENDPOINT_INDEPENDENT:
            return True
        if self.filtering == ADDRESS:
            return any(peer[0] == source[0] for peer in found.peers)
        return source in found.peers

    def _map(self, packet: Packet) -> Mapping:
        """Return the mapping for what is sent; a new one if need be."""
        forward = self._by_key.get((packet.protocol, packet.source))
        if forward:
            return forward
        far: tuple[Any, ...] = ()
        if self.mapping == ADDRESS:
            far = (packet.destination[0],)
        elif self.mapping == ADDRESS_AND_PORT:
            far = packet.destination
        key = (packet.protocol, packet.source, "to", *far)
        found = self._by_key.get(key)
        if found and self._is_over(packet.protocol, found):
            self._drop(packet.protocol, found)
            found = None
        if found is None:
            if len(self._by_port) >= MAPPINGS_MAX:
                protocol, oldest = min(
                    ((key[0], each) for key, each in self._by_port.items()),
                    key=lambda pair: (pair[1].is_forward, pair[1].used_at),
                )
                self._drop(protocol, oldest)
            found = Mapping(packet.source, self._choose_port(packet))
            self._by_key[key] = self._by_port[packet.protocol, found.outside] = found
        return found

    def _choose_port(self, packet: Packet) -> int:
        wanted = packet.source[1]
        if self.preserves_ports and (packet.protocol, wanted) not in self._by_port:
            return wanted
        while True:
            port = self._chance.randrange(1024, 65536)
            if (packet.protocol, port) not in self._by_port:
                return port

    def _drop(self, protocol: int, found: Mapping) -> None:
        self._by_port.pop((protocol, found.outside), None)
        kept = list(self._by_key.items())  # at once: routers' other protocols have threads
        self._by_key = {key: each for key, each in kept if each is not found}

    def _nat_pmp(self, packet: Packet) -> bytes | None:
        """Answer a request of RFC 6886; leases do not run out here."""
        asked = packet.body
        if len(asked) < 2:
            return None

        def head(result: int) -> bytes:
            return struct.pack(">BBHI", 0, 128 | asked[1], result, self.uptime_s)

        if asked[0] != 0:
            return head(1)  # unsupported version
        if asked[1] == 0:
            return head(0) + self.outer
        if asked[1] not in (1, 2) or len(asked) != 12:
            return head(5)  # unsupported opcode
        protocol = UDP if asked[1] == 1 else TCP
        inside_port, wanted, lease_s = struct.unpack(">HHI", asked[4:])
        inside = packet.source[0], inside_port
        if not lease_s:
            held = self._by_key.get((protocol, inside))
            if held:
                self._drop(protocol, held)
            return head(0) + struct.pack(">HHI", inside_port, 0, 0)
        outside = wanted or inside_port
        held = self._by_port.get((protocol, outside))
        while held and held.inside != inside:
            outside = self._chance.randrange(1024, 65536)
            held = self._by_port.get((protocol, outside))
        self.forward(outside, (socket.inet_ntoa(inside[0]), inside_port), protocol)
        return head(0) + struct.pack(">HHI", inside_port, outside, lease_s)
