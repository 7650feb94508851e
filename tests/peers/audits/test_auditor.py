"""Audits: a stage that computed something else is found and named by a replay of its layers."""

import numpy as np
import pytest
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.audit import THIS_MACHINE
from p2pinfer.core.errors import PeerUnavailable
from p2pinfer.core.fraud import parse, to_sign
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Refusal, Step
from p2pinfer.core.receipts import SIGNED_AS, Receipt, Signed
from p2pinfer.core.regimes import Regime
from p2pinfer.core.trust import Audited, AuditVerdict, Trust, choose_audits
from p2pinfer.core.witness import OpenedRows, Seat, Witness
from peers.audits.frauds import judge
from peers.audits.replay import cut
from peers.receipts.signer import SessionRecord
from peers.receipts.stage_receipts import StageReceipts
from peers.steps.messaging import RefusedError
from tests.support.audits import BOUNDS, FIRST, OWN, SECOND, THIRD, at_70, case, cheat
from tests.support.swarm import KEYS
from transports.identity import verify


@pytest.mark.parametrize("by", [OWN, FIRST])
async def test_honest_stages_pass(by: str | PeerId, autojump_clock: MockClock) -> None:
    """Every auditor finds the same bits, prompt and answer in their own regimes."""
    async with case(by) as found:
        trust = await found.examine()
        assert trust.held
        assert [each.verdict for each in trust.audits] == [AuditVerdict.SAME] * 3
        assert trust.audits[1].by == (THIS_MACHINE if by == OWN else by,)


@pytest.mark.parametrize("by", [(OWN,), (FIRST, SECOND), (FIRST, OWN)])
async def test_one_wrong_row_is_found_and_its_stage_named(
    by: tuple[str, ...], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the stage after it nor the auditors are blamed."""
    async with case(*by) as found:
        cheat(found.made.engines[1], at_70, monkeypatch)
        trust = await found.examine()
        assert not trust.held
        cheater = found.made.route[1].peer
        one, two, three = trust.audits
        assert (one.verdict, three.verdict) == (AuditVerdict.SAME, AuditVerdict.SAME)
        assert (two.verdict, two.blamed, two.position) == (AuditVerdict.CHEATED, cheater, 70)
        assert len(two.by) == len(by)


async def test_one_auditor_alone_is_not_believed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One claim against another: the answer is not trusted, and no peer is blamed."""
    async with case(FIRST) as found:
        cheat(found.made.engines[1], at_70, monkeypatch)
        trust = await found.examine()
        audit = trust.audits[1]
        assert (trust.held, audit.verdict, audit.blamed) == (False, AuditVerdict.DISPUTED, None)


@pytest.mark.parametrize(
    ("others", "blamed"), [((SECOND,), None), ((OWN,), FIRST), ((SECOND, OWN), FIRST)]
)
async def test_an_auditor_that_lies_is_named(
    others: tuple[str, ...],
    blamed: PeerId | None,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A third one confirms the stage's result; the auditor's own receipt then proves its lie."""
    async with case(FIRST, *others) as found:
        cheat(found.holders[0], at_70, monkeypatch)
        trust = await found.examine()
        audit = trust.audits[1]
        assert (trust.held, audit.verdict, audit.blamed) == (True, AuditVerdict.SAME, blamed)
        assert audit.by == (FIRST, *(THIS_MACHINE if each == OWN else each for each in others))
        assert [each.accused for each in found.proofs] == [FIRST] * (blamed is not None)
        for proof in found.proofs:
            body = proof.body()
            read = parse(body + KEYS[0].sign(to_sign(body)), verify)
            assert read.receipt.position == 96  # after the one wrong row
            assert await judge(read, [found.find(BOUNDS[1], BOUNDS[2], FIRST)[-1]]) is (
                True if OWN in others else None
            )


async def test_a_stage_and_an_auditor_that_lie_alike_are_outvoted(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two honest ones agree, and no honest peer is blamed."""
    async with case(FIRST, SECOND, OWN) as found:
        cheat(found.made.engines[1], at_70, monkeypatch)
        cheat(found.holders[1], at_70, monkeypatch)
        trust = await found.examine()
        audit = trust.audits[1]
        cheater = found.made.route[1].peer
        assert (trust.held, audit.verdict, audit.blamed) == (False, AuditVerdict.CHEATED, cheater)
        assert [each.accused for each in found.proofs] == [cheater]


async def test_of_two_inconsistent_stages_the_first_is_run_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that signs for other rows than it computes is proven a cheat by its own receipt."""
    add = SessionRecord.add

    def add_falsely(record: SessionRecord, step: Step, sent: bytes) -> None:
        if (record.seat.first, step.position) == (BOUNDS[1], 64):
            sent = bytes(len(sent))
        add(record, step, sent)

    monkeypatch.setattr(SessionRecord, "add", add_falsely)
    async with case(OWN) as found:
        trust = await found.examine()
        assert trust.broken
        cheater, innocent = (hop.peer for hop in found.made.route[1:])
        assert trust.broken.peers == (cheater, innocent)
        assert [(each.peer, each.blamed) for each in trust.audits] == [(cheater, cheater)]
        assert [(each.accused, each.receipt.position) for each in found.proofs] == [(cheater, 96)]


async def test_a_lost_auditor_is_replaced(autojump_clock: MockClock) -> None:
    """If none is left, the verdict says so without accusing the stage."""
    async with case(FIRST, OWN) as found:
        found.made.leave[3]()
        trust = await found.examine()
        assert [each.verdict for each in trust.audits] == [AuditVerdict.SAME] * 3
    async with case(FIRST) as found:
        found.made.leave[3]()
        trust = await found.examine()
        assert (trust.held, trust.audits[1].verdict) == (True, AuditVerdict.NOT_REPLAYED)


async def test_signing_another_root_when_asked_again_is_a_contradiction(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any peer can see it, without holding any layers."""
    due = Witness.due

    def due_falsely(witness: Witness, seat: Seat) -> list[Signed]:
        if seat.first != BOUNDS[1]:
            return due(witness, seat)
        bodies = [
            evolve(Receipt.parse(signed.body), sent=bytes(32)).body()
            for signed in due(witness, seat)
        ]
        return [Signed(body, seat.sign(SIGNED_AS + body)) for body in bodies]

    monkeypatch.setattr(Witness, "due", due_falsely)
    async with case() as found:  # no other peer holds the layers
        trust = await found.examine()
        assert trust.broken
        cheater = found.made.route[1].peer
        assert trust.broken.peers[0] == cheater
        (proof,) = found.proofs
        assert (proof.accused, len(proof.receipts), proof.rows) == (cheater, 2, b"")


@pytest.mark.parametrize("how", ["refuses", "lies", "opens nonsense", "is gone"])
async def test_a_stage_that_does_not_open_its_rows_is_named(
    how: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusing and opening other rows count the same: it is why the next stage cannot be audited.

    So do invalid rows, which an auditor refuses to run: that is not the auditor's fault. A peer
    that is gone is not at fault, but nothing was verified.
    """
    opening = StageReceipts.open

    async def open_(self: StageReceipts, position: int, count: int) -> OpenedRows:
        opened = await opening(self, position, count)
        if self.hop.first != BOUNDS[0]:
            return opened
        if how == "lies":
            return OpenedRows(opened.regimes, bytes(len(opened.rows)))
        if how == "opens nonsense":
            return OpenedRows(opened.regimes, b"\xff" * len(opened.rows))
        if how == "refuses":
            raise RefusedError.of(self.hop.peer, Refusal.NOT_HELD, "no")
        raise PeerUnavailable(self.hop.peer, "gone")

    monkeypatch.setattr(StageReceipts, "open", open_)
    async with case(FIRST) as found:
        trust = await found.examine()
        audit = trust.audits[1]
        refusing = None if how == "is gone" else found.made.route[0].peer
        assert (trust.held, audit.verdict, audit.blamed) == (
            False,
            AuditVerdict.NOT_OPENED,
            refusing,
        )


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.02, AuditVerdict.CLOSE), (1.2, AuditVerdict.CHEATED), (0.0, AuditVerdict.CHEATED)],
)
async def test_another_class_is_held_to_bounds(
    factor: float,
    verdict: AuditVerdict,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Noise between machines is not cheating; a difference that noise cannot explain is."""

    def scale(_: int, rows: bytes) -> bytes:
        return (np.frombuffer(rows, "<f4") * np.float32(factor)).tobytes()

    async with case(OWN) as found:
        engine = found.made.engines[1]
        cheat(engine, scale, monkeypatch)
        monkeypatch.setattr(engine, "numerics_class", "ab" * 16)
        trust = await found.examine()
        assert trust.audits[1].verdict is verdict
        cheater = found.made.route[1].peer if verdict is AuditVerdict.CHEATED else None
        assert trust.audits[1].blamed == cheater


@pytest.mark.parametrize(
    ("factor", "others", "verdict", "blamed"),
    [
        (1.02, (SECOND, THIRD), AuditVerdict.DISPUTED, None),
        (1.02, (OWN,), AuditVerdict.DISPUTED, None),
        (1.2, (SECOND, THIRD), AuditVerdict.CHEATED, "the stage"),
    ],
)
async def test_other_classes_do_not_outvote_an_auditor_of_the_same_class(
    factor: float,
    others: tuple[str, ...],
    verdict: AuditVerdict,
    blamed: str | None,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stage cheats within bounds; the only auditor of its class, which sees it, is not blamed."""

    def scale(_: int, rows: bytes) -> bytes:
        return (np.frombuffer(rows, "<f4") * np.float32(factor)).tobytes()

    async with case(FIRST, *others) as found:
        cheat(found.made.engines[1], scale, monkeypatch)
        found.classes.update(dict.fromkeys(others, "ab" * 16))
        audit = (await found.examine()).audits[1]
        stage = found.made.route[1].peer
        assert (audit.verdict, audit.blamed) == (verdict, stage if blamed else None)


async def test_a_share_of_stages_is_audited(autojump_clock: MockClock) -> None:
    """None at a rate of 0; the line says that none is ever re-run."""
    async with case(OWN) as found:
        trust = await found.examine(0.0)
        assert trust.held
        assert not trust.audits
        assert trust.line().endswith("none is ever re-run (--audit-rate 0)")


def test_runs_keep_to_one_regime() -> None:
    """Each at most as long as its regime's decodes may be, and no row is lost."""
    narrow, wide, block = Regime
    regimes = (block,) * 70 + (wide,) * 49 + (narrow,) * 9 + (wide, narrow)
    rows = bytes(range(130))
    runs = cut(OpenedRows(regimes, rows), 100)
    assert [(at, len(data), regime) for at, data, regime in runs] == [
        (100, 64, block),
        (164, 6, block),
        (170, 48, wide),
        (218, 1, wide),
        (219, 7, narrow),
        (226, 2, narrow),
        (228, 1, wide),
        (229, 1, narrow),
    ]
    assert b"".join(data for _, data, _ in runs) == rows


SAME = Audited(PeerId("p" * 46), 1, 9, AuditVerdict.SAME, ("this machine",))


def test_the_line_names_what_broke() -> None:
    """The failure comes first."""
    audit = Audited(PeerId("p" * 46), 1, 9, AuditVerdict.DISPUTED, ("q" * 46,))
    trust = Trust(3, 100, 0.5, None, (audit,))
    assert trust.line().startswith("NOT TRUSTED: ")
    assert trust.as_dict()["held"] is False


@pytest.mark.parametrize(
    ("trust", "words"),
    [
        (
            Trust(3, 50, 0.1),
            "all 3 peers signed for their part; none was re-run this time (1 in 10 is)",
        ),
        (
            Trust(1, 50, 0.3),
            "the one peer signed for its part; none was re-run this time (30 % are)",
        ),
        (
            Trust(2, 50, 1.0, None, (SAME,)),
            "all 2 peers signed for their part; …pppppp was re-run by this machine: same",
        ),
    ],
)
def test_the_line_is_a_short_sentence(trust: Trust, words: str) -> None:
    """A newcomer understands it; details are given on request."""
    assert trust.line() == f"checked: {words}"
    assert len(trust.details()) == 2 + len(trust.audits)
    assert trust.as_dict()["details"] == trust.details()


def test_the_chance_counts_checkpoints() -> None:
    """A stage that always cheats is caught at the audit rate, a rare cheat more rarely."""
    trust = Trust(3, 96, 0.5)
    assert trust.chance(1) == 0.5
    assert trust.chance(10) == pytest.approx(0.5 * (1 - 0.9**3))


def test_the_chance_counts_opened_rows() -> None:
    """Also where nobody is run again; where nothing was opened, a rate alone catches nobody."""
    proved = Audited(PeerId("p"), 1, 9, AuditVerdict.PROVED)
    trust = Trust(3, 96, 0.0, audits=(proved,), proof_rate=0.5)
    assert trust.chance(1) == 0.5
    assert trust.chance(10) == pytest.approx(0.5 * (1 - 0.9**4))
    assert Trust(3, 96, 0.0, proof_rate=0.5).chance(1) == 0


def test_a_stage_that_only_opened_rows_was_not_run_again() -> None:
    """At any rates, for an answer of any length, its chance is that of four rows, and no more."""
    proved = Audited(PeerId("p"), 1, 9, AuditVerdict.PROVED)
    for rates in ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0)):
        trust = Trust(3, 4096, rates[0], audits=(proved,), proof_rate=rates[1])
        assert trust.chance(10) == pytest.approx(1 - 0.9**4)
    assert "with a chance of 34 %" in trust.line()


def test_what_nobody_could_check_has_no_chance() -> None:
    """Though all were to be run again, and others were; the sentence says whose rows they are."""
    unseen = Audited(PeerId("q" * 20), 1, 9, AuditVerdict.NOT_REPLAYED)
    for others in ((), (SAME,), (Audited(PeerId("p"), 9, 12, AuditVerdict.PROVED),)):
        trust = Trust(2, 50, 1.0, None, (unseen, *others))
        assert (trust.chance(1), trust.held) == (0, True)
        assert trust.details()[-1].startswith("Nobody could check what …qqqqqq computed")


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_stages_are_drawn_at_the_rate(rate: float) -> None:
    """By the nonce and by what all stages signed, so that neither side can choose alone."""
    drawn = [
        choose_audits(bytes([n] * 32), [bytes([m])] * 4, rate) for n in range(50) for m in range(20)
    ]
    share = sum(map(len, drawn)) / (4 * len(drawn))
    assert share == pytest.approx(rate, abs=0.03)
    if 0 < rate < 1:
        assert len({tuple(each) for each in drawn[:20]}) > 1
        assert len({tuple(each) for each in drawn[::20]}) > 1
