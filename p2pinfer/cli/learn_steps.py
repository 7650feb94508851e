"""What ``p2pinfer learn`` does at home and with others alike: rows of lessons, pauses, progress."""

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pinfer.logs import note

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer.core.ids import ModelId
    from p2pinfer.engine.store.assemble import PartsModel
    from p2pinfer.engine.store.store import Store
    from p2pinfer.node.learning import LearningProgress, Options
    from p2pinfer.node.lesson_rows import ComputeRows, TextToTokens
    from p2pinfer.node.lessons import Lesson
    from scheduler.owner_idle import MachineUse
    from transports.base import Reach

PLAIN_LINE_S = 10.0
"""Between lines of progress when there is no terminal."""


@dataclass(frozen=True)
class LearnRequest:
    """What a person has asked for."""

    file: Path
    lessons: "Sequence[Lesson]"
    data: bytes
    """The file's."""
    options: "Options"
    name: str
    gguf: Path | None
    store: "Store"
    through: "tuple[Sequence[str], Reach] | None"
    """The swarm that computes the rows, by its ways in; None: this machine."""
    via: int = 0
    """How many relays the swarm is asked through."""


@asynccontextmanager
async def open_rows(
    task: LearnRequest, model_id: "ModelId"
) -> "AsyncIterator[tuple[PartsModel, TextToTokens, ComputeRows]]":
    """Open what computes rows, here or in a swarm; raises UserError if the model cannot learn."""
    from p2pinfer.engine.training.weights import check_trains
    from p2pinfer.node.lesson_rows import LESSON_TOKENS_MAX, rows_here, rows_of_swarm
    from p2pinfer.node.model_supply import open_whole
    from p2pinfer.node.requester import ClientOptions, Machine, open_client

    layers = task.options.layers
    if task.through is None:
        model = open_whole(model_id, task.store)
        check_trains(model, layers)
        async with rows_here(model, layers) as (ends, compute):
            yield model, ends, compute
        return
    from p2pinfer.cli.terminal import doing

    ways_in, reach = task.through
    machine = Machine(sessions=1, context=LESSON_TOKENS_MAX)
    options = ClientOptions(model_id, ways_in, reach, layers, machine, via=task.via)
    async with (
        doing("Joining the swarm …") as done,
        open_client(options, task.store, done.tell, done.step) as client,
    ):
        done()
        check_trains(client.model, layers)
        yield client.model, client.ends, partial(rows_of_swarm, client)


@asynccontextmanager
async def leisure(*, only_idle: bool) -> "AsyncIterator[Callable[[], Awaitable[None]]]":
    """Give what waits until this machine may work."""
    import trio

    from p2pinfer.node.idle_monitor import ActivityMeter, WhenIdle, heed_owner
    from p2pinfer.node.status_socket import running_pids

    idle = WhenIdle(lambda why: note(f"paused: {why}" if why else "going on"))
    if not only_idle:
        yield idle.wait
        return
    meter = ActivityMeter(lambda: [*running_pids(), os.getpid()])

    async def look() -> "MachineUse":
        return await trio.to_thread.run_sync(meter.look)

    async with trio.open_nursery() as nursery:
        await nursery.start(heed_owner, idle.rest, look)
        yield idle.wait
        nursery.cancel_scope.cancel()


@contextmanager
def shown() -> "Iterator[Callable[[LearningProgress], None]]":
    """Show progress: a bar on a terminal, elsewhere an occasional line."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain()
        return
    loss = TextColumn("{task.fields[loss]}")
    words = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bars = Bars(*words, loss, TimeRemainingColumn(), console=console, transient=True)
    tasks: dict[str, Any] = {}

    def show(progress: "LearningProgress") -> None:
        bars.start()
        if progress.what not in tasks:
            tasks[progress.what] = bars.add_task(progress.what, total=progress.total, loss="")
        loss = "" if progress.loss is None else f"loss {progress.loss:.3f}"
        bars.update(tasks[progress.what], completed=progress.done, loss=loss)

    try:
        yield show
    finally:
        bars.stop()


def _plain() -> "Callable[[LearningProgress], None]":
    said_s = time.monotonic()
    begun: dict[str, tuple[int, float]] = {}

    def show(progress: "LearningProgress") -> None:
        nonlocal said_s
        now_s = time.monotonic()
        first, began_s = begun.setdefault(progress.what, (progress.done, now_s))
        if now_s - said_s < PLAIN_LINE_S or progress.done == first:
            return
        said_s = now_s
        left_s = (now_s - began_s) / (progress.done - first) * (progress.total - progress.done)
        loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
        note(f"{progress.what}: {progress.done} of {progress.total}{loss}, {left_s:.0f} s left")

    return show
