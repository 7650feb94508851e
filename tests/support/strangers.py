"""Attacks of strangers on a node over real libp2p, each from a node of its own."""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count

import numpy as np
import pytest
import trio
from attrs import evolve
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from p2pinfer.core.advertisement import KNOWN_MAX, Advertisement, Heard, Known
from p2pinfer.core.errors import PeerError
from p2pinfer.core.evidence import (
    CASES_MAX,
    FRAUD_ROWS_BYTES_MAX,
    AskRows,
    Case,
    Cases,
    Follow,
    ProofIs,
    Settle,
    WantProof,
)
from p2pinfer.core.exchange import Compare
from p2pinfer.core.manifest import CHUNK_BYTES
from p2pinfer.core.messages import (
    AskChunks,
    Attach,
    Attached,
    Connect,
    Denied,
    Expect,
    Hop,
    Link,
    Linked,
    Open,
    Opened,
    Step,
)
from p2pinfer.core.wire import decode, encode
from peers.audits.frauds import FRAUDS
from peers.parts.protocol import PARTS
from peers.receipts.signer import EVIDENCE
from peers.steps.messaging import DIRECTORY, SESSION, receive, send
from tests.support.directories import advertisement, identity, signed
from tests.support.fake_engines import WIDTH
from tests.support.parts_swarm import make_model
from tests.support.swarm import CONTEXT, GOOD_ROW, MODEL, session_id
from transports.base import Channel, GossipVerdict, Topic
from transports.identity import ephemeral_identity
from transports.libp2p.gossip import PROTOCOL
from transports.libp2p.transport import Libp2pTransport

HARM_S = 2.0
"""How long an attack that does not end by itself lasts."""

STREAMS, STREAMS_AT_ONCE = 10_000, 20
SEAL = b"seal" * 8


class Target:
    """The attacked stage and its addresses."""

    def __init__(self, transport: Libp2pTransport) -> None:
        self.hop = Hop(transport.peer_id, tuple(transport.addresses), 1, 29)
        self.chance = random.Random(1)

    async def reach(self, stranger: Libp2pTransport, protocol: str = SESSION) -> Channel:
        """Open a channel to the node."""
        return await stranger.open(self.hop.peer, protocol, self.hop.addresses)

    async def open(self, stranger: Libp2pTransport, number: int) -> Channel:
        """Open a session correctly."""
        me = stranger.peer_id
        control = await self.reach(stranger)
        await send(control, Open(session_id(number), MODEL, me, me, 1, 29, CONTEXT, seal=SEAL))
        await receive(control, Opened)
        return control

    async def link(self, stranger: Libp2pTransport, number: int) -> Channel:
        """Open a session and link to it."""
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
    """Well-formed frames with invalid values: NaN, infinity, gaps, positions past the context."""
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
    """Commands to connect to, and to expect, peers that do not exist."""
    control = await target.open(stranger, 2000)
    for number in range(20):
        nobody = ephemeral_identity().peer_id
        await send(control, Connect(number, nobody, ("/ip4/127.0.0.1/tcp/1", "no address"), 0, 0))
        await send(control, Expect(number, nobody))
    await trio.sleep(HARM_S)


async def many_streams(target: Target, stranger: Libp2pTransport) -> None:
    """Ten thousand streams, each aborted as soon as it is open."""

    async def open_some() -> None:
        for _ in range(STREAMS // STREAMS_AT_ONCE):
            (await target.reach(stranger)).abort()

    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS_AT_ONCE):
            nursery.start_soon(open_some)


async def never_reads(target: Target, stranger: Libp2pTransport) -> None:
    """Steps go in, and the results are never read."""
    entry = await target.link(stranger, 3000)
    exit_ = await target.reach(stranger)
    await send(exit_, Attach(session_id(3000)))
    await receive(exit_, Attached)
    with trio.move_on_after(HARM_S):
        for number in range(1, 10**6):
            await send(entry, Step(number, 0, 48, True, 48 * GOOD_ROW))


async def never_stops_writing(target: Target, stranger: Libp2pTransport) -> None:
    """The largest messages, one after another, where one first message is due."""
    with trio.move_on_after(HARM_S):
        while True:
            channel = await target.reach(stranger)
            with suppress(PeerError):
                for _ in range(20):
                    await channel.send(bytes(4 * 1024 * 1024))
            channel.abort()


async def opens_and_keeps_silent(target: Target, stranger: Libp2pTransport) -> None:
    """A session without a link, and channels without a message."""
    await target.open(stranger, 4000)
    for _ in range(100):
        await target.reach(stranger)
    await trio.sleep(HARM_S)


async def takes_anothers_session(target: Target, stranger: Libp2pTransport) -> None:
    """The session id is right, and still it is refused: as a link and as a collector."""
    for _ in range(100):
        for first in (Link(session_id(0)), Attach(session_id(0))):
            channel = await target.reach(stranger)
            await send(channel, first)
            with pytest.raises(PeerError):
                await receive(channel, Linked, Attached)
            channel.abort()


async def asks_for_evidence(target: Target, stranger: Libp2pTransport) -> None:
    """Of another's session, and of rows that never existed, without end."""
    channel = await target.reach(stranger, EVIDENCE)
    await send(channel, Follow(session_id(0)))
    await receive(channel, Denied)
    await target.open(stranger, 5000)
    channel = await target.reach(stranger, EVIDENCE)
    await send(channel, Follow(session_id(5000)))
    with trio.move_on_after(HARM_S):
        for number in count():
            await send(channel, AskRows(number, number % 1000, 48))
            await send(channel, Settle(number, 1 + number % 1000))
            if number % 7:
                await receive(channel, Denied)


async def asks_for_parts(target: Target, stranger: Libp2pTransport) -> None:
    """Ask for chunks endlessly, and take none."""
    manifest = make_model().manifest
    part = manifest.parts[-2]
    assert part.size > CHUNK_BYTES
    with trio.move_on_after(HARM_S):
        while True:
            channel = await target.reach(stranger, PARTS)
            with suppress(PeerError):
                for number in range(100):
                    await send(channel, AskChunks(2 * number, manifest.id, part.hash, (0, 1)))


async def tells_lies(target: Target, stranger: Libp2pTransport) -> None:
    """Comparing views: others' advertisements forged or repeated endlessly, and half a digest."""
    channel = await target.reach(stranger, DIRECTORY)
    await send(channel, Compare(MODEL, b"", bytes(8)))
    await send(channel, Known((), False))
    known = (await receive(channel, Known)).heard
    (own,) = [each for each in known if decode(each.body, Advertisement).peer == target.hop.peer]
    forged = evolve(own, body=own.body.replace(b"serving", b"joining"))
    assert forged != own
    with trio.move_on_after(HARM_S):
        for number in count():
            channel = await target.reach(stranger, DIRECTORY)
            with suppress(PeerError):
                await send(channel, Compare(MODEL, b"half" if number % 5 == 0 else b"", bytes(8)))
                said = evolve(own if number % 2 else forged, age_ms=number)
                while True:
                    await send(channel, Known(KNOWN_MAX * (said,), True))
            channel.abort()


async def gossip(target: Target, stranger: Libp2pTransport, make: Callable[[int], bytes]) -> None:
    """Publish as fast as possible, until cut off or ``HARM_S`` is over."""
    await stranger.connect(target.hop.addresses[0])
    topic: Topic
    async with stranger.join_topic(f"model/{MODEL}", lambda *_: GossipVerdict.DROP) as topic:
        with trio.move_on_after(HARM_S):
            for number in count():
                topic.publish(make(number))
                await trio.lowlevel.checkpoint()


async def gossips_noise(target: Target, stranger: Libp2pTransport) -> None:
    """Random bytes in place of advertisements."""
    await gossip(target, stranger, lambda _: target.chance.randbytes(300))


async def gossips_of_the_invented(target: Target, stranger: Libp2pTransport) -> None:
    """Valid advertisements of peers that do not exist, as many as possible."""

    def invent(number: int) -> bytes:
        author = identity(10**6 + number)
        return encode(signed(advertisement(author, layers=(1, 29)), author))

    await gossip(target, stranger, invent)


async def gossips_what_others_said(target: Target, stranger: Libp2pTransport) -> None:
    """An old advertisement repeated as new, and another peer's under the stranger's signature."""
    author, me = identity(10**7), ephemeral_identity()
    old = signed(advertisement(author), author)
    false = signed(evolve(advertisement(author), peer=target.hop.peer, sequence=1 << 61), me)

    def repeat(number: int) -> bytes:
        return encode(false if number % 99 == 0 else Heard(old.body, old.signature, 0))

    await gossip(target, stranger, repeat)


async def noise_as_gossip(target: Target, stranger: Libp2pTransport) -> None:
    """Frames that are not protobuf, and one that claims to be endless."""
    await stranger.connect(target.hop.addresses[0])
    for head in (b"\xff\xff\xff\xff\x7f", *(bytes([size]) for size in range(1, 100))):
        stream = await stranger._host.new_stream(ID.from_string(target.hop.peer), [PROTOCOL])
        with suppress(Exception):  # libp2p has many
            await stream.write(head + target.chance.randbytes(200))
            await stream.reset()


async def proves_nothing(target: Target, stranger: Libp2pTransport) -> None:
    """Cases about an invented peer, and invalid proofs of the largest size."""
    for number in range(5):  # another peer each time: one that does not answer is soon forgotten
        accused = identity(10**8 + number)
        channel = await target.reach(stranger, DIRECTORY)
        await send(channel, Compare(MODEL, b"", bytes(8)))
        await send(channel, Known((signed(advertisement(accused), accused),), False))
        await receive(channel, Known)
        me, other = stranger.peer_id, accused.peer_id
        digest = target.chance.randbytes(32)
        case = Case(digest, MODEL, me, other, 1, 10, 10, bytes(16), 0)
        channel = await target.reach(stranger, FRAUDS)
        with suppress(PeerError):
            await send(channel, Cases((case,) * CASES_MAX))
            await send(channel, WantProof(digest))
            await receive(channel, Cases)
            await receive(channel, ProofIs)
            if (await receive(channel, WantProof)).digest:
                await send(channel, ProofIs(bytes(FRAUD_ROWS_BYTES_MAX)))
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
    asks_for_evidence,
    asks_for_parts,
    tells_lies,
    gossips_noise,
    gossips_of_the_invented,
    gossips_what_others_said,
    noise_as_gossip,
    proves_nothing,
]
