"""Which cheats do openings catch: three real stages, one of which cheats, checked without layers.

The same peers as in ``cheats``; but nobody runs a stage again. The requester has a key of the
model, a hundredth of it, names rows of each stage, and checks what the stages show. Who is found
false is accused before machines that hold the one layer that was named. Honest sessions give the
rate of false alarms.
"""

import re
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from p2pinfer.bench.cheats import CHEATER, CheatWorld, open_world
from p2pinfer.bench.false_rows import FalseRows, find_false
from p2pinfer.bench.layer_homes import LayerHomes
from p2pinfer.bench.opened_zoo import OPENED_ZOO, OpenedCheat
from p2pinfer.bench.trials import Trial, TrialFile, summary
from p2pinfer.core.errors import EngineError, PeerError, PeerUnavailable
from p2pinfer.core.fraud import FraudProof, to_sign
from p2pinfer.core.ids import PeerId, SessionId
from p2pinfer.core.messages import Refusal
from p2pinfer.core.opening import (
    BadOpening,
    OpenedTrace,
    check_roots,
    check_signed,
    encode,
)
from p2pinfer.core.receipts import Receipt
from p2pinfer.core.trust import ROWS_PROVEN
from p2pinfer.core.verdict import Fault, cut_to, judge_row
from p2pinfer.engine.gguf.layer_keys import layer_key, layer_shape
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

_LAYER: Final = re.compile(r"layer (\d+): ")
"""How what is said of a row begins, where it is about one layer."""


@dataclass
class Inspection:
    """What openings showed of one answer."""

    faults: dict[PeerId, str] = field(default_factory=dict)
    """The stages that do not hold, and the step, or what else was wrong."""
    layers: dict[PeerId, int] = field(default_factory=dict)
    """The layer that is named, where one is."""
    proven: dict[PeerId, int] = field(default_factory=dict)
    """Those that a machine with nothing but the layers of a proof's file finds false, too; and how
    many layers these are."""
    false_rows: FalseRows | None = None
    """Of the stage that cheats."""
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

    def __init__(self, world: CheatWorld, model: Path, seed: int) -> None:
        self._world, self._model, self._seed = world, model, seed
        header = read_header(model)
        world.chance.seed(seed)
        secret = world.chance.randbytes(KEY_SEED_BYTES)
        layers = range(world.route[0].first, world.route[-1].end)
        self.lost: list[str] = []
        self.shape = layer_shape(header, self._read)
        self.keys = {
            layer: layer_key(secret, layer, header.tensors, self._read) for layer in layers
        }
        self._homes = LayerHomes(world.model.store, world.model.manifest, world.folder)

    async def answer(self, number: int, cheat: OpenedCheat | None = None) -> Inspection:
        """Have a new prompt answered, with a stage that cheats, and look at it until all is known.

        Args:
            number: of the trial, which draws the same each time, whatever was tried before.
            cheat: what the stage does.

        Raises:
            EngineError: this machine is too busy.
        """
        plays, shows = (cheat.cheat, cheat.show) if cheat else (None, None)
        self._world.chance.seed(f"{self._seed}, {cheat.name if cheat else 'honest'}, {number}")
        look = partial(self.look, cheats=cheat is not None)
        while len(self.lost) < LOST_MAX:
            found = await self._world.look(plays, shows, look)
            if not found.lost:
                return found
            self.lost.append(found.lost)
        raise EngineError(f"too many stages do not answer in time: {self.lost[-1]}")

    async def look(self, session: Session, *, cheats: bool) -> Inspection:
        """Have stages sign for their cells, name rows, and check them."""
        found, evidence, count = Inspection(), session.evidence, len(session.tokens)
        assert evidence
        if cheats:
            try:
                found.false_rows = await self._false_rows(evidence.terms.session, count)
            except LookupError:
                found.lost = "a stage no longer holds the session"
                return found
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
                        await self._judge(await cells.next(), stage.hop.peer, found)
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

    async def _judge(self, opening: OpenedTrace, peer: PeerId, found: Inspection) -> None:
        begun = time.perf_counter()
        try:
            check_signed(opening, verify)
            check_roots(opening)
        except BadOpening as error:
            if peer not in found.faults:
                found.faults[peer] = str(error)
                if named := _LAYER.match(str(error)):
                    found.layers[peer] = int(named[1])
            return
        verdict = judge_row(opening, self.shape, self.keys)
        found.seconds.append(time.perf_counter() - begun)
        found.sizes.append(len(encode(opening)))
        found.openings += 1
        if verdict.fault:
            if peer not in found.faults:
                found.faults[peer] = verdict.fault.step
                found.layers[peer] = verdict.fault.layer
            if verdict.fault.is_provable and not found.proven.get(peer):
                found.proven[peer] = await self._prove(opening, verdict.fault)
            return
        for ours, theirs in ((found.worst, verdict.worst), (found.used, verdict.used)):
            for step, apart in theirs.items():
                ours[step] = max(apart, ours.get(step, 0.0))

    async def _prove(self, opening: OpenedTrace, fault: Fault) -> int:
        """Accuse a stage by the file that peers send each other; see ``LayerHomes.convict``."""
        pledge, receipt, cut = opening.pledge, opening.receipt, encode(cut_to(opening, fault))
        proof = FraudProof(pledge.terms, pledge.peer, receipt.end, (pledge.receipt,), opening=cut)
        body = proof.body()
        return await self._homes.convict(body + self._world.sign(to_sign(body)))

    async def _false_rows(self, session: SessionId, count: int) -> FalseRows:
        world = self._world
        before, record = (
            world.signers[at].find(session, world.transport.peer_id)
            for at in (CHEATER - 1, CHEATER)
        )
        if before is None or record is None:
            raise LookupError
        return await find_false(record, before, world.auditors[record.opened.first], count)

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
    kept: Path | None = None,
) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench proofs`` prints.

    Args:
        model: a GGUF file.
        trials: answers per cheat.
        openings: of honest stages, at least this many.
        seed: of prompts, keys and rows.
        tell: gets progress messages.
        zoo: the cheats to try.
        kept: a file of trials; those that are in it are not made again, others are added.

    Raises:
        UserError: the file is about something else, or cannot be written.
    """
    async with open_world(model, seed) as world:
        trials_of = TrialFile(kept, world.model.id, seed)
        inspecting = Inspecting(world, model, seed)
        honest = await _honest(inspecting, openings)
        tell(f"{honest['openings']} rows of honest stages, {honest['false_alarms']} alarms")
        cheats, zoo = [], list(zoo)
        for done, cheat in enumerate(zoo, 1):
            found = trials_of.held(cheat.name)[:trials]
            for number in range(len(found), trials):
                found.append(await _try(world, inspecting, cheat, number))
                trials_of.add(found[-1])
            cheats.append(line := summary(found))
            tell(
                f"{done}/{len(zoo)} {cheat.name}: caught {line['caught']} of {line['of']}, the"
                f" right stage named {line['right_stage_named']}, the layer"
                f" {line['right_layer_named']}, proven {line['proven_by_that_layer_alone']}"
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
        found.append(await inspecting.answer(len(found)))
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


async def _try(world: CheatWorld, inspecting: Inspecting, cheat: OpenedCheat, number: int) -> Trial:
    hop = world.route[CHEATER]
    cheats = {hop.peer}
    if cheat.cheat.colludes:
        cheats.add(world.route[CHEATER - 1].peer)
    found = await inspecting.answer(number, cheat)
    assert found.false_rows
    caught = bool(cheats & found.faults.keys())
    named = None
    if cheat.layer is not None:
        named = found.layers.get(hop.peer) == range(hop.first, hop.end)[cheat.layer]
    return Trial(
        cheat.name,
        number,
        caught,
        caught and cheats >= found.faults.keys(),
        named,
        found.proven.get(hop.peer, 0),
        [text for peer, text in found.faults.items() if peer in cheats],
        [text for peer, text in found.faults.items() if peer not in cheats],
        found.false_rows,
    )
