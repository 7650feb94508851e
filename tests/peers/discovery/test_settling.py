"""Honest stages die around the end of an answer, and its verdict stays correct."""

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.ids import PeerId
from p2pinfer.core.trust import Trust
from p2pinfer.core.witness import OpenedRows, Witness
from peers.asking.session import Session
from peers.audits.auditor import Auditor
from peers.audits.replay import OpenReplay, by_engine
from peers.receipts.session_evidence import RECOMPUTED_S_MAX, REPLACED_S_MAX, Evidence
from peers.receipts.signer import ReceiptSigner, SessionRecord
from peers.receipts.stage_receipts import StageReceipts
from tests.peers.asking.test_recovery import mended
from tests.support.audits import at_70, cheat
from tests.support.fake_engines import FakeStage
from tests.support.swarm import CHAINS, CONTEXT, KEYS, PROMPT, Swarm, answer

BOUNDS = CHAINS[3]
DECODE_S = 0.5
"""Decode time of a replacement, which must compute three chunks and 19 tokens again."""


async def settle_while(session: Session, after_s: float, harm: Callable[[], object]) -> Evidence:
    """Settle an answer, and do harm ``after_s`` after it; it must be consistent all the same."""
    await answer(session, PROMPT)
    evidence = session.evidence
    assert evidence
    async with trio.open_nursery() as nursery:

        async def strike() -> None:
            await trio.sleep(after_s)
            harm()

        nursery.start_soon(strike)
        await trio.sleep(0.05)
        assert await evidence.settle(len(session.tokens)) is None
    return evidence


@pytest.mark.parametrize("after_s", [0.0, 0.04, 0.05, 0.055, 0.06, 0.065, 0.07])
@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)])
async def test_stage_lost_before_signing_is_replaced(
    lost: tuple[int, ...], after_s: float, autojump_clock: MockClock
) -> None:
    """Lost before, while and after it is asked, over links of 10 ms; the new one is slow."""
    async with mended(BOUNDS, evidence=True) as (made, spares):
        for place, key in zip(lost, KEYS[4:], strict=False):
            engine = await spares.add(BOUNDS[place], BOUNDS[place + 1], key)
            engine.machine.decode_s = DECODE_S
        async with spares.open() as session:
            evidence = await settle_while(
                session, after_s, lambda: [made.leave[place]() for place in lost]
            )
            for stage in evidence.stages:
                assert stage.vouched(139).receipts[139].rows == 139


async def test_replacement_may_die_before_signing_too(autojump_clock: MockClock) -> None:
    """It dies while it computes the rows again; a third stage signs."""
    async with mended(BOUNDS, evidence=True) as (made, spares):
        for key in KEYS[4:6]:
            engine = await spares.add(10, 20, key)
            engine.machine.decode_s = DECODE_S
        async with spares.open() as session, trio.open_nursery() as nursery:

            async def strike_again() -> None:
                await trio.sleep(2 * DECODE_S)
                assert spares.routes[-1][1] == KEYS[4].peer_id
                spares.leave(0)

            def strike() -> None:
                made.leave[1]()
                nursery.start_soon(strike_again)

            evidence = await settle_while(session, 0.0, strike)
            assert evidence.stages[1].hop.peer == KEYS[5].peer_id


async def test_receipts_stand_although_their_stage_is_gone(autojump_clock: MockClock) -> None:
    """It dies after signing, while another's receipt is on its way, and is not replaced."""
    async with mended(BOUNDS, evidence=True) as (made, spares), spares.open() as session:
        far = made.route[2].peer
        await trio.sleep(1.0)
        made.network.latency_s = lambda a, b: 1.0 if far in (a, b) else 0.01
        await answer(session, PROMPT)
        evidence = await settle_while(session, 0.5, made.leave[0])
        assert evidence.stages[0].gone
        assert len(evidence.work(139)) == 3


class Stubborn(Witness):
    """Claims to hold no rows, whatever it has computed."""

    @property
    def length(self) -> int:
        """Always 0."""
        return 0


def deny(signer: ReceiptSigner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a stage claim for ever that it has not computed the rows yet."""
    honest = signer.record

    def record(*args: object) -> SessionRecord:
        found: SessionRecord = honest(*args)  # type: ignore[arg-type]
        found.witness = Stubborn(keep=False)
        return found

    monkeypatch.setattr(signer, "record", record)


async def test_a_stage_that_says_it_has_nothing_is_a_break(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once if it was there from the beginning; after a while if it is a replacement."""
    for liar in (1, 3):
        async with mended(BOUNDS, evidence=True) as (made, spares):
            await spares.add(10, 20, KEYS[4])
            deny(made.signers[liar], monkeypatch)
            async with spares.open() as session:
                await answer(session, PROMPT)
                if liar == 3:
                    made.leave[1]()
                    await trio.sleep(10.0)
                since = trio.current_time()
                assert session.evidence
                found = await session.evidence.settle(len(session.tokens))
                assert found
                assert found.peers == (KEYS[4 if liar == 3 else 2].peer_id,)
                most_s = REPLACED_S_MAX + RECOMPUTED_S_MAX * (liar == 3)
                assert trio.current_time() < since + most_s + 1.0


def find(first: int, end: int, besides: PeerId) -> list[OpenReplay]:
    """Return this machine, which replays any layers."""
    return [by_engine(FakeStage(first, end, context=CONTEXT), end)]


async def examine(made: Swarm, session: Session, monkeypatch: pytest.MonkeyPatch) -> Trust:
    """Audit all stages of an answer; the middle one dies when asked to open its rows."""
    opening, harm = StageReceipts.open, [made.leave[1]]

    async def open_(self: StageReceipts, position: int, count: int) -> OpenedRows:
        if self.hop.peer == KEYS[2].peer_id and harm:
            harm.pop()()
        return await opening(self, position, count)

    monkeypatch.setattr(StageReceipts, "open", open_)
    await answer(session, PROMPT)
    assert session.evidence
    return await Auditor(find, 1.0).examine(session.evidence, len(session.tokens))


async def test_a_stage_that_dies_during_its_audit_raises_no_alarm(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its replacement signs consistently and is audited."""
    async with mended(BOUNDS, evidence=True) as (made, spares):
        await spares.add(10, 20, KEYS[4])
        async with spares.open() as session:
            trust = await examine(made, session, monkeypatch)
            assert trust.held, trust.line()
            peers = [KEYS[number].peer_id for number in (1, 4, 3)]
            assert [audited.peer for audited in trust.audits] == peers


async def test_dying_saves_no_cheat(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage after signed for the rows it sent, and an honest replacement's rows differ."""
    async with mended(BOUNDS, evidence=True) as (made, spares):
        cheat(made.engines[1], at_70, monkeypatch)
        await spares.add(10, 20, KEYS[4])
        async with spares.open() as session:
            trust = await examine(made, session, monkeypatch)
            assert trust.broken
            assert (trust.broken.position, KEYS[4].peer_id in trust.broken.peers) == (96, True)
