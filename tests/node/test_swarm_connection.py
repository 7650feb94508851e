"""Joining a swarm."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.errors import NobodyServes, lone_errors
from p2pinfer.core.ids import ModelId
from p2pinfer.node.swarm_connection import LAN_S_MAX, SwarmConnection
from peers.discovery.directory import Directory
from tests.support.directories import MODEL, OTHER, Peer, identity
from transports.blocklist import GuardedTransport
from transports.memory.network import MemoryNetwork

NOBODY = (f"/memory/0/p2p/{identity(9).peer_id}", f"/memory/0/p2p/{identity(8).peer_id}")


@asynccontextmanager
async def connection(
    network: MemoryNetwork, bootstrap: Sequence[str]
) -> AsyncIterator[SwarmConnection]:
    """Connect to a swarm in memory."""
    me = identity(7)
    with lone_errors():
        async with network.join(me.peer_id) as inner, trio.open_nursery() as nursery:
            transport, chance = GuardedTransport(inner), random.Random(1)
            directory = Directory(transport, me, chance)
            yield SwarmConnection(me, transport, directory, bootstrap, chance, nursery)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving(*models: ModelId) -> AsyncIterator[tuple[MemoryNetwork, Peer]]:
    """Run a peer that advertises models."""
    network = MemoryNetwork()
    async with network.join(identity(1).peer_id) as transport:
        peer = Peer(1, transport)
        for model in models:
            peer.advertise(model)
        yield network, peer


async def test_one_answering_bootstrap_peer_is_enough(autojump_clock: MockClock) -> None:
    """Then the model and the peers that serve it are known."""
    async with (
        serving(MODEL) as (network, peer),
        connection(network, (NOBODY[0], *peer.transport.addresses)) as swarm,
    ):
        await swarm.enter(MODEL)
        assert [a.peer for a in swarm.directory.serving(MODEL)] == [peer.id]


async def test_no_answer_is_an_error(autojump_clock: MockClock) -> None:
    """It says why, for each of the addresses."""
    async with serving() as (network, _), connection(network, NOBODY) as swarm:
        with pytest.raises(NobodyServes, match=r"no peer answers: .*; ") as caught:
            await swarm.enter(MODEL)
        assert str(identity(8).peer_id) in str(caught.value)


async def test_no_peer_on_the_local_network_is_an_error(autojump_clock: MockClock) -> None:
    """After a search of some seconds."""
    async with serving() as (network, _), connection(network, ()) as swarm:
        started = trio.current_time()
        with pytest.raises(NobodyServes, match="--bootstrap"):
            await swarm.enter(None)
        assert trio.current_time() - started >= LAN_S_MAX


async def test_the_model_that_the_swarm_serves_is_picked(autojump_clock: MockClock) -> None:
    """And followed, so that the peers that serve it are known."""

    async def default() -> ModelId:
        raise AssertionError("the default is not needed")

    async with (
        serving(OTHER) as (network, peer),
        connection(network, peer.transport.addresses) as swarm,
    ):
        await swarm.enter(None)
        assert await swarm.pick_model(default) == OTHER
        assert [a.peer for a in swarm.directory.serving(OTHER)] == [peer.id]
