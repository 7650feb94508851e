"""Whether honest stages are ever blamed: many answers, with every stage of each audited.

Each third of the layers is served by two peers of two numerics classes, which compute attention in
other ways; a third engine only audits.
Each answer takes one peer or the other for each third, in sessions side by side, so that their rows
share decodes; turns are long and short, continue and go back, so that chunks have all sizes.
"""

import random
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from p2pinfer.bench.decode import PROMPT
from p2pinfer.core.bounds import Bounds
from p2pinfer.core.ids import PeerId, SessionId
from p2pinfer.core.messages import Hop
from p2pinfer.core.receipts import CHECKPOINT_POSITIONS
from p2pinfer.core.sampling import Sampling
from p2pinfer.core.trust import AuditVerdict, Trust
from p2pinfer.engine.base import Ends, StageEngine
from p2pinfer.engine.llama.engine import open_ends, open_stage
from p2pinfer.engine.llama.measured_bounds import bounds_of
from p2pinfer.engine.llama.other_class import in_another_class
from p2pinfer.node.local_swarm import split_layers
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from peers.asking.session import Requester, Session
from peers.audits.auditor import Auditor
from peers.audits.replay import OpenReplay, by_engine
from peers.receipts.session_evidence import Gatherer
from peers.receipts.signer import ReceiptSigner
from peers.serving.stage import Stage
from transports.identity import Identity
from transports.memory.network import MemoryNetwork

STAGES: Final = 3
ARE_OTHER: Final = (False, True, False)
"""Which of each third's engines are of another numerics class; the last one only audits."""

CONTEXT: Final = 512
TOGETHER: Final = 3
"""Answers at a time."""

SESSIONS: Final = 4 * TOGETHER
"""Each engine may serve and audit all of them."""

TELL_CHECKPOINTS: Final = 100
"""Between two progress messages: minutes on a slow machine."""

TURNS_MAX: Final = 3
PROMPT_TOKENS: Final = 9, 130
ANSWER_TOKENS: Final = 2, 20


@dataclass
class _Third:
    """A third of the layers: the peers that serve it, and the engines that can replay it."""

    hops: list[Hop] = field(default_factory=list)
    engines: dict[PeerId, StageEngine] = field(default_factory=dict)


@dataclass
class _World:
    requester: Requester
    ends: Ends
    bounds: Bounds
    chance: random.Random
    thirds: dict[int, _Third] = field(default_factory=dict)
    """By their first layers."""

    async def answer(self) -> Trust:
        """Answer in a session of one to three turns, and audit all of its stages."""
        route = [self.chance.choice(third.hops) for third in self.thirds.values()]
        session_id = SessionId(self.chance.randbytes(16))
        async with self.requester.open(route, session_id, CONTEXT) as session:
            for _ in range(self.chance.randint(1, TURNS_MAX)):
                await self._turn(session)
            assert session.evidence
            auditor = Auditor(self._find, 1.0, self.bounds)
            return await auditor.examine(session.evidence, len(session.tokens))

    async def _turn(self, session: Session) -> None:
        """Continue, go back a little, or start over."""
        text = await self.ends.tokenize(PROMPT, special=False)
        at = self.chance.randrange(len(text) // 2)
        more = text[at : at + self.chance.randint(*PROMPT_TOKENS)]
        kept = self.chance.choice((0, len(session.tokens) // 2, len(session.tokens)))
        prompt = [*session.tokens[:kept], *more][: CONTEXT // 2]
        count = self.chance.randint(*ANSWER_TOKENS)
        async for _ in session.generate(prompt, Sampling(temperature=0), count):
            pass

    def _find(self, first: int, end: int, besides: PeerId) -> Sequence[OpenReplay]:
        others = [engine for peer, engine in self.thirds[first].engines.items() if peer != besides]
        return [by_engine(engine, end) for engine in self.chance.sample(others, len(others))]


@asynccontextmanager
async def _open_world(model: Path, seed: int) -> AsyncIterator[_World]:
    store = open_store()
    opened = open_whole(name_model(str(model), store, lambda *_: None), store)
    layers = opened.info.layers
    chance = random.Random(seed)  # noqa: S311 -- prompts, and keys of peers on no real network
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pinfer-")))
        ends = await stack.enter_async_context(
            open_ends(*opened.ends(1), layers, sessions=SESSIONS, context=CONTEXT)
        )
        network, me = MemoryNetwork(), Identity(chance.randbytes(32)).peer_id
        transport = await stack.enter_async_context(network.join(me))
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        gatherer = Gatherer(nursery, transport, chance.randbytes)
        requester = Requester(nursery, transport, ends, opened.id, gatherer)
        world = _World(requester, ends, bounds_of(store, opened.id), chance)
        for each in split_layers(1, layers - 1, STAGES):
            third = world.thirds[each.first] = _Third()
            for number, is_other in enumerate(ARE_OTHER):
                path = opened.stage(each.first, each.end)
                if is_other:
                    path = await trio.to_thread.run_sync(in_another_class, path, home)
                engine = await stack.enter_async_context(
                    open_stage(path, each.first, sessions=SESSIONS, context=CONTEXT)
                )
                key = Identity(chance.randbytes(32))
                third.engines[key.peer_id] = engine
                if number + 1 < len(ARE_OTHER):
                    peer = await stack.enter_async_context(network.join(key.peer_id))
                    signer = ReceiptSigner(peer, key.sign)
                    signer.listen()
                    Stage(peer, engine, opened.id, signer).listen()
                    addresses = tuple(peer.addresses)
                    third.hops.append(Hop(key.peer_id, addresses, each.first, each.end))
        yield world


async def honest_bench(
    model: Path, *, checkpoints: int, seed: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench honest`` prints.

    Args:
        model: a GGUF file.
        checkpoints: at least this many are audited.
        seed: of prompts, routes and keys.
        tell: gets progress messages.
    """
    found: list[Trust] = []
    told = 0
    async with _open_world(model, seed) as world:
        classes = [
            len({engine.numerics_class for engine in third.engines.values()})
            for third in world.thirds.values()
        ]

        async def answer_and_audit() -> None:
            found.append(await world.answer())

        while sum(map(_checkpoints, found)) < checkpoints:
            async with trio.open_nursery() as nursery:
                for _ in range(TOGETHER):
                    nursery.start_soon(answer_and_audit)
            if (now := sum(map(_checkpoints, found))) >= told + TELL_CHECKPOINTS:
                told, doubted = now, sum(not trust.held for trust in found)
                tell(f"{now} of {checkpoints} checkpoints audited, {doubted} alarms")
        bounds = world.bounds
    audits = [audit for trust in found for audit in trust.audits]
    verdicts = [audit.verdict for audit in audits]
    alarms = [
        verdict for verdict in verdicts if verdict not in (AuditVerdict.SAME, AuditVerdict.CLOSE)
    ]
    broken = [trust.broken.text for trust in found if trust.broken]
    return {
        "answers": len(found),
        "audits": len(audits),
        "audited_checkpoints": sum(map(_checkpoints, found)),
        "numerics_classes": classes,
        "bounds": {"median": bounds.median, "row": bounds.row},
        "verdicts": {each: verdicts.count(AuditVerdict(each)) for each in sorted(set(verdicts))},
        "receipts_broke": broken,
        "false_alarms": len(alarms) + len(broken),
        "false_alarm_rate_below": None if alarms else round(1 - 0.05 ** (1 / len(audits)), 5),
    }


def _checkpoints(trust: Trust) -> int:
    return -(-trust.positions // CHECKPOINT_POSITIONS) * len(trust.audits)
