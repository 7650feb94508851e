"""A swarm whose requester checks what its stages open, with a judge that says what it is told."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.errors import PeerError
from p2pinfer.core.fraud import FraudProof
from p2pinfer.core.opening import OpenedTrace
from p2pinfer.core.shown_layers import LayerBytes
from p2pinfer.core.traced import Traced
from p2pinfer.core.trust import AuditVerdict, Trust
from p2pinfer.core.verdict import Fault, Verdict
from peers.asking.session import Session
from peers.audits.auditor import Auditor
from peers.audits.inspector import Inspector
from peers.audits.replay import OpenReplay, by_engine
from peers.audits.steps import StepsJudge
from peers.parts.protocol import in_place
from tests.support.fake_engines import CELL_BYTES, ROW_BYTES, FakeStage
from tests.support.swarm import CHAINS, CONTEXT, PROMPT, Swarm, answer, swarm

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
