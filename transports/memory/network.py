"""Peers in one process: the same channels without a network, for tests and simulations.

Deterministic, and runs under trio's ``MockClock``: the only waits are for other tasks and for
trio's clock. A link's latency is a function of the two peers, called for each message; between
peers whose latency is infinite nothing passes. Gossip takes the direct link to each peer.
"""

import logging
import math
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from p2pinfer.core.errors import ChannelClosed, PeerUnavailable, UserError
from p2pinfer.core.ids import PeerId
from transports.base import (
    GOSSIP_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    Accept,
    Channel,
    Handler,
    Reachability,
    begun,
    receive_one_by_one,
)
from transports.memory.pipe import CallAt, Pipe, in_a_task

log: Final = logging.getLogger("p2pinfer.transports")

WINDOW_BYTES = 1024 * 1024
"""Sent and not yet received, per direction of a channel: what libp2p's window grows to."""

ADDRESS: Final = re.compile(r"/memory/\d+/p2p/(?:\w+/p2p-circuit/p2p/)?(\w+)")
"""A peer's, or a hidden peer's behind its relay."""

Latency = Callable[[PeerId, PeerId], float]
"""Seconds that a message takes from the first peer to the second."""

REACH_S_MAX = 10.0
"""For a peer to answer when nothing passes; the same as libp2p's."""


class MemoryChannel:
    """A `transports.base.Channel` of two pipes."""

    def __init__(self, remote: PeerId, inward: Pipe, outward: Pipe) -> None:
        self._remote = remote
        self._in, self._out = inward, outward
        self._lock = trio.Lock()
        self._senders = 0  # tasks whose message is not yet fully sent
        self._closed = False

    @property
    def remote(self) -> PeerId:
        """The peer at the other end."""
        return self._remote

    async def send(self, message: bytes) -> None:
        """Send one message; see `transports.base.Channel.send`."""
        if len(message) > MESSAGE_BYTES_MAX:
            raise ValueError(f"a message of {len(message)} bytes; the limit is {MESSAGE_BYTES_MAX}")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._require_open()
        if self.send_now(message):
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        self._senders += 1
        try:
            async with self._lock:
                while self._out.unread >= WINDOW_BYTES and not self._out.deaf:
                    await self._out.moved.park()
                if self._out.deaf:
                    raise ChannelClosed(self._remote, "the peer closed the channel")
                self._out.put(bytes(message))
                await self._wait_taken()
        finally:
            self._senders -= 1
            if self._closed and not self._senders:
                self._out.put(None)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def send_now(self, message: bytes) -> bool:
        """Send one message at once or not at all; see `transports.base.Channel.send_now`."""
        room = WINDOW_BYTES - self._out.unread
        if self._senders or self._closed or self._out.deaf or len(message) > room:
            return False
        self._out.put(bytes(message))
        return True

    async def _wait_taken(self) -> None:
        """Wait until the excess over the window was received; half a message ends the channel."""
        try:
            while self._out.unread > WINDOW_BYTES:
                await self._out.moved.park()
        except trio.Cancelled:
            self.abort()
            raise

    async def receive(self) -> bytes:
        """Return the next message; see `transports.base.Channel.receive`."""
        if self._closed:
            await trio.lowlevel.checkpoint()
        message = None if self._closed else await self._in.get()
        if message is None:
            is_lost = self._in.severed and not self._closed
            raise ChannelClosed(self._remote, "the channel was closed", is_lost=is_lost)
        return message

    async def receive_each(self, take: Callable[[bytes], bool]) -> None:
        """Receive them in turn; see `transports.base.Channel.receive_each`."""
        await receive_one_by_one(self, take)

    async def close(self) -> None:
        """Say that no more messages follow; see `transports.base.Channel.close`."""
        if not self._closed:
            self._closed = True
            self._in.shut()
            if not self._senders:
                self._out.put(None)
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """End the channel now in both directions."""
        self._closed = True
        self._in.shut()
        self._out.clear()
        self._out.deaf = True
        self._out.put(None)

    def sever(self) -> None:
        """End the channel now on both sides, as when the link between them is cut."""
        self._in.sever()
        self._out.sever()

    def _require_open(self) -> None:
        if self._closed or self._out.deaf:
            raise ChannelClosed(self._remote, "the channel was closed")


class MemoryTransport:
    """A `transports.base.Transport` in a `MemoryNetwork`."""

    def __init__(self, network: "MemoryNetwork", peer_id: PeerId, nursery: trio.Nursery) -> None:
        self._network = network
        self._peer_id = peer_id
        self._nursery = nursery
        self.was_dialled, self.via = False, None
        self.reachability = Reachability.UNKNOWN
        self.relays: tuple[PeerId, ...] = ()
        """Through which others call this peer while it is hidden."""
        self._place, self._moved = 0, trio.Event()
        self._handlers: dict[str, Handler] = {}
        self._channels: list[MemoryChannel] = []

    @property
    def peer_id(self) -> PeerId:
        """This peer's id."""
        return self._peer_id

    @property
    def addresses(self) -> Sequence[str]:
        """The one name under which others find this peer; while it is hidden, one by each relay."""
        if self.reachability is Reachability.HIDDEN:
            return [f"/memory/0/p2p/{each}/p2p-circuit/p2p/{self._peer_id}" for each in self.relays]
        return [f"/memory/{self._place}/p2p/{self._peer_id}"]

    async def wait_moved(self) -> None:
        """Wait for ``move``, or for another ``learn``."""
        await self._moved.wait()

    def learn(self, reachability: Reachability) -> None:
        """Take in whether others can dial this peer."""
        if reachability is not self.reachability:
            self.reachability = reachability
            self._note_moved()

    def hold(self, relays: Iterable[PeerId]) -> None:
        """Be called through these relays from now on, if this peer is hidden."""
        self.relays = tuple(relays)
        self._note_moved()

    def _note_moved(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    def move(self) -> None:
        """Have another address from now on; the network finds peers by their ids all the same."""
        self._place, self.was_dialled = self._place + 1, False
        self.reachability = Reachability.UNKNOWN
        self._note_moved()

    def handle(self, protocol: str, handler: Handler, *, outlives: bool = False) -> None:
        """Serve inbound channels of ``protocol`` with ``handler``; none is cancelled."""
        del outlives
        self._handlers[protocol] = handler

    async def connect(self, address: str) -> PeerId:
        """Reach the peer at ``address``; see `transports.base.Transport.connect`."""
        found = ADDRESS.fullmatch(address)
        if found is None:
            raise UserError(f"{address!r} is not an address of the memory network.")
        return (await self._reach(PeerId(found.group(1)))).peer_id

    async def is_reached(self, peer: PeerId) -> bool:
        """Whether a peer answers; takes a round trip."""
        try:
            await self._reach(peer)
        except PeerUnavailable:
            return False
        return True

    async def open(
        self,
        peer: PeerId,
        protocol: str,
        addresses: Sequence[str] = (),  # noqa: ARG002 - peers are found by id alone
        *,
        own: bool = False,
        first: bytes = b"",
    ) -> Channel:
        """Open a channel; see `transports.base.Transport.open`."""
        remote = await self._reach(peer, own=own)
        handler = remote._handlers.get(protocol)
        if handler is None:
            raise PeerUnavailable(peer, f"{peer} does not speak {protocol}")
        network = self._network
        there = Pipe(partial(network.delay_s, self._peer_id, peer), network.call_at)
        back = Pipe(partial(network.delay_s, peer, self._peer_id), network.call_at)
        remote._nursery.start_soon(
            remote._serve, handler, MemoryChannel(self._peer_id, inward=there, outward=back)
        )
        channel = MemoryChannel(peer, inward=back, outward=there)
        self._channels = [other for other in self._channels if not other._closed] + [channel]
        return await begun(channel, first)

    async def discover(self, topic: str | None) -> Sequence[str]:  # noqa: ARG002 - nowhere to look
        """Find no peers."""
        return []

    @asynccontextmanager
    async def join_topic(self, name: str, accept: Accept) -> AsyncGenerator["MemoryTopic", None]:
        """Take part in gossip; see `transports.base.Transport.join_topic`."""
        members = self._network.topics.setdefault(name, {})
        if self._peer_id in members:
            raise ValueError(f"this peer takes part in {name} already")
        members[self._peer_id] = accept
        try:
            yield MemoryTopic(self._network, self._peer_id, members)
        finally:
            del members[self._peer_id]

    async def _reach(self, peer: PeerId, *, own: bool = False) -> "MemoryTransport":
        """Find a peer; takes a round trip."""
        dials = self._network.dials(self._peer_id, peer, own=own)
        round_trip_s = self._network.reach_s(self._peer_id, peer, own=own)
        await self._network.sleep(min(round_trip_s, REACH_S_MAX))
        remote = self._network.peers.get(peer)
        if remote is None or remote is self or round_trip_s > REACH_S_MAX:
            raise PeerUnavailable(peer, f"cannot reach {peer}")
        remote.was_dialled |= dials
        self.learn(self._network.reachability(self._peer_id, peer))
        return remote

    async def _serve(self, handler: Handler, channel: MemoryChannel) -> None:
        try:
            await handler(channel)
            await channel.close()
        except Exception as error:  # noqa: BLE001 - a handler's failure ends its channel only
            level = logging.DEBUG if isinstance(error, ChannelClosed) else logging.WARNING
            log.log(level, "a channel from peer %s failed: %r", channel.remote, error)
            channel.abort()
        except BaseException:
            channel.abort()
            raise


class MemoryTopic:
    """A `transports.base.Topic` in which every other peer is a neighbour."""

    def __init__(
        self, network: "MemoryNetwork", peer_id: PeerId, members: dict[PeerId, Accept]
    ) -> None:
        self._network, self._peer_id, self._members = network, peer_id, members

    @property
    def neighbours(self) -> int:
        """How many others take part."""
        return len(self._members) - 1

    def publish(self, message: bytes) -> None:
        """Send to every peer; see `transports.base.Topic.publish`."""
        if len(message) > GOSSIP_BYTES_MAX:
            raise ValueError(f"{len(message)} bytes of gossip; the limit is {GOSSIP_BYTES_MAX}")
        others = [peer for peer in self._members if peer != self._peer_id]
        arrivals = sorted(self._network.spread(self._peer_id, others, message).items())
        for later_s, peers in arrivals:  # delivered even if this peer has left by then
            deliver = partial(self._deliver, message, peers)
            self._network.call_at(trio.current_time() + later_s, deliver)

    def _deliver(self, message: bytes, peers: Sequence[PeerId]) -> None:
        for peer in peers:
            if accept := self._members.get(peer):  # it may have left
                try:
                    accept(self._peer_id, message)
                except Exception:
                    log.exception("gossip could not be judged")


class MemoryNetwork:
    """Peers that reach each other; ``latency_s`` may be replaced at any time."""

    def __init__(self, latency_s: Latency = lambda _from, _to: 0.0) -> None:
        self.latency_s = latency_s
        self.call_at: CallAt = in_a_task
        """How delays are waited for; a custom clock can do it at less cost."""
        self.peers: dict[PeerId, MemoryTransport] = {}
        self.topics: dict[str, dict[PeerId, Accept]] = {}

    def dials(self, sender: PeerId, receiver: PeerId, *, own: bool) -> bool:  # noqa: ARG002
        """Whether a peer must connect to reach another; subclasses know existing connections."""
        return True

    def reachability(self, peer: PeerId, asked: PeerId) -> Reachability:  # noqa: ARG002
        """Return what a peer that another has answered knows about itself; here as before."""
        return self.peers[peer].reachability

    def reach_s(
        self,
        sender: PeerId,
        receiver: PeerId,
        *,
        own: bool,  # noqa: ARG002 - subclasses know which peers have dialled which
    ) -> float:
        """Return the seconds a peer takes to reach another, a round trip; infinite: it cannot.

        ``own`` is as in `transports.base.Transport.open`.
        """
        return self.latency_s(sender, receiver) + self.latency_s(receiver, sender)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        over = trio.lowlevel.ParkingLot()
        self.call_at(trio.current_time() + seconds, over.unpark_all)
        await over.park()

    def delay_s(
        self,
        sender: PeerId,
        receiver: PeerId,
        message: bytes,  # noqa: ARG002 - subclasses heed its size
    ) -> float:
        """Return the seconds a message sent now takes; the end of a channel is an empty message."""
        return self.latency_s(sender, receiver)

    def spread(
        self,
        sender: PeerId,
        receivers: Sequence[PeerId],
        message: bytes,  # noqa: ARG002 - subclasses heed its size
    ) -> dict[float, list[PeerId]]:
        """Return the peers that a message published now reaches, by the seconds that it takes."""
        found: dict[float, list[PeerId]] = {}
        for peer in receivers:
            if (later_s := self.latency_s(sender, peer)) < math.inf:
                found.setdefault(later_s, []).append(peer)
        return found

    def sever(self, are_apart: Callable[[PeerId, PeerId], bool]) -> None:
        """End every channel between two peers that are apart from now on."""
        for peer, transport in self.peers.items():
            for channel in transport._channels:
                if are_apart(peer, channel.remote):
                    channel.sever()

    @asynccontextmanager
    async def join(self, peer_id: PeerId) -> AsyncGenerator[MemoryTransport, None]:
        """Run a peer until the block ends; then abort its channels and cancel its handlers.

        Raises:
            ValueError: that peer has joined already.
        """
        if peer_id in self.peers:
            raise ValueError(f"{peer_id} has joined already")
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            transport = self.peers[peer_id] = MemoryTransport(self, peer_id, nursery)
            try:
                yield transport
            except BaseException as error:  # noqa: BLE001 - raised below, outside the group
                failure = error
            del self.peers[peer_id]
            for channel in transport._channels:
                channel.abort()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
