"""When a peer looks for relays."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import trio
from trio.testing import MockClock

from p2pinfer.core.errors import PeerUnavailable
from p2pinfer.core.ids import PeerId
from transports.libp2p.circuit_messages import CircuitStatus, RelayAnswer
from transports.libp2p.held_relays import LOOK_S, PROVE_S, RENEW_S_MAX, HeldRelays


class Fakes:
    """Relays that all give reservations; those in ``crooked`` bring no callers."""

    def __init__(self, *names: str) -> None:
        self.crooked: set[str] = set()
        self.proofs: list[tuple[str, float]] = []
        self.watch = SimpleNamespace(is_blamed=lambda _: False)
        self.relays = HeldRelays(
            cast("Any", self),
            self.reach,
            connected=lambda: (),
            is_needed=lambda: True,
            unix_s=trio.current_time,
            me=PeerId("me"),
            candidates=lambda: [(PeerId(name), ()) for name in names],
        )

    async def reach(self, peer: PeerId, _: Sequence[str]) -> object:
        """Connect."""
        return SimpleNamespace(
            peer_id=peer,
            is_closed=False,
            is_initiator=True,
            rtt_s=0.1,
            call_at_end=lambda _: None,
            get_remote_address=lambda: ("5.5.5.5", 4001),
        )

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
