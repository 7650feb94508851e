"""When a peer looks for relays."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import trio
from trio.testing import MockClock

from p2pinfer.core.errors import PeerUnavailable
from p2pinfer.core.ids import PeerId
from transports.libp2p.held_relays import LOOK_S, HeldRelays


async def test_relays_are_sought_as_soon_as_they_are_needed(autojump_clock: MockClock) -> None:
    """Whether others can dial a peer is often known only seconds after it starts."""
    asked: list[float] = []

    async def reach(peer: PeerId, _: Sequence[str]) -> object:
        asked.append(trio.current_time() - started)
        raise PeerUnavailable(peer, "it is not there")

    circuits: Any = SimpleNamespace(is_blamed=lambda _: False)
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
