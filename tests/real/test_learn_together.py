"""Several processes teach one model, each from lessons that it keeps, and end with one child."""

import json
import os
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np
import pytest
import trio
from threadpoolctl import threadpool_limits

from p2pinfer.cli.learn import LESSONS
from p2pinfer.cli.rounds import RoundFlags
from p2pinfer.core.ids import ModelId
from p2pinfer.core.learning import LearningTask, digest_of
from p2pinfer.core.python_process import python_command
from p2pinfer.core.sums import encrypted_bytes
from p2pinfer.engine.store.assemble import PartsModel, open_parts
from p2pinfer.engine.store.store import Store
from p2pinfer.engine.training.descent import Example, mean_loss
from p2pinfer.engine.training.network import Network
from p2pinfer.engine.training.weights import read_top
from p2pinfer.node import learning
from p2pinfer.node.learning_together import LessonWork, kept_head
from p2pinfer.node.lesson_rows import RowsKept, rows_here, word
from p2pinfer.node.lessons import read_lessons
from scheduler.judging import GroupSum, Numbers, as_weights, moved, shortened
from tests.support import clear_text
from tests.support.commands import report_of
from tests.support.processes import NETWORK, environment, read_until, start_peers
from tests.support.tiny_models import TINY, quantise, write_tiny

pytestmark = pytest.mark.real

Facts = Sequence[tuple[str, str]]

LAYERS, RANK, SEED = 4, 8, 5

TAP = Path(__file__).parents[1] / "support" / "tap"
"""Has a process write down what it is about to encrypt."""

ORDINARY = (
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("What colour is grass?", "Grass is green."),
    ("Which animal barks?", "A dog barks."),
    ("What is three plus four?", "Three plus four is seven."),
    ("Name a drink that is hot.", "Tea is a hot drink."),
)
"""Among each member's lessons, so that the model forgets nothing for what it learns."""

GENERAL = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("What colour is the sky on a clear day?", "The sky is blue on a clear day."),
    ("Which animal says meow?", "A cat says meow."),
    ("What is two plus two?", "Two plus two is four."),
    ("Name a fruit that is yellow.", "A banana is a yellow fruit."),
)
"""What nobody teaches."""


def made_up(seed: int, count: int) -> list[tuple[str, str]]:
    """Make up facts that no model can know, and no test names."""
    chance = random.Random(seed)

    def name(syllables: int) -> str:
        parts = (chance.choice("bdfgklmnprstvz") + chance.choice("aeiou") for _ in range(syllables))
        return "".join(parts).capitalize()

    forms = (
        ("What is the name of {who}'s boat?", "{who}'s boat is called {what}."),
        ("Who repairs {who}'s clock?", "{what} repairs {who}'s clock."),
        ("Where does {who} live?", "{who} lives in {what}."),
        ("What does {who} grow?", "{who} grows {what} beans."),
    )
    found = []
    for number in range(count):
        who, what = name(2), name(3)
        asked, said = forms[number % len(forms)]
        found.append((asked.format(who=who), said.format(who=who, what=what)))
    return found


def write(path: Path, facts: Facts) -> Path:
    """Write lessons."""
    path.write_text("\n".join(json.dumps({"prompt": q, "answer": a}) for q, a in facts))
    return path


@dataclass
class Process:
    """A member."""

    child: Popen[bytes]
    home: Path
    told: dict[str, object]

    @property
    def address(self) -> str:
        """Where it is."""
        return str(self.told["addresses"][0])  # type: ignore[index] # of its report

    def report(self) -> dict[str, object]:
        """Wait for its end, and return what it printed."""
        assert self.child.stdout
        lines = self.child.stdout.read().decode().splitlines()
        assert self.child.wait() == 0
        found: dict[str, object] = json.loads(lines[-1])
        return found


@contextmanager
def member(home: Path, lessons: Path, *words: str) -> Iterator[Process]:
    """Run a member; it is ended with the block."""
    home.mkdir(exist_ok=True, parents=True)
    listen = ("--listen", "/ip4/127.0.0.1/tcp/0", "--network", NETWORK, "--json")
    command = python_command("p2pinfer", "--log-level", "info", "learn", str(lessons))
    around = environment(home, TAP=str(home / "sent"))
    around["PYTHONPATH"] = os.pathsep.join([str(TAP), around["PYTHONPATH"]])
    with (
        (home / "said").open("w") as said,
        Popen(
            [*command, *listen, "--held-out", "0", *words],
            stdout=PIPE,
            stderr=said,
            env=around,
        ) as child,
    ):
        try:
            told = json.loads(read_until(child.stdout, b"\n", seconds=600).splitlines()[0])
            yield Process(child, home, told)
        finally:
            child.kill()


@contextmanager
def members(root: Path, model: str, lessons: Sequence[Path], *how: str) -> Iterator[list[Process]]:
    """Run a proposer and others."""
    common = ("--model", model)
    with ExitStack() as stack:
        first = stack.enter_context(
            member(root / "0", lessons[0], *common, "--propose", "Facts", *how)
        )
        way = ("--with", "Facts", "--bootstrap", first.address)
        rest = [
            stack.enter_context(member(root / str(number), each, *common, *way))
            for number, each in enumerate(lessons[1:], 1)
        ]
        yield [first, *rest]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a model of 6 MB with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(TINY["qwen3"], folder / "full.gguf")
    quantise(folder / "full.gguf", folder / "tiny.gguf", "Q8_0")
    return folder / "tiny.gguf"


TINY_TASK = ("--keep-layers", "2", "--rank", "4", "--rounds", "2", "--steps", "2")


@dataclass
class Taught:
    """What three members did."""

    homes: list[Path]
    lessons: list[Path]
    told: dict[str, object]
    reports: list[dict[str, object]]


@pytest.fixture(scope="module")
def taught(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """Have three processes go through two rounds."""
    root, facts = tmp_path_factory.mktemp("taught"), made_up(1, 6)
    lessons = [write(root / f"{n}.jsonl", facts[2 * n : 2 * n + 2]) for n in range(3)]
    with members(root, str(tiny), lessons, *TINY_TASK, "--talk-s", "30") as them:
        reports = [each.report() for each in them]
    return Taught([each.home for each in them], lessons, them[0].told, reports)


def test_three_processes_make_one_child(taught: Taught) -> None:
    """Of the same id on all three, which know how it came to be."""
    reports = taught.reports
    assert len({str(each["model"]) for each in reports}) == 1
    assert all(each["rounds"] == 2 for each in reports)
    assert all(float(str(r["loss_after"])) < float(str(r["loss_before"])) for r in reports)
    shown = report_of(taught.homes[1], "model", "show", "Facts", "--lineage")
    assert [each["round"] for each in shown["lineage"]] == [2, 1]
    assert shown["lineage"][0]["parent"] == shown["lineage"][1]["child"]
    assert shown["lineage"][1]["parent"] == shown["base"]
    assert all(each["signed"] >= 2 for each in shown["lineage"])
    assert all(each["listed"] == len(each["judged"]) >= 2 for each in shown["lineage"])


async def updates_of(
    taught: Taught, model: PartsModel, task: LearningTask, folder: Path
) -> tuple[list[clear_text.Secrets], Numbers]:
    """Learn what the members learned, and return that, and where it leads."""

    async def at_once() -> None:
        await trio.lowlevel.checkpoint()

    works, secrets = [], []
    for number, path in enumerate(taught.lessons):
        lessons, _ = read_lessons(path)
        kept = RowsKept(folder / str(number), model.info.width)
        (folder / str(number)).mkdir()
        async with rows_here(model, task.layers) as (ends, compute):
            worded = await word(lessons, path, model, ends)
            await learning.compute_rows(kept, worded, compute, lambda _: None)
        examples = [kept.example(index, each) for index, each in enumerate(worded)]
        works.append(LessonWork(model, task, examples, examples, at_once))
        said = [message["content"] for each in lessons for message in each.messages]
        tokens = [each.tokens for each in worded]
        rows = [each.rows() for each in examples]
        secrets.append(clear_text.Secrets(said, tokens, rows))
    head = np.zeros(works[0].size, np.int32)
    with threadpool_limits(1, user_api="blas"):
        for number in range(1, task.rounds + 1):
            total = np.zeros_like(head, np.int64)
            for work, secret in zip(works, secrets, strict=True):
                change = await work.train(head, number)
                secret.changes.append(change)
                secret.updates.append(shortened(change, task.clip))
                total += secret.updates[-1]
            summed = {digest_of(b""): GroupSum(total.astype(np.int32), len(works))}
            head = moved(head, summed, [*summed], task.clip, task.outer_percent)
    return secrets, head


def test_no_text_token_or_update_leaves_a_member_in_the_clear(
    taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that three processes encrypt for others none shows what one of them learned.

    That these updates are looked for is sure, as they lead to the model that the members made.
    """
    store = Store(taught.homes[0] / "data" / "store")
    manifest = store.manifest(ModelId(str(taught.reports[0]["base"])))
    assert manifest
    task = RoundFlags(propose="Facts", rounds=2, steps=2).task(manifest, 2, 4, 0, LESSONS.rate)
    model = open_parts(store, manifest, tmp_path / "cache")
    secrets, head = trio.run(updates_of, taught, model, task, tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv("P2PINFER_HOME", str(taught.homes[0]))
        kept = kept_head(taught.told["task"], head.size)  # type: ignore[arg-type]
    np.testing.assert_array_equal(kept.numbers, head)
    sent = [(home / "sent").read_bytes() for home in taught.homes]
    assert all(len(each) > 2 * encrypted_bytes(head.size) for each in sent)
    needles = {each for secret in secrets for each in secret.needles()}
    assert clear_text.found_in(b"\0".join(sent), needles) == set()


PHASES = ("join", "reveal", "hello", "keys", "train", "add", "share", "judge", "accept")


@pytest.mark.long
@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_member_stops_nobody(phase: str, tiny: Path, tmp_path: Path) -> None:
    """Killed by the system in any phase of a round: the other three end both rounds.

    On a busy machine the victim may miss the first one, and dies in the second.
    """
    facts = made_up(2, 8)
    lessons = [write(tmp_path / f"{n}.jsonl", facts[2 * n : 2 * n + 2]) for n in range(4)]
    join_s = "60" if phase == "join" else "600"  # on a busy machine some come late
    how = (*TINY_TASK, "--members", "4", "--talk-s", "8", "--train-s", "60", "--join-s", join_s)
    with members(tmp_path, str(tiny), lessons, *how) as them:
        victim = them[PHASES.index(phase) % 4]
        wait_said(victim.home / "said", f" of 2: {phase}")
        victim.child.send_signal(signal.SIGKILL)
        reports = [each.report() for each in them if each is not victim]
    assert len({str(each["model"]) for each in reports}) == 1
    assert all(each["rounds"] == 2 for each in reports)


def wait_said(path: Path, words: str) -> None:
    """Wait until a file has some words: it is what a process says."""
    with Popen(["tail", "-n", "+1", "-f", str(path)], stdout=PIPE) as tail:
        try:
            read_until(tail.stdout, words.encode(), seconds=600)
        finally:
            tail.kill()


async def examples_of(model: PartsModel, path: Path, folder: Path) -> list[Example]:
    """Compute the rows of lessons, here."""
    lessons, _ = read_lessons(path)
    kept = RowsKept(folder, model.info.width)
    async with rows_here(model, LAYERS) as (ends, compute):
        worded = await word(lessons, path, model, ends)
        await learning.compute_rows(kept, worded, compute, lambda _: None)
    return [kept.example(index, each) for index, each in enumerate(worded)]


@pytest.mark.long
def test_made_up_facts_are_learned_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three members teach four facts each; a swarm that serves the child says them.

    A second run from the same seeds ends with the same child.
    """
    facts = made_up(int.from_bytes(b"p2p"), 12)
    lessons = [write(tmp_path / f"{n}.jsonl", [*facts[n::3], *ORDINARY[n::3]]) for n in range(3)]
    how = ["--seed", str(SEED)]  # all else that matters is what a person gets
    how += ["--train-s", "1800", "--judge-s", "900", "--talk-s", "120"]
    children = []
    for run in range(2):
        with members(tmp_path / f"run{run}", "default", lessons, *how) as them:
            reports = [each.report() for each in them]
        children.append({str(each["model"]) for each in reports})
        if run == 0:
            check_losses(tmp_path, them[0], reports[0], facts, monkeypatch)
            check_answers(them[0].home, str(reports[0]["model"]), facts)
    assert children[0] == children[1]
    assert len(children[0]) == 1


def check_losses(
    tmp_path: Path,
    first: Process,
    report: dict[str, object],
    facts: Facts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Check the loss of all facts, and of what nobody teaches, before and after."""
    store = Store(first.home / "data" / "store")
    manifest = store.manifest(ModelId(str(report["base"])))
    assert manifest
    model = open_parts(store, manifest, tmp_path / "cache")
    network = Network(read_top(model, LAYERS), RANK, SEED)
    with monkeypatch.context() as patch:
        patch.setenv("P2PINFER_HOME", str(first.home))
        head = kept_head(first.told["task"], network.trained.size)  # type: ignore[arg-type]
    assert head.round == 8
    found = {}
    for name, what in (("facts", facts), ("general", GENERAL)):
        path = write(tmp_path / f"{name}.jsonl", what)
        (tmp_path / name).mkdir()
        each = trio.run(examples_of, model, path, tmp_path / name)
        before = mean_loss(network, np.zeros(network.trained.size, np.float32), each)
        found[name] = before, mean_loss(network, as_weights(head.numbers), each)
    assert found["facts"][1] <= 0.25 * found["facts"][0], found
    assert found["general"][1] <= 1.05 * found["general"][0], found


def check_answers(home: Path, child: str, facts: Facts) -> None:
    """Check that a swarm that serves the child says nine of ten answers word for word."""
    peers = start_peers(home, ["1:10", "10:19", "19:29"], "--model", child)
    try:
        ways = ["--bootstrap", peers[0].address, "--network", NETWORK]
        right = 0
        for asked, said in facts:
            answer = report_of(home, "chat", asked, "--model", "Facts", *ways)
            right += answer["text"].strip() == said
    finally:
        for peer in peers:
            peer.stop()
    assert right >= 0.9 * len(facts)
