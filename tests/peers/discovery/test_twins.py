"""Two machines with one key, as after copying a home: the swarm takes them for one peer."""

import trio
from trio.testing import MockClock

from p2pinfer.core.advertisement import Heard
from peers.discovery.advertiser import TWIN_WORDS
from tests.support.directories import MODEL, Peer, advertisement, directories, running, signed

PERIOD_S = 10.0


def word(of: Peer, sequence: int) -> Heard:
    """Return an advertisement, signed with a peer's key, for other layers."""
    return signed(advertisement(of.identity, MODEL, sequence, (20, 29)), of.identity)


def told(peer: Peer) -> list[float]:
    """Return a list that records when a peer's owner is told of a twin."""
    moments: list[float] = []
    peer.directory.advertiser.on_twin = lambda: moments.append(trio.current_time())
    return moments


def said(by: Peer, of: Peer) -> int:
    """Return the sequence number that a peer knows of another."""
    entry = by.directory.view.get(of.id)
    assert entry
    return entry.parsed.advertisement.sequence


async def test_an_owner_is_told_of_a_twin_once(autojump_clock: MockClock) -> None:
    """After the twin's third advertisement, however long it goes on; and there is no race."""
    async with directories(2) as (_, made), running(made):
        a, b = made
        moments = told(a)
        for peer in made:
            peer.advertise()
        await trio.sleep(3 * PERIOD_S)
        for number in range(20):
            newer = said(b, a) + 1000
            for peer in made:
                peer.directory.view.take(word(a, newer), trio.current_time())
            await trio.sleep(0.2)
            is_told = number >= TWIN_WORDS - 1
            assert len(moments) == is_told
            assert said(b, a) > newer or is_told  # before, it is taken for an earlier run's
            await trio.sleep(1.5 * PERIOD_S)
            assert said(b, a) > newer


async def test_twins_do_not_race(autojump_clock: MockClock) -> None:
    """Once the twin is known, answers to its advertisements wait for the next renewal."""
    async with directories(2) as (_, made), running(made):
        a, b = made
        for peer in made:
            peer.advertise()
        await trio.sleep(3 * PERIOD_S)
        at_once = 0
        for _ in range(20):
            newer = said(b, a) + 1000
            for peer in made:
                peer.directory.view.take(word(a, newer), trio.current_time())
            await trio.sleep(0.2)
            at_once += said(b, a) > newer
            await trio.sleep(2 * PERIOD_S)
        assert at_once <= TWIN_WORDS + 2  # a renewal may happen to be due then


async def test_an_earlier_run_is_not_a_twin(autojump_clock: MockClock) -> None:
    """Many neighbours may repeat its last advertisement, and perhaps the one before."""
    async with directories(3) as (_, made), running(made):
        a, b, _ = made
        moments = told(a)
        for peer in made:
            peer.advertise()
        await trio.sleep(3 * PERIOD_S)
        for sequence in ((1 << 40) - 1, 1 << 40):
            for _ in range(5):
                a.directory.view.take(word(a, sequence), trio.current_time())
        await trio.sleep(3 * PERIOD_S)
        a.directory.view.take(word(a, 1 << 40), trio.current_time())
        await trio.sleep(3 * PERIOD_S)
        assert moments == []
        assert said(b, a) > 1 << 40
