"""A real member of a learning task: its place in a swarm, its lessons, and what it keeps.

data/learning/tasks/TASK.npz    where the model stood after the last round, to go on from
data/lineage/CHILD.json         how a child came to be; see `p2pinfer.node.lineage`
"""

import json
import logging
import os
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from math import ceil, sqrt
from pathlib import Path
from typing import Any, Final

import numpy as np
import trio
from attrs import evolve
from blake3 import blake3
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.learning import LearningTask, TaskId
from p2pinfer.core.manifest import NAME_CHARS_MAX, Manifest
from p2pinfer.core.privacy import DELTA_DEFAULT, Noise, epsilon
from p2pinfer.engine.gguf.model_header import split_layer
from p2pinfer.engine.store.adapters import child_manifest, keep_adapter
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.engine.store.store import Store
from p2pinfer.engine.training.descent import (
    LEARNED_LOSS,
    Course,
    Example,
    LearningState,
    learn,
    rate_share,
)
from p2pinfer.engine.training.network import Network
from p2pinfer.engine.training.weights import MATRICES, read_top
from p2pinfer.node.bystander import open_bystander
from p2pinfer.node.keeping import advertisement_without_layers
from p2pinfer.node.learning import adapter_matrices, mean_losses
from p2pinfer.node.lineage import keep_lineage
from p2pinfer.node.swarm_connection import SwarmConnection
from p2pinfer.places import data_dir
from peers.discovery.relay_candidates import relay_candidates
from peers.learning.board import Board, KnownTasks, id_of, signed_task
from peers.learning.courier import Courier, find_tasks
from peers.learning.group_sums import encrypted_sums
from peers.learning.member import Member
from peers.learning.work import Events, Head, RoundReport
from peers.parts.server import PartsServer
from scheduler.judging import UNIT, Numbers, as_weights
from scheduler.round_table import Phase
from transports.base import Reach
from transports.identity import verify

_log: Final = logging.getLogger("p2pinfer.learning")

FIND_S_MAX: Final = 60.0
"""For a task that is named to be heard of."""

FIND_AGAIN_S: Final = 1.0
"""Between two times that all peers are asked for tasks."""

NAME_MAX: Final = NAME_CHARS_MAX - 8
"""Characters of a task's name: a child's has the number of its round, too."""

BATCH: Final = 4
"""Lessons in a step."""

LOOKED_AT_MAX: Final = 32
"""Lessons by which a member tells what it has left to learn: about as many as a round takes."""


@dataclass(frozen=True)
class MeetingOptions:
    """Where a member of a task is to be found, and how it finds others."""

    base: ModelId
    listen: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    network: Reach = field(default_factory=Reach)
    identity: Path | None = None


@dataclass(frozen=True)
class Meeting:
    """A swarm, as a member of a task is in it."""

    swarm: SwarmConnection
    tasks: KnownTasks
    courier: Courier

    @property
    def peer(self) -> PeerId:
        """This member."""
        return self.swarm.transport.peer_id

    def propose(self, task: LearningTask) -> tuple[TaskId, LearningTask]:
        """Sign a task, tell others of it, and return it with its id."""
        said = signed_task(self.swarm.identity, evolve(task, proposer=self.peer))
        self.tasks.hear(said)
        self.courier.tell_task(said)
        found, _ = self.tasks.known[id_of(said)]
        return id_of(said), found

    async def find(self, name: str, base: ModelId) -> tuple[TaskId, LearningTask]:
        """Wait for a task of a name, or whose id begins so.

        Raises:
            UserError: there is none, several, or it teaches another model.
        """
        with trio.move_on_after(FIND_S_MAX):
            while not find_tasks(self.tasks, name):
                await self.courier.ask_tasks()
                await trio.sleep(FIND_AGAIN_S)
        found = find_tasks(self.tasks, name)
        if not found:
            others = ", ".join(sorted({task.name for task, _ in self.tasks.known.values()}))
            heard = f"those heard of are {others}" if others else "none was heard of"
            raise UserError(f"nobody here proposes the task {name}: {heard}")
        if len(found) > 1:
            ids = ", ".join(each[:12] for each, _ in found)
            raise UserError(f"several tasks are called {name}: name one by its id, of {ids}")
        task_id = found[0][0]
        task, _ = self.tasks.known[task_id]
        if task.base != base:
            raise UserError(
                f"the task {task.name} teaches another model: name it, with --model {task.base}"
            )
        return task_id, task


@asynccontextmanager
async def open_meeting(
    options: MeetingOptions, store: Store, manifest: Manifest, say: Callable[[str], None]
) -> AsyncIterator[Meeting]:
    """Be in a swarm, where others can ask for tasks, while the block lasts.

    Raises:
        UserError: an option cannot be used; the sentence says what to do.
    """
    async with AsyncExitStack() as stack:
        swarm = await stack.enter_async_context(open_bystander(options, say))
        transport, directory = swarm.transport, swarm.directory
        directory.listen()
        directory.follow(options.base)
        me = transport.peer_id
        find = partial(relay_candidates, directory, me, options.base, transport.round_trip_s)
        transport.seek_relays(find)
        PartsServer(transport, store).listen()

        def others() -> Iterable[Advertisement]:
            return directory.holding(options.base)

        tasks = KnownTasks(verify)
        courier = Courier(transport, tasks, others, swarm.chance)
        await stack.enter_async_context(courier.open())
        if not swarm.bootstrap or await directory.enter(swarm.bootstrap):
            await swarm.find_anybody()
        swarm.stay_in_touch()
        directory.advertise(advertisement_without_layers(tuple(transport.addresses), me, manifest))
        try:
            yield Meeting(swarm, tasks, courier)
        finally:
            directory.leave()


class LessonWork:
    """What a member computes: it learns its lessons, and judges by those that it holds out.

    Args:
        model: what learns.
        task: what is to be learned.
        learned: lessons.
        judged: those that it judges by.
        may_work: waits before each step as long as the machine is needed otherwise.
        noise: what hides each lesson that is learned, if anything.
        secret: ``SECRET_BYTES`` random ones that nobody else knows, if there is noise.
        tell: called with the steps taken, and how many there are.
    """

    def __init__(
        self,
        model: PartsModel,
        task: LearningTask,
        learned: Sequence[Example],
        judged: Sequence[Example],
        may_work: Callable[[], Awaitable[None]],
        noise: Noise | None = None,
        secret: bytes = b"",
        tell: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        self._model, self._task = model, task
        self._learned, self._judged = learned, judged
        self._may_work, self._noise, self._tell = may_work, noise, tell
        self._secret = secret
        self.network = Network(read_top(model, task.layers), task.rank, task.seed)
        self.size = self.network.trained.size
        self._first_loss: float | None = None

    async def train(self, head: Numbers, number: int) -> NDArray[np.float32]:
        """Take a round's steps from where the model stands; see ``rate_share``."""
        state, start = LearningState.new(self.size), as_weights(head)
        state.numbers[:] = start
        count = len(self._learned)
        batch = min(BATCH, count)
        share = rate_share(number, self._task.rounds, await self._left(head, number))
        rate = share * self._task.rate_millionths / 1e6
        course = Course(number, self._passes(), batch, rate, self._noise)
        # A round that begins again has the noise that it had: two would show more.
        secret = blake3(str(number).encode(), key=self._secret).digest() if self._noise else b""
        steps = learn(self.network, state, self._learned, course, secret)
        while state.step < self._task.steps:
            await self._may_work()
            if await trio.to_thread.run_sync(next, steps, None) is None:
                break
            self._tell(state.step, self._task.steps)
        return state.numbers - start

    def epsilon(self) -> float | None:
        """Return what noise promises for each lesson over all rounds, or None without noise."""
        passes = self._task.rounds * self._passes()
        return epsilon(DELTA_DEFAULT, self._noise.multiplier, passes) if self._noise else None

    async def _left(self, head: Numbers, number: int) -> float:
        """Return which part of the first loss is left, or 0 if the rate must not depend on it."""
        if number == 1 or self._noise:  # steps of its size would tell of the lessons
            return 0.0
        some = self._learned[:LOOKED_AT_MAX]
        if self._first_loss is None:
            self._first_loss = await self._loss(np.zeros_like(head), some)
        return await self._loss(head, some) / max(self._first_loss, LEARNED_LOSS)

    def _passes(self) -> int:
        """Return in how many steps of a round a lesson is at most."""
        count = len(self._learned)
        return -(-self._task.steps // -(-count // min(BATCH, count)))

    async def losses(self, heads: Sequence[Numbers]) -> list[float]:
        """Return the mean loss of the lessons that are judged by, with each of some numbers."""
        return [await self._loss(head, self._judged) for head in heads]

    async def own_loss(self, head: Numbers) -> float:
        """Return the mean loss of the lessons that are learned."""
        return await self._loss(head, self._learned)

    async def _loss(self, head: Numbers, examples: Sequence[Example]) -> float:
        return await mean_losses(self.network, self._may_work, as_weights(head), examples)

    async def child(self, numbers: Numbers, number: int) -> ModelId:
        """Return the id of the model that comes of a round."""
        make = partial(self._manifest, numbers, number)
        return (await trio.to_thread.run_sync(make)).id

    def _manifest(self, numbers: Numbers, number: int) -> Manifest:
        base, matrices = self._model.manifest, self._matrices(numbers)
        name = child_name(self._task, number)
        return child_manifest(base, matrices, float(self._task.rank), name, base.license)

    def keep(self, head: Head) -> Manifest:
        """Keep the model that came of a round; raises UserError if it does not fit."""
        base, matrices = self._model.manifest, self._matrices(head.numbers)
        name = child_name(self._task, head.round)
        alpha = float(self._task.rank)
        return keep_adapter(self._model.store, base, matrices, alpha, name, base.license)

    def _matrices(self, numbers: Numbers) -> Any:
        return adapter_matrices(self.network, as_weights(numbers))


def trained_numbers(manifest: Manifest, layers: int, rank: int) -> int:
    """Return how many numbers the trained half of an adapter of the last layers has."""
    first = manifest.layers - layers
    places = ((row, split_layer(row.name)) for row in manifest.tensors)
    return sum(
        row.shape[1] * rank
        for row, place in places
        if place and place[0] >= first and place[1] in MATRICES
    )


def longest_update(numbers: int, steps: int, rate: float) -> int:
    """Return the norm of an update whose numbers all move as far as Adam moves any, in units.

    No honest update is longer, and a poisoned one is cut to it.
    """
    return ceil(rate * (steps + 1) / 2 * sqrt(numbers) / UNIT)


def child_name(task: LearningTask, number: int) -> str:
    """Return what the child of a round is called."""
    return task.name if number >= task.rounds else f"{task.name} {number}"


async def take_part(
    meeting: Meeting,
    task_id: TaskId,
    task: LearningTask,
    work: LessonWork,
    on_round: Callable[[RoundReport], None],
    on_phase: Callable[[int, Phase], None],
    threads: int = 1,
) -> Head:
    """Take part in a task until it is over; raises ``peers.learning.work.Broken``."""
    board = Board(meeting.swarm.identity, task, task_id, verify)

    async def ended(report: RoundReport, head: Head) -> None:
        _keep_head(task_id, head)
        keep_lineage(task_id, task, report)
        on_round(report)
        await trio.lowlevel.checkpoint()

    def void(number: int, why: str) -> None:
        _log.warning("round %d begins again: %s", number, why)

    def convicted(peer: PeerId) -> None:
        _log.warning("%s said two things in one place, and is left out from now on", peer)
        meeting.swarm.directory.shut_out(peer)

    events = Events(on_phase, ended, void, convicted)
    member = Member(
        meeting.swarm.transport,
        board,
        meeting.courier,
        work,
        encrypted_sums(os.urandom),
        os.urandom,
        events,
    )
    with threadpool_limits(threads, user_api="blas"):
        return await member.run(kept_head(task_id, work.size))


# --- what is kept


def _tasks_dir() -> Path:
    return data_dir() / "learning" / "tasks"


def _keep_head(task: TaskId, head: Head) -> None:
    """Write where the model stands; the file is there whole or not at all."""
    _tasks_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
    said = json.dumps(
        [head.round, head.child, head.members, head.drawn, dict(head.waited)]
    ).encode()
    draft = _tasks_dir() / f".{task}.new.npz"
    np.savez(draft, numbers=head.numbers, said=np.frombuffer(said, np.uint8))
    draft.replace(_tasks_dir() / f"{task}.npz")


def kept_head(task: TaskId, size: int) -> Head:
    """Return where this machine last saw a task's model, or its beginning."""
    try:
        # Opened here: NumPy leaves a file open that is no archive
        with (_tasks_dir() / f"{task}.npz").open("rb") as file, np.load(file) as kept:
            said: list[Any] = json.loads(bytes(kept["said"]))
            # Earlier releases did not keep who was drawn, or who was left out
            later: list[Any] = [(), {}]
            number, child, members, drawn, waits = said + later[len(said) - 3 :]
            waited = {PeerId(each): int(rounds) for each, rounds in waits.items()}
            numbers = kept["numbers"].astype(np.int32)
    except (OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile):
        return Head(0, np.zeros(size, np.int32))
    return Head(number, numbers, child, tuple(members), tuple(drawn), waited)
