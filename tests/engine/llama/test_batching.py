"""Continuous batching: whatever is queued, llama.cpp can run each decode exactly."""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.limits import (
    BLOCK_ROWS,
    NARROW_ROWS_MAX,
    ROWS_PER_DECODE_MAX,
    WIDE_ROWS_MAX,
)
from p2pinfer.core.regimes import Regime
from p2pinfer.engine.llama.batching import Batcher, Regimes


@dataclass(frozen=True)
class Work:
    """A job; the number distinguishes equal jobs."""

    slot: int
    rows: int = 1
    regime: Regime = Regime.NARROW
    number: int = 0
    layers: int | None = None
    position: int = 0

    def __len__(self) -> int:
        return self.rows

    @property
    def is_span(self) -> bool:
        """Whether it must have a decode of its own."""
        return self.rows > 1 or self.regime is not Regime.NARROW


TAKE = None
"""Stands for a decode among arriving jobs."""

work = st.builds(
    Work,
    st.integers(0, 11),
    st.just(1) | st.integers(1, ROWS_PER_DECODE_MAX),
    st.sampled_from(Regime),
    st.integers(),
    st.sampled_from([None, None, None, 3]),
)
agree = st.booleans()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=40))
def test_overwritten_jobs_are_taken_back(submitted: list[tuple[int, int]]) -> None:
    """Those of that session that begin where the next one does, or behind it, and no others."""
    batcher: Batcher[Work] = Batcher(Regimes(agree=True))
    other = Work(7)
    batcher.add(other)
    waiting: list[Work] = []
    for number, (back, rows) in enumerate(submitted):
        end = waiting[-1].position + len(waiting[-1]) if waiting else 0
        job = Work(2, rows, number=number, position=max(0, end - back))
        dead = batcher.supersede(2, job.position)
        assert dead == [each for each in reversed(waiting) if each.position >= job.position]
        waiting = [*(each for each in waiting if each not in dead), job]
        batcher.add(job)
        assert [each.position for each in waiting] == sorted({each.position for each in waiting})
    taken: list[Work] = []
    while batcher:
        taken += batcher.next()
    assert [each for each in taken if each.slot == 2] == waiting
    assert other in taken
    assert batcher.supersede(2, 0) == []


@settings(max_examples=300)
@given(st.lists(st.just(TAKE) | work, max_size=60), agree)
def test_every_job_runs_once_and_in_order(events: list[Work | None], regimes_agree: bool) -> None:
    """Jobs that arrive between decodes all run once, each session's in order."""
    regimes = Regimes(regimes_agree)
    batcher: Batcher[Work] = Batcher(regimes)
    added: list[Work] = []
    taken: list[Work] = []

    def decode() -> None:
        jobs = batcher.next()
        assert bool(jobs)
        assert len(jobs) == 1 or not any(job.is_span for job in jobs)
        assert len(jobs) <= regimes.single_rows_max
        assert all(b.slot == a.slot + 1 and b.layers == a.layers for a, b in pairwise(jobs))
        taken.extend(jobs)

    for event in events:
        if event is not TAKE:
            batcher.add(event)
            added.append(event)
        elif batcher:
            decode()
    while batcher:
        decode()
    assert batcher.next() == []
    assert Counter(taken) == Counter(added)
    for slot in range(12):
        assert [w for w in taken if w.slot == slot] == [w for w in added if w.slot == slot]


@given(st.lists(work, max_size=30), st.integers(0, 11))
def test_dropping_a_slot_leaves_the_others(jobs: list[Work], slot: int) -> None:
    """A closed session's jobs are returned in order, and never run."""
    batcher: Batcher[Work] = Batcher(Regimes(agree=True))
    for job in jobs:
        batcher.add(job)
    assert batcher.drop(slot) == [job for job in jobs if job.slot == slot]
    ran = []
    while batcher:
        ran += batcher.next()
    assert Counter(ran) == Counter(job for job in jobs if job.slot != slot)


def test_prompts_and_decode_steps_take_turns() -> None:
    """Three sessions' tokens and another's long prompt progress side by side."""
    batcher: Batcher[Work] = Batcher(Regimes(agree=False))
    for number in range(4):
        batcher.add(Work(3, 48, regime=Regime.WIDE, number=number))
        for slot in range(3):
            batcher.add(Work(slot, number=number))
    sizes = [sum(len(job) for job in batcher.next()) for _ in range(8)]
    assert sizes == [3, 48, 3, 48, 3, 48, 3, 48]


def test_every_session_gets_its_turn() -> None:
    """With more sessions than one narrow decode holds, none waits longer than necessary."""
    batcher: Batcher[Work] = Batcher(Regimes(agree=False))
    slots = set(range(2 * NARROW_ROWS_MAX + 3))
    for _ in range(5):
        for slot in slots:
            batcher.add(Work(slot))
    for _ in range(3):
        turns = [batcher.next() for _ in range(3)]
        assert {job.slot for jobs in turns for job in jobs} == slots


@pytest.mark.parametrize(("agrees", "singles", "pad"), [(True, 48, 0), (False, 7, 8)])
def test_regimes_decide_sharing_and_padding(agrees: bool, singles: int, pad: int) -> None:
    """Where kernels differ, single rows stay narrow; short wide spans and blocks are padded."""
    regimes = Regimes(agrees)
    assert regimes.single_rows_max == singles
    assert (regimes.pad_to(Regime.WIDE), regimes.pad_to(Regime.NARROW)) == (pad, 0)
    assert regimes.pad_to(Regime.BLOCK) == 64


@given(st.integers(1, 4), st.sampled_from([Regime.WIDE, Regime.BLOCK]))
def test_row_waits_for_no_more_than_the_span_that_runs(prompts: int, regime: Regime) -> None:
    """A stream's row that comes while a prompt is read goes before the prompt's next span."""
    batcher: Batcher[Work] = Batcher(Regimes(True))
    for slot in range(1, prompts + 1):
        for number in range(4):
            batcher.add(Work(slot, 48, regime, number))
    batcher.add(Work(0))
    batcher.next()
    for _ in range(4 * prompts):
        assert batcher.next()[0].is_span
        batcher.add(Work(0))  # comes while that one runs
        assert batcher.next() == [Work(0)]
    assert not batcher


def test_only_short_jobs_of_sessions_at_home_run_in_a_pause() -> None:
    """A prompt's next span does not, nor a row behind one, nor a row of a session aside."""
    batcher: Batcher[Work] = Batcher(Regimes(agree=False))
    prompt, drafts = Work(0, rows=64, regime=Regime.BLOCK), Work(6, rows=5)
    few = Work(4, rows=3, regime=Regime.WIDE)
    for job in (prompt, Work(0), drafts, Work(1), Work(2), Work(3), few, Work(5)):
        batcher.add(job)
    assert batcher.narrow({0, 2}) == [drafts]
    taken = [batcher.narrow({0, 2}) for _ in range(4)]
    assert taken == [[Work(1)], [Work(3)], [Work(5)], []]
    assert batcher.next() == [Work(2)]


def test_fixed_numbers_of_rows_are_one_and_the_most() -> None:
    """Sessions share no decode, and wide chunks are padded to the same size."""
    regimes = Regimes(agree=False, fixed=True)
    assert [regimes.pad_to(each) for each in Regime] == [0, WIDE_ROWS_MAX, BLOCK_ROWS]
    assert regimes.single_rows_max == 1
