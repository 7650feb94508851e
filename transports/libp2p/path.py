"""A path: everything that one host says goes through a relay, which another host has reached.

Hosts are stacked. The lowest one dials a relay, under an identity of its own. The host above has
another identity; wherever it wants to go, the one below asks the relay to extend, and Noise runs
end to end over that. With two relays a host between them reaches the second through the first. So
the first relay knows the caller's address and that it goes to the second; the second knows the
first, and the peers beyond; and those know the second, and an identity that nobody has seen before.

What dials for libp2p is replaced as a whole, so that nothing above can go another way: where no
relay answers, nobody is reached.
"""

from collections.abc import Sequence
from typing import Any, Final, Protocol

import trio
from libp2p.abc import IHost, IRawConnection
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from p2pinfer.core.errors import PeerError, PeerUnavailable
from p2pinfer.core.ids import PeerId
from transports.blocklist import Blocklist
from transports.libp2p import circuit_messages as messages
from transports.libp2p.circuit import ask_relay
from transports.libp2p.circuit_messages import CircuitStatus
from transports.libp2p.extension import EXTEND
from transports.libp2p.host import log, protocol_id
from transports.libp2p.muxer import Connection
from transports.libp2p.noise_records import StreamPipe
from transports.libp2p.padding import CellShape

RELAY_S_MAX = 4.0
"""For a relay to be reached: a stage keeps a session for 5 s after its requester was lost."""

SILENT_S = 60.0
"""For how long a relay that did not answer is tried after the others."""

_NEXT: Final = (CircuitStatus.PERMISSION_DENIED, CircuitStatus.RESOURCE_LIMIT_EXCEEDED)
"""What a relay says that does not extend for this caller, to any peer."""

Relays = Sequence[tuple[PeerId, tuple[str, ...]]]
"""Relays, and where they are."""


class Below(Protocol):
    """The host that reaches the relays."""

    via: "Extension | None"
    """The path that it is on itself."""

    async def reach_directly(self, peer: PeerId, addresses: Sequence[str]) -> Connection:
        """Return a connection to a peer; raises PeerUnavailable."""
        ...


class PathPipe(StreamPipe):
    """What a relay extends to: it counts as a direct connection for the host on top."""

    @property
    def carrier(self) -> PeerId | None:
        """Return None: the host on top is not to know another way."""
        return None


class Extension:
    """One relay of a path, or another one in its place when it fails.

    Args:
        below: reaches the relays.
        network: of which swarm they are.
        relays: the first one that answers is kept as long as it does.
        pace_ms: in what rhythm the relay is to pass bytes on; 0: as they come.
        silent: those that did not answer of late, which others may share.
        shape: what the relays, and who watches their lines, get to see of sizes and times.
    """

    def __init__(
        self,
        below: Below,
        network: str,
        relays: Relays,
        shape: CellShape | None = None,
        silent: Blocklist | None = None,
        pace_ms: int = 0,
    ) -> None:
        self._below, self._relays, self.shape = below, relays, shape
        self._protocol = protocol_id(network, EXTEND)
        self._pace_ms = pace_ms
        self._silent = silent or Blocklist()
        self.current: PeerId | None = None
        """The relay in use."""

    @property
    def path(self) -> tuple[PeerId, ...]:
        """The relays in use, the nearest first."""
        nearer = self._below.via.path if self._below.via else ()
        return (*nearer, self.current) if self.current else nearer

    async def check(self) -> PeerId:
        """Find a relay that extends paths, and return it; raises PeerUnavailable."""
        stream = await self._ask(messages.reserve_request(), None)
        stream.abort()
        assert self.current
        return self.current

    async def open(self, peer: PeerId) -> PathPipe:
        """Have the relay extend to a peer.

        Raises:
            PeerUnavailable: no relay answers, or the one that does cannot reach the peer.
        """
        request = messages.connect_request(ID.from_string(peer), self._pace_ms)
        stream = await self._ask(request, peer)
        assert self.current
        return PathPipe(stream, self.current, peer)

    async def _ask(self, request: bytes, peer: PeerId | None) -> Any:
        """Ask the first relay that answers, and return the stream to it."""
        faults: list[str] = []
        for relay, addresses in self._in_order():
            try:
                with trio.fail_after(RELAY_S_MAX):
                    outer = await self._below.reach_directly(relay, addresses)
                stream, answer = await ask_relay(outer, self._protocol, request, watched=True)
            except (PeerError, trio.TooSlowError) as error:
                faults.append(str(error) or f"{relay} does not answer")
                self._pass_over(relay, faults[-1])
                continue
            if answer.status == CircuitStatus.OK:
                self.current = relay
                return stream
            stream.abort()
            said = f"the relay {relay} says: {answer.name}"
            if answer.status in _NEXT or peer is None:
                faults.append(said)
                self._pass_over(relay, said)
                continue
            raise PeerUnavailable(peer, f"{peer} is not reached over the path: {said}")
        reasons = "; ".join(faults) or "none is known"
        raise PeerUnavailable(peer or PeerId(""), f"no relay of the path answers: {reasons}")

    def _in_order(self) -> Relays:
        now = trio.current_time()
        rank = {
            peer: (self._silent.blocks(peer, now), peer != self.current) for peer, _ in self._relays
        }
        return sorted(self._relays, key=lambda each: rank[each[0]])

    def _pass_over(self, relay: PeerId, why: str) -> None:
        log.info("a relay of the path is passed over: %s", why)
        self._silent.block(relay, trio.current_time() + SILENT_S)


class _PathTransport:
    """What dials for a host whose every connection goes over a path."""

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    async def dial(self, address: Multiaddr) -> IRawConnection:
        """Reach the peer that an address names, wherever the relay knows it to be."""
        peer = address.value_for_protocol("p2p")
        if peer is None:
            raise OpenConnectionError(f"{address} names no peer")
        pipe = await self._extension.open(PeerId(peer))
        return RawConnection(pipe, initiator=True, addresses=[address])


def dial_over(host: IHost, extension: Extension) -> None:
    """Have a host reach everybody over a path, and nobody otherwise."""
    network: Any = host.get_network()
    over = _PathTransport(extension)
    network.transport_manager.transport_for_dialing = lambda _: over
    network.transport = over
