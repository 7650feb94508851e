"""A small model learns two answers by heart, and goes on where it was ended."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.core.manifest import Manifest
from p2pinfer.core.privacy import Noise
from p2pinfer.engine.llama.binding import Settings, Slice, Span
from p2pinfer.engine.store.assemble import PartsModel, open_parts
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from p2pinfer.engine.training.descent import Course
from p2pinfer.node import learning
from p2pinfer.node.learning import Options, Report, add_learned, forget, teach, workplace
from p2pinfer.node.lesson_rows import RowsKept, Worded, rows_here, word
from p2pinfer.node.lessons import Lesson, read_lessons
from tests.support.tiny_models import TINY, quantise, write_tiny
from tests.support.toys import quiet

LAYERS = 2
OPTIONS = Options(LAYERS, 8, Course(seed=3, passes=40, batch=2, rate=0.01), held_out=0.0)
LESSONS = [{"prompt": "One?", "answer": "abc"}, {"prompt": "Two?", "answer": "xyz"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PartsModel:
    """Give a tiny model."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny(TINY["llama"], folder / "full.gguf")
    quantise(folder / "full.gguf", folder / "model.gguf", "Q8_0")
    store = Store(folder / "store")
    return open_parts(store, add_model(store, folder / "model.gguf", quiet), folder / "cache")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "home"))


def lessons_of(tmp_path: Path, *more: Any) -> tuple[list[Lesson], bytes]:
    """Write and read a file of lessons."""
    path = tmp_path / "lessons.jsonl"
    path.write_text("\n".join(map(json.dumps, [*LESSONS, *more])))
    return read_lessons(path)


async def worded_by(model: PartsModel, folder: Path, lessons: list[Lesson]) -> list[Worded]:
    """Make tokens and rows of lessons."""
    async with rows_here(model, LAYERS) as (ends, compute):
        worded = await word(lessons, Path("lessons"), model, ends)
        kept = RowsKept(folder, model.info.width)
        await learning.compute_rows(kept, worded, compute, lambda _: None)
    return worded


async def no_wait() -> None:
    """Work at once."""


async def learned(
    model: PartsModel, folder: Path, worded: list[Worded], may_work: Any = no_wait, **changes: Any
) -> tuple[Report, Manifest]:
    """Learn, and add what was learned."""
    options = replace(OPTIONS, **changes)
    report = await teach(folder, model, worded, set(), options, lambda _: None, may_work)
    return report, add_learned(model, report, options, "Learned", None)


def said(child: PartsModel, worded: Worded) -> list[int]:
    """Return what a child says to a lesson's prompt, by llama.cpp."""
    first, last = child.meeting_ends(2)
    settings, tokens = Settings(), list(worded.tokens[: worded.start])
    below = Slice(first, logits=False, settings=settings, sessions=1, context=256)
    above = Slice(last, logits=True, settings=settings, sessions=1, context=256)
    with closing(below), closing(above):
        at = 0
        while len(tokens) < len(worded.tokens):
            for begin in range(at, len(tokens), 48):
                new = np.array(tokens[begin : begin + 48], np.int32)
                rows = below.decode([Span(0, begin, new)])[0].copy()
                logits = above.decode([Span(0, begin, rows)])[0][-1]
            at = len(tokens)
            tokens.append(int(logits.argmax()))
    return tokens


class _Killed(Exception):
    """Stands for a signal that ends the process."""


def killing(after: int) -> Callable[[], Any]:
    """Give a ``may_work`` that ends the run after some calls."""
    calls = 0

    async def may_work() -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise _Killed

    return may_work


async def test_it_learns_and_goes_on(
    model: PartsModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended twice, it ends with the adapter of a run that was not; llama.cpp says the answers."""
    lessons, data = lessons_of(tmp_path)
    monkeypatch.setattr(learning, "KEEP_S", 0.0)
    with workplace(model.id, data, OPTIONS) as folder:
        worded = await worded_by(model, folder, lessons)
        for times in (2 + 3, 2):  # at first each lesson's loss is measured
            with pytest.raises(_Killed):
                await learned(model, folder, worded, killing(times))
        report, child = await learned(model, folder, worded)
        assert report.steps > report.resumed_at == 3 + 2
        (folder / "state.npz").unlink()
        again, same = await learned(model, folder, worded)
        assert (again.resumed_at, same.id) == (0, child.id)
        assert (again.loss_before, again.loss_after) == (report.loss_before, report.loss_after)
        with pytest.raises(UserError, match="already"), workplace(model.id, data, OPTIONS):
            pass
        forget(folder)
        assert not folder.exists()
    assert report.loss_before > 3
    assert report.loss_after < 0.05
    opened = open_parts(model.store, child, model.cache)
    assert [part.name for part in child.adapter] == [f"adapter.layer.{n}" for n in (5, 6)]
    for each in worded:
        assert said(opened, each) == list(each.tokens)


async def test_what_is_held_out_is_only_measured(model: PartsModel, tmp_path: Path) -> None:
    """Another adapter comes of another set of lessons; too long ones are named by their lines."""
    lessons, data = lessons_of(tmp_path, {"prompt": "Three?", "answer": "mno"})
    options = replace(OPTIONS, course=replace(OPTIONS.course, passes=2))
    with workplace(model.id, data, options) as folder:
        worded = await worded_by(model, folder, lessons)
        report = await teach(folder, model, worded, {2}, options, lambda _: None, no_wait)
        assert (report.lessons, report.held_out, report.steps) == (2, 1, 2)
        assert report.held_out_before
        assert report.held_out_after != report.held_out_before
    long = Lesson(7, ({"role": "user", "content": "x" * 2000}, LESSON_END))
    async with rows_here(model, LAYERS) as (ends, _):
        with pytest.raises(UserError, match="line 7 is longer than the 1,024 tokens"):
            await word([*lessons, long], Path("lessons"), model, ends)


async def test_noise_is_the_same_when_a_killed_run_goes_on(
    model: PartsModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two noises for one step would show more than one; another task has noise of its own."""
    lessons, data = lessons_of(tmp_path)
    monkeypatch.setattr(learning, "KEEP_S", 0.0)
    course = replace(OPTIONS.course, passes=3, noise=Noise(norm=0.5, multiplier=1.0))
    options = replace(OPTIONS, course=course)
    found = []
    with workplace(model.id, data, options) as folder:
        worded = await worded_by(model, folder, lessons)
        for kills in ((), (2 + 1,), ()):
            for times in kills:
                with pytest.raises(_Killed):
                    await learned(model, folder, worded, killing(times), course=course)
            report, _ = await learned(model, folder, worded, course=course)
            assert report.steps == 3
            assert (folder / "noise").stat().st_mode & 0o077 == 0
            found.append(np.concatenate([b.ravel() for _, b in report.matrices.values()]))
            (folder / "state.npz").unlink()  # all steps are taken again
            if kills:
                (folder / "noise").unlink()
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[2] - found[0]).max() > 1e-3


def test_a_task_without_noise_has_the_folder_that_it_had(tmp_path: Path) -> None:
    """So that a run of the version before goes on."""
    said = (
        '["m", {"course": {"batch": 2, "passes": 40, "rate": 0.01, "seed": 3},'
        ' "held_out": 0.0, "layers": 2, "rank": 8, "threads": 1}]'
    )
    key = blake3(said.encode() + b"\0data", derive_key_context=learning._KEY_CONTEXT)
    with workplace(ModelId("m"), b"data", OPTIONS) as folder:
        assert folder.name == key.hexdigest(length=16)
    noise = replace(OPTIONS.course, noise=Noise(1.0, 2.0))
    with workplace(ModelId("m"), b"data", replace(OPTIONS, course=noise)) as folder:
        assert folder.name != key.hexdigest(length=16)


LESSON_END = {"role": "assistant", "content": "y"}


def test_memory_is_said_before(model: PartsModel) -> None:
    """It covers the weights, and grows with the lessons."""
    short, long = (
        learning.needed_bytes(model, [Worded(Lesson(1, ()), tuple(range(n)), 5)], OPTIONS)
        for n in (10, 1000)
    )
    assert 4 * 256 * 256 * LAYERS < short < long
    with pytest.raises(UserError, match="learning the last layers"):
        learning.check_memory(model, 1 << 60)
