"""Peers that this one has nothing to do with: proven cheats, for example."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from math import inf

from p2pinfer.core.errors import PeerUnavailable
from p2pinfer.core.ids import PeerId
from transports.base import Accept, Channel, Handler, Path, Reachability, Topic, Transport

SHUT_OUT_MAX = 4096
"""Peers remembered; the oldest are forgotten first."""


class Blocklist:
    """Peers, by whatever names them, that are blocked for a while or for good.

    Of more than ``peers_max`` those that were blocked first are forgotten.
    """

    def __init__(self, peers_max: int = SHUT_OUT_MAX) -> None:
        self._peers_max = peers_max
        self._until: dict[Hashable, float] = {}

    def block(self, peer: Hashable, until: float = inf) -> None:
        """Block a peer until a moment."""
        self._until[peer] = until
        if len(self._until) > self._peers_max:
            del self._until[next(iter(self._until))]

    def blocks(self, peer: Hashable, now: float = 0.0) -> bool:
        """Whether a peer is blocked at a moment; which one does not matter if it is for good."""
        return self._until.get(peer, -inf) > now


class GuardedTransport:
    """A ``Transport`` around another: blocked peers can neither open channels nor be dialled.

    Channels that are already open stay open.

    Args:
        transport: the other one.
        like: one that blocks the same peers, at any time.
    """

    def __init__(self, transport: Transport, like: "GuardedTransport | None" = None) -> None:
        self._inner = transport
        self._blocklist: Blocklist = like._blocklist if like else Blocklist()

    def shut_out(self, peer: PeerId) -> None:
        """Have nothing to do with a peer from now on."""
        self._blocklist.block(peer)

    def is_connected(self, peer: PeerId) -> bool:
        """Whether there is a connection with a peer, where the transport tells."""
        look = getattr(self._inner, "is_connected", None)
        return bool(look(peer)) if look else True

    def part(self, peer: PeerId) -> None:
        """End what a transport has open with a peer, which may come back."""
        if part := getattr(self._inner, "part", None):
            part(peer)

    @property
    def peer_id(self) -> PeerId:
        """This peer's id."""
        return self._inner.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        """The addresses at which others reach it."""
        return self._inner.addresses

    @property
    def reachability(self) -> Reachability:
        """Whether others can dial it."""
        return self._inner.reachability

    @property
    def was_dialled(self) -> bool:
        """Whether another peer has connected to this one, and used that, since it last moved."""
        return self._inner.was_dialled

    async def wait_moved(self) -> None:
        """Wait until the addresses or the reachability change."""
        await self._inner.wait_moved()

    def handle(self, protocol: str, handler: Handler, *, outlives: bool = False) -> None:
        """Serve channels of all peers that are not blocked."""
        self._inner.handle(protocol, partial(self._serve, handler), outlives=outlives)

    async def connect(self, address: str) -> PeerId:
        """Reach a peer; raises as ``Transport.connect``."""
        peer = await self._inner.connect(address)
        self._check(peer)
        return peer

    async def open(
        self,
        peer: PeerId,
        protocol: str,
        addresses: Sequence[str] = (),
        *,
        own: bool = False,
        first: bytes = b"",
    ) -> Channel:
        """Open a channel; raises as ``Transport.open``."""
        self._check(peer)
        return await self._inner.open(peer, protocol, addresses, own=own, first=first)

    async def discover(self, topic: str | None) -> Sequence[str]:
        """Return addresses where peers may be."""
        return await self._inner.discover(topic)

    def join_topic(self, name: str, accept: Accept) -> AbstractAsyncContextManager[Topic]:
        """Take part in a gossip topic; its handler judges messages by the peer they are about."""
        return self._inner.join_topic(name, accept)

    def round_trip_s(self, peer: PeerId) -> float | None:
        """Return the round trip to a peer, where the transport has measured it."""
        measure = getattr(self._inner, "rtt_s", None)
        seconds: float | None = measure(peer) if measure else None
        return seconds

    def relay_to(self, peer: PeerId) -> PeerId | None:
        """Return the relay that carries what is said with a peer; None if none does."""
        find = getattr(self._inner, "relay_to", None)
        relay: PeerId | None = find(peer) if find else None
        return relay

    @property
    def via(self) -> Path | None:
        """The path that everybody is reached over."""
        return self._inner.via

    @property
    def path(self) -> Sequence[PeerId]:
        """The relays of that, the nearest first; none where there is no path."""
        return self.via.path if self.via else ()

    @property
    def own_addresses(self) -> Sequence[str]:
        """Those of this machine's interfaces, where the transport tells them apart."""
        found: Sequence[str] = getattr(self._inner, "own_addresses", self.addresses)
        return found

    def seek_relays(
        self, candidates: Callable[[], Sequence[tuple[PeerId, tuple[str, ...]]]]
    ) -> None:
        """Have a hidden peer ask these for a reservation, the first ones first."""
        if relays := getattr(self._inner, "relays", None):
            relays.candidates = candidates

    def prefer_direct(
        self, protocols: Collection[str], addresses_of: Callable[[PeerId], Sequence[str]]
    ) -> None:
        """Have channels of some protocols wait a moment for a way that no relay carries.

        Args:
            protocols: their names.
            addresses_of: returns where a peer says to be reached.
        """
        if punches := getattr(self._inner, "punches", None):
            punches.patient, punches.addresses_of = protocols, addresses_of

    @property
    def port_mapping(self) -> str:
        """What became of asking the router for a port, in words, where that is done."""
        keeper = getattr(self._inner, "port_keeper", None)
        return keeper.words if keeper else ""

    @property
    def punching(self) -> Mapping[str, int]:
        """How many tries to reach a peer without its relay were ``won`` and ``lost``, if any."""
        punches = getattr(self._inner, "punches", None)
        tries: Mapping[str, int] = punches.tries if punches else {"won": 0, "lost": 0}
        return tries

    @property
    def channels(self) -> int:
        """How many channels this peer opened that have not ended, where the transport counts."""
        count: int = getattr(self._inner, "channels", 0)
        return count

    def _check(self, peer: PeerId) -> None:
        if self._blocklist.blocks(peer):
            raise PeerUnavailable(peer, f"{peer} was shut out")

    async def _serve(self, handler: Handler, channel: Channel) -> None:
        if self._blocklist.blocks(channel.remote):
            channel.abort()
            return
        await handler(channel)
