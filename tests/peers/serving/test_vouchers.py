"""A stage takes a voucher once for each peer of a ring, and learns nothing else of it."""

from pathlib import Path

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.errors import RemoteProtocolError, UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Hop, Open, Opened, Refusal
from p2pinfer.core.receipts import Terms
from p2pinfer.core.voucher import CLOCKS_APART_S_MAX, EPOCH_S, RingVoucher
from p2pinfer.core.wire import BadMessage, decode
from p2pinfer.node.tags_db import TagsDb
from peers.asking.stage_handle import open_stages
from peers.parts.protocol import in_place
from peers.receipts.session_evidence import Evidence
from peers.serving import vouchers
from peers.serving.accounts import Account, Accounts
from peers.serving.dispatcher import Dispatcher
from peers.serving.door import Door
from peers.serving.stage import Stage
from peers.serving.vouchers import TagBooks, TagMemory, TakenVouchers
from peers.steps.messaging import SESSION, RefusedError, receive, refuse, send
from tests.core.test_voucher import ASKER, MEMBERS, OTHER, STAGE, word
from tests.support.fake_engines import FakeStage
from tests.support.swarm import CONTEXT, MODEL, session_id
from transports.base import Channel
from transports.identity import Identity
from transports.memory.network import MemoryNetwork

EPOCH = 7
NOW_MS = 1000 * (EPOCH_S * EPOCH + EPOCH_S // 2)
SERVING = {each.peer_id for each in MEMBERS}
ME, YOU = ASKER.peer_id, OTHER.peer_id


class Clock:
    """A wall clock that a test turns."""

    now_ms = NOW_MS

    def __call__(self) -> int:
        """Return its time."""
        return self.now_ms


def stage(
    books: TagBooks | None = None, clock: Clock | None = None, serving: set[PeerId] = SERVING
) -> TakenVouchers:
    """Return what a stage knows of vouchers: nothing yet."""
    books = books or TagMemory()
    serves = serving.__contains__
    return TakenVouchers(STAGE.peer_id, "main", clock or Clock(), serves, books, in_place)


async def test_whoever_a_serving_peer_vouches_for_has_credit() -> None:
    """The same requester may show it again, in another session."""
    vouched = stage()
    assert not vouched.knows(ME)
    await vouched.take(word(), ME)
    await vouched.take(word(), ME)
    assert vouched.knows(ME)
    assert not vouched.knows(YOU)
    assert vouched.requesters == 1


async def test_no_peer_vouches_for_two() -> None:
    """Whatever ring it hides in the second time; another one may, and so may all elsewhere."""
    vouched = stage()
    await vouched.take(word(), ME)
    for again in (word(to=YOU), word(to=YOU, size=3)):
        with pytest.raises(RemoteProtocolError, match="another one") as blame:
            await vouched.take(again, YOU)
        assert blame.value.peer == YOU
    assert not vouched.knows(YOU)
    await vouched.take(word(1, to=YOU), YOU)
    assert vouched.knows(YOU)


async def test_not_even_at_a_stage_that_starts_again(tmp_path: Path) -> None:
    """What was shown lies on disk; the first requester still has its credit."""
    books = TagsDb(tmp_path / "folder" / "tags.sqlite3")
    await stage(books).take(word(), ME)
    vouched = stage(books)
    with pytest.raises(RemoteProtocolError, match="another one"):
        await vouched.take(word(to=YOU), YOU)
    await vouched.take(word(), ME)
    assert vouched.knows(ME)


async def test_two_that_come_at_once_are_told_apart() -> None:
    """Both signatures hold; the books say who was first."""
    vouched, refused = stage(), list[PeerId]()

    async def come(by: Identity) -> None:
        try:
            await vouched.take(word(to=by.peer_id), by.peer_id)
        except RemoteProtocolError as error:
            refused.append(error.peer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come, ASKER)
        nursery.start_soon(come, OTHER)
    assert len(refused) == 1
    assert {peer for peer in (ME, YOU) if vouched.knows(peer)} == {ME, YOU} - set(refused)


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_tags_are_kept_for_their_epoch_and_the_next(kept: str, tmp_path: Path) -> None:
    """And no more of them than there is room for."""
    books: TagBooks = TagMemory() if kept == "memory" else TagsDb(tmp_path / "tags.sqlite3")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("peers.serving.vouchers", "p2pinfer.node.tags_db"):
            patch.setattr(f"{module}.TAGS_MAX", 2)
        assert books.first(STAGE.peer_id, 7, b"one", ME) == ME
        assert books.first(STAGE.peer_id, 7, b"two", ME) == ME
        assert books.first(STAGE.peer_id, 7, b"three", ME) is None
        assert books.first(STAGE.peer_id, 7, b"one", YOU) == ME
        assert books.first(YOU, 7, b"one", YOU) == YOU
        assert books.first(STAGE.peer_id, 8, b"one", YOU) == YOU
        assert books.first(STAGE.peer_id, 7, b"one", YOU) == ME
        books.first(STAGE.peer_id, 9, b"one", ME)
        assert books.first(STAGE.peer_id, 7, b"one", YOU) == YOU


def test_a_list_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """With what to do."""
    path = tmp_path / "tags.sqlite3"
    path.write_text("not a database" * 100)
    with pytest.raises(UserError, match="move it away"):
        TagsDb(path).first(STAGE.peer_id, 7, b"one", ME)


async def test_without_a_disk_what_is_remembered_counts(tmp_path: Path) -> None:
    """Serving goes on."""
    (tmp_path / "file").write_text("")
    vouched = stage(TagsDb(tmp_path / "file" / "tags.sqlite3"))
    await vouched.take(word(), ME)
    assert vouched.knows(ME)
    with pytest.raises(RemoteProtocolError, match="another one"):
        await vouched.take(word(to=YOU), YOU)


@pytest.mark.parametrize(
    "forged",
    [
        evolve(word(), tag=word(1).tag),
        evolve(word(), challenge=word(1).challenge),
        evolve(word(), answers=word(1).answers),
        word(to=YOU),
        word(at=YOU),
        word(network="another"),
    ],
)
async def test_a_forged_one_is_its_senders_fault(forged: RingVoucher) -> None:
    """It could have checked it."""
    vouched = stage()
    with pytest.raises(RemoteProtocolError, match="nobody") as blame:
        await vouched.take(forged, ME)
    assert blame.value.peer == ME
    assert vouched.requesters == 0


async def test_a_ring_with_a_peer_that_does_not_serve_says_nothing() -> None:
    """Nor one of another epoch; nobody is blamed, since clocks and views differ."""
    for vouched in (stage(serving=SERVING - {MEMBERS[3].peer_id}), stage(serving=set())):
        await vouched.take(word(), ME)
        assert not vouched.knows(ME)
    for epoch in (5, 6, 8, 1 << 40):
        vouched = stage()
        await vouched.take(word(epoch=epoch), ME)
        assert not vouched.knows(ME)


async def test_credit_ends_with_the_epoch() -> None:
    """And with that the tag means nothing: the same peer may vouch for another one."""
    clock = Clock()
    vouched = stage(clock=clock)
    await vouched.take(word(), ME)
    clock.now_ms = 1000 * (EPOCH_S * (EPOCH + 1) + CLOCKS_APART_S_MAX) - 1
    assert vouched.knows(ME)
    clock.now_ms += 1
    assert not vouched.knows(ME)
    await vouched.take(word(to=YOU, epoch=EPOCH + 1), YOU)
    assert vouched.knows(YOU)
    assert vouched.requesters == 1


async def test_few_are_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes meanwhile has no credit, and may come again."""
    monkeypatch.setattr(vouchers, "CHECKS_MAX", 0)
    vouched = stage()
    await vouched.take(word(), ME)
    assert not vouched.knows(ME)
    monkeypatch.setattr(vouchers, "CHECKS_MAX", 1)
    await vouched.take(word(), ME)
    assert vouched.knows(ME)


def opening(voucher: RingVoucher | None, by: PeerId = ME, number: int = 0) -> Open:
    """Ask for a session in the requester's own name."""
    return Open(session_id(number), MODEL, by, by, 1, 29, CONTEXT, voucher=voucher)


async def test_it_counts_as_much_as_serving() -> None:
    """And no more than that: the stage knows of no one's work for it."""
    accounts = Accounts("main", Clock(), SERVING.__contains__, lambda _: 3, stage())
    assert await accounts.of(opening(word()), ME) == Account(ME, 1)
    assert await accounts.of(opening(None), ME) == Account(ME, 1)  # a session later
    assert await accounts.of(opening(None, YOU), YOU) == Account(YOU, 0)
    with pytest.raises(RemoteProtocolError):
        await accounts.of(opening(word(to=YOU), YOU), YOU)
    without = Accounts("main", Clock(), SERVING.__contains__, lambda _: 3)
    assert await without.of(opening(word()), ME) == Account(ME, 0)


async def test_at_a_full_stage_it_goes_first(autojump_clock: MockClock) -> None:
    """Before one that came earlier; a second requester of the same peer is refused."""
    network, order = MemoryNetwork(), list[str]()
    accounts = Accounts("main", Clock(), SERVING.__contains__, lambda _: 0, stage())
    async with network.join(STAGE.peer_id) as node, trio.open_nursery() as nursery:
        stages = Dispatcher(node, accounts.of)
        stages.add(Stage(node, FakeStage(1, 29, sessions=1, context=CONTEXT), MODEL), Door(1, 256))
        stages.listen()

        async def ask(
            name: str, key: Identity, voucher: RingVoucher | None, number: int
        ) -> Channel:
            async with network.join(key.peer_id) as asker:
                channel: Channel = await asker.open(node.peer_id, SESSION)
                await send(channel, opening(voucher, key.peer_id, number))
                await receive(channel, Opened)
                order.append(name)
                await trio.sleep(0.5)
                return channel

        nursery.start_soon(ask, "holder", Identity(b"h" * 32), None, 0)
        await trio.sleep(0.1)
        nursery.start_soon(ask, "stranger", Identity(b"s" * 32), None, 1)
        await trio.sleep(0.1)
        nursery.start_soon(ask, "vouched for", ASKER, word(), 2)
        await trio.sleep(0.1)
        with pytest.raises(RefusedError) as refusal:
            await ask("second", OTHER, word(to=YOU), 3)
        assert refusal.value.refused.code is Refusal.BAD_REQUEST
        await trio.sleep(2.0)
        assert order[:2] == ["holder", "vouched for"]


async def test_a_stage_of_before_is_asked_again_without(autojump_clock: MockClock) -> None:
    """It takes the longer message for none, and so does one where the peer has vouched before."""
    network, seen = MemoryNetwork(), list[Open | None]()

    async def old(channel: Channel) -> None:
        opened = decode(await channel.receive(), Open)
        seen.append(opened)
        try:
            if opened.voucher:
                raise BadMessage("Open has 13 fields")
        except BadMessage as error:
            await refuse(channel, RefusedError.of(STAGE.peer_id, Refusal.BAD_REQUEST, str(error)))
            return
        await send(channel, Opened())
        await trio.sleep_forever()

    async def vouch(at: PeerId) -> RingVoucher:
        assert at == STAGE.peer_id
        return word()

    evidence = Evidence(
        opening(None), Terms(session_id(0), MODEL, ME, opening(None).dtype, bytes(32)), b"",
        lambda _: pytest.fail("nothing is followed here"), vouch,
    )  # fmt: skip
    async with network.join(STAGE.peer_id) as node, network.join(ME) as asker:
        node.handle(SESSION, old)
        hop = Hop(STAGE.peer_id, (), 1, 29)
        (found,) = await open_stages(asker, opening(None), [hop], ME, 5.0, evidence)
        found.lose(RemoteProtocolError(STAGE.peer_id, "over"))
    assert [each.voucher for each in seen if each] == [word(), None]
