"""``p2pinfer learn``: teach a model from lessons of one's own, on this machine."""

import json
import os
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from p2pinfer.cli.options import (
    REACH,
    AsJson,
    Model,
    Network,
    ReachFlags,
    WaysIn,
    option,
)
from p2pinfer.cli.running import run_task
from p2pinfer.cli.sizes import check_range
from p2pinfer.core.errors import UserError
from p2pinfer.core.manifest import NAME_CHARS_MAX
from p2pinfer.core.model_names import readable_name
from p2pinfer.logs import note

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer.core.ids import ModelId
    from p2pinfer.core.manifest import Manifest
    from p2pinfer.engine.store.assemble import PartsModel
    from p2pinfer.engine.store.store import Store
    from p2pinfer.node.learning import LearningProgress, Options, Report
    from p2pinfer.node.lesson_rows import ComputeRows, TextToTokens
    from p2pinfer.node.lessons import Lesson
    from scheduler.owner_idle import MachineUse
    from transports.base import Reach

PLAIN_LINE_S = 10.0
"""Between lines of progress when there is no terminal."""

HELD_OUT_DEFAULT, HELD_OUT_MAX = 0.1, 0.9
HELD_OUT_LESSONS_MIN = 10
"""With as many lessons or more, some are held out unless a person says otherwise."""

RANK_MAX, PASSES_MAX, BATCH_MAX, RATE_MAX = 64, 1000, 256, 0.1


@Parameter(name="*")
@dataclass(frozen=True)
class LessonFlags:
    """How lessons are learned."""

    keep_layers: Annotated[
        int, option("keep-layers", "How many of the last layers learn; they are run here.")
    ] = 4
    rank: Annotated[int, option("rank", "Rank of the adapter.")] = 8
    passes: Annotated[
        int, option("passes", "Over all lessons, at most; it ends when nothing is left to learn.")
    ] = 50
    batch: Annotated[int, option("batch", "Lessons in a step.")] = 4
    rate: Annotated[float, option("rate", "Learning rate of the first steps.")] = 0.006
    held_out: Annotated[
        float | None,
        option(
            "held-out",
            "Share of the lessons that are not learned but only measured. If omitted: 0.1 of ten"
            " lessons or more.",
        ),
    ] = None
    seed: Annotated[int, option("seed", "What the adapter and the order are drawn from.")] = 0
    threads: Annotated[int, option("threads", "Threads, at most one per usable core.")] = 1

    def check(self) -> None:
        """Raise UserError if a value is out of range."""
        from p2pinfer.engine.cores import usable_cores

        check_range("keep-layers", self.keep_layers, 1)
        check_range("rank", self.rank, 1, RANK_MAX)
        check_range("passes", self.passes, 1, PASSES_MAX)
        check_range("batch", self.batch, 1, BATCH_MAX)
        check_range("rate", self.rate, 0, RATE_MAX)
        check_range("threads", self.threads, 1, usable_cores())
        check_range("held-out", self.held_out or 0.0, 0, HELD_OUT_MAX)

    def options(self, lessons: int) -> "Options":
        """Return these flags as Options for a number of lessons."""
        from p2pinfer.engine.training.descent import Course
        from p2pinfer.node.learning import Options

        held_out = self.held_out
        if held_out is None:
            held_out = HELD_OUT_DEFAULT if lessons >= HELD_OUT_LESSONS_MIN else 0.0
        course = Course(self.seed, self.passes, self.batch, self.rate)
        return Options(self.keep_layers, self.rank, course, held_out, self.threads)


LESSONS = LessonFlags()


def learn(
    file: Path,
    /,
    *,
    out: Annotated[str, option("out", "What to call the model that has learned.")],
    model: Model = "default",
    gguf: Annotated[
        Path | None, option("gguf", "Also write the adapter to this file, for llama.cpp.")
    ] = None,
    only_idle: Annotated[
        bool,
        option("only-idle", "Pause while this machine is busy or on its battery.", negative=""),
    ] = False,
    bootstrap: WaysIn = (),
    network: Network = "main",
    as_json: AsJson = False,
    reach: ReachFlags = REACH,
    how: LessonFlags = LESSONS,
) -> None:
    """Teach a model from your own lessons, on this machine.

    The last layers learn an adapter (LoRA); the model itself stays as it is. The model with the
    adapter is then another one here: p2pinfer chat --model NAME, or p2pinfer join --model NAME.

    What the other layers make of the lessons is computed here, or, if a swarm is named by
    --bootstrap, an invitation or --mdns, by its peers, who get the lessons' activations as of any
    prompt. Only the model's ends must then be here. The learning itself never leaves this machine.

    A run that was ended goes on when the same is typed again.

    Parameters
    ----------
    file: Path
        Lessons, one JSON object a line: {"prompt": "…", "answer": "…"}, or {"messages": […]} whose
        last message is the assistant's.
    """
    from p2pinfer.cli.model_argument import name_model
    from p2pinfer.node.lessons import read_lessons
    from p2pinfer.node.model_supply import check_named, open_store

    how.check()
    lessons, data = read_lessons(file)
    check_named(model)
    store = open_store()
    _check_out(store, out, gguf)
    named = reach.ways_in(bootstrap)
    through = (named, reach.of(network, named)) if named or reach.says_where else None
    task = _Task(file, lessons, data, how.options(len(lessons)), out.strip(), gguf, store, through)
    base = name_model(model, store)
    manifest = store.manifest(base)
    if manifest and manifest.base:
        raise UserError(
            f"{readable_name(manifest.name)} has an adapter already: teach the model under it, with"
            f" --model {manifest.base.id[:12]}"
        )
    run_task(lambda: _learn(task, base, only_idle=only_idle, as_json=as_json))


def _check_out(store: "Store", out: str, gguf: Path | None) -> None:
    """Raise UserError if what comes of it cannot be kept under these names."""
    from p2pinfer.node.model_supply import find_child

    if not out.isprintable() or not 1 <= len(out.strip()) <= NAME_CHARS_MAX or out == "default":
        raise UserError(f"--out is a name of 1 to {NAME_CHARS_MAX} characters, not {out!r}")
    if taken := find_child(store, out):
        raise UserError(
            f"there is a model {out} already: choose another --out, or remove it with p2pinfer"
            f" model rm {taken.id[:12]}"
        )
    if gguf and not gguf.absolute().parent.is_dir():
        raise UserError(f"--gguf: there is no directory {gguf.absolute().parent}")


@dataclass(frozen=True)
class _Task:
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


async def _learn(task: _Task, model_id: "ModelId", *, only_idle: bool, as_json: bool) -> None:
    import trio

    from p2pinfer.node import learning
    from p2pinfer.node.lesson_rows import RowsKept, word
    from p2pinfer.node.lessons import hold_out

    options, started_s = task.options, time.monotonic()
    with learning.workplace(model_id, task.data, options) as folder, _shown() as show:
        async with _open_rows(task, model_id) as (model, vocabulary, compute):
            worded = await word(task.lessons, task.file, model, vocabulary)
            needed = learning.needed_bytes(model, worded, options)
            learning.check_memory(model, needed)
            note(
                f"{len(worded)} lessons for the last {options.layers} layers of {model.info.name}:"
                f" {learning.needs_text(needed, worded, model.info.width)}"
            )
            await learning.compute_rows(RowsKept(folder, model.info.width), worded, compute, show)
        held_out = hold_out(task.lessons, options.held_out, options.course.seed)
        async with _leisure(only_idle=only_idle) as may_work:
            report = await learning.teach(folder, model, worded, held_out, options, show, may_work)
        add = partial(learning.add_learned, model, report, options, task.name, task.gguf)
        child = await trio.to_thread.run_sync(add)
        learning.forget(folder)
    _say(child, report, time.monotonic() - started_s, as_json=as_json)


@asynccontextmanager
async def _open_rows(
    task: _Task, model_id: "ModelId"
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
    options = ClientOptions(model_id, ways_in, reach, layers, machine)
    async with (
        doing("Joining the swarm …") as done,
        open_client(options, task.store, done.tell, done.step) as client,
    ):
        done()
        check_trains(client.model, layers)
        yield client.model, client.ends, partial(rows_of_swarm, client)


@asynccontextmanager
async def _leisure(*, only_idle: bool) -> "AsyncIterator[Callable[[], Awaitable[None]]]":
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
def _shown() -> "Iterator[Callable[[LearningProgress], None]]":
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


def _say(child: "Manifest", report: "Report", took_s: float, *, as_json: bool) -> None:
    """Print what came of it."""
    assert child.base
    if as_json:
        said = {name: getattr(report, name) for name in _REPORTED}
        model = {"model": child.id, "name": child.name, "base": child.base.id}
        print(json.dumps({**model, **said, "seconds": round(took_s, 1)}))
        return
    print(child.id)
    steps = f"{report.steps} steps" if report.steps != 1 else "one step"
    if report.resumed_at:
        steps += f", {report.resumed_at} of them before"
    note(f"{readable_name(child.name)}: {report.lessons} lessons, {steps}, {took_s:.0f} s")
    note(f"loss of these lessons {report.loss_before:.3f}, now {report.loss_after:.3f}")
    if report.held_out_before is not None and report.held_out_after is not None:
        held = f"{report.held_out} that were held out"
        note(f"loss of {held} {report.held_out_before:.3f}, now {report.held_out_after:.3f}")
    note(f"to talk to it: p2pinfer demo --model {shlex.quote(child.name)}")


_REPORTED = (
    "lessons",
    "held_out",
    "steps",
    "resumed_at",
    "loss_before",
    "loss_after",
    "held_out_before",
    "held_out_after",
)
