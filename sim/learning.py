"""Members of a learning task in virtual time: some poison, some die, some are slow.

Everything but the model is what runs on real machines: the rounds, the encrypted sums, the layers
that learn, and the settings of ``p2pinfer learn --propose``. The model is two small layers with
random weights, large enough for all lessons: on a smaller one they are in each other's way, and
what poison costs cannot be told from that. Its lessons are random rows that are to become tokens:
the first ones are alike in all lessons, as the form of an answer is, and the last one is random, as
a fact is. Members judge by other words for their lessons: the rows with noise.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import trio
from numpy.typing import NDArray

from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.learning import LearningTask, SignedBody, digest_of
from p2pinfer.engine.training.descent import (
    Course,
    Example,
    LearningState,
    learn,
    mean_loss,
    rate_share,
)
from p2pinfer.engine.training.network import Network
from p2pinfer.engine.training.weights import MATRICES, Top, TopShape
from peers.learning.board import Board, KnownTasks, id_of, signed_task
from peers.learning.courier import Courier
from peers.learning.group_sums import encrypted_sums
from peers.learning.member import Member
from peers.learning.work import Events, Head, RoundReport
from peers.parts.protocol import in_place
from scheduler.judging import UPDATE_MAX, Numbers, as_weights
from scheduler.round_table import Phase
from sim.clock import call_at, run_virtual
from sim.signing import CheapSigner, is_cheaply_signed
from transports.memory.network import MemoryNetwork

WIDTH, HEADS, FEED_FORWARD, TOKENS, LAYERS = 96, 2, 192, 64, 2
ROWS, ANSWER = 6, 3
"""Positions of a lesson, and how many of them are learned."""

RANK: Final = 8
OTHER_WORDS: Final = np.float32(0.3)
"""How far apart two wordings are, where different lessons are 1.4 apart in each number."""
LATENCY_S: Final = 0.05
STEP_S: Final = 2.0
"""Virtual seconds of a step of learning."""
SLOW_TIMES: Final = 40
"""By how much a slow member is slower: it misses the deadline."""

ATTACKS: Final = ("flip", "scale", "fact", "quiet flip", "quiet scale", "quiet fact")
"""What a poisoner sends: its update turned around, or fiftyfold, or that of a lie; and the same cut
to the length that is permitted, which no sum gives away."""
FLIPPED, SCALED = -5.0, 50.0
"""By what a poisoner multiplies what it learned."""

MEMBERS_MAX, ROUNDS_MAX = 32, 100


@dataclass(frozen=True)
class LearningScenario:
    """What happens to a task."""

    members: int = 6
    rounds: int = 8
    group: int = 3
    steps: int = 10
    rate: float = 0.006
    outer_percent: int = 250
    lessons: int = 2
    """Of each member."""
    poisoners: int = 0
    attack: str = "flip"
    deaths: int = 0
    """Members that vanish, each in a phase that the seed draws."""
    slow: int = 0
    seed: int = 1

    def task(self) -> LearningTask:
        """Return the task."""
        numbers = Network(_top(self.seed), RANK, self.seed).trained.size
        longest = self.rate * (self.steps + 1) / 2 * numbers**0.5 * 2**16
        return LearningTask(
            PeerId("1" * 52),
            "sim",
            ModelId("ab" * 32),
            LAYERS,
            RANK,
            self.seed,
            self.rounds,
            self.steps,
            round(self.rate * 1e6),
            self.members,
            max(2, self.group),
            self.group,
            round(longest),
            self.outer_percent,
            join_ms=60_000,
            talk_ms=8_000,
            train_ms=60_000,
            judge_ms=20_000,
        )


def _top(seed: int) -> Top:
    """Make two layers and a head with random weights."""
    chance = np.random.default_rng(seed)

    def matrix(outputs: int, inputs: int) -> NDArray[np.float32]:
        drawn = chance.standard_normal((outputs, inputs)) / inputs**0.5
        found: NDArray[np.float32] = drawn.astype(np.float32)
        return found

    sizes = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (WIDTH, WIDTH),
        "attn_v": (WIDTH, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (FEED_FORWARD, WIDTH),
        "ffn_up": (FEED_FORWARD, WIDTH),
        "ffn_down": (WIDTH, FEED_FORWARD),
    }
    norm = np.ones(WIDTH, np.float32)
    layers = tuple(
        {name: matrix(*sizes[name.removesuffix(".weight")]) for name in MATRICES}
        | {"attn_norm.weight": norm, "ffn_norm.weight": norm}
        for _ in range(LAYERS)
    )
    head_width = WIDTH // HEADS
    frequencies = 10_000.0 ** (-np.arange(0, head_width, 2) / head_width)
    shape = TopShape(0, WIDTH, HEADS, HEADS, head_width, 1e-5, halves=True, frequencies=frequencies)
    return Top(shape, layers, norm, matrix(TOKENS, WIDTH))


def lessons(seed: int, member: int, count: int) -> list[tuple[Example, Example]]:
    """Draw a member's lessons, and each one in other words."""
    form = np.random.default_rng([seed, 2]).integers(0, TOKENS, ANSWER - 1)
    chance = np.random.default_rng([seed, 3, member])

    def lesson() -> tuple[Example, Example]:
        rows = chance.standard_normal((ROWS, WIDTH)).astype(np.float32)
        noise = chance.standard_normal(rows.shape).astype(np.float32) * OTHER_WORDS
        tokens = np.append(form, chance.integers(0, TOKENS)).astype(np.int32)
        start = ROWS - ANSWER
        return Example(lambda: rows, start, tokens), Example(lambda: rows + noise, start, tokens)

    return [lesson() for _ in range(count)]


class SimWork:
    """Learns its lessons with the layers that real members learn with."""

    def __init__(
        self,
        network: Network,
        task: LearningTask,
        own: Sequence[Example],
        judged: Sequence[Example],
    ) -> None:
        self.network, self._task, self._own, self._judged = network, task, own, judged
        self.size = network.trained.size
        zero = np.zeros(self.size, np.float32)
        self._first_loss = mean_loss(network, zero, own)
        self.step_s = STEP_S

    async def train(self, head: Numbers, number: int) -> NDArray[np.float32]:
        """Take a round's steps."""
        await trio.sleep(self.step_s * self._task.steps)
        state, start = LearningState.new(self.size), as_weights(head)
        state.numbers[:] = start
        left = mean_loss(self.network, start, self._own) / self._first_loss
        share = rate_share(number, self._task.rounds, left)
        rate = share * self._task.rate_millionths / 1e6
        course = Course(number, self._task.steps, len(self._own), rate)
        for _ in learn(self.network, state, self._own, course):
            pass
        return self.changed(state.numbers - start)

    def changed(self, update: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what is sent instead of what was learned: an honest member's is the same."""
        return update

    async def losses(self, heads: Sequence[Numbers]) -> list[float]:
        """Return the loss of its lessons with each of some numbers."""
        await trio.lowlevel.checkpoint()
        return [mean_loss(self.network, as_weights(head), self._judged) for head in heads]

    async def child(self, numbers: Numbers, number: int) -> ModelId:
        """Name what comes of a round."""
        await trio.lowlevel.checkpoint()
        return ModelId(digest_of(b"%d " % number + numbers.tobytes()).hex())


class PoisonWork(SimWork):
    """Multiplies what it learned, and is pleased with whatever comes of it."""

    def __init__(self, *args: Any, factor: float) -> None:
        super().__init__(*args)
        self._factor = np.float32(factor)

    def changed(self, update: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return something else."""
        return update * self._factor

    async def losses(self, heads: Sequence[Numbers]) -> list[float]:
        """Lie: everything is better than before, by far."""
        await trio.lowlevel.checkpoint()
        return [1.0] + [0.0] * (len(heads) - 1)


class Poisoner(Member):
    """A member that heeds no limit but the sums' own."""

    is_quiet = False

    def limited(self, change: NDArray[np.float32]) -> Numbers:
        """Return all of it."""
        if self.is_quiet:
            return super().limited(change)
        units = np.clip(change.astype(np.float64) * 2**16, -UPDATE_MAX, UPDATE_MAX)
        return units.astype(np.int32)


@dataclass
class LearningRun:
    """What came of a task."""

    heads: list[Head] = field(default_factory=list)
    reports: list[RoundReport] = field(default_factory=list)
    """Of the first honest member that lived to the end."""
    voids: int = 0
    died: int = 0
    failed: list[str] = field(default_factory=list)
    loss_before: float = 0.0
    loss_after: float = 0.0
    """Of what honest members teach."""
    seconds: float = 0.0
    """Of virtual time."""

    @property
    def children(self) -> set[ModelId | None]:
        """The children that honest members ended with."""
        return {head.child for head in self.heads}


@dataclass(frozen=True)
class _At:
    peer: PeerId
    addresses: Sequence[str] = ()


class _World:
    def __init__(self, scenario: LearningScenario) -> None:
        self.scenario, self.run = scenario, LearningRun()
        self.chance = random.Random(f"{scenario.seed} {scenario.members}")  # noqa: S311 -- repeatable
        self.network = MemoryNetwork(lambda _, __: LATENCY_S)
        self.draft = scenario.task()
        self.signer = CheapSigner(_name(0))
        self.said: SignedBody = signed_task(self.signer, self.draft)
        top = _top(scenario.seed)
        self.layers = Network(top, RANK, scenario.seed)
        self.lessons = [
            lessons(scenario.seed, member, scenario.lessons) for member in range(scenario.members)
        ]
        honest = range(scenario.members - scenario.poisoners)
        self.honest = [lesson for at in honest for lesson, _ in self.lessons[at]]
        victims = self.chance.sample(list(honest), scenario.deaths)
        phases = [each for each in Phase if each not in (Phase.WATCH, Phase.RESULTS)]
        self.deaths = {
            victim: (self.chance.randint(1, scenario.rounds), self.chance.choice(phases))
            for victim in victims
        }
        others = [at for at in honest if at not in victims]
        self.slow = set(self.chance.sample(others, scenario.slow))

    def work(self, number: int) -> SimWork:
        scenario = self.scenario
        own = [learned for learned, _ in self.lessons[number]]
        judged = [other for _, other in self.lessons[number]]
        if number < scenario.members - scenario.poisoners:
            work = SimWork(self.layers, self.draft, own, judged)
            work.step_s *= SLOW_TIMES if number in self.slow else 1
            return work
        if scenario.attack.endswith("fact"):  # a lie about what another member teaches
            told, _ = self.lessons[0][0]
            tokens = np.append(told.tokens[:-1], (told.tokens[-1] + 1) % TOKENS)
            lie = Example(told.rows, told.start, tokens.astype(np.int32))
            return PoisonWork(self.layers, self.draft, [lie], judged, factor=SCALED)
        factor = FLIPPED if scenario.attack.endswith("flip") else SCALED
        return PoisonWork(self.layers, self.draft, own, judged, factor=factor)

    async def live(self, number: int) -> None:
        scenario, run = self.scenario, self.run
        name, chance = _name(number), random.Random(f"{scenario.seed} member {number}")  # noqa: S311
        # Of their own: sealing draws from the system, which changes what else is drawn when
        nonces = random.Random(f"{scenario.seed} nonces of {number}")  # noqa: S311
        is_honest = number < scenario.members - scenario.poisoners
        reports: list[RoundReport] = []
        with trio.CancelScope() as scope:
            async with self.network.join(name) as transport:
                tasks = KnownTasks(is_cheaply_signed)
                tasks.hear(self.said)
                board = Board(CheapSigner(name), self.draft, id_of(self.said), is_cheaply_signed)
                courier = Courier(transport, tasks, self._others, chance)

                def on_phase(at: int, phase: Phase) -> None:
                    if self.deaths.get(number) == (at, phase):
                        run.died += 1
                        scope.cancel()

                async def on_round(report: RoundReport, _: Head) -> None:
                    await trio.lowlevel.checkpoint()
                    reports.append(report)

                events = Events(on_phase, on_round, self._void)
                kind = Member if is_honest else Poisoner
                member = kind(
                    transport,
                    board,
                    courier,
                    self.work(number),
                    encrypted_sums(chance.randbytes),
                    nonces.randbytes,
                    events,
                    in_place,
                )
                if isinstance(member, Poisoner):
                    member.is_quiet = scenario.attack.startswith("quiet")
                async with courier.open():
                    try:
                        size = self.layers.trained.size
                        head = await member.run(Head(0, np.zeros(size, np.int32)))
                    except P2pinferError as error:
                        run.failed.append(str(error))
                        return
                    if is_honest:
                        run.heads.append(head)
                        run.reports = run.reports or reports

    def _void(self, number: int, why: str) -> None:  # noqa: ARG002 -- counted only
        self.run.voids += 1

    def _others(self) -> list[_At]:
        return [_At(peer) for peer in self.network.peers]


def _name(number: int) -> PeerId:
    return PeerId(f"12D3KooW{number:044}")


async def _live(world: _World, on_done: Callable[[], None]) -> None:
    async with trio.open_nursery() as nursery:

        async def one(number: int) -> None:
            await world.live(number)
            on_done()

        for number in range(world.scenario.members):
            nursery.start_soon(one, number)
    world.run.seconds = trio.current_time()


def run_learning(
    scenario: LearningScenario, on_done: Callable[[], None] = lambda: None
) -> LearningRun:
    """Run a task in virtual time; the same scenario gives the same child.

    Args:
        scenario: what happens.
        on_done: called as each member ends.
    """
    world = _World(scenario)
    world.network.call_at = call_at
    run_virtual(partial(_live, world, on_done), scenario.seed)
    run, size = world.run, world.layers.trained.size
    zero = np.zeros(size, np.float32)
    run.loss_before = mean_loss(world.layers, zero, world.honest)
    if run.heads:
        numbers = as_weights(run.heads[0].numbers)
        run.loss_after = mean_loss(world.layers, numbers, world.honest)
    return run
