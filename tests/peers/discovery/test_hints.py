"""Hints from strangers about where peers may be."""

import pytest
import trio
from trio.testing import MockClock

from tests.support.directories import directories


async def test_a_hint_that_cannot_be_dialled_is_passed_over(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hint from a stranger that is not an address is no user error, and others are tried."""
    async with directories(2) as (_, (a, b)):
        b.advertise()

        async def discover(_: str | None) -> list[str]:
            await trio.lowlevel.checkpoint()
            return ["/ip4/192.0.2.1/udp/1/p2p/nobody", *b.transport.addresses]

        monkeypatch.setattr(a.transport, "discover", discover)
        assert await a.directory.find_anybody(1)
        assert a.sees() == {b.id}
