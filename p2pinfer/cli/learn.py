"""``p2pinfer learn``: teach a model from lessons of one's own, on this machine."""

import json
import shlex
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from p2pinfer.cli.join import how_to_reach
from p2pinfer.cli.learn_steps import LearnRequest, leisure, open_rows, shown
from p2pinfer.cli.noise import NOISE_CLIP, NoiseClip, check_noise, epsilon_said, promise
from p2pinfer.cli.options import (
    REACH,
    Announce,
    AsJson,
    Identity,
    Listen,
    Model,
    Network,
    ReachFlags,
    Via,
    WaysIn,
    option,
)
from p2pinfer.cli.rounds import ROUNDS, RoundFlags, Together, learn_together, refuse_taken
from p2pinfer.cli.running import run_task
from p2pinfer.cli.sizes import check_range
from p2pinfer.core.errors import UserError
from p2pinfer.core.manifest import NAME_CHARS_MAX
from p2pinfer.core.model_names import readable_name
from p2pinfer.logs import note

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from collections.abc import Sequence

    from p2pinfer.core.ids import ModelId
    from p2pinfer.core.manifest import Manifest
    from p2pinfer.engine.store.store import Store
    from p2pinfer.engine.training.descent import Course
    from p2pinfer.node.learning import Options, Report
    from p2pinfer.node.learning_together import MeetingOptions
    from transports.base import Reach

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
        int,
        option("passes", "Passes over all lessons, at most; fewer if nothing is left to learn."),
    ] = 50
    batch: Annotated[int, option("batch", "Lessons per step.")] = 4
    rate: Annotated[float, option("rate", "Learning rate of the first steps.")] = 0.006
    held_out: Annotated[
        float | None,
        option(
            "held-out",
            "Share of the lessons that are not learned but only measured. If omitted: 0.1 of ten"
            " lessons or more.",
        ),
    ] = None
    seed: Annotated[
        int, option("seed", "Seed of the adapter's first values and of the order of lessons.")
    ] = 0
    threads: Annotated[int, option("threads", "Threads, at most one per usable core.")] = 1
    noise: Annotated[
        float | None,
        option(
            "noise",
            "Hide each lesson in noise, of as many times --noise-clip, in every step (differential"
            " privacy). It takes all passes then, and says what that promises.",
        ),
    ] = None
    noise_clip: NoiseClip = NOISE_CLIP

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
        if self.noise is not None:
            check_noise(self.noise, self.noise_clip)

    def options(self, lessons: int) -> "Options":
        """Return these flags as Options for a number of lessons."""
        from p2pinfer.core.privacy import Noise
        from p2pinfer.engine.training.descent import Course
        from p2pinfer.node.learning import Options

        held_out = self.held_out
        if held_out is None:
            held_out = HELD_OUT_DEFAULT if lessons >= HELD_OUT_LESSONS_MIN else 0.0
        noise = None if self.noise is None else Noise(self.noise_clip, self.noise)
        course = Course(self.seed, self.passes, self.batch, self.rate, noise)
        return Options(self.keep_layers, self.rank, course, held_out, self.threads)


LESSONS = LessonFlags()


def learn(
    file: Annotated[
        Path,
        Parameter(
            help='Lessons, one JSON object a line: {"prompt": "…", "answer": "…"}, or {"messages":'
            " […]} whose last message is the assistant's. Or the word marked: the answers that you"
            " marked."
        ),
    ],
    /,
    *,
    out: Annotated[
        str | None, option("out", "What to call the model that has learned, on this machine alone.")
    ] = None,
    model: Model = "default",
    gguf: Annotated[
        Path | None, option("gguf", "Also write the adapter to this file, for llama.cpp.")
    ] = None,
    only_idle: Annotated[
        bool,
        option("only-idle", "Pause while this machine is busy or on its battery.", negative=""),
    ] = False,
    listen: Listen = (),
    announce: Announce = (),
    bootstrap: WaysIn = (),
    via: Via = 0,
    network: Network = "main",
    identity: Identity = None,
    as_json: AsJson = False,
    reach: ReachFlags = REACH,
    how: LessonFlags = LESSONS,
    rounds: RoundFlags = ROUNDS,
) -> None:
    """Teach a model from a file of lessons, on this machine or together with others."""
    from p2pinfer.node.learning_together import MeetingOptions
    from p2pinfer.node.lessons import read_lessons
    from p2pinfer.node.model_supply import check_named, open_store

    how.check()
    rounds.check()
    lessons, data = read_lessons(_named(file))
    check_named(model)
    store = open_store()
    _check_out(store, out, gguf, rounds)
    named = reach.ways_in(bootstrap)
    through = _through(named, reach.of(network, named), via, rounds, says_where=reach.says_where)
    options, name = how.options(len(lessons)), (out or "").strip()
    task = LearnRequest(file, lessons, data, options, name, gguf, store, through, via)
    base = _base_of(model, store)
    if not rounds.are_asked_for:
        run_task(lambda: _learn(task, base, only_idle=only_idle, as_json=as_json))
        return
    where = reach.of(network, (*listen, *named))
    meeting = MeetingOptions(base, listen, announce, tuple(named), where, identity)
    together = _together(rounds, how, meeting, how_to_reach(network, reach))
    run_task(lambda: learn_together(task, together, only_idle=only_idle, as_json=as_json))


def _through(
    named: "Sequence[str]", way: "Reach", via: int, rounds: RoundFlags, *, says_where: bool
) -> "tuple[Sequence[str], Reach] | None":
    """Return the swarm that computes rows; None: this machine does. Raises UserError."""
    from p2pinfer.node.hidden_way import check_hops

    check_hops(via, way)
    if via and rounds.are_asked_for:
        raise UserError(
            "members of a task are called by the others, which --via rules out: omit one of them"
        )
    return (named, way) if named or via or says_where else None


def _together(
    rounds: RoundFlags, how: LessonFlags, meeting: "MeetingOptions", reached: str
) -> Together:
    return Together(rounds, how.keep_layers, how.rank, how.seed, how.rate, meeting, reached)


def _base_of(model: str, store: "Store") -> "ModelId":
    """Return the model that is to learn; raises UserError."""
    from p2pinfer.cli.model_argument import name_model

    base = name_model(model, store)
    manifest = store.manifest(base)
    if manifest and manifest.base:
        raise UserError(
            f"{readable_name(manifest.name)} has an adapter already: teach the model under it, with"
            f" --model {manifest.base.id[:12]}"
        )
    return base


def _named(file: Path) -> Path:
    """Return the file of lessons that a person names; raises UserError."""
    from p2pinfer.node.marked import NAME, marked_path

    if str(file) != NAME or file.exists():
        return file
    if not marked_path().exists():
        raise UserError("no answer is marked: type /good or /mend TEXT in a chat, or use the page")
    return marked_path()


def _check_out(store: "Store", out: str | None, gguf: Path | None, rounds: RoundFlags) -> None:
    """Raise UserError if what comes of it cannot be kept under these names."""
    if rounds.are_asked_for:
        if out is not None or gguf:
            raise UserError(
                "what is learned together is called as its task: leave out --out and --gguf"
            )
        return
    if out is None:
        raise UserError(
            "name the model that will have learned, with --out NAME; or learn with others, with"
            " --propose NAME or --with NAME"
        )
    if not out.isprintable() or not 1 <= len(out.strip()) <= NAME_CHARS_MAX or out == "default":
        raise UserError(f"--out is a name of 1 to {NAME_CHARS_MAX} characters, not {out!r}")
    refuse_taken(store, out)
    if gguf and not gguf.absolute().parent.is_dir():
        raise UserError(f"--gguf: there is no directory {gguf.absolute().parent}")


async def _learn(
    task: LearnRequest, model_id: "ModelId", *, only_idle: bool, as_json: bool
) -> None:
    import trio

    from p2pinfer.core.privacy import DELTA_DEFAULT
    from p2pinfer.node import learning
    from p2pinfer.node.lesson_rows import RowsKept, word
    from p2pinfer.node.lessons import hold_out

    options, started_s = task.options, time.monotonic()
    with learning.workplace(model_id, task.data, options) as folder, shown() as show:
        async with open_rows(task, model_id) as (model, vocabulary, compute):
            worded = await word(task.lessons, task.file, model, vocabulary)
            needed = learning.needed_bytes(model, worded, options)
            learning.check_memory(model, needed)
            note(
                f"{len(worded)} lessons for the last {options.layers} layers of {model.info.name}:"
                f" {learning.needs_text(needed, worded, model.info.width)}"
            )
            if (epsilon := options.course.epsilon()) is not None:
                note(promise(epsilon, DELTA_DEFAULT))
            await learning.compute_rows(RowsKept(folder, model.info.width), worded, compute, show)
        held_out = hold_out(task.lessons, options.held_out, options.course.seed)
        async with leisure(only_idle=only_idle) as may_work:
            report = await learning.teach(folder, model, worded, held_out, options, show, may_work)
        add = partial(learning.add_learned, model, report, options, task.name, task.gguf)
        child = await trio.to_thread.run_sync(add)
        learning.forget(folder)
    _say(child, report, options.course, time.monotonic() - started_s, as_json=as_json)


def _say(
    child: "Manifest", report: "Report", course: "Course", took_s: float, *, as_json: bool
) -> None:
    """Print what came of it."""
    assert child.base
    if as_json:
        said = {name: getattr(report, name) for name in _REPORTED}
        model = {"model": child.id, "name": child.name, "base": child.base.id}
        if course.noise:
            from p2pinfer.core.privacy import DELTA_DEFAULT

            said |= {"epsilon": epsilon_said(course.epsilon()), "delta": DELTA_DEFAULT}
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
