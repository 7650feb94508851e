"""Two machines with one key, as where a home was copied: the swarm takes them for one peer."""

import trio
from trio.testing import MockClock

from p2pinfer.core.advertisement import Heard
from peers.discovery.advertiser import TWIN_WORDS
from tests.support.directories import MODEL, Peer, advertisement, directories, running, signed

PERIOD_S = 10.0


def word(of: Peer, sequence: int) -> Heard:
    """Return what a machine says that has a peer's key, of other layers."""
    return signed(advertisement(of.identity, MODEL, sequence, (20, 29)), of.identity)


def told(peer: Peer) -> list[float]:
    """Return when a peer's owner hears of a twin."""
    moments: list[float] = []
    peer.directory.advertiser.on_twin = lambda: moments.append(trio.current_time())
    return moments


def said(by: Peer, of: Peer) -> int:
    """Return the number of the newest word that a peer has heard of another."""
    entry = by.directory.view.get(of.id)
    assert entry
    return entry.parsed.advertisement.sequence


async def test_an_owner_hears_of_a_twin_once(autojump_clock: MockClock) -> None:
    """After its third word, however long it goes on; and there is no race of words."""
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
            assert said(b, a) > newer or is_told  # before, it is taken for a former run's word
            await trio.sleep(1.5 * PERIOD_S)
            assert said(b, a) > newer


async def test_twins_do_not_race(autojump_clock: MockClock) -> None:
    """Once it is known, each word of the other waits for the next renewal."""
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
        assert at_once <= TWIN_WORDS + 2  # by chance a renewal is due in that moment


async def test_a_former_run_is_no_twin(autojump_clock: MockClock) -> None:
    """Its last word comes from many neighbours, and perhaps the one before."""
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
