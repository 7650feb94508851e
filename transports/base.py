"""The seam between what peers say and what carries it.

Roles are written once, against these two protocols. libp2p makes them a node, the memory transport
makes them a simulation, bare TCP is the yardstick that benchmarks hold libp2p against.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from p2pinfer.core.ids import PeerId

MESSAGE_BYTES_MAX = 9 * 1024 * 1024
"""64 rows of a 32,768-wide residual stream in float32 are 8 MiB; the rest is headers."""

GOSSIP_BYTES_MAX = 16 * 1024
"""Of one gossiped message: everybody gets it. An advertisement is signed in at most 4 KiB."""


@dataclass(frozen=True)
class Reach:
    """Which swarm to reach, and how."""

    network: str = "main"
    key: bytes | None = None
    """32 bytes that every peer of a private network has."""
    mdns: bool = False
    """Look for peers on the local network, and be found there."""
    dht: bool = False
    """Look for peers in a DHT, and be found there."""


class Channel(Protocol):
    """Two ordered, reliable message queues to one authenticated peer; it ends as a whole.

    Every wait may be cancelled at any moment without harm to the connection below or to other
    channels. A cancelled ``send`` is either sent whole or not at all, unless waiting for the other
    side to read began in the middle of the message: then the channel is aborted.
    """

    @property
    def remote(self) -> PeerId:
        """The peer at the other end, as the handshake proved it."""
        ...

    async def send(self, message: bytes) -> None:
        """Send one message of at most ``MESSAGE_BYTES_MAX`` bytes; waits while the peer is behind.

        Several tasks may send at once; messages never interleave.

        Raises:
            ChannelClosed: the channel has ended.
            ValueError: the message is too long.
        """
        ...

    def send_now(self, message: bytes) -> bool:
        """Send one message if the channel takes it whole at once; never waits and never raises.

        False: nothing was sent, because the peer is behind, or gone; ``send`` will tell.
        """
        ...

    async def receive(self) -> bytes:
        """Return the next message; one task at a time.

        Raises:
            ChannelClosed: the other side closed the channel, or the connection is gone.
            RemoteProtocolError: the peer announced a message over the limit; the channel is over.
        """
        ...

    async def close(self) -> None:
        """Say that no more messages follow, after all that were sent; idempotent, safe in finally.

        The other side still receives what was sent before, then ``ChannelClosed``.
        """
        ...

    def abort(self) -> None:
        """End the channel now in both directions; never waits, idempotent."""
        ...


Handler = Callable[[Channel], Awaitable[None]]
"""Serves one inbound channel. When it returns the channel is closed; when it raises, aborted."""


class GossipVerdict(Enum):
    """What becomes of a gossiped message."""

    PASS = "pass"  # noqa: S105 -- no password
    """It is good and new: neighbours get it too."""
    DROP = "drop"
    """It may be honest, but is of no use to anybody."""
    BLAME = "blame"
    """No correct peer sends this: whoever passes on several such is cut off for a while."""


Accept = Callable[[PeerId, bytes], GossipVerdict]
"""Takes in a gossiped message, with the neighbour that it came from, and judges it.

A plain function: what it keeps is delivered, and nothing is passed on that it has not judged. Who
has long work to do puts the message into a bounded queue of its own. If it raises, the message is
dropped.
"""


class Topic(Protocol):
    """A subject of gossip that this peer takes part in."""

    @property
    def neighbours(self) -> int:
        """How many peers that take part, too, are connected with this one."""
        ...

    def publish(self, message: bytes) -> None:
        """Tell everybody who takes part, but not this peer itself; never waits.

        What a neighbour is too slow for is lost to it.

        Raises:
            ValueError: the message is longer than ``GOSSIP_BYTES_MAX``.
        """
        ...


class Transport(Protocol):
    """One peer's access to the network."""

    @property
    def peer_id(self) -> PeerId:
        """Who this peer is."""
        ...

    @property
    def addresses(self) -> Sequence[str]:
        """Multiaddrs, each ending in ``/p2p/<peer id>``, at which others reach this peer.

        As of now, the best first, and at most `p2pinfer.core.checks.ADDRESSES_MAX`.
        """
        ...

    @property
    def was_dialled(self) -> bool:
        """Whether another peer made a connection to this one, and used it, since it moved last."""
        ...

    async def wait_moved(self) -> None:
        """Wait until the addresses change."""
        ...

    def handle(self, protocol: str, handler: Handler) -> None:
        """Serve inbound channels of ``protocol`` with ``handler``; one handler per protocol."""
        ...

    async def connect(self, address: str) -> PeerId:
        """Reach the peer at a multiaddr and return its proven id; remembers the address.

        Raises:
            UserError: the text is not a multiaddr that this transport can dial.
            PeerUnavailable: nobody answers there, or somebody else than the address names.
        """
        ...

    async def open(
        self, peer: PeerId, protocol: str, addresses: Sequence[str] = (), *, own: bool = False
    ) -> Channel:
        """Open a channel, dialling any of ``addresses`` or the remembered ones if need be.

        ``own`` uses no connection that the peer has made, which shows that it can be dialled.

        Raises:
            PeerUnavailable: the peer cannot be reached or does not speak ``protocol``.
        """
        ...

    async def discover(self, topic: str | None) -> Sequence[str]:
        """Return addresses where peers may be, perhaps such as take part in a topic.

        Hints: some are stale, some may be lies. May take seconds; nothing where nothing is looked
        through.
        """
        ...

    def join_topic(self, name: str, accept: Accept) -> AbstractAsyncContextManager[Topic]:
        """Take part in a subject of gossip of this network while the block lasts.

        Raises:
            ValueError: this peer takes part already.
        """
        ...
