"""Peers with directories in one process."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from p2pinfer.core.advertisement import Advertisement, Heard
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.wire import encode
from peers.discovery.directory import Directory
from transports.base import Channel
from transports.identity import Identity
from transports.memory.network import MemoryNetwork, MemoryTransport

MODEL, OTHER = ModelId("ab" * 32), ModelId("cd" * 32)


def identity(number: int) -> Identity:
    """Make the same key for the same number."""
    return Identity(number.to_bytes(32, "big"))


def advertisement(
    of: Identity,
    model: ModelId = MODEL,
    sequence: int = 1,
    layers: tuple[int, int] = (1, 10),
    period_ms: int = 10_000,
) -> Advertisement:
    """Return an advertisement of a peer that serves a range."""
    return Advertisement(
        of.peer_id,
        (f"/memory/0/p2p/{of.peer_id}",),
        model,
        model[:2],
        30,
        *layers,
        4096,
        "0" * 32,
        sequence,
        period_ms=period_ms,
    )


def signed(said: Advertisement, by: Identity, age_ms: int = 0) -> Heard:
    """Sign an advertisement with its author's key, or another."""
    body = encode(said)
    return Heard(body, by.sign(body), age_ms)


class Peer:
    """A numbered peer with a directory."""

    def __init__(self, number: int, transport: MemoryTransport, room: int = 4096) -> None:
        self.identity, self.transport = identity(number), transport
        self.id = transport.peer_id
        self.directory = Directory(
            transport,
            self.identity,
            random.Random(number),
            room=room,
            clock_ms=lambda: round(1000 * trio.current_time()),
        )
        self.directory.listen()

    def advertise(self, model: ModelId = MODEL, layers: tuple[int, int] = (1, 10)) -> None:
        """Advertise a range."""
        self.directory.advertise(advertisement(self.identity, model, layers=layers))

    def sees(self, model: ModelId = MODEL) -> set[PeerId]:
        """Return the peers known to serve a model."""
        return {found.peer for found in self.directory.serving(model)}


def fill(peer: Peer, numbers: range) -> None:
    """Let a peer know others, one for each number."""
    peer.directory.follow(MODEL)
    for number in numbers:
        heard = signed(advertisement(identity(number)), identity(number))
        peer.directory.view.take(heard, trio.current_time())


@asynccontextmanager
async def directories(
    count: int, room: int = 4096
) -> AsyncIterator[tuple[MemoryNetwork, list[Peer]]]:
    """Run peers whose directories answer, but do nothing by themselves."""
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        made = []
        for number in range(count):
            joined = network.join(identity(number).peer_id)
            made.append(Peer(number, await stack.enter_async_context(joined), room))
        yield network, made


@asynccontextmanager
async def running(peers: Sequence[Peer]) -> AsyncIterator[dict[PeerId, trio.CancelScope]]:
    """Run peers' directories, each knowing the peer before it; yield scopes that stop them."""
    scopes: dict[PeerId, trio.CancelScope] = {}
    async with trio.open_nursery() as nursery:
        for peer, before in zip(peers, [peers[0], *peers], strict=False):
            scopes[peer.id] = trio.CancelScope()
            ways_in = [] if before is peer else before.transport.addresses
            nursery.start_soon(_run_in, scopes[peer.id], peer, ways_in)
        yield scopes
        nursery.cancel_scope.cancel()


async def _run_in(scope: trio.CancelScope, peer: Peer, ways_in: Sequence[str]) -> None:
    with scope:
        await peer.directory.run(ways_in)


async def silence(_: Channel) -> None:
    """Never answer."""
    await trio.sleep_forever()
