"""What virtual peers know of proven cheats; honest judges must never convict an honest peer."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Container, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from random import Random

import trio

from p2pinfer.core.audit import THIS_MACHINE
from p2pinfer.core.evidence import Case
from p2pinfer.core.ids import ModelId, PeerId
from peers.audits.frauds import Frauds, Judges, Proof
from peers.audits.replay import OpenReplay, Replay
from peers.discovery.directory import Directory
from peers.parts.protocol import in_place
from sim.record import RunRecord
from transports.blocklist import GuardedTransport
from transports.identity import Identity


@dataclass(frozen=True)
class FraudWatch:
    """Lets peers judge, and checks their judgements."""

    model: ModelId
    record: RunRecord
    liars: Container[PeerId]

    def open(
        self,
        transport: GuardedTransport,
        directory: Directory,
        identity: Identity,
        judges: Judges,
        chance: Random,
        on_proven: Callable[[PeerId], None] = lambda _: None,
    ) -> Frauds:
        """Return a peer's knowledge, which acts as that of a real node."""
        judged_by: defaultdict[bytes, list[PeerId]] = defaultdict(list)

        def watched(case: Case) -> Sequence[OpenReplay]:
            names = judged_by[case.digest]
            return [partial(_noting, names, opening) for opening in judges(case)]

        def act(proof: Proof, _: bytes) -> None:
            accused, now = proof.accused, trio.current_time()
            transport.shut_out(accused)
            directory.shut_out(accused)
            on_proven(accused)
            self.record.event(now, "proven", accused in self.liars)
            me = transport.peer_id
            by = [me if n == THIS_MACHINE else n for n in judged_by[proof.case().digest]]
            lies = sum(peer in self.liars for peer in by)
            if accused not in self.liars and 2 * lies > len(by):
                self.record.events["framed"] += 1  # three identical lies convict: a known limit
            elif accused not in self.liars:
                text = "an honest peer is listed as a proven cheat"
                self.record.violation("blamed", now, text)

        others = partial(directory.holding, self.model)
        blame = transport.shut_out
        return Frauds(
            transport, self.model, identity.sign, others, watched, chance, act, blame, in_place
        )


@asynccontextmanager
async def _noting(names: list[PeerId], opening: OpenReplay, context: int) -> AsyncIterator[Replay]:
    """Record which peers replay layers."""
    async with opening(context) as replay:
        names.append(PeerId(replay.name))
        yield replay
