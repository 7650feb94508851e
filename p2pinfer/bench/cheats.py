"""Which cheats are caught: three real stages, one of which cheats, and each of them audited.

The peers, their receipts, the requester and the auditor are those of production, over the memory
transport; engines are workers with the real model. Honest sessions give the rate of false alarms,
also against an auditor of another numerics class, whose settings give other bits. Bounds are
one-sided, of 95 %, by Clopper and Pearson.
"""

import random
import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from p2pinfer.bench.decode import PROMPT
from p2pinfer.bench.layer_arithmetic import LayerArithmetic
from p2pinfer.bench.opened_zoo import LyingProver, Show
from p2pinfer.bench.zoo import ZOO, Cheat, Host, Liar, OpenSession
from p2pinfer.core.fraud import FraudProof, parse, to_sign
from p2pinfer.core.ids import PeerId, SessionId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.messages import Hop
from p2pinfer.core.receipts import CHECKPOINT_POSITIONS
from p2pinfer.core.sampling import Sampling
from p2pinfer.core.trust import AuditVerdict, Trust
from p2pinfer.engine.base import EngineSession, StageEngine
from p2pinfer.engine.llama.binding import requantise
from p2pinfer.engine.llama.engine import LocalEnds, open_ends, open_stage
from p2pinfer.engine.llama.other_class import in_another_class
from p2pinfer.engine.store.assemble import PartsModel, open_parts
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from p2pinfer.node.local_swarm import split_layers
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from peers.asking.session import Requester, Session
from peers.audits.auditor import Auditor
from peers.audits.frauds import judge
from peers.audits.replay import OpenReplay, Replay, by_engine
from peers.receipts.session_evidence import Gatherer
from peers.serving.stage import Stage
from transports.base import Transport
from transports.identity import Identity, verify
from transports.memory.network import MemoryNetwork, MemoryTransport

CONTEXT: Final = 512
PROMPT_TOKENS: Final = 100
ANSWER_TOKENS: Final = 24
STAGES: Final = 3
TOGETHER: Final = 3
"""Honest sessions at a time, so that their rows share decodes."""

SESSIONS: Final = 2 * TOGETHER
"""Each stage serves this many sessions, and replays as many of other stages."""

CHEATER: Final = 1

_LLAMA_FTYPE_MOSTLY_Q3_K_M: Final = 12
"""llama.h: the usual next step down from four bits."""

_OTHER_CLASS = "ab" * 16


T = TypeVar("T")

Look = Callable[[Session], Awaitable[T]]
"""What is done with a session after its last answer, before it ends."""


async def _answer(session: Session, prompt: Sequence[int]) -> None:
    """Have all tokens written; behind one that ends the text it is asked to go on.

    So every answer has as many rows, and a cheat as many false ones, whatever the model says.
    """
    text = list(prompt)
    while left := len(prompt) + ANSWER_TOKENS - len(text):
        written = session.generate(list(text), Sampling(temperature=0), left)
        text.extend([token.id async for token in written])


async def _glance(_: Session) -> None:
    await trio.lowlevel.checkpoint()


class _Switch:
    """A stage's engine, which cheats on command."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.cheat: OpenSession | None = None
        self.claims = False
        engine = host.engine
        self.first, self.end = engine.first, engine.end
        self.width, self.context, self.blocks = engine.width, engine.context, engine.blocks
        self.room = engine.room

    @property
    def numerics_class(self) -> str:
        """The true class, or one that no other peer has."""
        return _OTHER_CLASS if self.claims else self._host.engine.numerics_class

    def open(self, end: int, context: int | None = None) -> EngineSession:  # noqa: ARG002
        """Open an honest session, or a cheat's."""
        return self.cheat(self._host, end) if self.cheat else self._host.engine.open(end)


@dataclass
class CheatWorld:
    """Three stages, a requester and auditors."""

    requester: Requester
    ends: LocalEnds
    chance: random.Random
    auditors: dict[int, StageEngine]
    """By their first layer."""
    other_class: StageEngine
    """An engine with the middle stage's layers."""
    sign: Callable[[bytes], bytes]
    """Signs as the requester."""
    transport: Transport
    """The requester's."""
    model: PartsModel
    folder: Path
    """For what is kept as long as the world is open."""
    certificate: bytes = b""
    """Of the newest answer whose receipts join up."""
    proofs: list[FraudProof] = field(default_factory=list)
    """From audits; see ``proven``."""
    route: list[Hop] = field(default_factory=list)
    switches: list[_Switch] = field(default_factory=list)
    signers: list[Liar] = field(default_factory=list)
    provers: list[LyingProver] = field(default_factory=list)

    async def answer(self, cheat: Cheat | None = None, *, other_class: bool = False) -> Trust:
        """Answer a new prompt with a stage that cheats, and audit every stage."""
        if cheat and cheat.warms_up:
            self._tell(cheat)
            await self._session(1, _glance)
        self._tell(cheat)
        auditor = Auditor(
            lambda *which: self._find(cheat, other_class, *which), 1.0, on_fraud=self.proofs.append
        )
        try:
            return await self._session(cheat.turns if cheat else 1, partial(self._examine, auditor))
        finally:
            self._tell(None)

    async def proven(self) -> set[PeerId]:
        """Return the peers proven cheats to another holder, by such files as peers exchange."""
        found = set()
        while self.proofs:
            body = self.proofs.pop().body()
            proof = parse(body + self.sign(to_sign(body)), verify)
            engine = self.auditors[proof.receipt.first]
            if await judge(proof, [by_engine(engine, proof.receipt.end)]):
                found.add(proof.accused)
        return found

    async def look(self, cheat: Cheat | None, show: Show | None, looks: Look[T]) -> T:
        """Answer a new prompt with a stage that cheats, and look at it before its session ends."""
        self._tell(cheat, show)
        try:
            if cheat and cheat.warms_up:
                await self._session(1, looks)
            return await self._session(cheat.turns if cheat else 1, looks)
        finally:
            self._tell(None)

    async def _session(self, turns: int, looks: Look[T]) -> T:
        text = PROMPT[self.chance.randrange(len(PROMPT) // 2) :]
        prompt = (await self.ends.tokenize(text, special=False))[:PROMPT_TOKENS]
        session_id = SessionId(self.chance.randbytes(16))
        async with self.requester.open(self.route, session_id, CONTEXT) as session:
            for turn in range(turns):
                await _answer(session, prompt[: len(prompt) // (1 + turn)])
            return await looks(session)

    async def _examine(self, auditor: Auditor, session: Session) -> Trust:
        assert session.evidence
        trust = await auditor.examine(session.evidence, len(session.tokens))
        if not trust.broken:
            evidence, tokens = session.evidence, session.tokens
            self.certificate = evidence.certify(tokens, "", trust, self.sign)
        return trust

    def _tell(self, cheat: Cheat | None, show: Show | None = None) -> None:
        switch, signer = self.switches[CHEATER], self.signers[CHEATER]
        self.provers[CHEATER].show = show
        switch.cheat = cheat.open if cheat else None
        switch.claims = bool(cheat and cheat.other_class)
        signer.lie = cheat.lie if cheat else None
        self.switches[CHEATER - 1].cheat = cheat.open if cheat and cheat.colludes else None

    def _find(
        self, cheat: Cheat | None, other_class: bool, first: int, end: int, _: PeerId
    ) -> Sequence[OpenReplay]:
        at_cheater = first == self.switches[CHEATER].first
        engine = self.other_class if other_class and at_cheater else self.auditors[first]

        own = by_engine(engine, end)

        @asynccontextmanager
        async def lying(_: int) -> AsyncIterator[Replay]:
            async with own(0) as replay:
                assert cheat
                assert cheat.auditor
                yield cheat.auditor("a lying auditor", replay)

        return [lying, own] if cheat and cheat.auditor and at_cheater else [own]


@asynccontextmanager
async def open_world(model: Path, seed: int) -> AsyncIterator[CheatWorld]:
    """Load everything and connect it."""
    store = open_store()
    opened = open_whole(name_model(str(model), store, lambda *_: None), store)
    layers = opened.info.layers
    ranges = split_layers(1, layers - 1, STAGES)
    chance = random.Random(seed)  # noqa: S311 -- prompts, and keys of peers on no real network
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pinfer-")))
        lower_model = _lower(model, home)
        lies = ranges[CHEATER]

        async def stage(
            of: PartsModel, layers: LayerRange, *, is_other: bool = False
        ) -> StageEngine:
            path = of.stage(layers.first, layers.end)
            if is_other:
                path = await trio.to_thread.run_sync(in_another_class, path, home)
            return await stack.enter_async_context(
                open_stage(path, layers.first, sessions=SESSIONS, context=CONTEXT)
            )

        engines = [await stage(opened, each) for each in ranges]
        lower = await stage(lower_model, lies)
        same = LayerRange(ranges[0].first, ranges[0].first + len(lies))  # no fewer, no more
        elsewhere = engines[0] if same == ranges[0] else await stage(opened, same)
        auditors = {engine.first: engine for engine in engines}
        auditors[lies.first] = await stage(opened, lies)
        other = await stage(opened, lies, is_other=True)
        ends = await stack.enter_async_context(
            open_ends(*opened.ends(1), layers, sessions=SESSIONS, context=CONTEXT)
        )
        network = MemoryNetwork()
        keys = [Identity(chance.randbytes(32)) for _ in range(STAGES + 1)]
        me = await stack.enter_async_context(network.join(keys[0].peer_id))
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        requester = Requester(nursery, me, ends, opened.id, Gatherer(nursery, me, chance.randbytes))
        sign, kept = keys[0].sign, home / "kept"
        world = CheatWorld(requester, ends, chance, auditors, other, sign, me, opened, kept)
        for engine, key in zip(engines, keys[1:], strict=True):
            transport = await stack.enter_async_context(network.join(key.peer_id))
            is_cheater = len(world.route) == CHEATER
            last = (
                LayerArithmetic(opened.stage(lies.first, lies.end), len(lies) - 1)
                if is_cheater
                else None
            )
            _serve(world, transport, key, Host(engine, lower, elsewhere, last_layer=last), opened)
        yield world


def _lower(model: Path, home: Path) -> PartsModel:
    """Cut the model again, quantised to fewer bits."""
    lower = home / "lower.gguf"
    requantise(model, lower, _LLAMA_FTYPE_MOSTLY_Q3_K_M)
    store = Store(home / "store")
    return open_parts(store, add_model(store, lower, lambda *_: None), home)


def _serve(
    world: CheatWorld, transport: MemoryTransport, key: Identity, host: Host, model: PartsModel
) -> None:
    switch, signer = _Switch(host), Liar(transport, key.sign)
    signer.listen()
    prover = LyingProver(transport, signer, host)
    prover.listen()
    Stage(transport, switch, model.id, signer).listen()
    hop = Hop(key.peer_id, tuple(transport.addresses), switch.first, switch.end)
    world.route.append(hop)
    world.switches.append(switch)
    world.signers.append(signer)
    world.provers.append(prover)


async def cheats_bench(
    model: Path, *, trials: int, checkpoints: int, seed: int, zoo: Iterable[Cheat] = ZOO
) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench cheats`` prints.

    Args:
        model: a GGUF file.
        trials: answers per cheat.
        checkpoints: of honest stages, at least this many audited, in sessions side by side.
        seed: of prompts and keys.
        zoo: the cheats to try.
    """
    async with open_world(model, seed) as world:
        report: dict[str, Any] = {
            "trials": trials,
            "honest": await _honest(world, checkpoints, other_class=False),
            "honest, another class": await _honest(world, checkpoints // 4, other_class=True),
        }
        report["cheats"] = [await _try(world, cheat, trials) for cheat in zoo]
    return report


async def _honest(world: CheatWorld, least: int, *, other_class: bool) -> dict[str, Any]:
    """Audit honest sessions, several at a time."""
    found: list[Trust] = []

    async def one() -> None:
        found.append(await world.answer(other_class=other_class))

    checkpoints = 0
    while checkpoints < least:
        async with trio.open_nursery() as nursery:
            for _ in range(1 if other_class else TOGETHER):
                nursery.start_soon(one)
        each = -(-found[-1].positions // CHECKPOINT_POSITIONS)
        checkpoints = sum(each * len(trust.audits) for trust in found)
    good = (AuditVerdict.SAME, AuditVerdict.CLOSE) if other_class else (AuditVerdict.SAME,)
    mismatches = sum(
        trust.broken is not None or any(audit.verdict not in good for audit in trust.audits)
        for trust in found
    )
    audits = sum(len(trust.audits) for trust in found)
    verdicts = [audit.verdict.value for trust in found for audit in trust.audits]
    return {
        "audited_checkpoints": checkpoints,
        "audits": audits,
        "verdicts": {name: verdicts.count(name) for name in sorted(set(verdicts))},
        "false_alarms": mismatches,
        "false_alarm_rate_below": round(1 - 0.05 ** (1 / audits), 5) if not mismatches else None,
    }


async def _try(world: CheatWorld, cheat: Cheat, trials: int) -> dict[str, Any]:
    caught = blamed = proven = 0
    checkpoints: list[int] = []
    how: set[str] = set()
    honest = {hop.peer for hop in world.route} - {world.route[CHEATER].peer}
    if cheat.colludes:
        honest -= {world.route[CHEATER - 1].peer}
    for _ in range(trials):
        trust = await world.answer(cheat)
        accused = await world.proven()
        assert not accused & honest
        proven += bool(accused)
        found = [audit for audit in trust.audits if audit.blamed]
        if trust.held and not found:
            continue
        caught += 1
        if trust.broken:
            how.add("receipts")
            blamed += not honest >= set(trust.broken.peers)
            checkpoints.append(-(-trust.broken.position // CHECKPOINT_POSITIONS))
            continue
        how.add("audit")
        blamed += not any(audit.blamed in honest for audit in found)
        first = min((audit.position or 0) for audit in found)
        checkpoints.append(first // CHECKPOINT_POSITIONS + 1)
    return {
        "cheat": cheat.name,
        "saves_work": cheat.saves_work,
        "caught": caught,
        "of": trials,
        "caught_more_often_than": round(0.05 ** (1 / trials), 3) if caught == trials else None,
        "right_stage_named": blamed,
        "by": sorted(how),
        "proven_to_others": proven,
        "first_bad_checkpoint": statistics.median(checkpoints) if checkpoints else None,
    }
