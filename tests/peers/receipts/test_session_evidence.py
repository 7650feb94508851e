"""Evidence of a session: consistent receipts from every stage, whatever the session does."""

import sys
from contextlib import aclosing

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.certificate import parse
from p2pinfer.core.evidence import Follow, Settle, Settled
from p2pinfer.core.merkle import Tree
from p2pinfer.core.messages import Denied, Refusal, Step
from p2pinfer.core.regimes import Regime
from p2pinfer.core.trust import Trust
from peers.asking.session import Session
from peers.receipts.session_evidence import Evidence
from peers.receipts.signer import EVIDENCE, SessionRecord
from peers.steps.messaging import RefusedError, receive, send
from tests.support.fake_engines import ROW_BYTES
from tests.support.swarm import CHAINS, GREEDY, KEYS, PROMPT, answer, expected, session_id, swarm


def evidence_of(session: Session) -> Evidence:
    """Return a session's evidence, which is gathered in all these tests."""
    assert session.evidence
    return session.evidence


@pytest.mark.parametrize("stages", CHAINS)
async def test_an_honest_chain_is_consistent(stages: int, autojump_clock: MockClock) -> None:
    """From the requester's rows to the rows that it got back, at every checkpoint."""
    async with swarm(CHAINS[stages], evidence=True) as made, made.open() as session:
        evidence = evidence_of(session)
        await answer(session, PROMPT)
        assert await evidence.settle(len(session.tokens)) is None
        for stage in evidence.stages:
            vouched = stage.vouched(len(session.tokens))
            assert list(vouched.receipts) == [32, 64, 96, 128, 139]
            assert vouched.receipts[139].rows == 139


async def test_receipts_are_consistent_after_going_back(autojump_clock: MockClock) -> None:
    """A regenerated answer, another prompt and a short one leave nothing stale behind."""
    async with swarm(evidence=True) as made, made.open() as session:
        evidence = evidence_of(session)
        for prompt, count in ((PROMPT, 20), (PROMPT[:40], 30), (PROMPT[:70], 1), (PROMPT, 60)):
            await answer(session, prompt, count)
            assert await evidence.settle(len(session.tokens)) is None


async def test_an_abandoned_step_does_no_harm(autojump_clock: MockClock) -> None:
    """Stopping an answer early leaves a step under way, which is in no receipt."""
    async with swarm(evidence=True) as made, made.open() as session:
        async with aclosing(session.generate(PROMPT[:60], GREEDY, 30)) as tokens:
            async for _ in tokens:
                if len(session.tokens) == 63:
                    break
        assert await evidence_of(session).settle(len(session.tokens)) is None
        await answer(session, PROMPT[:62])
        assert await evidence_of(session).settle(len(session.tokens)) is None


async def test_rows_that_never_come_back_are_not_kept(autojump_clock: MockClock) -> None:
    """A stage passes over rows that were overwritten before it could send them on."""
    async with swarm(evidence=True) as made, made.open() as session:
        evidence, row = evidence_of(session), bytes(ROW_BYTES)
        kept = sys.getrefcount(row)
        for number in range(1, 10):
            evidence.goes_in(number, 1, row)
        evidence.comes_out(Step(9, 0, 1, Regime.NARROW, bytes(ROW_BYTES)), is_awaited=False)
        assert sys.getrefcount(row) == kept


async def test_a_stage_without_evidence_is_named(autojump_clock: MockClock) -> None:
    """It serves, and the answer comes, but nothing proves what it did."""
    async with swarm(evidence=True, silent=1) as made, made.open() as session:
        told = await answer(session, PROMPT)
        assert told == await expected(PROMPT, 20, CHAINS[3])
        found = await evidence_of(session).settle(len(session.tokens))
        assert found
        assert found.peers == (made.route[1].peer,)


async def test_a_session_that_ended_cannot_be_settled(autojump_clock: MockClock) -> None:
    """When one stage leaves, all others' records end: that is a break, not an exception."""
    async with swarm(evidence=True) as made, made.open() as session:
        await answer(session, PROMPT)
        made.leave[2]()
        assert await evidence_of(session).settle(len(session.tokens))


@pytest.mark.parametrize("liar", range(3))
async def test_a_receipt_for_other_rows_is_a_break(
    liar: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commitment to rows that were not sent contradicts the receiver of the true ones."""
    add = SessionRecord.add

    def add_falsely(record: SessionRecord, step: Step, sent: bytes) -> None:
        if (record.seat.first, step.position) == (CHAINS[3][liar], 64):
            sent = bytes(len(sent))
        add(record, step, sent)

    monkeypatch.setattr(SessionRecord, "add", add_falsely)
    async with swarm(evidence=True) as made, made.open() as session:
        await answer(session, PROMPT)
        found = await evidence_of(session).settle(len(session.tokens))
        assert found
        assert made.route[liar].peer in found.peers
        assert found.position == 96  # of the rows from 64 on
        assert (len(found.peers) == 1) == (liar == 2)


async def test_a_receipt_that_another_signed_does_not_count(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signature by another key is its sender's fault."""
    async with swarm(evidence=True) as made, made.open() as session:
        for signer in made.signers[:1]:
            monkeypatch.setattr(signer, "_sign", KEYS[6].sign)
        async with made.open(1) as forged:
            await answer(forged, PROMPT)
            found = await evidence_of(forged).settle(len(forged.tokens))
            assert found
            assert (found.peers, "not signed" in found.text) == ((made.route[0].peer,), True)
        await answer(session, PROMPT)
        assert await evidence_of(session).settle(len(session.tokens)) is None


async def test_rows_are_opened_as_they_were_committed(autojump_clock: MockClock) -> None:
    """The rows a stage opens give the root that it signed, and its successor's."""
    async with swarm(evidence=True) as made, made.open() as session:
        evidence = evidence_of(session)
        await answer(session, PROMPT)
        assert await evidence.settle(139) is None
        for index, stage in enumerate(evidence.stages):
            receipt = stage.vouched(139).receipts[139]
            for rows, root in (
                (evidence.inputs, receipt.received),
                (evidence.outputs, receipt.sent),
            ):
                tree = Tree()
                for position in range(0, 139, 48):
                    opened = await rows(index, position, min(48, 139 - position))
                    for at, regime in enumerate(opened.regimes):
                        tree.append(opened.rows[at * ROW_BYTES :][:ROW_BYTES], regime=regime)
                assert tree.root(139) == root


async def test_a_stage_replaced_after_it_signed_is_in_the_certificate(
    autojump_clock: MockClock,
) -> None:
    """Not its replacement, which computed nothing of this answer."""
    async with swarm(evidence=True) as made, made.open() as session:
        evidence = evidence_of(session)
        await answer(session, PROMPT)
        assert await evidence.settle(139) is None
        evidence.follow([evolve(made.route[0], peer=KEYS[7].peer_id), *made.route[1:]])
        trust = Trust(3, 139, 0.0)
        data = evidence.certify(session.tokens, "", trust, KEYS[0].sign)
        found, _, _ = parse(data)
        assert [stage.peer for stage in found.stages] == [hop.peer for hop in made.route]


async def test_rows_not_computed_are_not_opened(autojump_clock: MockClock) -> None:
    """Nor settled: the question is refused, and the session continues."""
    async with swarm(evidence=True) as made, made.open() as session:
        await answer(session, PROMPT)
        stage = evidence_of(session).stages[0]
        with pytest.raises(RefusedError):
            await stage.open(130, 10)
        assert await evidence_of(session).settle(139) is None


async def test_only_the_requester_may_ask(autojump_clock: MockClock) -> None:
    """A session's rows concern only its requester."""
    async with swarm(evidence=True) as made, made.open() as session:
        await answer(session, PROMPT)
        async with made.network.join(KEYS[7].peer_id) as stranger:
            channel = await stranger.open(made.route[0].peer, EVIDENCE)
            await send(channel, Follow(session_id()))
            assert await receive(channel, Denied) == Denied(0, Refusal.UNKNOWN_SESSION)


async def test_a_requester_may_follow_its_session_anew(autojump_clock: MockClock) -> None:
    """Where a relay is gone it may notice before the stage, which serves it on one channel."""
    async with swarm(evidence=True) as made, made.open() as session:
        await answer(session, PROMPT)
        for _ in range(2):
            channel = await made.me.open(made.route[0].peer, EVIDENCE)
            await send(channel, Follow(session_id()))
            await send(channel, Settle(1, 139))
            assert (await receive(channel, Settled)).number == 1
        assert evidence_of(session).stages[0].gone


async def test_both_sides_count_the_same_work(autojump_clock: MockClock) -> None:
    """Including dropped rows; each stage reports once the session is over."""
    async with swarm(evidence=True) as made:
        async with made.open() as session:
            evidence = evidence_of(session)
            await answer(session, PROMPT)
            await answer(session, PROMPT[:60], 5)
            assert await evidence.settle(len(session.tokens)) is None
            used = evidence.work(len(session.tokens))
            assert not made.served
        await trio.sleep(1.0)
        assert sorted(made.served, key=lambda entry: entry.first) == used
        assert [entry.rows for entry in used] == [evidence.rows] * 3
        assert {entry.user for entry in used} == {made.me.peer_id}
