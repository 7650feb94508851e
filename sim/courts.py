"""What virtual peers know of proven cheats; nobody honest may ever be taken for one."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from random import Random

import trio

from p2pinfer.core.fraud import FraudProof
from p2pinfer.core.ids import ModelId, PeerId
from peers.directory import Directory
from peers.frauds import Frauds, Judges
from peers.guarded import Guarded
from peers.parts import in_place
from sim.record import Record
from transports.identity import Identity


@dataclass(frozen=True)
class Courts:
    """Lets peers judge, and judges them."""

    model: ModelId
    record: Record
    liars: Container[PeerId]

    def open(
        self,
        transport: Guarded,
        directory: Directory,
        identity: Identity,
        judges: Judges,
        chance: Random,
        on_proven: Callable[[PeerId], None] = lambda _: None,
    ) -> Frauds:
        """Return a peer's knowledge, which acts as that of a real node."""

        def act(proof: FraudProof, _: bytes) -> None:
            accused, now = proof.accused, trio.current_time()
            transport.shut_out(accused)
            directory.shut_out(accused)
            on_proven(accused)
            self.record.event(now, "proven", accused in self.liars)
            if accused not in self.liars:
                text = "an honest peer is taken for a proven cheat"
                self.record.violation("blamed", now, text)

        others = partial(directory.holding, self.model)
        blame = transport.shut_out
        return Frauds(
            transport, self.model, identity.sign, others, judges, chance, act, blame, in_place
        )
