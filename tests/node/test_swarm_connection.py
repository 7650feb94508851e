"""Joining a swarm."""

import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pinfer.core.errors import NobodyServes, lone_errors
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.node.known_peers import KnownPeers
from p2pinfer.node.swarm_connection import AGAIN_S_MAX, LAN_S_MAX, RESOLVE_S, SwarmConnection
from peers.discovery.directory import FIND_S, Directory
from tests.support.directories import MODEL, OTHER, Peer, identity
from transports import dnsaddr
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
        with pytest.raises(NobodyServes, match=r"local network: take an inv.*--bootstrap"):
            await swarm.enter(None)
        assert trio.current_time() - started >= LAN_S_MAX


@asynccontextmanager
async def restarted(
    network: MemoryNetwork, path: Path, *former: str
) -> AsyncIterator[SwarmConnection]:
    """Connect without an address, where peers answered before."""
    known = KnownPeers("main", path)
    known.put({PeerId(at.rpartition("/")[2]): ((at,), 1.0) for at in former}, time.time())
    async with connection(network, ()) as swarm:
        yield replace(swarm, known=known, is_on_lan=False)


async def test_a_swarm_is_found_again_without_an_address(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """One of a former run is enough; who is gone meanwhile is called no more."""
    path = tmp_path / "peers.json"
    async with serving(MODEL) as (network, peer):
        (address,) = peer.transport.addresses
        async with restarted(network, path, NOBODY[0], address) as swarm:
            await swarm.enter(MODEL)
            assert [a.peer for a in swarm.directory.serving(MODEL)] == [peer.id]
        assert KnownPeers("main", path).load() == {peer.id: (address,)}


async def test_peers_that_answer_are_remembered(autojump_clock: MockClock, tmp_path: Path) -> None:
    """At the address that a person named, and where they say to be."""
    path = tmp_path / "peers.json"
    async with serving(MODEL) as (network, peer):
        named = f"/memory/7/p2p/{peer.id}"
        async with connection(network, (named,)) as swarm:
            await replace(swarm, known=KnownPeers("main", path)).enter(MODEL)
            await wait_all_tasks_blocked()
        (addresses,) = KnownPeers("main", path).load().values()
        assert set(addresses) == {named, *peer.transport.addresses}


async def test_nobody_of_a_former_run_answers(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Then perhaps this machine has no network: all are called the next time, too."""
    path = tmp_path / "peers.json"
    async with serving() as (network, _), restarted(network, path, *NOBODY) as swarm:
        started = trio.current_time()
        with pytest.raises(NobodyServes, match=r"where peers were before: .*--bootstrap"):
            await swarm.enter(None)
        assert trio.current_time() - started <= AGAIN_S_MAX
        assert len(KnownPeers("main", path).load()) == len(NOBODY)


async def test_peers_that_start_later_are_found_all_the_same(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """As after a power cut: who was first goes on looking where the others were."""
    async with serving() as (network, _):
        late = identity(3)
        address = f"/memory/0/p2p/{late.peer_id}"
        async with restarted(network, tmp_path / "peers.json", address) as swarm:
            assert not await swarm.find_anybody()
            swarm.directory.follow(MODEL)
            swarm.stay_in_touch()
            async with network.join(late.peer_id) as transport:
                Peer(3, transport).advertise(MODEL)
                await trio.sleep(2 * FIND_S)
                assert [a.peer for a in swarm.directory.serving(MODEL)] == [late.peer_id]


async def test_addresses_that_do_not_answer_are_not_all_there_is(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """As of an old invitation, or a line that was noted: those that answered before are called."""
    async with serving(MODEL) as (network, peer):
        (address,) = peer.transport.addresses
        async with restarted(network, tmp_path / "peers.json", address) as swarm:
            await replace(swarm, bootstrap=NOBODY).enter(MODEL)
            assert [a.peer for a in swarm.directory.serving(MODEL)] == [peer.id]


async def test_a_name_is_looked_up_again_while_nobody_is_known(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop may start before its Wi-Fi; the swarm's records change, too."""
    name, answers = "/dnsaddr/swarm.example.org", list[Sequence[str]]()

    async def resolve(names: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        await trio.lowlevel.checkpoint()
        assert names == [name]
        return answers.pop(0), []

    monkeypatch.setattr(dnsaddr, "resolve", resolve)
    async with serving(MODEL) as (network, peer), connection(network, ()) as alone:
        swarm = replace(alone, names=[name], faults=[f"{name}: no DNS"], is_on_lan=False)
        with pytest.raises(NobodyServes, match=f"no peer answers: {name}: no DNS"):
            await swarm.enter(MODEL)
        swarm.nursery.start_soon(peer.directory.run, ())
        answers += [(), peer.transport.addresses]
        swarm.stay_in_touch()
        await trio.sleep(2 * RESOLVE_S + 2 * FIND_S)
        assert [a.peer for a in swarm.directory.serving(MODEL)] == [peer.id]
        await trio.sleep(2 * RESOLVE_S)  # somebody is known: nobody is asked, or the pop fails


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
