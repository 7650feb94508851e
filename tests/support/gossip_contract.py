"""The contract of gossip: tests of a transport whose peers hear what others publish."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pinfer.core.ids import PeerId
from tests.support.transport_contract import CUSHION_S, TransportContract, echo
from transports.base import GOSSIP_BYTES_MAX, GossipVerdict, Topic


class Listener:
    """Receives gossip, keeps it, and gives every message the same verdict."""

    def __init__(self, verdict: GossipVerdict = GossipVerdict.PASS) -> None:
        self.verdict = verdict
        self.heard: list[tuple[PeerId, bytes]] = []
        self._more = trio.lowlevel.ParkingLot()

    def __call__(self, neighbour: PeerId, message: bytes) -> GossipVerdict:
        """Receive one message."""
        self.heard.append((neighbour, message))
        self._more.unpark_all()
        return self.verdict

    async def wait_heard(self, count: int) -> list[bytes]:
        """Wait for ``count`` messages and return all there are."""
        while len(self.heard) < count:
            await self._more.park()
        return [message for _, message in self.heard]


def fail(_neighbour: PeerId, _message: bytes) -> GossipVerdict:
    """Fail instead of judging."""
    raise RuntimeError("told to fail")


class GossipContract(TransportContract):
    """Tests of gossip between two connected peers."""

    async def test_gossip_reaches_the_others(self) -> None:
        """A peer hears what others publish, once each, and not its own messages."""
        a, b = Listener(), Listener()
        async with (
            self.linked() as (alice, bob),
            alice.join_topic("news", a) as near,
            bob.join_topic("news", b) as far,
        ):
            await self.wait_neighbours(near, far)
            for i in range(100):
                near.publish(b"%d" % i)
            far.publish(b"hello")
            assert sorted(await b.wait_heard(100)) == sorted(b"%d" % i for i in range(100))
            await a.wait_heard(1)
            await wait_all_tasks_blocked(CUSHION_S)
        assert a.heard == [(bob.peer_id, b"hello")]
        assert {neighbour for neighbour, _ in b.heard} == {alice.peer_id}
        assert len(b.heard) == 100

    async def test_topics_do_not_mix(self) -> None:
        """A peer hears nothing of topics that it does not follow, or has left."""
        other, left, mine = Listener(), Listener(), Listener()
        async with (
            self.linked() as (alice, bob),
            alice.join_topic("one", mine) as near,
            bob.join_topic("two", other),
        ):
            async with bob.join_topic("one", left) as far:
                await self.wait_neighbours(near, far)
                near.publish(b"before")
                await left.wait_heard(1)
            async with bob.join_topic("one", mine) as far:
                await self.wait_neighbours(near, far)
                near.publish(b"after")
                await mine.wait_heard(1)
        assert [len(each.heard) for each in (other, left, mine)] == [0, 1, 1]

    async def test_a_failing_judge_does_no_harm(self) -> None:
        """A message that could not be judged is dropped; the next is heard, channels go on."""
        good = Listener()
        async with (
            self.linked() as (alice, bob),
            alice.join_topic("news", good) as near,
            bob.join_topic("news", fail) as far,
        ):
            bob.handle("echo", echo)
            channel = await alice.open(bob.peer_id, "echo")
            await self.wait_neighbours(near, far)
            near.publish(b"judge this")
            await channel.send(b"ping")
            assert await channel.receive() == b"ping"
            far.publish(b"fine")
            assert await good.wait_heard(1) == [b"fine"]

    async def test_gossip_over_the_limit_is_refused_here(self) -> None:
        """Publishing a message over the limit raises; the longest allowed one arrives."""
        b = Listener()
        async with (
            self.linked() as (alice, bob),
            alice.join_topic("news", fail) as near,
            bob.join_topic("news", b) as far,
        ):
            await self.wait_neighbours(near, far)
            with pytest.raises(ValueError, match="limit"):
                near.publish(bytes(GOSSIP_BYTES_MAX + 1))
            near.publish(bytes(GOSSIP_BYTES_MAX))
            assert await b.wait_heard(1) == [bytes(GOSSIP_BYTES_MAX)]

    async def test_no_peer_takes_part_twice(self) -> None:
        """One judge per topic and peer."""
        async with self.linked() as (alice, _), alice.join_topic("news", Listener()):
            with pytest.raises(ValueError, match="already"):
                async with alice.join_topic("news", Listener()):
                    pass

    @staticmethod
    async def wait_neighbours(*topics: Topic) -> None:
        """Wait until each knows that the other takes part."""
        while not all(topic.neighbours for topic in topics):  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.005)
