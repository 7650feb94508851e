"""A peer on this machine vouches for a requester on it, as one of several, and for no other one."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
import trio

from p2pinfer.core.ids import PeerId
from p2pinfer.core.ledger import LedgerEntry
from p2pinfer.core.voucher import EPOCH_S, epoch_at
from p2pinfer.node.ledger_db import LedgerDb, Moved, Side
from p2pinfer.node.requester import ClientOptions
from p2pinfer.node.sponsors import Sponsorship, clock_ms
from p2pinfer.node.status_socket import Status, open_status
from p2pinfer.node.vouching import RequesterVouchers, VouchingPeer, speaking_for
from peers.serving.vouchers import TagMemory, TakenVouchers
from tests.node.test_sponsors import describe
from tests.support.swarm import KEYS
from transports.identity import Identity, public_key

PEER, ASKER, OTHER, STAGE, *REST = KEYS
SERVING = [each.peer_id for each in (STAGE, *REST)]
AT = 1000 * EPOCH_S * 7


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))


class Clock:
    """A wall clock that a test turns."""

    now_ms = AT

    def __call__(self) -> int:
        """Return its time."""
        return self.now_ms


def voucherer(
    clock: Callable[[], int], serving: Iterable[PeerId] = SERVING, identity: Identity = PEER
) -> VouchingPeer:
    """Return a peer that vouches."""
    made = VouchingPeer(identity, "main", clock)
    made.begin(lambda: serving)
    return made


async def asked(
    answer: Callable[[Status], Status],
    clock: Clock,
    told: Status | None = None,
    asker: Identity = ASKER,
    stage: Identity = STAGE,
) -> RequesterVouchers:
    """Ask once for a voucher, as a requester in the network named main."""
    made = RequesterVouchers(asker.peer_id, "main", clock)
    async with open_status(lambda: told or describe(), answer):
        await made.voucher(stage.peer_id)
    return made


async def test_it_vouches_as_one_of_those_that_serve() -> None:
    """For that requester, at that stage, which is not in the ring itself."""
    clock = Clock()
    peer = voucherer(clock)
    assert peer.as_one_of == 0
    found = await (await asked(peer.answer, clock)).voucher(STAGE.peer_id)
    assert found
    assert found.holds(ASKER.peer_id, STAGE.peer_id, "main")
    assert set(found.ring) == {public_key(each.peer_id) for each in (PEER, *REST)}
    assert peer.as_one_of == len(found.ring)


async def test_a_voucher_is_kept_until_the_next_epoch() -> None:
    """Then another one is needed, with another tag."""
    clock = Clock()
    peer = voucherer(clock)
    made = await asked(peer.answer, clock)
    first = await made.voucher(STAGE.peer_id)  # no peer answers any more
    clock.now_ms += 1000 * EPOCH_S
    assert await made.voucher(STAGE.peer_id) is None
    async with open_status(describe, peer.answer):
        second = await made.voucher(STAGE.peer_id)
    assert first
    assert second
    assert (first.epoch, second.epoch) == (7, 8)
    assert first.tag != second.tag


async def test_one_requester_has_its_voice_for_an_epoch() -> None:
    """A second one would be refused by stages, and they would know that the two belong together."""
    clock = Clock()
    peer = voucherer(clock)
    assert await (await asked(peer.answer, clock)).voucher(STAGE.peer_id)
    second = await asked(peer.answer, clock, asker=OTHER)
    assert await second.voucher(STAGE.peer_id) is None
    clock.now_ms += 1000 * EPOCH_S
    async with open_status(describe, peer.answer):
        assert await second.voucher(STAGE.peer_id)
    assert peer.as_one_of


@pytest.mark.parametrize(
    ("told", "network", "serving"),
    [
        (describe(state="joining"), "main", SERVING),
        (describe(network="another"), "main", SERVING),
        (describe(), "main", SERVING[1:]),
        (describe(), "main", [STAGE.peer_id]),
        (describe(), "main", [STAGE.peer_id, "no peer"]),
    ],
)
async def test_there_is_none_where_it_would_be_of_no_use(
    told: Status, network: str, serving: list[PeerId]
) -> None:
    """From a peer that does not serve, is in another network, knows no such stage, or is alone."""
    clock = Clock()
    peer = VouchingPeer(PEER, network, clock)
    peer.begin(lambda: serving)
    made = await asked(peer.answer, clock, told)
    assert await made.voucher(STAGE.peer_id) is None


async def test_at_its_own_machine_the_peer_knows_it() -> None:
    """Nothing is signed; that requester is admitted as any that is vouched for."""
    clock = Clock()
    taken = TakenVouchers(PEER.peer_id, "main", clock, SERVING.__contains__, TagMemory())
    peer = VouchingPeer(PEER, "main", clock)
    assert peer.answer({"vouch_for": ASKER.peer_id, "at": PEER.peer_id}) == peer.status() == {}
    peer.begin(lambda: SERVING, taken)
    made = await asked(peer.answer, clock, stage=PEER)
    assert await made.voucher(PEER.peer_id) is None
    assert taken.knows(ASKER.peer_id)
    assert peer.status() == {"vouched": {"for": 1, "as_one_of": 0}}
    assert peer.answer({"vouch_for": OTHER.peer_id, "at": PEER.peer_id}) == {}
    assert not taken.knows(OTHER.peer_id)


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"vouch_for": ASKER.peer_id},
        {"vouch_for": 7, "at": STAGE.peer_id},
        {"vouch_for": "x", "at": STAGE.peer_id},
        {"vouch_for": ASKER.peer_id, "at": "x"},
    ],
)
def test_nothing_is_signed_for_a_question_that_is_none(question: Status) -> None:
    """Nor for text that is no peer's id."""
    assert voucherer(Clock()).answer(question) == {}


@pytest.mark.parametrize("spoilt", [{}, {"keys": "x"}, {"keys": "00"}, {"tag": 7}, {"epoch": 8}])
async def test_a_voucher_that_is_none_is_not_used(spoilt: Status) -> None:
    """Of another release, say."""
    clock = Clock()

    def answer(question: Status) -> Status:
        said = voucherer(clock).answer(question)
        return {"voucher": (said["voucher"] | spoilt) if spoilt else "?"}

    assert await (await asked(answer, clock)).voucher(STAGE.peer_id) is None


async def test_who_is_anonymous_names_no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """And who names one shows no voucher."""
    started = list[object]()
    async with trio.open_nursery() as nursery:
        monkeypatch.setattr(Sponsorship, "run", lambda _: started.append(1))
        how = partial(ClientOptions, None, (), "main")
        anonymous = how(sponsored=True, anonymous=True)
        sponsor, vouch = speaking_for(nursery, ASKER.peer_id, anonymous)
        assert sponsor() is None
        assert not started
        async with open_status(describe, voucherer(clock_ms).answer):
            found = await vouch(STAGE.peer_id)
            assert found
            assert found.epoch == epoch_at(clock_ms())
            for alone in (how(sponsored=False), how(via=1)):
                sponsor, vouch = speaking_for(nursery, ASKER.peer_id, alone)
                assert await vouch(STAGE.peer_id) is None
                assert not started
    assert anonymous.books is how(sponsored=False).books is how(via=1).books is Side.UNNAMED
    assert how().books is Side.USED


def test_what_was_had_unnamed_is_stated_to_nobody(tmp_path: Path) -> None:
    """Its sums would say who asked; but it is in the books, and counts for the one that gave it."""
    books = LedgerDb(tmp_path / "ledger.sqlite3")
    entries = [
        LedgerEntry(STAGE.peer_id, ASKER.peer_id, bytes([n]) * 32, 1, 3, 10, 50_000_000)
        for n in (1, 2)
    ]
    books.keep(Side.UNNAMED, entries[:1])
    books.move([Moved(Side.UNNAMED, STAGE.peer_id, sent_bytes=10**9)])
    assert books.state(PEER.peer_id, PEER.sign) == []
    books.keep(Side.USED, entries[1:])
    (stated,) = books.state(PEER.peer_id, PEER.sign)
    assert (stated.work, stated.sent) == (500, 0)
    assert books.debts(PEER.peer_id).had[STAGE.peer_id] > 1000
    (account,) = books.accounts()
    assert account.used == 40
    report = books.report()
    assert report["had"] - report["had_unnamed"] == 500
    assert report["had_unnamed"] == books.debts(PEER.peer_id).had[STAGE.peer_id] - 500
