"""No draft changes an answer: llama.cpp's engines, every sampler, and stages that die meanwhile.

Tiny models run in worker processes of their own; the links between them are slow ones in memory.
"""

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise, product
from pathlib import Path

import pytest
import trio
from attrs import evolve

from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.messages import Hop
from p2pinfer.core.sampling import Sampling, sampling_of
from p2pinfer.engine.gguf.slicing import plan_first_end, plan_last_end
from p2pinfer.engine.llama.engine import LocalEnds, LocalStage, open_ends, open_stage
from peers.asking.repair import Neighbours, Repair
from peers.asking.session import Requester
from peers.receipts.session_evidence import Gatherer
from peers.receipts.signer import ReceiptSigner
from peers.serving.stage import Stage
from tests.support.swarm import MODEL, session_id
from tests.support.tiny_models import TINY, quantise, write_tiny
from tests.support.whole import Model, open_model
from transports.identity import Identity
from transports.memory.network import MemoryNetwork

pytestmark = pytest.mark.real

LAYERS = 7
CONTEXT = 256
TOKENS = 32
SESSIONS = 8
LINK_S = 0.003
WAIT_S_MAX = 120.0
"""For one answer, which takes a second."""

CHAINS = {1: (1, 6), 2: (1, 3, 6), 3: (1, 3, 4, 6), 4: (1, 2, 3, 4, 6), 5: (1, 2, 3, 4, 5, 6)}
"""Bounds between stages, by how many there are."""

FEW = tuple((token, 30.0) for token in (40, 50, 60, 70))
"""Almost nothing else is drawn, so that texts repeat themselves, and two models agree at times."""

TEMPERATURES = (0.0, 0.8, 1.5)
PENALTIES: tuple[dict[str, float], ...] = (
    {},
    {"repeat_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.1},
)
PLAIN, TEXT, SMALL = "plain", "text", "model"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Give one tiny model in two quantisations, each of which drafts for the other."""
    folder = tmp_path_factory.mktemp("models")
    full = folder / "tiny-F32.gguf"
    write_tiny(TINY["llama"], full)
    found = {}
    for name in ("Q4_1", "Q4_K_M"):
        quantise(full, folder / f"{name}.gguf", name)
        found[name] = open_model(folder / f"{name}.gguf", folder)
    return found


def halves(model: Model) -> tuple[Path, Path]:
    """Return ends with no layer between them."""
    first, last = plan_first_end(model.header, 3), plan_last_end(model.header, LAYERS - 3)
    return model._written("first-half.gguf", first), model._written("last-half.gguf", last)


@dataclass
class Chain:
    """Stages in worker processes, the peers that serve them now, and three requesters."""

    network: MemoryNetwork
    nursery: trio.Nursery
    engines: list[LocalStage]
    identities: Iterator[Identity]
    hops: list[Hop] = field(default_factory=list)
    leave: list[trio.CancelScope] = field(default_factory=list)
    spares: dict[int, tuple[Hop, trio.CancelScope]] = field(default_factory=dict)
    requesters: dict[str, Requester] = field(default_factory=dict)
    sessions: Iterator[int] = field(default_factory=lambda: count(1))

    async def _serve(
        self, engine: LocalStage, *, task_status: trio.TaskStatus[tuple[Hop, trio.CancelScope]]
    ) -> None:
        identity = next(self.identities)
        with trio.CancelScope() as scope:
            async with self.network.join(identity.peer_id) as transport:
                signer = ReceiptSigner(transport, identity.sign)
                signer.listen()
                Stage(transport, engine, MODEL, signer).listen()
                addresses = tuple(transport.addresses)
                task_status.started(
                    (Hop(identity.peer_id, addresses, engine.first, engine.end), scope)
                )
                await trio.sleep_forever()

    async def add(self, engine: LocalStage) -> tuple[Hop, trio.CancelScope]:
        """Serve an engine by one more peer."""
        found: tuple[Hop, trio.CancelScope] = await self.nursery.start(self._serve, engine)
        return found

    async def kill(self, number: int) -> None:
        """Take a stage's peer away; another one, that has the same layers, is there already."""
        self.hops[number], scope = self.spares.pop(number)
        self.leave[number].cancel()
        self.leave[number] = scope

    def repair(self) -> Repair:
        """Return a repair that finds the peers that serve now."""

        def choose(
            layers: LayerRange, _between: Neighbours, without: Collection[str]
        ) -> Sequence[Hop]:
            found = [
                each for each in self.hops if each.first in layers and each.peer not in without
            ]
            if not found:
                raise LookupError("nobody serves these layers")
            return found

        return Repair(choose, lambda _: None)

    async def ask(
        self, side: str, prompt: list[int], sampling: Sampling, kill_at: int | None = None
    ) -> tuple[list[int], int, int]:
        """Return an answer, and how many drafts were kept and dropped; check its receipts."""
        found: list[int] = []
        opening = self.requesters[side].open(
            list(self.hops), session_id(next(self.sessions)), CONTEXT, self.repair()
        )
        with trio.fail_after(WAIT_S_MAX):
            async with opening as session:
                async with aclosing(session.generate(prompt, sampling, TOKENS)) as tokens:
                    async for token in tokens:
                        found.append(token.id)
                        if len(found) == kill_at:
                            await self.kill(kill_at % len(self.hops))
                assert session.evidence
                assert await session.evidence.settle(len(session.tokens)) is None
                return found, session.drafts.kept, session.drafts.dropped


@asynccontextmanager
async def chain(model: Model, small: Model, stages: int) -> AsyncIterator[Chain]:
    """Run a model's ends and stages, and another one that drafts for it."""
    network = MemoryNetwork(lambda *_: LINK_S)
    async with AsyncExitStack() as stack:

        async def ends(first: Path, last: Path) -> LocalEnds:
            opening = open_ends(first, last, LAYERS, sessions=SESSIONS, context=CONTEXT)
            return await stack.enter_async_context(opening)

        engines = [
            await stack.enter_async_context(
                open_stage(model.stage(a, b), a, sessions=SESSIONS, context=CONTEXT)
            )
            for a, b in pairwise(CHAINS[stages])
        ]
        own, drafting = await ends(*model.ends(1)), await ends(*halves(small))
        me = await stack.enter_async_context(network.join(Identity(bytes(32)).peer_id))
        nursery = await stack.enter_async_context(trio.open_nursery())
        identities = (Identity(number.to_bytes(32, "little")) for number in count(1))
        made = Chain(network, nursery, engines, identities)
        for engine in engines:
            hop, scope = await made.add(engine)
            made.hops.append(hop)
            made.leave.append(scope)
        gatherer = Gatherer(nursery, me, lambda size: bytes(size))
        for side in (PLAIN, TEXT, SMALL):
            made.requesters[side] = Requester(
                nursery,
                me,
                own,
                MODEL,
                gatherer,
                drafts=side != PLAIN,
                draft_model=drafting if side == SMALL else None,
            )
        yield made
        nursery.cancel_scope.cancel()


@dataclass
class Tally:
    """What became of answers and drafts."""

    same: int = 0
    asked: int = 0
    kills: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    other: list[str] = field(default_factory=list)


async def compare(
    made: Chain, prompt: list[int], sampling: Sampling, tally: Tally, *, kills: bool
) -> None:
    """Ask with and without drafts at once; a stage may be killed in the middle of each draft."""
    answers: dict[str, list[int]] = {}

    async def one(side: str, kill_at: int | None = None) -> None:
        answers[side], kept, dropped = await made.ask(side, prompt, sampling, kill_at)
        tally.kept[side] += kept
        tally.dropped[side] += dropped

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, PLAIN)
        if not kills:
            nursery.start_soon(one, TEXT)
            nursery.start_soon(one, SMALL)
    if kills:  # one after the other: each has a stage killed
        for side, kill_at in ((TEXT, 17), (SMALL, 20)):
            number = kill_at % len(made.hops)
            made.spares[number] = await made.add(made.engines[number])
            await one(side, kill_at)
            tally.kills += 1
    for side in (TEXT, SMALL):
        tally.asked += 1
        tally.same += answers[side] == answers[PLAIN]
        if answers[side] != answers[PLAIN]:
            tally.other.append(f"{side} {sampling} {answers[side]} {answers[PLAIN]}")


def prompt_of(seed: int) -> list[int]:
    """Return tokens among which some stand twice."""
    part = [40 + (seed * 7 + at * at) % 31 for at in range(12)]
    return [*part, 3 + seed % 30, *part, *part[: 3 + seed % 7]]


async def matrix(
    models: dict[str, Model],
    quantisations: Sequence[str],
    stages: Sequence[int],
    samplings: Sequence[Sampling],
    seeds: int,
) -> Tally:
    """Compare all answers, a tenth of them with a stage killed."""
    tally, others = Tally(), dict(zip(models, reversed(models), strict=True))
    for name, length in product(quantisations, stages):
        async with chain(models[name], models[others[name]], length) as made:
            for number, (sampling, seed) in enumerate(product(samplings, range(seeds))):
                asked = among_few(sampling, seed)
                kills = number % 10 == 3
                await compare(made, prompt_of(seed), asked, tally, kills=kills)
    return tally


def among_few(sampling: Sampling, seed: int) -> Sampling:
    """Return how to sample, with a seed and among a few tokens."""
    return evolve(sampling, seed=seed, logit_bias=FEW)


SAMPLINGS = [sampling_of({"temperature": t}, p) for t, p in product(TEMPERATURES, PENALTIES)]


async def test_answers_are_the_same_with_drafts(models: dict[str, Model]) -> None:
    """Of two drafters, over two stages, one of which dies in the middle of an answer."""
    tally = await matrix(models, ["Q4_K_M"], [2], SAMPLINGS[2:], 1)
    assert (tally.same, tally.other) == (tally.asked, [])
    assert tally.kills


@pytest.mark.long
async def test_five_hundred_answers_are_the_same_with_drafts(models: dict[str, Model]) -> None:
    """Greedy and hot, with penalties and without, in both quantisations, over 1 to 5 stages."""
    tally = await matrix(models, [*models], [*CHAINS], SAMPLINGS, 5)
    assert (tally.same, tally.other) == (tally.asked, [])
    assert tally.asked >= 500
    assert tally.kills >= 50
    for side in (TEXT, SMALL):
        assert tally.kept[side] > 500
        assert tally.dropped[side] > 500
