"""Which cheats do openings catch: three real stages, one of which cheats, checked without layers.

The same peers as in ``cheats``; but nobody runs a stage again. The requester has a key of the
model, a hundredth of it, names rows of each stage, and checks what the stages show. Honest sessions
give the rate of false alarms.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from p2pinfer.bench.cheats import CHEATER, CheatWorld, open_world
from p2pinfer.bench.opened_zoo import OPENED_ZOO, OpenedCheat
from p2pinfer.core.errors import EngineError, PeerError, PeerUnavailable
from p2pinfer.core.fraud import FraudProof, parse, to_sign
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Refusal
from p2pinfer.core.opening import (
    BadOpening,
    OpenedTrace,
    check_roots,
    check_signed,
    decode,
    encode,
)
from p2pinfer.core.receipts import Receipt
from p2pinfer.core.trust import ROWS_PROVEN
from p2pinfer.core.verdict import Fault, cut_to, judge_row
from p2pinfer.engine.gguf.layer_keys import layer_key, layer_shape, whole_layer
from p2pinfer.engine.gguf.reader import Tensor, read_header
from peers.asking.session import Session
from peers.audits.inspector import choose_rows
from peers.receipts.openings import AskedRow, open_cells
from peers.steps.messaging import RefusedError
from transports.identity import verify

KEY_SEED_BYTES: Final = 32

LOST_MAX: Final = 20
"""Answers of which nothing is known, before a benchmark gives up."""

_LATER: Final = (Refusal.BUSY, Refusal.TOO_SLOW)


@dataclass
class Inspection:
    """What openings showed of one answer."""

    faults: dict[PeerId, str] = field(default_factory=dict)
    """The stages that do not hold, and the step, or what else was wrong."""
    proven: set[PeerId] = field(default_factory=set)
    """Those that a machine with nothing but the layers of a proof's file finds false, too."""
    lost: str = ""
    """Why nothing is known: a stage took too long, as on a busy machine, or was told to wait."""
    openings: int = 0
    sizes: list[int] = field(default_factory=list)
    """Bytes of each opening."""
    seconds: list[float] = field(default_factory=list)
    """To check each."""
    worst: dict[str, float] = field(default_factory=dict)
    """How far each step of an honest stage was apart."""
    used: dict[str, float] = field(default_factory=dict)
    """The largest share of its tolerance that each of these steps took."""


class Inspecting:
    """Opens rows of every stage, and judges them by a key."""

    def __init__(self, world: CheatWorld, model: Path) -> None:
        self._world, self._model, self._header = world, model, read_header(model)
        seed = world.chance.randbytes(KEY_SEED_BYTES)
        layers, tensors = range(world.route[0].first, world.route[-1].end), self._header.tensors
        self.lost: list[str] = []
        self.shape = layer_shape(self._header, self._read)
        self.keys = {layer: layer_key(seed, layer, tensors, self._read) for layer in layers}

    async def answer(self, cheat: OpenedCheat | None = None) -> Inspection:
        """Have a new prompt answered, with a stage that cheats, and look at it until all is known.

        Raises:
            EngineError: this machine is too busy.
        """
        plays, shows = (cheat.cheat, cheat.show) if cheat else (None, None)
        while len(self.lost) < LOST_MAX:
            found = await self._world.look(plays, shows, self.look)
            if not found.lost:
                return found
            self.lost.append(found.lost)
        raise EngineError(f"too many stages do not answer in time: {self.lost[-1]}")

    async def look(self, session: Session) -> Inspection:
        """Have stages sign for their cells, name rows, and check them."""
        found, evidence, count = Inspection(), session.evidence, len(session.tokens)
        assert evidence
        if broken := await evidence.settle(count):
            found.lost = f"position {broken.position}: {broken.text}"
            return found
        for index, stage in enumerate(evidence.stages):
            receipt = stage.signed(count)[count]
            try:
                async with open_cells(
                    self._world.transport, stage.hop, evidence.terms, receipt
                ) as cells:
                    asked = {}
                    for at in choose_rows(evidence.nonce, Receipt.parse(receipt.body)):
                        came_in = await evidence.inputs(index, at, 1)
                        asked[at] = AskedRow(came_in.rows, came_in.regimes[0])
                    await cells.ask(asked)
                    for _ in asked:
                        self._judge(await cells.next(), stage.hop.peer, found)
            except PeerUnavailable as error:  # audits do not blame it either
                found.lost = str(error)
            except RefusedError as no:  # also by the stage before, of the rows that it sent
                if no.refused.code in _LATER:
                    found.lost = str(no)
                    continue
                found.faults.setdefault(no.peer, f"refused: {no.refused.code}, {no.refused.text}")
            except PeerError as error:
                found.faults.setdefault(error.peer, str(error))
        return found

    def _judge(self, opening: OpenedTrace, peer: PeerId, found: Inspection) -> None:
        begun = time.perf_counter()
        try:
            check_signed(opening, verify)
            check_roots(opening)
        except BadOpening as error:
            found.faults.setdefault(peer, str(error))
            return
        verdict = judge_row(opening, self.shape, self.keys)
        found.seconds.append(time.perf_counter() - begun)
        found.sizes.append(len(encode(opening)))
        found.openings += 1
        if verdict.fault:
            found.faults.setdefault(peer, verdict.fault.step)
            is_new = verdict.fault.is_provable and peer not in found.proven
            if is_new and self._is_proven(opening, verdict.fault):
                found.proven.add(peer)
            return
        for ours, theirs in ((found.worst, verdict.worst), (found.used, verdict.used)):
            for step, apart in theirs.items():
                ours[step] = max(apart, ours.get(step, 0.0))

    def _is_proven(self, opening: OpenedTrace, fault: Fault) -> bool:
        """Whether a peer finds the same by the file that it is sent, and the layers named in it.

        It runs no layer, and so may be of any numerics class.
        """
        pledge, receipt, cut = opening.pledge, opening.receipt, encode(cut_to(opening, fault))
        proof = FraudProof(pledge.terms, pledge.peer, receipt.end, (pledge.receipt,), opening=cut)
        body = proof.body()
        sent = decode(parse(body + self._world.sign(to_sign(body)), verify).opening)
        layers = {
            each.layer: whole_layer(each.layer, self._header.tensors, self._read)
            for each in sent.layers
        }
        fault_there = judge_row(sent, self.shape, layers).fault
        return fault_there is not None and fault_there.is_provable

    def _read(self, tensor: Tensor) -> bytes:
        with self._model.open("rb") as file:
            file.seek(tensor.offset)
            return file.read(tensor.nbytes)


async def proofs_bench(
    model: Path,
    *,
    trials: int,
    openings: int,
    seed: int,
    tell: Callable[[str], None],
    zoo: Iterable[OpenedCheat] = OPENED_ZOO,
) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench proofs`` prints.

    Args:
        model: a GGUF file.
        trials: answers per cheat.
        openings: of honest stages, at least this many.
        seed: of prompts, keys and rows.
        tell: gets progress messages.
        zoo: the cheats to try.
    """
    async with open_world(model, seed) as world:
        inspecting = Inspecting(world, model)
        honest = await _honest(inspecting, openings)
        tell(f"{honest['openings']} rows of honest stages, {honest['false_alarms']} alarms")
        cheats = []
        for cheat in zoo:
            cheats.append(found := await _try(world, inspecting, cheat, trials))
            tell(
                f"{cheat.name}: caught {found['caught']} of {trials}, the right stage named"
                f" {found['right_stage_named']}, proven {found['proven_by_that_layer_alone']}"
            )
        return {
            "trials": trials,
            "rows_of_each_stage": ROWS_PROVEN,
            "honest": honest,
            "cheats": cheats,
            "lost": inspecting.lost,
        }


async def _honest(inspecting: Inspecting, least: int) -> dict[str, Any]:
    found: list[Inspection] = []
    while sum(each.openings for each in found) < least:
        found.append(await inspecting.answer())
    openings = sum(each.openings for each in found)
    alarms = [fault for each in found for fault in each.faults.values()]
    steps = {step for each in found for step in each.worst}
    return {
        "openings": openings,
        "false_alarms": len(alarms),
        "said": sorted(set(alarms)),
        "false_alarm_rate_below": None if alarms else round(1 - 0.05 ** (1 / openings), 5),
        "largest_bytes": max(size for each in found for size in each.sizes),
        "checking_ms": round(1e3 * statistics.median(s for e in found for s in e.seconds), 1),
        "worst": {
            step: float(f"{max(each.worst.get(step, 0.0) for each in found):.1e}")
            for step in sorted(steps)
        },
        "tolerance_used": {
            step: round(max(each.used[step] for each in found if step in each.used), 3)
            for step in sorted({step for each in found for step in each.used})
        },
    }


async def _try(
    world: CheatWorld, inspecting: Inspecting, cheat: OpenedCheat, trials: int
) -> dict[str, Any]:
    cheats = {world.route[CHEATER].peer}
    if cheat.cheat.colludes:
        cheats.add(world.route[CHEATER - 1].peer)
    caught = named = proven = 0
    how: set[str] = set()
    wrongly: set[str] = set()
    for _ in range(trials):
        found = await inspecting.answer(cheat)
        caught += bool(cheats & found.faults.keys())
        named += bool(found.faults) and cheats >= found.faults.keys()
        proven += bool(cheats & found.proven)
        for peer, text in found.faults.items():
            (how if peer in cheats else wrongly).add(text)
    return {
        "cheat": cheat.name,
        "caught": caught,
        "of": trials,
        "caught_more_often_than": round(0.05 ** (1 / trials), 3) if caught == trials else None,
        "right_stage_named": named,
        "proven_by_that_layer_alone": proven,
        "by": sorted(how),
        "said_of_honest_stages": sorted(wrongly),
    }
