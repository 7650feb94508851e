"""Strangers that do their worst to a stage over real libp2p, while an honest requester is served.

The engine is a fake, everything else is what a node runs. Each stranger has a node of its own.
"""

import os
import random
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress

import numpy as np
import pytest
import trio
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from p2pinfer.core.errors import PeerError
from p2pinfer.core.messages import (
    Attach,
    Attached,
    Connect,
    Expect,
    Hop,
    Link,
    Linked,
    Open,
    Opened,
    Step,
)
from peers.requester import Requester
from peers.stage import Stage
from peers.talk import SESSION, receive, send
from tests.engine.fakes import WIDTH, FakeEnds, FakeStage
from tests.peers.swarm import CONTEXT, GOOD_ROW, MODEL, PROMPT, answer, expected, session_id
from transports.base import Channel
from transports.identity import ephemeral_identity
from transports.libp2p import Libp2pTransport, open_libp2p

TEST_S_MAX = 60.0
HARM_S = 2.0
"""How long a stranger that does not end by itself goes on."""

STREAMS = 10_000
ANSWERS_MIN = 5
GROWTH_KIB_MAX = 256 * 1024


class Target:
    """A stage, and where it is."""

    def __init__(self, transport: Libp2pTransport) -> None:
        self.hop = Hop(transport.peer_id, tuple(transport.addresses), 1, 29)
        self.chance = random.Random(1)

    async def reach(self, stranger: Libp2pTransport) -> Channel:
        """Open a channel to the stage."""
        return await stranger.open(self.hop.peer, SESSION, self.hop.addresses)

    async def open(self, stranger: Libp2pTransport, number: int) -> Channel:
        """Open a session, properly so far."""
        me = stranger.peer_id
        control = await self.reach(stranger)
        await send(control, Open(session_id(number), MODEL, me, me, 1, 29, CONTEXT))
        await receive(control, Opened)
        return control

    async def link(self, stranger: Libp2pTransport, number: int) -> Channel:
        """Open a session and a way in."""
        await self.open(stranger, number)
        entry = await self.reach(stranger)
        await send(entry, Link(session_id(number)))
        await receive(entry, Linked)
        return entry


Harm = Callable[[Target, Libp2pTransport], Awaitable[None]]


async def noise_before_the_handshake(target: Target, _stranger: Libp2pTransport) -> None:
    """Random bytes on bare sockets."""
    port = int(Multiaddr(target.hop.addresses[0]).value_for_protocol("tcp"))
    for _ in range(50):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(target.chance.randbytes(2000))


async def noise_after_the_handshake(target: Target, stranger: Libp2pTransport) -> None:
    """Random bytes as messages."""
    for _ in range(300):
        channel = await target.reach(stranger)
        with suppress(PeerError):
            await channel.send(target.chance.randbytes(target.chance.randrange(500)))
            await channel.receive()
        channel.abort()


async def absurd_steps(target: Target, stranger: Libp2pTransport) -> None:
    """Good frames whose values are none: NaN, infinity, gaps, positions beyond the context."""
    bad = np.ones(WIDTH, "<f4")
    bad[1] = np.nan
    endless = np.full(WIDTH, np.inf, "<f4").tobytes()
    for number, step in enumerate(
        [
            Step(1, 0, 1, False, bad.tobytes()),
            Step(1, 0, 1, False, endless),
            Step(1, 5, 1, False, GOOD_ROW),
            Step(1, CONTEXT, 1, False, GOOD_ROW),
            Step(1, 0, 48, True, GOOD_ROW),
            Step(1, 0, 9, False, 9 * GOOD_ROW),
        ]
        * 5
    ):
        entry = await target.link(stranger, 1000 + number)
        await send(entry, step)
        with suppress(PeerError):
            await receive(entry)


async def absurd_orders(target: Target, stranger: Libp2pTransport) -> None:
    """Orders to connect with nobody, and to expect everybody."""
    control = await target.open(stranger, 2000)
    for number in range(20):
        nobody = ephemeral_identity().peer_id
        await send(control, Connect(number, nobody, ("/ip4/127.0.0.1/tcp/1", "no address"), 0, 0))
        await send(control, Expect(number, nobody))
    await trio.sleep(HARM_S)


async def many_streams(target: Target, stranger: Libp2pTransport) -> None:
    """Ten thousand, each left as soon as it is there."""
    for _ in range(STREAMS):
        (await target.reach(stranger)).abort()


async def never_reads(target: Target, stranger: Libp2pTransport) -> None:
    """Steps go in, and nobody takes what comes out."""
    entry = await target.link(stranger, 3000)
    exit_ = await target.reach(stranger)
    await send(exit_, Attach(session_id(3000)))
    await receive(exit_, Attached)
    with trio.move_on_after(HARM_S):
        for number in range(1, 10**6):
            await send(entry, Step(number, 0, 48, True, 48 * GOOD_ROW))


async def never_stops_writing(target: Target, stranger: Libp2pTransport) -> None:
    """The largest messages, one behind the other, to whoever waits for a first one."""
    with trio.move_on_after(HARM_S):
        while True:
            channel = await target.reach(stranger)
            with suppress(PeerError):
                for _ in range(20):
                    await channel.send(bytes(4 * 1024 * 1024))
            channel.abort()


async def opens_and_keeps_silent(target: Target, stranger: Libp2pTransport) -> None:
    """Sessions without a link, and channels without a word."""
    await target.open(stranger, 4000)
    for _ in range(100):
        await target.reach(stranger)
    await trio.sleep(HARM_S)


async def takes_anothers_session(target: Target, stranger: Libp2pTransport) -> None:
    """Guessed right, and still not let in: neither as a link nor as a collector."""
    for _ in range(100):
        for first in (Link(session_id(0)), Attach(session_id(0))):
            channel = await target.reach(stranger)
            await send(channel, first)
            with pytest.raises(PeerError):
                await receive(channel, Linked, Attached)
            channel.abort()


HARMS: list[Harm] = [
    noise_before_the_handshake,
    noise_after_the_handshake,
    absurd_steps,
    absurd_orders,
    many_streams,
    never_reads,
    never_stops_writing,
    opens_and_keeps_silent,
    takes_anothers_session,
]


def peer() -> AbstractAsyncContextManager[Libp2pTransport]:
    """Run a node."""
    return open_libp2p(ephemeral_identity(), ["/ip4/127.0.0.1/tcp/0"], "hostile")


def resident_kib() -> int:
    """Return how much memory this process has."""
    found = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, check=True
    )
    return int(found.stdout)


async def test_a_stage_stands_while_strangers_do_their_worst() -> None:
    """All of them at once: an honest requester is answered throughout, and memory is bounded."""
    wanted = await expected(PROMPT, 20, (1, 29))
    over = trio.Event()
    with trio.fail_after(TEST_S_MAX):
        async with peer() as serving, peer() as me, trio.open_nursery() as nursery:
            Stage(serving, FakeStage(1, 29, sessions=8, context=CONTEXT), MODEL).listen()
            target, answers = Target(serving), 0
            before = resident_kib()
            nursery.start_soon(do_all, target, over)
            requester = Requester(nursery, me, FakeEnds(context=CONTEXT), MODEL)
            async with requester.open([target.hop], session_id(0), CONTEXT) as session:
                while not over.is_set():
                    assert await answer(session, PROMPT) == wanted
                    answers += 1
            assert answers > ANSWERS_MIN
            assert resident_kib() - before < GROWTH_KIB_MAX
            nursery.cancel_scope.cancel()


async def do_all(target: Target, over: trio.Event) -> None:
    """Have all strangers do harm at once, each from a node of its own."""
    async with trio.open_nursery() as strangers:
        for harm in HARMS:
            strangers.start_soon(do_harm, target, harm)
    over.set()


async def do_harm(target: Target, harm: Harm) -> None:
    """Be a stranger; being cut off is what strangers must expect."""
    with suppress(PeerError):
        async with peer() as stranger:
            await harm(target, stranger)
