"""Members of a learning task over the memory network, whose models are a few numbers."""

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import trio
from attrs import evolve
from numpy.typing import NDArray

from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.learning import LearningTask, SignedBody, digest_of
from peers.learning.board import Board, KnownTasks, id_of, signed_task
from peers.learning.courier import Courier
from peers.learning.group_sums import SumScheme, encrypted_sums
from peers.learning.member import Member
from peers.learning.work import Events, Head, RoundReport
from peers.parts.protocol import in_place
from scheduler.judging import UNIT, Numbers, as_weights
from scheduler.round_table import Phase
from sim.signing import CheapSigner, is_cheaply_signed
from transports.identity import Identity
from transports.memory.network import MemoryNetwork

SIZE = 24
KEYS = [CheapSigner(Identity(bytes([number + 1]) * 32).peer_id) for number in range(16)]

TASK = LearningTask(
    KEYS[0].peer_id,
    "Toy",
    ModelId("ab" * 32),
    layers=1,
    rank=1,
    seed=7,
    rounds=2,
    steps=1,
    rate_millionths=6000,
    members=3,
    least=2,
    group=2,
    clip=1 << 20,
    outer_percent=100,
    join_ms=60_000,
    talk_ms=8_000,
    train_ms=60_000,
    judge_ms=20_000,
)


def task(**changes: Any) -> LearningTask:
    """Make a task of short rounds."""
    return evolve(TASK, **changes)


@dataclass
class ToyWork:
    """Learns to be near a point: the loss is the squared distance."""

    point: NDArray[np.float32]
    gain: float = 0.5
    train_s: float = 0.0
    size: int = SIZE

    async def train(self, head: Numbers, number: int) -> NDArray[np.float32]:
        """Go some of the way."""
        await trio.sleep(self.train_s)
        found: NDArray[np.float32] = (self.point - as_weights(head)) * np.float32(self.gain)
        return found

    async def losses(self, heads: Sequence[Numbers]) -> list[float]:
        """Return the squared distances."""
        await trio.lowlevel.checkpoint()
        return [float(((as_weights(each) - self.point) ** 2).sum()) for each in heads]

    async def child(self, numbers: Numbers, number: int) -> ModelId:
        """Name what comes of it."""
        await trio.lowlevel.checkpoint()
        return ModelId(digest_of(numbers.tobytes()).hex())


def toy_work(number: int, **changes: Any) -> ToyWork:
    """Make the work of one of several members, whose points are near each other."""
    chance = np.random.default_rng(number)
    point = np.linspace(0.1, 0.4, SIZE) + chance.normal(0, 0.02, SIZE)
    return ToyWork(point.astype(np.float32), **changes)


@dataclass
class Learner:
    """One member, and what it saw."""

    peer: PeerId
    board: Board
    member: Member
    phases: list[Phase] = field(default_factory=list)
    reports: list[RoundReport] = field(default_factory=list)
    voids: list[str] = field(default_factory=list)
    convicted: list[PeerId] = field(default_factory=list)
    head: Head | None = None
    failed: Exception | None = None
    kill: Callable[[], None] = lambda: None
    done: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True)
class _At:
    peer: PeerId
    addresses: Sequence[str] = ()


@dataclass
class Learners:
    """Members of one task."""

    network: MemoryNetwork
    nursery: trio.Nursery
    said: SignedBody
    task: LearningTask
    scheme: SumScheme
    members: dict[PeerId, Learner] = field(default_factory=dict)

    async def add(
        self,
        number: int,
        work: Any = None,
        *,
        on_phase: Callable[[Learner, int, Phase], None] | None = None,
        scheme: SumScheme | None = None,
        wrap: Callable[[Any], Any] = lambda transport: transport,
    ) -> Learner:
        """Start a member; ``on_phase`` may kill it."""
        found: Learner = await self.nursery.start(
            partial(self._live, number, work or toy_work(number), on_phase, scheme, wrap)
        )
        return found

    async def _live(
        self,
        number: int,
        work: Any,
        on_phase: Callable[[Learner, int, Phase], None] | None,
        scheme: SumScheme | None,
        wrap: Callable[[Any], Any],
        *,
        task_status: trio.TaskStatus[Learner],
    ) -> None:
        identity, chance = KEYS[number], random.Random(number)
        with trio.CancelScope() as scope:
            async with self.network.join(identity.peer_id) as inner:
                transport = wrap(inner)
                tasks = KnownTasks(is_cheaply_signed)
                tasks.hear(self.said)
                board = Board(identity, self.task, id_of(self.said), is_cheaply_signed)
                courier = Courier(transport, tasks, self._others, chance)
                events = Events(
                    lambda number, phase: phased(number, phase),
                    self._keep(identity.peer_id),
                    lambda _, why: learner.voids.append(why),
                    lambda peer: learner.convicted.append(peer),
                )
                draw = partial(_draw, chance)
                member = Member(
                    transport, board, courier, work, scheme or self.scheme, draw, events, in_place
                )
                learner = Learner(identity.peer_id, board, member, kill=scope.cancel)

                def phased(at: int, phase: Phase) -> None:
                    learner.phases.append(phase)
                    if on_phase:
                        on_phase(learner, at, phase)

                self.members[learner.peer] = learner
                async with courier.open():
                    task_status.started(learner)
                    try:
                        learner.head = await member.run(Head(0, np.zeros(work.size, np.int32)))
                    except Exception as error:  # noqa: BLE001 -- shown by the test
                        learner.failed = error
        learner.done.set()

    def _keep(self, peer: PeerId) -> Callable[[RoundReport, Head], Any]:
        async def keep(report: RoundReport, head: Head) -> None:
            await trio.lowlevel.checkpoint()
            self.members[peer].reports.append(report)

        return keep

    def _others(self) -> list[_At]:
        return [_At(peer) for peer in self.network.peers]

    async def finish(self) -> list[Head]:
        """Wait for all; return where those are that were not killed."""
        for learner in list(self.members.values()):
            await learner.done.wait()
            if learner.failed:
                raise learner.failed
        return [each.head for each in self.members.values() if each.head]


def _draw(chance: random.Random, count: int) -> bytes:
    return chance.randbytes(count)


@asynccontextmanager
async def learners(
    what: LearningTask = TASK, scheme: SumScheme | None = None, latency_s: float = 0.01
) -> AsyncIterator[Learners]:
    """Run members of a task while the block lasts."""
    network = MemoryNetwork(lambda _, __: latency_s)
    said = signed_task(KEYS[0], what)
    async with trio.open_nursery() as nursery:
        yield Learners(network, nursery, said, what, scheme or plain_sums())
        nursery.cancel_scope.cancel()


class PlainSum:
    """A stand-in that hides nothing, and adds in microseconds: for tests of rounds alone."""

    def __init__(self, context: bytes, members: int, threshold: int, me: int, count: int) -> None:
        self.hello, self.public = bytes([me]) * 32, bytes([me]) * 40
        self.me, self.threshold, self.count = me, threshold, count
        self.total: NDArray[np.int64] | None = None

    def meet(self, hellos: Mapping[int, bytes]) -> None:
        """Check nothing."""

    def sealed_for(self, member: int) -> bytes:
        """Name both ends."""
        return bytes([self.me, member]) * 8

    def take(self, member: int, public: bytes, sealed: bytes) -> None:
        """Check that this one is meant."""
        if sealed != bytes([member, self.me]) * 8:
            raise ValueError("sealed to somebody else")

    def close(self, givers: Any) -> None:
        """Check that enough gave keys."""
        assert len(givers) >= self.threshold

    def encrypt(self, numbers: NDArray[np.int64]) -> bytes:
        """Encrypt nothing."""
        return numbers.astype("<i8").tobytes()

    def add(self, ciphertexts: Mapping[int, bytes]) -> bytes:
        """Add."""
        parts = [np.frombuffer(each, "<i8") for each in ciphertexts.values()]
        self.total = np.sum(parts, axis=0)
        return digest_of(self.total.tobytes())

    def share(self, who: Any) -> bytes:
        """Give the sum away."""
        assert self.total is not None
        assert len(set(who)) == self.threshold
        return self.total.tobytes()

    def open(self, shares: Mapping[int, bytes]) -> NDArray[np.int64]:
        """Compare the shares."""
        if len(set(shares.values())) != 1:
            raise ValueError("the shares do not fit")
        return np.frombuffer(next(iter(shares.values())), "<i8").astype(np.int64)


def plain_sums() -> SumScheme:
    """Return the stand-in."""
    return SumScheme(PlainSum, 32, 40, 16, lambda count: 8 * count, lambda count: 8 * count)


def real_sums(seed: int = 1) -> SumScheme:
    """Return the encrypted sums, with secrets from a seed."""
    return encrypted_sums(random.Random(seed).randbytes)


__all__ = ["KEYS", "SIZE", "UNIT", "Learner", "Learners", "learners", "real_sums", "task"]
