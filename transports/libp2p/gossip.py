"""Gossip on libp2p's GossipSub: what one peer publishes reaches all that follow the topic.

From libp2p 0.8.1 this keeps the subscriptions and the mesh: grafting, pruning, and telling others
which messages one has. How a message travels is our own code, for theirs keeps every message ever
seen, signs twice, checks a signed address record per message, loses bursts at 10 a second, and ends
the process when a validator raises. A message is named by its content, so that it cannot be
suppressed by giving its name to another; the author's signature is checked by the reader.
"""

import itertools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from blake3 import blake3
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub import gossipsub as gossipsub_module
from libp2p.pubsub import pubsub as pubsub_module
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.utils import encode_varint_prefixed
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from p2pinfer.core.ids import PeerId
from transports.base import GOSSIP_BYTES_MAX, Accept, GossipVerdict
from transports.libp2p.host import has_direct, is_relayed

log: Final = logging.getLogger("p2pinfer.transports")

PROTOCOL: Final = TProtocol("/meshsub/1.1.0")
"""Without later versions' announcements per message, which save bytes only for long messages."""

DEGREE, DEGREE_LOW, DEGREE_HIGH = 4, 3, 8
"""Neighbours in the mesh: each message arrives about ``DEGREE`` times."""

HEARTBEAT_S = 2.0
"""How often the mesh is repaired, and recent messages are announced to others."""

HISTORY_HEARTBEATS = 5
"""Heartbeats for which a message can be requested again."""

RPC_BYTES_MAX = 256 * 1024
"""One frame: several messages that a neighbour asked for at once."""

QUEUE_RPCS_MAX = 512
"""Queued for one neighbour; beyond that it misses some, and learns them by anti-entropy."""

SEEN_MAX = 16_384
"""Message names kept so that none is judged twice: 10 minutes' worth at 20 a second."""

TOPICS_PER_PEER_MAX = 64

OFFENCES_MAX = 8
"""Messages that no correct peer sends, from one neighbour, before it is cut off. An older version
may in good faith pass on what a newer one rejects, once or twice."""

OFFENCE_S = 10.0
"""After this long one offence is forgiven."""

HELLO_TRIES = 4
HELLO_AGAIN_S = 1.0
"""A connection may be announced a moment before it carries streams."""

_NO_RECORD: Final = (b"", False)
_NAME_BYTES, _NUMBER_BYTES = 16, 8
"""Of a message's name, which libp2p builds from an author and a number."""


def _named(topic: str, data: bytes) -> rpc_pb2.Message:
    """Make a message whose name is the beginning of its content's BLAKE3 hash."""
    digest = blake3(data).digest()
    return rpc_pb2.Message(
        from_id=digest[:_NAME_BYTES],
        seqno=digest[_NAME_BYTES : _NAME_BYTES + _NUMBER_BYTES],
        data=data,
        topicIDs=[topic],
    )


class _Seen:
    """The names of the latest messages."""

    def __init__(self) -> None:
        self._names: dict[bytes, None] = {}

    def has(self, name: bytes) -> bool:
        return name in self._names

    def add(self, name: bytes) -> bool:
        if name in self._names:
            return False
        self._names[name] = None
        if len(self._names) > SEEN_MAX:
            del self._names[next(iter(self._names))]
        return True


class Tasks:
    """Runs libp2p's tasks in our nursery; a task that fails ends alone."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.is_running = True

    def run_task(self, task: Callable[..., Awaitable[Any]], *args: Any, **_: Any) -> None:
        """Run a task."""
        self._nursery.start_soon(self._guarded, task, args)

    run_daemon_task = run_task

    async def wait_finished(self) -> None:
        """Wait for the end, which only a cancellation brings."""
        await trio.sleep_forever()

    @staticmethod
    async def _guarded(task: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        try:
            await task(*args)
        except Exception as error:  # noqa: BLE001 - whatever a remote provokes ends this task only
            log.debug("a task of gossip failed: %r", error)


class _Router(GossipSub):
    """The mesh; a message goes only to its members."""

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        """Pass a message on; send our own to others too, as the mesh may not exist yet."""
        assert isinstance(self.pubsub, Pubsub)
        (topic,) = pubsub_msg.topicIDs
        self.mcache.put(pubsub_msg)
        peers = set(self.mesh.get(topic, ()))
        if msg_forwarder == self.pubsub.my_id:
            more = self.pubsub.peer_topics.get(topic, set()) - peers
            peers.update(itertools.islice(more, max(0, DEGREE_HIGH - len(peers))))
        rpc = rpc_pb2.RPC(publish=[pubsub_msg])
        for peer in peers - {msg_forwarder}:
            self.send_rpc(peer, rpc)

    async def handle_rpc(self, rpc: rpc_pb2.RPC, sender_peer_id: ID) -> None:
        """Accept only topics that we follow: libp2p keeps a record of every one it hears of."""
        control = rpc.control
        for ihave in control.ihave:
            if ihave.topicID in self.mesh:
                await self.handle_ihave(ihave, sender_peer_id)
        for iwant in control.iwant:
            await self.handle_iwant(iwant, sender_peer_id)
        for graft in control.graft:
            if graft.topicID in self.mesh:
                await self.handle_graft(graft, sender_peer_id)
        for prune in control.prune:
            if prune.topicID in self.mesh:
                del prune.peers[:]  # libp2p would dial any peer named here
                await self.handle_prune(prune, sender_peer_id)

    async def heartbeat(self) -> None:
        """Repair the mesh and announce messages, for ever, even if one round fails."""
        while True:
            await trio.sleep(HEARTBEAT_S)
            try:
                graft, prune = self.mesh_heartbeat()
                await self._emit_control_msgs(graft, prune, self.gossip_heartbeat())
            except Exception as error:  # noqa: BLE001 - it runs again
                log.debug("a heartbeat of gossip failed: %r", error)
            self.mcache.shift()


class _Pubsub(Pubsub):
    """Subscriptions, and the way in and out for messages."""

    judge: Callable[[ID, rpc_pb2.Message], bool]

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """Receive what one neighbour sends, one frame after another."""
        peer = stream.muxed_conn.peer_id
        while True:
            rpc = rpc_pb2.RPC()
            rpc.ParseFromString(await read_varint_prefixed_bytes_limited(stream, RPC_BYTES_MAX))
            for subscription in rpc.subscriptions[:TOPICS_PER_PEER_MAX]:
                self.handle_subscription(peer, subscription)
            for message in rpc.publish:
                if self.judge(peer, message):
                    await self.router.publish(peer, message)
            if rpc.HasField("control"):
                await self.router.handle_rpc(rpc, peer)

    async def stream_handler(self, stream: INetStream) -> None:
        """Serve one neighbour until it leaves; a peer behind a relay is none."""
        if is_relayed(stream.muxed_conn):
            await stream.reset()
            return
        try:
            await self.continuously_read_stream(stream)
        except Exception as error:  # noqa: BLE001 - it left, or broke the protocol
            log.debug("peer %s no longer gossips: %r", stream.muxed_conn.peer_id, error)
            await stream.reset()
        finally:
            self._handle_dead_peer(stream.muxed_conn.peer_id)

    async def _handle_new_peer_with_retry(self, peer_id: ID, timeout: float | None = None) -> None:
        """Greet a connected neighbour; libp2p would retry for ever if it does not gossip."""
        del timeout
        for _ in range(HELLO_TRIES):
            if peer_id in self.peers or not self._peer_is_connected(peer_id):
                return
            if not has_direct(self.host, peer_id):
                return  # a relay is not for what others bring anyway
            try:
                await self._greet(peer_id)
            except Exception as error:  # noqa: BLE001 - the other end provokes any
                log.debug("cannot gossip with %s yet: %r", peer_id, error)
                await trio.sleep(HELLO_AGAIN_S)

    async def _peer_stream_retry_task(self, peer_id: ID) -> None:
        """Greet a neighbour that ended its stream again, after a pause."""
        await trio.sleep(HELLO_AGAIN_S)
        await super()._peer_stream_retry_task(peer_id)

    async def _greet(self, peer_id: ID) -> None:
        stream = await self.host.new_stream(peer_id, [PROTOCOL])
        if peer_id in self.peers:
            await stream.reset()
            return
        hello = rpc_pb2.RPC(
            subscriptions=[
                rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic) for topic in self.topic_ids
            ]
        )
        self.peers[peer_id] = stream
        queue = self.peer_queues[peer_id] = RpcQueue(QUEUE_RPCS_MAX, RPC_BYTES_MAX)
        try:
            await stream.write(encode_varint_prefixed(hello.SerializeToString()))
            self.router.add_peer(peer_id, PROTOCOL)
        except BaseException:
            self._handle_dead_peer(peer_id)
            raise
        self.manager.run_task(self.handle_sending_messages, peer_id, stream, queue)
        for topic, peers in self.peer_topics.items():
            if peer_id in peers:  # it spoke first
                await self.router.on_peer_subscribed(peer_id, topic)

    async def _replay_recent_messages(self, peer_id: ID, topic: str) -> None:
        """Send a newcomer nothing: it asks for everything itself."""


class GossipTopic:
    """A `transports.base.Topic` of GossipSub."""

    def __init__(self, gossip: "Gossip", name: str) -> None:
        self._gossip, self._name = gossip, name

    @property
    def neighbours(self) -> int:
        """How many connected peers take part."""
        return len(self._gossip.pubsub.peer_topics.get(self._name, ()))

    def publish(self, message: bytes) -> None:
        """Send to every peer; see `transports.base.Topic.publish`."""
        if len(message) > GOSSIP_BYTES_MAX:
            raise ValueError(f"{len(message)} bytes of gossip; the limit is {GOSSIP_BYTES_MAX}")
        self._gossip.publish(_named(self._name, message))


class Gossip:
    """The topics of one host; ``cut_off`` is called with a neighbour that offends."""

    def __init__(self, host: IHost, network: str, cut_off: Callable[[ID], None]) -> None:
        _cure_address_records()
        router = _Router(
            protocols=[PROTOCOL],
            degree=DEGREE,
            degree_low=DEGREE_LOW,
            degree_high=DEGREE_HIGH,
            gossip_window=HISTORY_HEARTBEATS - 2,
            gossip_history=HISTORY_HEARTBEATS,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
        )
        self.pubsub = _Pubsub(
            host, router, strict_signing=False, max_subscriptions_per_peer=TOPICS_PER_PEER_MAX
        )
        self.pubsub.judge = self._judge
        self.pubsub.seen_messages.stop()  # a thread
        seen: Any = _Seen()
        self.pubsub.seen_messages = seen
        self._prefix, self._cut_off = f"/p2pinfer/{network}/", cut_off
        self._accept: dict[str, Accept] = {}
        self._offences: dict[ID, float] = {}
        """Per neighbour: when its last offence will be forgiven."""

    def topics(self) -> list[str]:
        """Return the names of all topics that this peer takes part in."""
        return [topic.removeprefix(self._prefix).removesuffix("/1") for topic in self._accept]

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Gossip until cancelled."""
        async with trio.open_nursery() as nursery:
            tasks: Any = Tasks(nursery)
            services: Any = (self.pubsub, self.pubsub.router)
            for service in services:
                service._manager = tasks
                tasks.run_task(service.run)
            await self.pubsub.wait_until_ready()
            task_status.started()

    @asynccontextmanager
    async def join(self, name: str, accept: Accept) -> AsyncGenerator[GossipTopic, None]:
        """Follow a topic; see `transports.base.Transport.join_topic`."""
        topic = f"{self._prefix}{name}/1"
        if topic in self._accept:
            raise ValueError(f"this peer takes part in {name} already")
        self._accept[topic] = accept
        try:
            await self.pubsub.subscribe(topic)
            yield GossipTopic(self, topic)
        finally:
            del self._accept[topic]
            with trio.CancelScope(shield=True):  # it never waits for a remote
                await self.pubsub.unsubscribe(topic)

    def publish(self, message: rpc_pb2.Message) -> None:
        """Send a message of our own."""
        self.pubsub._mark_msg_seen(message)
        self.pubsub.manager.run_task(self.pubsub.router.publish, self.pubsub.my_id, message)

    def _judge(self, neighbour: ID, message: rpc_pb2.Message) -> bool:
        """Whether a message from a neighbour is to be passed on; never raises."""
        if len(message.topicIDs) != 1 or self.pubsub._is_msg_seen(message):
            return False
        (topic,) = message.topicIDs
        accept = self._accept.get(topic)
        if accept is None:
            return False
        named = _named(topic, message.data)
        if len(message.data) > GOSSIP_BYTES_MAX or named != message:
            verdict = GossipVerdict.BLAME  # as for anything else in a message
        else:
            self.pubsub._mark_msg_seen(message)
            try:
                verdict = accept(PeerId(str(neighbour)), message.data)
            except Exception:
                log.exception("a message of %s could not be judged", topic)
                verdict = GossipVerdict.DROP
        if verdict is GossipVerdict.BLAME:
            self._blame(neighbour)
        return verdict is GossipVerdict.PASS

    def _blame(self, neighbour: ID) -> None:
        """Count an offence; cut the neighbour off at one too many."""
        now = trio.current_time()
        forgiven = max(self._offences.pop(neighbour, now), now) + OFFENCE_S
        self._offences = {peer: when for peer, when in self._offences.items() if when > now}
        self._offences[neighbour] = forgiven
        if forgiven - now > OFFENCES_MAX * OFFENCE_S:
            del self._offences[neighbour]
            log.info("peer %s was cut off for invalid gossip", neighbour)
            self._cut_off(neighbour)


def _cure_address_records() -> None:
    """Send no signed address record with each message: one more signature to check for each."""

    def none(_host: object) -> tuple[bytes, bool]:
        return _NO_RECORD

    for module in (gossipsub_module, pubsub_module):
        replaced: Any = module
        replaced.env_to_send_in_RPC = none
