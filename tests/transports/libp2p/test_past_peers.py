"""Peers that come and go leave nothing behind beyond what is bounded.

Objects are counted, not bytes: ids that something still holds.
"""

import gc
from collections.abc import Callable

import pytest
import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from p2pinfer.core.ids import PeerId
from tests.transports.libp2p.test_circuits import hide, three
from tests.transports.libp2p.test_walls import HERE, peer
from transports.identity import ephemeral_identity
from transports.libp2p import past_peers, relay_limits
from transports.libp2p.transport import Libp2pTransport, open_libp2p

GONE = 4

LOOK_S = 0.5
"""Between two looks at all objects, which take a while."""


def ids_held() -> set[str]:
    """Return the peers whose ids anything in this process holds."""
    gc.collect()
    return {str(each) for each in gc.get_objects() if type(each) is ID}


async def wait_for(is_true: Callable[[], object], look_s: float = 0.05) -> None:
    """Wait for what is no event."""
    while not is_true():  # noqa: ASYNC110 -- a connection that ends sets none
        await trio.sleep(look_s)


def knows(one: Libp2pTransport, other: PeerId) -> bool:
    """Whether a peer has heard what another speaks."""
    store = one._host.get_peerstore()
    found = ID.from_string(other)
    return store.has_peer(found) and bool(store.get_protocols(found))


async def test_strangers_that_left_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libp2p notes for ever that each has left."""
    monkeypatch.setattr(past_peers, "PEERS_REMEMBERED_MAX", 2)
    async with peer() as victim:
        gone = set()
        for _ in range(GONE):
            async with open_libp2p(None, HERE, "test") as stranger:
                await stranger.open(victim.peer_id, "echo", victim.addresses)
                await wait_for(lambda: knows(victim, stranger.peer_id))
                gone.add(stranger.peer_id)
        await wait_for(lambda: len(ids_held() & gone) <= 1, LOOK_S)


async def test_callers_that_left_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither their relay nor the peer that they called counts callers for ever."""
    monkeypatch.setattr(past_peers, "PEERS_REMEMBERED_MAX", 1)
    monkeypatch.setattr(relay_limits, "CALLERS_MAX", 1)
    async with three() as (relay, hidden, _):
        address = await hide(hidden, relay)
        gone = set()
        for _ in range(GONE):
            async with open_libp2p(None, [], "test") as caller:
                await caller.open(hidden.peer_id, "echo", [address])
                gone.add(caller.peer_id)
        await wait_for(lambda: len(ids_held() & gone) <= 1, LOOK_S)


async def test_a_peer_does_not_forget_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """In libp2p it does after a thousand others, and nobody learns what it speaks any more."""
    monkeypatch.setattr(past_peers, "PEERS_REMEMBERED_MAX", 3)
    async with peer() as victim:
        store = victim._host.get_peerstore()
        for _ in range(5):
            other = ID.from_string(ephemeral_identity().peer_id)
            store.add_addrs(other, [], 7200)
        store.add_addrs(other, [Multiaddr("/ip4/192.0.2.1/tcp/4001")], 7200)
        async with open_libp2p(None, [], "test") as newcomer:
            await newcomer.open(victim.peer_id, "echo", victim.addresses)
            await wait_for(lambda: knows(newcomer, victim.peer_id))
        assert len(store.peer_ids()) <= 4
