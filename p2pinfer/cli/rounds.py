"""``p2pinfer learn --propose`` and ``--with``: a model is taught by several members together."""

import json
import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING, Annotated

from blake3 import blake3
from cyclopts import Group, Parameter

from p2pinfer.cli.learn_steps import LearnRequest, leisure, open_rows, shown
from p2pinfer.cli.noise import promise
from p2pinfer.cli.options import option
from p2pinfer.cli.sizes import check_range
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.learning import (
    CLIP_MAX,
    GROUP_MIN,
    MEMBERS_MAX,
    RANK_MAX,
    ROUNDS_MAX,
    SEED_MAX,
    LearningTask,
    TaskId,
)
from p2pinfer.core.model_names import readable_name
from p2pinfer.logs import note

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer.core.manifest import Manifest
    from p2pinfer.engine.store.store import Store
    from p2pinfer.node.learning_together import LessonWork, Meeting, MeetingOptions
    from peers.learning.work import Head, RoundReport
    from scheduler.round_table import Phase

STEPS_MAX = 1000
WAIT_S_MAX = 24 * 3600.0


@Parameter(name="*", group=Group("Learning together", sort_key=10))
@dataclass(frozen=True)
class RoundFlags:
    """How several learn together; who proposes a task decides."""

    propose: Annotated[
        str | None,
        option("propose", "Propose a task of this name, and take part in it."),
    ] = None
    together: Annotated[
        str | None,
        option("with", "Take part in the task with this name, or with an id that begins so."),
    ] = None
    rounds: Annotated[int, option("rounds", "Rounds of the proposed task.")] = 8
    steps: Annotated[int, option("steps", "Steps that each member takes in a round.")] = 10
    members: Annotated[
        int, option("members", "Members that the first round waits for, until its deadline.")
    ] = 3
    least: Annotated[int, option("members-min", "Fewest members for a round.")] = 3
    group: Annotated[
        int,
        option(
            "group",
            "Members whose updates are added before anybody sees them; with --with, the fewest that"
            " this machine takes part in. Larger groups hide more, smaller ones let more of a"
            " poisoned round be refused; in a group of two each sees what the other learned.",
        ),
    ] = 3
    clip: Annotated[
        int | None,
        option(
            "clip",
            "The longest update, in units of 2^-16. If omitted: as far as the steps can move.",
        ),
    ] = None
    outer: Annotated[
        int, option("outer", "How far the model moves along the mean of updates, in percent.")
    ] = 250
    join_s: Annotated[
        float, option("join-s", "Seconds that the first round waits for members.")
    ] = 600.0
    talk_s: Annotated[
        float, option("talk-s", "Seconds for each phase in which little is computed.")
    ] = 30.0
    train_s: Annotated[float, option("train-s", "Seconds for the steps of a round.")] = 600.0
    judge_s: Annotated[float, option("judge-s", "Seconds for judging the sums.")] = 120.0

    @property
    def are_asked_for(self) -> bool:
        """Whether others are to learn, too."""
        return self.propose is not None or self.together is not None

    def check(self) -> None:
        """Raise UserError if a value is out of range."""
        from p2pinfer.node.learning_together import NAME_MAX

        name = self.propose
        if name is not None and self.together is not None:
            raise UserError("--propose and --with are two ways to learn together: take one")
        if name is not None and not (name.isprintable() and 1 <= len(name.strip()) <= NAME_MAX):
            raise UserError(f"--propose is a name of 1 to {NAME_MAX} characters, not {name!r}")
        check_range("rounds", self.rounds, 1, ROUNDS_MAX)
        check_range("steps", self.steps, 1, STEPS_MAX)
        check_range("group", self.group, GROUP_MIN, MEMBERS_MAX)
        if self.together is None:  # else these are the proposer's
            check_range("members-min", self.least, self.group, MEMBERS_MAX)
            check_range("members", self.members, self.least, MEMBERS_MAX)
        check_range("clip", self.clip or 1, 1, CLIP_MAX)
        check_range("outer", self.outer, 1, 1000)
        for name, seconds in (
            ("join-s", self.join_s),
            ("talk-s", self.talk_s),
            ("train-s", self.train_s),
            ("judge-s", self.judge_s),
        ):
            check_range(name, seconds, 0.1, WAIT_S_MAX)

    def check_group(self, task: LearningTask) -> None:
        """Raise UserError if a task that is joined has smaller groups than this machine takes."""
        from p2pinfer.core.sums import SUMMED_MIN

        if task.group < self.group:
            alone = ", so that each sees what the other learned" if task.group < SUMMED_MIN else ""
            raise UserError(
                f"the task {task.name} adds up what {task.group} members learned{alone}: say"
                f" --group {task.group} to take part all the same"
            )

    def task(
        self, manifest: "Manifest", layers: int, rank: int, seed: int, rate: float
    ) -> LearningTask:
        """Return the task that these flags describe; raises UserError."""
        from p2pinfer.node.learning_together import longest_update, trained_numbers

        check_range("rank", rank, 1, RANK_MAX)
        check_range("seed", seed, 0, SEED_MAX)
        assert self.propose
        numbers = trained_numbers(manifest, layers, rank)
        if not numbers:
            raise UserError(f"{readable_name(manifest.name)} has no layers that can be trained")
        return LearningTask(
            proposer=PeerId("1" * 52),  # replaced by the one that signs it
            name=self.propose.strip(),
            base=manifest.id,
            layers=layers,
            rank=rank,
            seed=seed,
            rounds=self.rounds,
            steps=self.steps,
            rate_millionths=max(1, round(rate * 1e6)),
            members=self.members,
            least=self.least,
            group=self.group,
            clip=self.clip or longest_update(numbers, self.steps, rate),
            outer_percent=self.outer,
            join_ms=round(self.join_s * 1000),
            talk_ms=round(self.talk_s * 1000),
            train_ms=round(self.train_s * 1000),
            judge_ms=round(self.judge_s * 1000),
        )


ROUNDS = RoundFlags()


@dataclass(frozen=True)
class Together:
    """What a person has asked for, besides what is learned."""

    flags: RoundFlags
    layers: int
    rank: int
    seed: int
    rate: float
    meeting: "MeetingOptions"
    reached: str
    """The options by which others reach the same swarm."""


async def learn_together(
    request: LearnRequest, together: Together, *, only_idle: bool, as_json: bool
) -> None:
    """Propose a task or find it, take part until it is over, and keep the child.

    Raises:
        UserError: something cannot be used; the sentence says what to do.
        Broken: too few members, or members that are not to be trusted.
    """
    import trio

    from p2pinfer.node.learning_together import open_meeting
    from p2pinfer.node.model_supply import is_whole_here

    started_s, base = time.monotonic(), together.meeting.base
    manifest = request.store.manifest(base)
    if manifest is None:
        raise UserError(f"model {base[:12]}… is not here: add it with p2pinfer model add FILE")
    if is_whole_here(base, request.store):  # then nobody else sees what becomes of the lessons
        request = replace(request, through=None)
    async with open_meeting(together.meeting, request.store, manifest, note) as meeting:
        if together.flags.propose is not None:
            drafted = together.flags.task(
                manifest, together.layers, together.rank, together.seed, together.rate
            )
            task_id, task = meeting.propose(drafted)
        else:
            assert together.flags.together
            task_id, task = await meeting.find(together.flags.together, base)
            together.flags.check_group(task)
        _announce(meeting, task_id, task, together, as_json=as_json)
        refuse_taken(request.store, task.name)
        head, work, losses = await _take_part(request, meeting, task_id, task, only_idle=only_idle)
        child = await trio.to_thread.run_sync(work.keep, head)
    _say(child, task_id, task, head, losses, time.monotonic() - started_s, as_json=as_json)


async def _take_part(
    request: LearnRequest,
    meeting: "Meeting",
    task_id: TaskId,
    task: LearningTask,
    *,
    only_idle: bool,
) -> "tuple[Head, LessonWork, tuple[float, float]]":
    """Compute the lessons' rows, and go through the rounds; return where it ends."""
    import trio

    from p2pinfer.core.privacy import DELTA_DEFAULT
    from p2pinfer.node import learning
    from p2pinfer.node.learning_together import LessonWork, kept_head, take_part
    from p2pinfer.node.lesson_rows import RowsKept, word
    from p2pinfer.node.lessons import hold_out

    options = replace(request.options, layers=task.layers, rank=task.rank)
    request = replace(request, options=options)
    with learning.workplace(task.base, request.data, options) as folder, shown() as show:
        async with open_rows(request, task.base) as (model, vocabulary, compute):
            worded = await word(request.lessons, request.file, model, vocabulary)
            needed = learning.needed_bytes(model, worded, options)
            learning.check_memory(model, needed + _sums_bytes(model.manifest, task))
            kept = RowsKept(folder, model.info.width)
            await learning.compute_rows(kept, worded, compute, show)
        held_out = hold_out(request.lessons, options.held_out, options.course.seed)
        if options.course.noise and not held_out:
            raise UserError(
                "the losses by which sums are judged are told without noise: hold some lessons"
                " out for them, with --held-out 0.2"
            )
        examples = [kept.example(index, each) for index, each in enumerate(worded)]
        learned = [each for index, each in enumerate(examples) if index not in held_out]
        judged = [examples[index] for index in sorted(held_out)] or learned
        async with leisure(only_idle=only_idle) as may_work:
            noise, secret = options.course.noise, b""
            if noise:
                key = learning.noise_secret(folder)
                secret = blake3(task_id.encode(), key=key).digest()
            make = partial(LessonWork, model, task, learned, judged, may_work, noise, secret)
            work = await trio.to_thread.run_sync(make)
            if (epsilon := work.epsilon()) is not None:
                note(promise(epsilon, DELTA_DEFAULT))
            first = kept_head(task_id, work.size)
            before = await work.own_loss(first.numbers)
            on_round, on_phase = partial(_say_round, task), partial(_say_phase, task)
            threads = options.threads
            head = await take_part(meeting, task_id, task, work, on_round, on_phase, threads)
            after = await work.own_loss(head.numbers)
        learning.forget(folder)
    return head, work, (before, after)


def refuse_taken(store: "Store", name: str) -> None:
    """Raise UserError if there is a model of a name already."""
    from p2pinfer.node.model_supply import find_child

    if taken := find_child(store, name):
        raise UserError(
            f"there is a model {name} already: choose another name, or remove it with p2pinfer"
            f" model rm {taken.id[:12]}"
        )


def _sums_bytes(manifest: "Manifest", task: LearningTask) -> int:
    """Return about how much memory encrypted updates take."""
    from p2pinfer.core.sums import encrypted_bytes
    from p2pinfer.node.learning_together import trained_numbers

    numbers = trained_numbers(manifest, task.layers, task.rank)
    largest = min(2 * task.group - 1, task.members)
    # Updates, their sum, and shares, half as large, among the sets that may open it
    return (2 * largest + 2) * encrypted_bytes(numbers)


def _announce(
    meeting: "Meeting", task_id: TaskId, task: LearningTask, together: Together, *, as_json: bool
) -> None:
    addresses = meeting.swarm.transport.addresses
    if as_json:
        told = {"task": task_id, "peer": meeting.peer, "addresses": [*addresses]}
        print(json.dumps(told), flush=True)
        return
    note(f"task {task.name}, {task_id[:12]}: {task.rounds} rounds, at least {task.least} members")
    if together.flags.propose is not None:
        way_in = f" --bootstrap {addresses[0]}" if addresses else ""
        note("on machines that are to learn with this one, run:")
        note(f"  p2pinfer learn LESSONS.jsonl --with {quote(task.name)}{way_in}{together.reached}")


def _say_phase(task: LearningTask, number: int, phase: "Phase") -> None:
    logging.getLogger("p2pinfer.learning").info("round %d of %d: %s", number, task.rounds, phase)


def _say_round(task: LearningTask, report: "RoundReport") -> None:
    members = len(report.members)
    who = f"{members} members" if report.took_part else f"{members} members without this one"
    sums = f", {report.taken} of {report.sums} sums taken over" if report.took_part else ""
    before = report.loss_before
    loss = "" if before is None else f", loss before it {before:.3f}"
    note(f"round {report.number} of {task.rounds}: {who}{sums}{loss}")


def _say(
    child: "Manifest",
    task_id: TaskId,
    task: LearningTask,
    head: "Head",
    losses: tuple[float, float],
    took_s: float,
    *,
    as_json: bool,
) -> None:
    """Print what came of it."""
    before, after = losses
    if as_json:
        said = {
            "model": child.id,
            "name": child.name,
            "base": task.base,
            "task": task_id,
            "rounds": head.round,
            "members": [*head.members],
            "loss_before": before,
            "loss_after": after,
            "seconds": round(took_s, 1),
        }
        print(json.dumps(said))
        return
    print(child.id)
    note(f"{readable_name(child.name)}: {head.round} rounds, {took_s:.0f} s")
    note(f"loss of these lessons {before:.3f}, now {after:.3f}")
    note(f"to talk to it: p2pinfer demo --model {quote(child.name)}")
