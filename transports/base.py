"""The interface between what peers say and the network that carries it.

Protocols are written once, against `Transport` and `Channel`. libp2p makes them a node, the memory
transport makes them a simulation, and bare TCP is the baseline that benchmarks compare libp2p with.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.ways import is_circuit as is_circuit  # noqa: PLC0414 -- passed on

MESSAGE_BYTES_MAX = 9 * 1024 * 1024
"""64 rows of a 32,768-wide residual stream in float32 are 8 MiB; the rest is headers."""

GOSSIP_BYTES_MAX = 16 * 1024
"""One gossiped message, which every peer receives. An advertisement is signed in 4 KiB at most."""


NETWORK_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def check_network_name(name: str) -> None:
    """Raise UserError if a network cannot be called so."""
    if not NETWORK_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a network: use up to 64 of a-z, 0-9, dot, dash, underscore."
        )


class Relaying(Enum):
    """When a peer carries bytes between others that cannot reach each other."""

    NEVER = "never"
    IF_PUBLIC = "if public"
    """While strangers can dial it, as others have proved."""
    ALWAYS = "always"


class Gatekeeper(Protocol):
    """Who may take part in a network of founders."""

    def prove(self, me: PeerId, other: PeerId, binding: bytes) -> bytes:
        """Return a proof that this machine may, for one connection; raises NotAMemberError."""
        ...

    def admit(self, proof: bytes, other: PeerId, me: PeerId, binding: bytes) -> None:
        """Take another peer's proof; raises NotAMemberError."""
        ...


@dataclass(frozen=True)
class Reach:
    """Which swarm to reach, and how."""

    network: str = "main"
    key: bytes | None = None
    """32 bytes that every peer of a private network has."""
    mdns: bool = False
    """Look for peers on the local network, and be discoverable there."""
    dht: bool = False
    """Look for peers in a DHT, and be discoverable there."""
    maps_port: bool = False
    """Ask the router of this network to pass the peer's port on."""
    relaying: Relaying = Relaying.IF_PUBLIC
    relay_mbit: float = 16.0
    """Carried for others at most, megabits a second."""
    members: Gatekeeper | None = None
    """Of a network of founders, which has a key as well."""


class Reachability(Enum):
    """Whether strangers elsewhere in the Internet can dial a peer."""

    UNKNOWN = "unknown"
    """Nobody could be asked yet, or ever: in a swarm on one local network, for example."""
    PUBLIC = "public"
    """Others have dialled one of its addresses, and proved it."""
    HIDDEN = "hidden"
    """Others were asked to dial each of its addresses, and none of them could."""


class Channel(Protocol):
    """Two ordered, reliable message queues to one authenticated peer; it ends as a whole.

    Every wait may be cancelled at any moment without harm to the underlying connection or other
    channels. A cancelled ``send`` is either sent whole or not at all, unless it was waiting in the
    middle of the message for the other side to read: then the channel is aborted.
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

        False: nothing was sent, because the peer is behind, or gone; ``send`` will tell which.
        """
        ...

    async def receive(self) -> bytes:
        """Return the next message; one task at a time.

        Raises:
            ChannelClosed: the other side closed the channel, or the connection is gone.
            RemoteProtocolError: the peer announced a message over the limit; the channel is over.
        """
        ...

    async def receive_each(self, take: Callable[[bytes], bool]) -> None:
        """Give each message to ``take`` until that returns False; one task at a time.

        Where the transport can, ``take`` is called as the message arrives, which saves the wait for
        another pass of the scheduler. It must neither wait nor receive.

        Raises:
            ChannelClosed, RemoteProtocolError: as ``receive``.
            Exception: whatever ``take`` raised.
        """
        ...

    async def close(self) -> None:
        """Say that no more messages follow those already sent; idempotent, safe in finally.

        The other side still receives what was sent before, then ``ChannelClosed``.
        """
        ...

    def abort(self) -> None:
        """End the channel now in both directions; never waits, idempotent."""
        ...


Handler = Callable[[Channel], Awaitable[None]]
"""Serves one inbound channel. When it returns the channel is closed; when it raises, aborted."""


class GossipVerdict(Enum):
    """What to do with a gossiped message."""

    PASS = "pass"  # noqa: S105 -- no password
    """It is good and new: pass it on to the neighbours."""
    DROP = "drop"
    """It may be honest, but is of no use."""
    BLAME = "blame"
    """No correct peer sends this: a neighbour that passes on several is cut off for a while."""


Accept = Callable[[PeerId, bytes], GossipVerdict]
"""Receives a gossiped message, with the neighbour that it came from, and judges it.

A plain function: what it keeps is delivered, and nothing is passed on before it was judged. For
long work it puts the message into a bounded queue. If it raises, the message is dropped.
"""


class Topic(Protocol):
    """A gossip topic that this peer takes part in."""

    @property
    def neighbours(self) -> int:
        """How many connected peers take part."""
        ...

    def publish(self, message: bytes) -> None:
        """Send to every peer that takes part, except this one; never waits.

        Messages are lost to a neighbour that is too slow for them.

        Raises:
            ValueError: the message is longer than ``GOSSIP_BYTES_MAX``.
        """
        ...


async def receive_one_by_one(channel: Channel, take: Callable[[bytes], bool]) -> None:
    """Do what ``Channel.receive_each`` says by ``receive``."""
    while take(await channel.receive()):
        pass


async def begun(channel: Channel, first: bytes) -> Channel:
    """Send a new channel's first message, if there is one; the channel ends if that fails."""
    try:
        if first:
            await channel.send(first)
    except BaseException:
        channel.abort()
        raise
    return channel


class Path(Protocol):
    """Relays that everything goes through which a peer says."""

    @property
    def path(self) -> Sequence[PeerId]:
        """Those in use, the nearest first; each may be replaced by another one at any time."""
        ...

    @property
    def pace_ms(self) -> int:
        """Milliseconds between two rows, where those leave in a rhythm; 0: as they are made."""
        ...


class Transport(Protocol):
    """One peer's access to the network."""

    @property
    def via(self) -> Path | None:
        """The path that everybody is reached over, and nobody otherwise; None: there is none."""
        ...

    @property
    def peer_id(self) -> PeerId:
        """This peer's id."""
        ...

    @property
    def addresses(self) -> Sequence[str]:
        """Multiaddrs, each ending in ``/p2p/<peer id>``, at which others reach this peer.

        As of now, the best first, and at most `p2pinfer.core.checks.ADDRESSES_MAX`. While the
        reachability is unknown they are those of the machine's interfaces; later those that were
        proved, which may be none.
        """
        ...

    @property
    def reachability(self) -> Reachability:
        """Whether others can dial this peer, as far as others have tried when asked to."""
        ...

    @property
    def was_dialled(self) -> bool:
        """Whether another peer has connected to this one, and used that, since it last moved.

        A hint while the reachability is unknown, and no proof: that peer may be a neighbour.
        """
        ...

    async def wait_moved(self) -> None:
        """Wait until the addresses or the reachability change."""
        ...

    def handle(self, protocol: str, handler: Handler, *, outlives: bool = False) -> None:
        """Serve inbound channels of ``protocol`` with ``handler``; one handler per protocol.

        It is cancelled soon after the connection has ended, unless it ``outlives`` that: then it
        must notice by itself.
        """
        ...

    async def connect(self, address: str) -> PeerId:
        """Reach the peer at a multiaddr and return its proven id; remembers the address.

        Raises:
            UserError: the text is not a multiaddr that this transport can dial.
            PeerUnavailable: no peer answers there, or another one than the address names.
        """
        ...

    async def open(
        self,
        peer: PeerId,
        protocol: str,
        addresses: Sequence[str] = (),
        *,
        own: bool = False,
        first: bytes = b"",
    ) -> Channel:
        """Open a channel, dialling any of ``addresses`` or the remembered ones if necessary.

        ``own`` uses no connection that the peer has made, which shows that it can be dialled.
        What is ``first`` is sent as the first message, where possible without waiting for the peer
        to agree on the protocol, which saves a round trip.

        Raises:
            PeerUnavailable: the peer cannot be reached or does not speak ``protocol``.
        """
        ...

    async def discover(self, topic: str | None) -> Sequence[str]:
        """Return addresses where peers may be, ideally of peers that take part in a topic.

        They are hints: some are stale, some may be lies. May take seconds; empty where no
        discovery is on.
        """
        ...

    def join_topic(self, name: str, accept: Accept) -> AbstractAsyncContextManager[Topic]:
        """Take part in a gossip topic of this network while the block lasts.

        Raises:
            ValueError: this peer takes part already.
        """
        ...
