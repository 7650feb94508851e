"""What only gossip over libp2p has: relays, strangers' nonsense, and offenders."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed
from trio.testing import wait_all_tasks_blocked

from p2pinfer.core.errors import PeerUnavailable
from tests.support.gossip_contract import GossipContract, Listener
from tests.support.transport_contract import echo
from transports.base import GossipVerdict
from transports.libp2p import gossip as gossip_module
from transports.libp2p.gossip import OFFENCES_MAX, PROTOCOL, _named
from transports.libp2p.transport import Libp2pTransport, open_libp2p

TEST_S_MAX = 20.0
HERE = ["/ip4/127.0.0.1/tcp/0"]
TOPIC = "/p2pinfer/test/news/1"


@asynccontextmanager
async def line(count: int) -> AsyncGenerator[list[Libp2pTransport], None]:
    """Run peers, each connected only to the one before it."""
    with trio.fail_after(TEST_S_MAX):
        async with AsyncExitStack() as stack:
            peers: list[Libp2pTransport] = []
            for _ in range(count):
                opened = await stack.enter_async_context(open_libp2p(None, HERE, "test"))
                if peers:
                    await opened.connect(peers[-1].addresses[0])
                peers.append(opened)
            yield peers


async def test_what_is_passed_on_travels_and_what_is_dropped_does_not() -> None:
    """A peer in the middle decides what those after it hear; they hear it from that peer."""
    middle, last = Listener(), Listener()
    async with (
        line(3) as (a, b, c),
        a.join_topic("news", Listener()) as source,
        b.join_topic("news", middle) as relay,
        c.join_topic("news", last) as sink,
    ):
        await GossipContract.wait_neighbours(source, relay, sink)
        while relay.neighbours < 2:  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.005)
        middle.verdict = GossipVerdict.DROP
        source.publish(b"dropped")
        await middle.wait_heard(1)
        middle.verdict = GossipVerdict.PASS
        source.publish(b"passed")
        assert await last.wait_heard(1) == [b"passed"]
    assert last.heard == [(b.peer_id, b"passed")]


async def test_a_peer_that_passes_on_bad_gossip_is_cut_off() -> None:
    """A few offences are tolerated; one too many ends the connection, and no channel opens."""
    judge = Listener(GossipVerdict.BLAME)
    async with (
        line(2) as (a, b),
        a.join_topic("news", judge) as near,
        b.join_topic("news", Listener()) as far,
    ):
        await GossipContract.wait_neighbours(near, far)
        a.handle("echo", echo)
        for i in range(OFFENCES_MAX):
            far.publish(b"%d" % i)
        await judge.wait_heard(OFFENCES_MAX)
        assert a._connections(b.peer_id)
        far.publish(b"one too many")
        await judge.wait_heard(OFFENCES_MAX + 1)
        await wait_all_tasks_blocked()
        assert not a._connections(b.peer_id)
        with pytest.raises(PeerUnavailable):
            await b.open(a.peer_id, "echo", a.addresses)


def frames() -> list[tuple[str, bytes]]:
    """Return frames that no correct peer sends, each with what is wrong with it."""
    good = _named(TOPIC, b"good")
    renamed = rpc_pb2.Message(data=b"bad", topicIDs=[TOPIC], from_id=good.from_id, seqno=good.seqno)
    two = rpc_pb2.Message(data=b"x", topicIDs=[TOPIC, TOPIC])
    prune = rpc_pb2.ControlPrune(
        topicID=TOPIC, backoff=1 << 60, peers=[rpc_pb2.PeerInfo(peerID=b"\xff")]
    )
    names = [f"/p2pinfer/test/{i}/1" for i in range(10_000)]
    control = rpc_pb2.ControlMessage(
        ihave=[rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=[b"\xff", b"0", b""])],
        iwant=[rpc_pb2.ControlIWant(messageIDs=[b"\xff", b"0", b""])],
        graft=[rpc_pb2.ControlGraft(topicID=name) for name in names[:3000]],
        prune=[prune],
    )
    subscriptions = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=name) for name in names[:5000]]
    return [
        ("no frame", b"\xff" * 100),
        ("another's name", rpc_pb2.RPC(publish=[renamed]).SerializeToString()),
        ("two topics", rpc_pb2.RPC(publish=[two]).SerializeToString()),
        ("control", rpc_pb2.RPC(control=control).SerializeToString()),
        ("topics", rpc_pb2.RPC(subscriptions=subscriptions).SerializeToString()),
    ]


@pytest.mark.parametrize("frame", [pytest.param(frame, id=name) for name, frame in frames()])
async def test_nonsense_does_no_harm(frame: bytes) -> None:
    """After it the peer hears others as before, dials no one, and remembers little."""
    judge = Listener()
    async with line(2) as (a, b), a.join_topic("news", judge):
        stream = await b._host.new_stream(a._host.get_id(), [PROTOCOL])
        await stream.write(encode_varint_prefixed(frame))
        async with open_libp2p(None, HERE, "test") as other:
            await other.connect(a.addresses[0])
            async with other.join_topic("news", Listener()) as topic:
                await GossipContract.wait_neighbours(topic)
                topic.publish(b"good")
                assert await judge.wait_heard(1) == [b"good"]
        pubsub = a._gossip.pubsub
        router = pubsub.router
        assert isinstance(router, gossip_module._Router)
        assert len(pubsub.peer_topics) <= gossip_module.TOPICS_PER_PEER_MAX + 1
        assert set(router.back_off) <= {TOPIC}
        assert len(router.graft_flood_tracking) <= 2
