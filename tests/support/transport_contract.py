"""The contract of a transport: classes of tests; test_contract.py runs them against all three."""

import random
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pinfer.core.errors import ChannelClosed, PeerUnavailable, UserError
from p2pinfer.core.ids import PeerId
from transports.base import MESSAGE_BYTES_MAX, Channel, Transport

TEST_S_MAX = 20.0
"""Generous: every test here takes well under a second alone."""

CUSHION_S = 0.05
"""For bytes that the kernel carries while every task is blocked."""

STRANGER = PeerId("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA")


async def echo(channel: Channel) -> None:
    """Send back what comes."""
    while True:
        await channel.send(await channel.receive())


class TransportContract:
    """Tests of two peers, ``alice`` that dials and ``bob`` that serves."""

    def peers(self) -> AbstractAsyncContextManager[tuple[Transport, Transport]]:
        """Run two peers that may dial each other."""
        raise NotImplementedError

    @asynccontextmanager
    async def linked(self) -> AsyncGenerator[tuple[Transport, Transport], None]:
        """Run two peers, the first connected to the second."""
        with trio.fail_after(TEST_S_MAX):
            async with self.peers() as (alice, bob):
                await alice.connect(bob.addresses[0])
                yield alice, bob

    @asynccontextmanager
    async def channel(self) -> AsyncGenerator[tuple[Channel, Channel], None]:
        """Open a channel; yield both its ends."""
        send, receive = trio.open_memory_channel[Channel](1)
        done = trio.Event()

        async def hand_over(end: Channel) -> None:
            await send.send(end)
            await done.wait()

        async with self.linked() as (alice, bob):
            bob.handle("test", hand_over)
            yield await alice.open(bob.peer_id, "test"), await receive.receive()
            done.set()

    async def test_a_channel_begins_with_what_was_first(self) -> None:
        """Before anything that is sent on it; long messages, too."""
        async with self.linked() as (alice, bob):
            bob.handle("test", echo)
            for first in (b"first", bytes(300_000)):
                channel = await alice.open(bob.peer_id, "test", first=first)
                await channel.send(b"second")
                assert [await channel.receive() for _ in range(2)] == [first, b"second"]

    async def test_messages_keep_their_order_both_ways(self) -> None:
        """What is sent first arrives first, in either direction."""
        async with self.channel() as (near, far):
            for a, b in ((near, far), (far, near)):
                for i in range(20):
                    await a.send(b"%d" % i)
                assert [await b.receive() for _ in range(20)] == [b"%d" % i for i in range(20)]

    async def test_any_size_up_to_the_limit(self) -> None:
        """A message arrives as it was, whether it is empty, odd, or as long as allowed."""
        edges = [0, 1, 3, 4, 5, 2300, 65_503, 65_531, 65_532, 65_533, 65_536, 262_144, 1_048_577]
        async with self.linked() as (alice, bob):
            bob.handle("echo", echo)
            channel = await alice.open(bob.peer_id, "echo")
            for size in [*edges, MESSAGE_BYTES_MAX]:
                message = random.Random(size).randbytes(size)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(channel.send, message)
                    assert await channel.receive() == message

    async def test_a_message_over_the_limit_is_refused_here(self) -> None:
        """The sender gets the error at once, and the channel goes on."""
        async with self.channel() as (near, far):
            with pytest.raises(ValueError, match="limit"):
                await near.send(bytes(MESSAGE_BYTES_MAX + 1))
            await near.send(b"still here")
            assert await far.receive() == b"still here"

    async def test_concurrent_senders_do_not_interleave(self) -> None:
        """Messages of several tasks arrive whole, though none fits the window at once."""
        async with self.channel() as (near, far):
            async with trio.open_nursery() as nursery:
                for i in range(5):
                    nursery.start_soon(near.send, bytes([i]) * (700_000 + i))
                    nursery.start_soon(near.send, bytes([100 + i]))
                got = [await far.receive() for _ in range(10)]
            expected = [bytes([i]) * (700_000 + i) for i in range(5)]
            assert sorted(got) == sorted(expected + [bytes([100 + i]) for i in range(5)])

    async def test_a_sender_waits_for_a_reader(self) -> None:
        """A peer that does not read makes the sender wait after a bounded number of bytes."""
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            for i in range(400):
                await near.send(i.to_bytes(4, "big") * 25_000)
                sent += 1

        async with self.channel() as (near, far), trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            await wait_all_tasks_blocked(CUSHION_S)
            assert 0 < sent < 200
            for i in range(400):
                assert (await far.receive())[:4] == i.to_bytes(4, "big")

    async def test_what_is_sent_at_once_arrives_whole_and_in_order(self) -> None:
        """``send_now`` reports correctly whether it sent, gives up unread, and never raises."""
        async with self.channel() as (near, far):
            await near.send(b"first")
            taken = [i for i in range(100) if near.send_now(b"%05d" % i * 4000)]
            assert taken == list(range(len(taken)))
            assert len(taken) < 100
            assert await far.receive() == b"first"
            for i in taken:
                assert await far.receive() == b"%05d" % i * 4000
            assert not near.send_now(bytes(MESSAGE_BYTES_MAX + 1))
            await near.send(b"last")
            assert await far.receive() == b"last"
            near.abort()
            assert not near.send_now(b"more")

    async def test_close_delivers_what_was_sent(self) -> None:
        """After a close the other side gets all that was sent, then ChannelClosed every time."""
        async with self.channel() as (near, far):
            messages = [bytes([i]) * 20_000 for i in range(10)]
            for message in messages:
                await near.send(message)
            await near.close()
            await near.close()
            assert [await far.receive() for _ in messages] == messages
            for _ in range(2):
                with pytest.raises(ChannelClosed):
                    await far.receive()
            with pytest.raises(ChannelClosed):
                await far.send(b"to nobody")

    async def test_close_lets_senders_finish(self) -> None:
        """A close during a long send comes after that message."""
        async with self.channel() as (near, far), trio.open_nursery() as nursery:
            nursery.start_soon(near.send, bytes(MESSAGE_BYTES_MAX))
            await wait_all_tasks_blocked(CUSHION_S)
            await near.close()
            assert len(await far.receive()) == MESSAGE_BYTES_MAX
            with pytest.raises(ChannelClosed):
                await far.receive()

    async def test_a_closed_channel_is_closed_here_too(self) -> None:
        """After our close, sending and receiving raise ChannelClosed here."""
        async with self.channel() as (near, far):
            await far.send(b"too late")
            await near.close()
            with pytest.raises(ChannelClosed):
                await near.send(b"no")
            with pytest.raises(ChannelClosed):
                await near.receive()

    async def test_close_wakes_a_waiting_receive_here(self) -> None:
        """A receive that waits in another task ends when the channel is closed under it."""
        async with self.channel() as (near, _), trio.open_nursery() as nursery:

            async def wait_for_the_end() -> None:
                with pytest.raises(ChannelClosed):
                    await near.receive()

            nursery.start_soon(wait_for_the_end)
            await wait_all_tasks_blocked(CUSHION_S)
            await near.close()

    async def test_close_works_in_a_cancelled_scope(self) -> None:
        """A close in the finally of a cancelled task still reaches the other side."""
        async with self.channel() as (near, far):
            with trio.CancelScope() as scope:
                scope.cancel()
                await near.close()
            with pytest.raises(ChannelClosed):
                await far.receive()

    async def test_abort_ends_both_directions(self) -> None:
        """After an abort neither side can send or receive, and a waiting receive is woken."""
        async with self.channel() as (near, far):
            async with trio.open_nursery() as nursery:

                async def wait_for_the_end() -> None:
                    with pytest.raises(ChannelClosed):
                        await far.receive()

                nursery.start_soon(wait_for_the_end)
                await wait_all_tasks_blocked(CUSHION_S)
                near.abort()
                near.abort()
            for end in (near, far):
                with pytest.raises(ChannelClosed):
                    await end.receive()
                with pytest.raises(ChannelClosed):
                    await end.send(b"")

    async def test_a_raising_handler_ends_its_channel_only(self) -> None:
        """An error in one handler aborts that channel; other channels and new ones work."""

        async def fail(channel: Channel) -> None:
            raise RuntimeError(f"told to fail by {await channel.receive()!r}")

        async with self.linked() as (alice, bob):
            bob.handle("fail", fail)
            bob.handle("echo", echo)
            good = await alice.open(bob.peer_id, "echo")
            bad = await alice.open(bob.peer_id, "fail")
            await bad.send(b"me")
            with pytest.raises(ChannelClosed):
                await bad.receive()
            for channel in (good, await alice.open(bob.peer_id, "echo")):
                await channel.send(b"ping")
                assert await channel.receive() == b"ping"

    async def test_a_returning_handler_closes_its_channel(self) -> None:
        """The caller gets what the handler sent before it returned, then ChannelClosed."""

        async def answer(channel: Channel) -> None:
            await channel.send(await channel.receive() + b"!")

        async with self.linked() as (alice, bob):
            bob.handle("answer", answer)
            channel = await alice.open(bob.peer_id, "answer")
            await channel.send(b"hello")
            assert await channel.receive() == b"hello!"
            with pytest.raises(ChannelClosed):
                await channel.receive()
            await channel.close()

    async def test_cancelled_receives_lose_nothing(self) -> None:
        """Receives cancelled at any moment while data flows leave each message to the next."""
        rng = random.Random(7)
        expected = [rng.randbytes(rng.choice([0, 10, 2300, 70_000, 300_000])) for _ in range(200)]
        got: list[bytes] = []

        async def send_all() -> None:
            for message in expected:
                await near.send(message)

        async with self.channel() as (near, far), trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            while len(got) < len(expected):
                with trio.move_on_after(rng.uniform(0, 0.0004)):
                    got.append(await far.receive())
        assert got == expected

    async def test_messages_are_given_to_a_function_in_turn(self) -> None:
        """All of them, whatever their length, up to the one after which it says enough."""
        rng = random.Random(9)
        expected = [rng.randbytes(rng.choice([0, 10, 2300, 70_000, 300_000])) for _ in range(200)]
        got: list[bytes] = []

        def take(message: bytes) -> bool:
            got.append(message)
            return len(got) % 50 > 0

        async def send_all() -> None:
            for message in expected:
                await near.send(message)

        async with self.channel() as (near, far), trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            for _ in range(2):
                await far.receive_each(take)
            assert got == expected[:100]
            got.append(await far.receive())
            while len(got) < len(expected):
                with trio.move_on_after(rng.uniform(0, 0.0004)):
                    await far.receive_each(take)
        assert got == expected

    async def test_what_a_function_raises_is_its_receivers_own(self) -> None:
        """It harms neither the channel, nor others; the end of a channel is told as ever."""

        def take(message: bytes) -> bool:
            if message == b"bad":
                raise LookupError("told to fail")
            return True

        async with self.channel() as (near, far):
            for message in (b"good", b"bad", b"later"):
                await near.send(message)
            with pytest.raises(LookupError):
                await far.receive_each(take)
            assert await far.receive() == b"later"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(near.close)
                with pytest.raises(ChannelClosed):
                    await far.receive_each(take)

    async def test_cancelled_sends_harm_no_other_channel(self) -> None:
        """A cancelled send is whole, or nothing, or the end of its channel; others flow on."""
        rng = random.Random(8)
        async with self.linked() as (alice, bob):
            bob.handle("echo", echo)
            good = await alice.open(bob.peer_id, "echo")
            for i in range(40):
                bad = await alice.open(bob.peer_id, "echo")
                with trio.move_on_after(rng.uniform(0, 0.003)):
                    await bad.send(bytes([i]) * 3_000_000)
                await good.send(bytes([i]))
                assert await good.receive() == bytes([i])
                bad.abort()

    async def test_a_cancelled_small_send_leaves_its_channel(self) -> None:
        """A send that never had to wait in mid-message keeps the channel, sent or not."""
        async with self.channel() as (near, far):
            with trio.CancelScope() as scope:
                scope.cancel()
                await near.send(b"perhaps")
            await near.send(b"surely")
            first = await far.receive()
            assert first == b"surely" or (first, await far.receive()) == (b"perhaps", b"surely")

    async def test_cancelled_opens_leave_nothing_behind(self) -> None:
        """Opens cancelled at any moment, while data flows, do no harm to what comes after."""
        rng = random.Random(9)
        async with self.linked() as (alice, bob), trio.open_nursery() as nursery:
            bob.handle("echo", echo)
            busy = await alice.open(bob.peer_id, "echo")

            async def keep_busy() -> None:
                while True:
                    await busy.send(bytes(100_000))
                    await busy.receive()

            nursery.start_soon(keep_busy)
            for _ in range(400):  # more than a connection may hold, were they to leak
                with trio.move_on_after(rng.uniform(0, 0.003)):
                    channel = await alice.open(bob.peer_id, "echo")
                    channel.abort()
            channel = await alice.open(bob.peer_id, "echo")
            await channel.send(b"after all that")
            assert await channel.receive() == b"after all that"
            nursery.cancel_scope.cancel()

    async def test_an_unknown_protocol_is_reported(self) -> None:
        """A peer that does not speak the protocol is unavailable for that protocol only."""
        async with self.linked() as (alice, bob):
            with pytest.raises(PeerUnavailable, match="does not speak"):
                await alice.open(bob.peer_id, "esperanto")
            bob.handle("echo", echo)
            await (await alice.open(bob.peer_id, "echo")).close()

    async def test_an_unknown_peer_is_unavailable(self) -> None:
        """A peer without known addresses, or that is not where it should be, is unavailable."""
        async with self.linked() as (alice, bob):
            with pytest.raises(PeerUnavailable) as caught:
                await alice.open(STRANGER, "echo")
            assert caught.value.peer == STRANGER
            wrong = bob.addresses[0].replace(bob.peer_id, STRANGER)
            with pytest.raises(PeerUnavailable):
                await alice.connect(wrong)
            with pytest.raises(PeerUnavailable):
                await alice.open(STRANGER, "echo", [wrong])

    async def test_a_bad_address_is_a_user_error(self) -> None:
        """Text that is not an address is a UserError."""
        async with self.linked() as (alice, _):
            for text in ("", "nonsense", "/ip4/127.0.0.1", "/ip4/127.0.0.1/tcp/1"):
                with pytest.raises(UserError):
                    await alice.connect(text)

    async def test_many_channels_at_once(self) -> None:
        """A hundred channels between two peers do not mix."""
        async with self.linked() as (alice, bob):
            bob.handle("echo", echo)

            async def talk(i: int) -> None:
                channel = await alice.open(bob.peer_id, "echo")
                for j in range(5):
                    await channel.send(b"%d %d" % (i, j))
                    assert await channel.receive() == b"%d %d" % (i, j)
                await channel.close()

            async with trio.open_nursery() as nursery:
                for i in range(100):
                    nursery.start_soon(talk, i)

    async def test_each_end_knows_the_other(self) -> None:
        """Both ends of a channel name the peer at the other end, and connect returns it."""
        async with self.peers() as (alice, bob):
            assert await alice.connect(bob.addresses[0]) == bob.peer_id
        async with self.channel() as (near, far):
            assert near.remote != far.remote

    async def test_it_knows_whether_it_was_dialled(self) -> None:
        """A peer that another has reached can be dialled; one that only dials may be behind NAT."""
        async with self.linked() as (alice, bob):
            served = trio.Event()

            async def serve(_: Channel) -> None:
                served.set()

            bob.handle("test", serve)
            await alice.open(bob.peer_id, "test")
            await served.wait()
            assert (alice.was_dialled, bob.was_dialled) == (False, True)

    async def test_the_end_of_a_peer_ends_its_channels(self) -> None:
        """When a peer leaves, tasks that wait for it get ChannelClosed."""
        async with trio.open_nursery() as nursery:
            left = trio.Event()
            seen: list[str] = []

            async def watch(channel: Channel) -> None:
                try:
                    await channel.receive()
                except ChannelClosed:
                    seen.append("closed")
                    raise
                finally:
                    left.set()

            with trio.fail_after(TEST_S_MAX):
                async with self.linked() as (alice, bob):
                    bob.handle("watch", watch)
                    channel = await alice.open(bob.peer_id, "watch")
                    nursery.start_soon(self._expect_closed, channel, left)
                await left.wait()

    @staticmethod
    async def _expect_closed(channel: Channel, left: trio.Event) -> None:
        with pytest.raises(ChannelClosed):
            await channel.receive()
        left.set()
