"""Proving stages from rows that they open: who is asked, who is blamed, what is kept."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core import certificate
from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.audit import THIS_MACHINE
from p2pinfer.core.errors import PeerError, PeerUnavailable
from p2pinfer.core.fraud import FraudProof, to_sign
from p2pinfer.core.fraud import parse as parse_proof
from p2pinfer.core.messages import Refusal
from p2pinfer.core.opening import OpenedTrace, decode
from p2pinfer.core.shown_layers import LayerBytes, choose_layers, layers_shown, rows_seen
from p2pinfer.core.traced import Traced
from p2pinfer.core.trust import ROWS_PROVEN, AuditVerdict, Trust, Unproved
from p2pinfer.core.verdict import Fault, Verdict
from p2pinfer.core.witness import OpenedRows
from peers.asking.session import Session
from peers.audits import inspector as module
from peers.audits.auditor import Auditor
from peers.audits.inspector import Inspector, choose_rows
from peers.audits.patience import PUT_OFF_MAX
from peers.audits.replay import OpenReplay, by_engine
from peers.audits.steps import StepsJudge
from peers.parts.protocol import in_place
from peers.receipts import openings, prover
from peers.receipts.openings import CommittedCells, open_cells
from peers.receipts.prover import OPENINGS, RETRY_MS, Prover
from peers.receipts.session_evidence import Evidence
from peers.steps.messaging import RefusedError, send
from tests.support.directories import advertisement, identity
from tests.support.fake_engines import CELL_BYTES, ROW_BYTES, FakeStage
from tests.support.swarm import CHAINS, CONTEXT, KEYS, PROMPT, Swarm, answer, swarm
from transports.base import Channel
from transports.identity import verify

BOUNDS = CHAINS[3]


class Judge(StepsJudge):
    """Says what it is told of openings: the fakes' layers compute nothing that could be judged."""

    def __init__(
        self,
        known: Iterable[int],
        false: frozenset[int] = frozenset(),
        fault: Fault | None = None,
    ) -> None:
        self.known, self.false, self.fault = frozenset(known), false, fault
        self.seen: list[OpenedTrace] = []
        self.renewals = 0
        self.bytes = LayerBytes(ROW_BYTES, 14 * ROW_BYTES, 2 * CELL_BYTES)

    def covers(self, layers: Iterable[int]) -> bool:
        """Know some layers."""
        return self.known.issuperset(layers)

    def lacks(self, layers: Iterable[int]) -> str:
        """Say that these fakes have no key."""
        return "no key"

    async def layer_bytes(self, layer: int) -> LayerBytes:
        """Say what it is told."""
        assert layer in self.known
        return self.bytes

    async def judge(self, opening: OpenedTrace, *, by_layers: bool = False) -> Verdict:
        """Find the first step of some layers false."""
        assert not by_layers
        self.seen.append(opening)
        for each in opening.layers:
            if each.layer in self.false:
                fault = self.fault or Fault(each.layer, Traced.UP, 0.01)
                return Verdict(fault, 1, 1, {}, {})
        return Verdict(None, len(opening.layers), len(opening.layers), {}, {})

    async def renew(self) -> None:
        """Count."""
        self.renewals += 1


@dataclass
class Inspected:
    """A swarm of three stages, whose requester has a judge."""

    made: Swarm
    judge: Judge
    offers: list[Advertisement] = field(default_factory=list)
    proofs: list[FraudProof] = field(default_factory=list)
    failed: list[PeerError] = field(default_factory=list)
    replays: bool = False

    def __post_init__(self) -> None:
        self.inspector = Inspector(
            self.made.me,
            self.judge,
            lambda: self.offers,
            0.0,
            self.proofs.append,
            self.failed.append,
            in_place,
        )

    async def examine(self, audit_rate: float, proof_rate: float) -> Trust:
        """Answer once, and check."""
        async with self.made.open() as session:
            return await self.examine_in(session, audit_rate, proof_rate)

    async def examine_in(self, session: Session, audit_rate: float, proof_rate: float) -> Trust:
        """Answer in a session, and check."""
        await answer(session, PROMPT)
        self.inspector.rate = proof_rate
        auditor = Auditor(self.find, audit_rate, inspector=self.inspector)
        assert session.evidence
        return await auditor.examine(session.evidence, len(session.tokens))

    def find(self, first: int, end: int, _: object) -> Sequence[OpenReplay]:
        """Replay on this machine, if wanted."""
        engine = FakeStage(first, end, context=CONTEXT)
        return [by_engine(engine, end)] if self.replays else []


@asynccontextmanager
async def inspected(
    judge: Judge | None = None, bounds: Sequence[int] = BOUNDS
) -> AsyncIterator[Inspected]:
    """Run the swarm."""
    async with swarm(bounds, evidence=True) as made:
        yield Inspected(made, judge or Judge(range(BOUNDS[0], BOUNDS[-1])))


def verdicts(trust: Trust) -> list[AuditVerdict]:
    """List what was found."""
    return [each.verdict for each in trust.audits]


async def test_sole_holders_are_proven(autojump_clock: MockClock) -> None:
    """Nobody else has their layers: what they open is checked, and kept for the certificate."""
    async with inspected() as it, it.made.open() as session:
        trust = await it.examine_in(session, 1.0, 0.0)
        assert trust.held
        assert verdicts(trust) == [AuditVerdict.PROVED] * 3
        assert all(each.by == (THIS_MACHINE,) for each in trust.audits)
        assert f"{ROWS_PROVEN} of {trust.positions} rows of " in trust.line()
        assert "spot check" in trust.details()[-1]
        assert trust.chance(1) == 1
        assert 0.3 < trust.chance(10) < 0.4
        evidence = session.evidence
        assert evidence
        data = evidence.certify(session.tokens, "", trust, KEYS[0].sign)
        parsed, _, _ = certificate.parse(data)
        vouched = certificate.check(parsed)
        openings = [decode(each) for each in parsed.openings]
        assert openings == it.judge.seen
        for stage in vouched:
            rows = [each.pledge.position for each in openings if each.pledge.peer == stage.peer]
            assert rows == choose_rows(parsed.nonce, stage.receipts[trust.positions])
            assert len(rows) == ROWS_PROVEN


async def test_rows_are_named_only_once_cells_are_signed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even to the stage before, which could tell for which rows to invent K and V."""
    order: list[str] = []

    @asynccontextmanager
    async def signing(*given: Any, **named: Any) -> AsyncIterator[CommittedCells]:
        async with open_cells(*given, **named) as cells:
            order.append("signed")
            yield cells

    async def asking(evidence: Evidence, *given: int) -> OpenedRows:
        order.append("named")
        return await inputs(evidence, *given)

    inputs = Evidence.inputs
    monkeypatch.setattr(module, "open_cells", signing)
    monkeypatch.setattr(Evidence, "inputs", asking)
    async with inspected() as it:
        assert verdicts(await it.examine(1.0, 0.0)) == [AuditVerdict.PROVED] * 3
    assert order == 3 * ["signed", *ROWS_PROVEN * ["named"]]


async def test_a_false_step_is_blamed_and_travels(autojump_clock: MockClock) -> None:
    """The stage and its layer are named, others get the proof, and the key is made again."""
    layer = BOUNDS[1] + 2
    async with inspected(Judge(range(BOUNDS[-1]), frozenset([layer]))) as it:
        trust = await it.examine(1.0, 0.0)
        cheat = it.made.route[1].peer
        two = trust.audits[1]
        assert verdicts(trust) == [AuditVerdict.PROVED, AuditVerdict.CHEATED, AuditVerdict.PROVED]
        assert two.blamed == cheat
        assert not trust.held
        assert f"layer {layer}: ffn_up" in trust.line()
        assert it.judge.renewals == 1
        (proof,) = it.proofs
        body = proof.body()
        parsed = parse_proof(body + KEYS[0].sign(to_sign(body)), verify)
        case = parsed.case()
        assert (case.accused, case.first, case.end) == (cheat, layer, layer + 1)
        (cut,) = decode(parsed.opening).layers
        assert not cut.keys


async def test_others_of_the_class_run_it_again_instead(autojump_clock: MockClock) -> None:
    """Opening rows beside that is chosen by a rate of its own."""
    async with inspected() as it:
        it.replays = True
        numerics = it.made.engines[0].numerics_class
        it.offers = [
            evolve(
                advertisement(identity(90 + number), layers=(hop.first, hop.end)),
                numerics_class=numerics,
            )
            for number, hop in enumerate(it.made.route)
        ]
        assert verdicts(await it.examine(1.0, 0.0)) == [AuditVerdict.SAME] * 3
        assert not it.judge.seen
        assert verdicts(await it.examine(0.0, 1.0)) == [AuditVerdict.PROVED] * 3
        other = evolve(it.offers[1], numerics_class="ab" * 16)
        it.offers[1] = other
        found = verdicts(await it.examine(1.0, 0.0))
        assert found == [AuditVerdict.SAME, AuditVerdict.PROVED, AuditVerdict.SAME]


async def test_without_a_key_stages_are_run_again(autojump_clock: MockClock) -> None:
    """Or not at all, where nobody can."""
    async with inspected(Judge([])) as it:
        trust = await it.examine(1.0, 1.0)
        assert verdicts(trust) == [AuditVerdict.NOT_REPLAYED] * 3
        assert [each.why for each in trust.unproved] == ["no key"] * 3
        assert sum("was not proved: no key." in each for each in trust.details()) == 3
        assert trust.as_dict()["unproved"][1]["peer"] == it.made.route[1].peer
        it.replays = True
        assert verdicts(await it.examine(1.0, 1.0)) == [AuditVerdict.SAME] * 3


@pytest.mark.parametrize(("code", "losing"), [(Refusal.ENGINE_FAILED, 3), (Refusal.BAD_REQUEST, 1)])
async def test_a_stage_that_refuses_loses_standing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, code: Refusal, losing: int
) -> None:
    """It is not blamed: a row that is not its own may be the stage before it that lies."""

    async def refuse(self: Prover, *_: object, **__: object) -> None:
        raise self._no(code, "no")

    monkeypatch.setattr(Prover, "_show", refuse)
    async with inspected() as it:
        trust = await it.examine(1.0, 0.0)
        assert verdicts(trust) == [AuditVerdict.NOT_REPLAYED] * 3
        assert trust.held
        assert {each.why for each in trust.unproved} == {"it refused: no"}
        assert [error.peer for error in it.failed] == [hop.peer for hop in it.made.route][:losing]
        assert not any(isinstance(error, RefusedError) for error in it.failed), "or it counts less"


async def test_a_stage_that_knows_no_openings_is_run_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older peer is not blamed for what it never learnt."""

    @asynccontextmanager
    async def gone(_: object, hop: object, *__: object, **___: object) -> AsyncIterator[None]:
        raise PeerUnavailable(getattr(hop, "peer"), "it does not know openings")  # noqa: B009
        yield

    monkeypatch.setattr(module, "open_cells", gone)
    async with inspected() as it:
        it.replays = True
        trust = await it.examine(1.0, 1.0)
        assert verdicts(trust) == [AuditVerdict.SAME] * 3
        assert not it.failed
        assert all("does not know openings" in each.why for each in trust.unproved)


async def test_nobody_is_asked_for_more_than_it_opens(autojump_clock: MockClock) -> None:
    """So that no honest stage loses standing for its limit; a minute later it is asked again."""
    async with inspected() as it:
        for _ in range(8):
            assert verdicts(await it.examine(0.0, 1.0)) == [AuditVerdict.PROVED] * 3
        trust = await it.examine(0.0, 1.0)
        assert not trust.audits
        assert all(each.why.startswith("it opened as many") for each in trust.unproved)
        assert not it.failed
        await trio.sleep(70)
        assert verdicts(await it.examine(0.0, 1.0)) == [AuditVerdict.PROVED] * 3


async def test_too_little_for_an_accusation_is_no_proof(autojump_clock: MockClock) -> None:
    """A stage whose attention is a little off is not trusted, and nobody else is told."""
    layer = BOUNDS[1]
    judge = Judge(range(30), frozenset([layer]), Fault(layer, Traced.ATTENTION, 4e-4))
    async with inspected(judge) as it:
        trust = await it.examine(1.0, 0.0)
        assert verdicts(trust).count(AuditVerdict.CHEATED) == 1
        assert not trust.held
        assert not it.proofs


Change = Callable[[OpenedTrace], OpenedTrace]


@pytest.mark.parametrize(
    "change",
    [
        lambda opening: evolve(opening, leaves=opening.leaves[::-1]),
        lambda opening: evolve(opening, row=evolve(opening.row, sent=b"\0" * 32)),
        lambda opening: evolve(opening, layers=opening.layers[1:]),
    ],
)
async def test_what_does_not_fit_is_blamed_on_the_stage(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    """Rows that are not on its receipts' roots, or not all of its layers, are not opened rows."""
    real = open_cells

    @asynccontextmanager
    async def altered(*args: object, **named: object) -> AsyncIterator[object]:
        async with real(*args, **named) as cells:  # type: ignore[arg-type]
            honest = cells.next

            async def other() -> OpenedTrace:
                return change(await honest())

            monkeypatch.setattr(cells, "next", other)
            yield cells

    monkeypatch.setattr(module, "open_cells", altered)
    async with inspected() as it:
        trust = await it.examine(1.0, 0.0)
        assert verdicts(trust) == [AuditVerdict.NOT_OPENED] * 3
        assert [each.blamed for each in trust.audits] == [hop.peer for hop in it.made.route]
        assert not trust.held


OF_135M = LayerBytes(2304, 38_400, 768)
"""A layer of SmolLM2-135M, of which 28 are too long to be shown at once."""
OF_70B = LayerBytes(32_768, 614_400, 4096)


def cut_judge(layer: LayerBytes, false: int | None = None) -> Judge:
    """Judge layers that are said to be so long, one of which may be false."""
    judge = Judge(range(1, 29), frozenset(() if false is None else (false,)))
    judge.bytes = layer
    return judge


async def test_of_many_layers_some_are_opened(autojump_clock: MockClock) -> None:
    """As many as is allowed, which its odds count; the certificate says which."""
    judge = cut_judge(OF_70B)
    async with inspected(judge, CHAINS[1]) as it, it.made.open() as session:
        trust = await it.examine_in(session, 1.0, 0.0)
        assert verdicts(trust) == [AuditVerdict.PROVED]
        evidence = session.evidence
        assert evidence
        data = evidence.certify(session.tokens, "", trust, KEYS[0].sign)
        parsed, _, _ = certificate.parse(data)
        assert parsed.audits == trust.audits
        assert [decode(each) for each in parsed.cut_openings] == judge.seen
        assert not parsed.openings
        (stage,) = certificate.check(parsed)
        last = stage.receipts[trust.positions]
        positions = choose_rows(parsed.nonce, last)
        shown = choose_layers(parsed.nonce, last, positions, OF_70B)
        assert [len(each.layers) for each in judge.seen] == [each.steps for each in shown]
        assert layers_shown(parsed.nonce, last, judge.seen, positions) == shown
        seen = rows_seen(shown, 28)
        assert 0 < seen < 1
        assert trust.chance(1) == pytest.approx(seen)
        assert (
            trust.audits[0].text
            == f"{25 * seen:.0f} % of the layers in 4 of {trust.positions} rows"
        )
        odds = f"in a single layer is caught by it with a chance of {100 * seen:.0f} %"
        assert odds in trust.details()[-1]


@pytest.mark.parametrize("layer", [1, 9, 17, 28])
async def test_a_lie_in_one_of_many_layers_is_caught(autojump_clock: MockClock, layer: int) -> None:
    """In every answer, where its rows together show all 28; each opening is within its bound."""
    judge = cut_judge(OF_135M, layer)
    async with inspected(judge, CHAINS[1]) as it:
        trust = await it.examine(1.0, 0.0)
        assert verdicts(trust) == [AuditVerdict.CHEATED]
        assert f"layer {layer}: " in trust.line()
        (cut,) = decode(it.proofs[0].opening).layers
        assert cut.layer == layer
    judge = cut_judge(OF_135M)
    async with inspected(judge, CHAINS[1]) as it:
        trust = await it.examine(1.0, 0.0)
        assert trust.chance(1) == 1
        assert {len(each.layers) < 28 for each in judge.seen} == {False, True}
        assert "whose rows are all false is caught by it, one" in trust.details()[-1]


async def test_a_lie_in_one_layer_of_a_huge_model_is_caught_as_often_as_is_said(
    autojump_clock: MockClock,
) -> None:
    """Neither less nor by chance alone: where the nonce chose its layer."""
    caught, said = 0, []
    for number in range(12):
        judge = cut_judge(OF_70B, 1 + 5 * number % 28)
        async with inspected(judge, CHAINS[1]) as it, it.made.open() as session:
            trust = await it.examine_in(session, 1.0, 0.0)
            assert session.evidence
            stage = session.evidence.stages[0]
            last = stage.vouched(trust.positions).receipts[trust.positions]
            nonce = session.evidence.nonce
            shown = choose_layers(nonce, last, choose_rows(nonce, last), OF_70B)
            is_seen = any(5 * number % 28 in each.of(28) for each in shown)
            assert trust.held is not is_seen
            caught += is_seen
            said.append(rows_seen(shown, 28))
    assert 0 < caught < len(said)


async def test_a_stage_of_before_opens_all_its_layers(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked in the way that it knows; what would be too much, is not asked for."""

    def listen(self: Prover) -> None:
        self._transport.handle(OPENINGS, partial(self._serve, by_layers=False))

    monkeypatch.setattr(Prover, "listen", listen)
    judge = cut_judge(OF_135M)
    async with inspected(judge, CHAINS[1]) as it:
        trust = await it.examine(1.0, 0.0)
        assert verdicts(trust) == [AuditVerdict.PROVED]
        assert {len(each.layers) for each in judge.seen} == {28}
        assert trust.audits[0].seen is None
        judge.bytes = OF_70B
        trust = await it.examine(1.0, 0.0)
        assert "opens all of its layers at once" in trust.unproved[0].why
        assert not it.failed


async def test_layers_are_named_only_once_steps_are_signed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a stage could compute those alone as it should."""
    order: list[str] = []

    async def tell(channel: Channel, message: Any) -> None:
        order.append(type(message).__name__)
        await send(channel, message)

    monkeypatch.setattr(prover, "send", tell)
    monkeypatch.setattr(openings, "send", tell)
    async with inspected(cut_judge(OF_70B), CHAINS[1]) as it:
        await it.examine(1.0, 0.0)
    assert order[:7] == ["CellsAre", "AskSteps", *["PledgeIs"] * 4, "AskLayers"]
    assert set(order[7:]) == {"CellRows", "StepsAre"}


async def refusing(
    it: Inspected,
    monkeypatch: pytest.MonkeyPatch,
    code: Refusal,
    retry_ms: int = 0,
    times: int = 99,
) -> None:
    """Have all stages refuse from now on, so many times."""
    left, honest = times, Prover._show

    async def refuse(self: Prover, *given: Any, **named: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            await honest(self, *given, **named)
        else:
            raise self._no(code, "not now", retry_ms)

    monkeypatch.setattr(Prover, "_show", refuse)


async def test_a_busy_stage_is_asked_again_and_excused_some_times(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its standing, unless nothing else is ever heard of it."""
    async with inspected(bounds=CHAINS[1]) as it:
        await refusing(it, monkeypatch, Refusal.BUSY, RETRY_MS, times=1)
        begun = trio.current_time()
        assert verdicts(await it.examine(0.0, 1.0)) == [AuditVerdict.PROVED]
        assert trio.current_time() - begun == pytest.approx(RETRY_MS / 1000, abs=2)
        for code in (Refusal.BUSY, Refusal.TOO_SLOW):
            await refusing(it, monkeypatch, code, RETRY_MS)
            for _ in range(PUT_OFF_MAX):
                trust = await it.examine(0.0, 1.0)
                assert trust.unproved[0].why == "it refused: not now"
                await trio.sleep(200)
            assert not it.failed
            await it.examine(0.0, 1.0)
            assert len(it.failed) == 1
            await trio.sleep(200)
            monkeypatch.undo()
            assert verdicts(await it.examine(0.0, 1.0)) == [AuditVerdict.PROVED]
            it.failed.clear()


async def test_a_stage_that_is_always_late_is_excused_some_times(
    autojump_clock: MockClock,
) -> None:
    """Like a busy one."""
    async with inspected(bounds=CHAINS[1]) as it, it.made.open() as session:
        await answer(session, PROMPT)
        assert session.evidence
        assert await session.evidence.settle(len(session.tokens)) is None
        it.made.engines[0].machine.decode_s = 100.0
        stage = session.evidence.stages[0]
        last = stage.vouched(len(session.tokens)).receipts[len(session.tokens)]
        for tries in range(PUT_OFF_MAX + 1):
            assert len(it.failed) == 0, tries
            found = await it.inspector.prove(session.evidence, 0, last)
            assert isinstance(found, Unproved)
        assert len(it.failed) == 1


async def test_machines_that_cannot_open_lose_nothing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as none of their class did; or where sessions are too long for everybody."""
    judge = Judge(range(1, 29))
    async with inspected(judge, CHAINS[1]) as it:
        await refusing(it, monkeypatch, Refusal.CONTEXT_FULL)
        for _ in range(5):
            trust = await it.examine(0.0, 1.0)
            assert trust.unproved[0].why == "it refused: not now"
            await trio.sleep(200)
        assert not it.failed
        monkeypatch.undo()
        assert verdicts(await it.examine(0.0, 1.0)) == [AuditVerdict.PROVED]
        await refusing(it, monkeypatch, Refusal.CONTEXT_FULL)
        await it.examine(0.0, 1.0)
        assert len(it.failed) == 1, "another of its class could"
        judge.bytes = LayerBytes(ROW_BYTES, 14 * ROW_BYTES, 1 << 20)
        await it.examine(0.0, 1.0)
        assert len(it.failed) == 1
