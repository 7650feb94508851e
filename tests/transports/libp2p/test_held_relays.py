"""When a peer looks for relays."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import trio
from trio.testing import MockClock

from p2pinfer.core.errors import PeerUnavailable
from p2pinfer.core.ids import PeerId
from transports.libp2p.circuit_messages import CircuitStatus, RelayAnswer
from transports.libp2p.held_relays import (
    BETTER_FOR_S,
    LOOK_S,
    PROVE_S,
    RELAYS_MAX,
    RENEW_S_MAX,
    SETTLED_LOOK_S,
    HeldRelays,
)
from transports.libp2p.relay_limits import LOOKED_AT_MAX, exchanges


class Fakes:
    """Relays that all give reservations; those in ``crooked`` bring no callers."""

    def __init__(self, *names: str) -> None:
        self.crooked: set[str] = set()
        self.away_s: dict[str, float] = {}
        """Round trips; 0.1 s where there is none."""
        self.met: dict[str, Any] = {}
        self.proofs: list[tuple[str, float]] = []
        self.watch = SimpleNamespace(is_blamed=lambda _: False)
        self.relays = HeldRelays(
            cast("Any", self),
            self.reach,
            connected=self.met.values,
            is_needed=lambda: True,
            unix_s=trio.current_time,
            me=PeerId("me"),
            candidates=lambda: [(PeerId(name), ()) for name in names],
        )

    async def reach(self, peer: PeerId, _: Sequence[str]) -> object:
        """Connect."""
        if peer not in self.met:
            self.met[peer] = SimpleNamespace(
                peer_id=peer,
                is_closed=False,
                is_initiator=True,
                rtt_s=self.away_s.get(peer, 0.1),
                call_at_end=lambda _: None,
                get_remote_address=lambda: ("5.5.5.5", 4001),
            )
        return self.met[peer]

    async def reserve(self, _: object) -> RelayAnswer:
        """Give a reservation."""
        return RelayAnswer(CircuitStatus.OK, int(trio.current_time()) + 10**9)

    async def prove(self, connection: Any) -> None:
        """Bring a call, or not."""
        self.proofs.append((connection.peer_id, trio.current_time()))
        if connection.peer_id in self.crooked:
            raise PeerUnavailable(connection.peer_id, "it passes nothing on")


async def test_a_relay_that_brings_no_callers_is_left(autojump_clock: MockClock) -> None:
    """Once it is seen; and one that is the only one is kept."""
    fakes = Fakes("a", "b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fakes.relays.run)
        await trio.sleep(1)
        assert {peer for peer, _ in fakes.proofs} == {"a", "b"}
        fakes.crooked = {"a"}
        await trio.sleep(PROVE_S + 1)
        assert list(fakes.relays.held) == ["b"]
        fakes.crooked = {"b"}
        await trio.sleep(PROVE_S + 1)
        assert list(fakes.relays.held) == ["b"]
        nursery.cancel_scope.cancel()


async def test_doubts_are_followed_up_now_and_then(autojump_clock: MockClock) -> None:
    """Callers may raise as many as they like: each look costs a circuit of this peer's share."""
    fakes = Fakes("a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fakes.relays.run)
        for _ in range(100):
            await trio.sleep(1)
            fakes.watch.on_doubt(PeerId("a"))
        nursery.cancel_scope.cancel()
    assert len(fakes.proofs) == 2


async def test_a_reservation_is_renewed_however_long_it_is_said_to_last(
    autojump_clock: MockClock,
) -> None:
    """A relay that promises thirty years forgets all the same."""
    fakes = Fakes("a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fakes.relays.run)
        await trio.sleep(1)
        (held,) = fakes.relays.held.values()
        assert held.renew_at <= trio.current_time() + RENEW_S_MAX
        nursery.cancel_scope.cancel()


async def test_relays_are_sought_as_soon_as_they_are_needed(autojump_clock: MockClock) -> None:
    """Whether others can dial a peer is often known only seconds after it starts."""
    asked: list[float] = []

    async def reach(peer: PeerId, _: Sequence[str]) -> object:
        asked.append(trio.current_time() - started)
        raise PeerUnavailable(peer, "it is not there")

    circuits: Any = SimpleNamespace(watch=SimpleNamespace(is_blamed=lambda _: False))
    started, needed_after_s = trio.current_time(), 3.5
    relays = HeldRelays(
        circuits,
        reach,
        connected=lambda: (),
        is_needed=lambda: trio.current_time() - started >= needed_after_s,
        unix_s=lambda: 0.0,
        me=PeerId("me"),
        candidates=lambda: [(PeerId("relay"), ())],
    )
    with trio.move_on_after(needed_after_s + 2 * LOOK_S):
        await relays.run()
    (at,) = asked
    assert needed_after_s <= at <= needed_after_s + LOOK_S


def test_which_relays_are_exchanged() -> None:
    """The farthest for the nearest, as long as that is clearly nearer."""
    held = {"a": 0.1, "b": 0.03, "c": 0.2}
    assert exchanges(held, {}) == []
    assert exchanges(held, {"d": 0.15, "e": 0.19}) == []
    assert exchanges(held, {"d": 0.01, "e": 0.02, "f": 0.005}) == [("c", "f"), ("a", "d")]
    assert exchanges(held, {"d": 0.01, "e": 0.09}) == [("c", "d")]
    assert exchanges({"a": 0.02}, {"d": 0.001}) == []  # too little to gain


async def test_the_first_relays_are_exchanged_for_near_ones(autojump_clock: MockClock) -> None:
    """They were taken before any distance was known; a look around costs a few connections."""
    names = [f"r{number:02}" for number in range(3 * LOOKED_AT_MAX)]
    fakes = Fakes(*names)
    near = names[5], names[9], names[LOOKED_AT_MAX]
    fakes.away_s = dict.fromkeys(near, 0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fakes.relays.run)
        await trio.sleep(LOOK_S / 2)
        assert set(fakes.relays.held) == set(names[:RELAYS_MAX])  # it can be called at once
        await trio.sleep(10 * LOOK_S)
        assert set(fakes.relays.held) == set(near)
        assert len(fakes.met) == RELAYS_MAX + LOOKED_AT_MAX
        later = names[-1]
        fakes.away_s[later] = 0.001
        fakes.met[later] = await fakes.reach(PeerId(later), ())
        for name in near:
            fakes.met[name].rtt_s = 0.08
        await trio.sleep(BETTER_FOR_S - SETTLED_LOOK_S)
        assert later not in fakes.relays.held  # once settled, it takes its time
        await trio.sleep(3 * SETTLED_LOOK_S)
        assert later in fakes.relays.held
        assert len(fakes.relays.held) == RELAYS_MAX
        nursery.cancel_scope.cancel()
