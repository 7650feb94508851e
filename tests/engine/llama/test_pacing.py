"""A trace makes way: whatever others ask for in the middle of it is done before its next step."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pinfer.core.limits import BLOCK_ROWS
from p2pinfer.core.regimes import Regime
from p2pinfer.core.traced import Traced
from p2pinfer.engine.frames import PartConfig, Splitter, WorkerConfig
from p2pinfer.engine.llama import loaded_part, worker
from p2pinfer.engine.llama.pacing import LATE_NS, MOMENT_NS, OTHERS_SHARE, Pacing
from tests.support.tiny_models import TINY, write_tiny
from tests.support.whole import open_model

TRACED, READER, NEW = range(3)
"""Sessions: whose row is traced, who has a prompt read, who begins in the middle of it."""
LAYERS = 3


class Script:
    """What a worker hears, by the step of the trace that it comes behind."""

    def __init__(self) -> None:
        self.step, self.is_closed = 0, False
        self.at: dict[int, list[list[Any]]] = {}

    def frames(self, *, wait: bool) -> Iterator[list[Any]]:
        """Yield what is due."""
        assert not wait
        yield from self.at.pop(self.step, [])

    def pacing(self, let_others: Callable[[], bool]) -> Pacing:
        """Count steps, none of which takes any time."""

        def count() -> bool:
            self.step += 1
            return let_others()

        return Pacing(count, lambda: 0)


@pytest.mark.real
def test_a_trace_goes_on_when_nothing_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others' blocks, rows and new sessions wait for one step of it, and nobody's bits change."""
    whole = tmp_path / "whole.gguf"
    write_tiny(TINY["llama"], whole)
    path = open_model(whole, tmp_path).stage(1, 1 + LAYERS)
    config = WorkerConfig((PartConfig(str(path), tokens=False, logits=False),), 3, 256)
    script, splitter = Script(), Splitter()
    monkeypatch.setattr(loaded_part, "Pacing", script.pacing)
    answers: list[tuple[int, list[Any]]] = []

    def send(data: bytes) -> None:
        answers.extend((script.step, each) for each in splitter.feed(data))

    made = worker._Worker(config, script, send)  # type: ignore[arg-type]
    width = made.parts[0].slice.width
    prompt, other = np.random.default_rng(5).standard_normal((2, 128, width)).astype("<f4")

    def rows(number: int, slot: int, numbers: Any, at: int, end: int, regime: Regime) -> list[Any]:
        return ["rows", number, slot, at, regime, numbers[at:end].tobytes(), LAYERS]

    def run(*frames: list[Any]) -> list[Any]:
        answers.clear()
        for frame in frames:
            made.take(frame)
        while made.is_busy():
            made.step()
        return [values for _, (_, _, *values) in answers]

    block = partial(rows, at=0, end=BLOCK_ROWS, regime=Regime.BLOCK)
    row = partial(rows, at=BLOCK_ROWS, end=BLOCK_ROWS + 1, regime=Regime.NARROW)
    alone = run(block(1, READER, other), row(2, READER, other), block(3, NEW, prompt))
    run(block(1, TRACED, prompt), ["close", NEW], ["copy", 4, TRACED, BLOCK_ROWS])
    script.at = {
        2: [block(11, READER, other)],
        9: [row(12, READER, other), ["close", NEW], block(13, NEW, prompt)],
        20: [["close", TRACED], block(14, TRACED, other)],
    }
    asked = {11: 2, 12: 9, 13: 9, 14: 20}
    last = BLOCK_ROWS - 1
    (*_, traced) = run(["trace", 10, last, Regime.BLOCK, prompt[last].tobytes(), LAYERS])
    answered = {number: step for step, (number, *_) in answers}
    assert answered.pop(10) == LAYERS * len(Traced) - 1  # all but the last
    late = {number: answered[number] - step for number, step in asked.items()}
    assert late == {11: 0, 12: 0, 13: 1, 14: 0}  # of two that wait, one step comes between
    found = {number: values for _, (number, _, *values) in answers}
    assert [found[11], found[12], found[13], found[14]] == [*alone, alone[0]]
    out = {(layer, step): numbers for layer, step, numbers in traced[0]}[LAYERS - 1, Traced.OUT]
    assert out == alone[2][0][-4 * width :]


def test_others_go_first_but_for_a_share() -> None:
    """A trace that others always wait for ends in eleven times its time, and owes nobody more."""
    now_ns, turns = 0, list[int]()

    def let_others() -> bool:
        nonlocal now_ns
        turns.append(now_ns)
        now_ns += 500
        return True

    pacing = Pacing(let_others, lambda: now_ns)
    for _ in range(100):
        now_ns += 7  # a step
        pacing.pause()
    assert turns[0] == 7
    between = {b - a - 500 for a, b in pairwise(turns)}
    assert between == {56}  # whole steps that make a tenth of 500
    assert 700 * OTHERS_SHARE - 500 <= 500 * len(turns) <= 700 * OTHERS_SHARE + 500


def test_a_late_trace_goes_on_at_half_speed() -> None:
    """Others wait for it no longer than a moment at once, and it ends."""
    now_ns, turns = 0, list[int]()
    step_ns, decode_ns = 4_000_000, 60_000_000

    def let_others() -> bool:
        nonlocal now_ns
        turns.append(now_ns)
        now_ns += decode_ns
        return True

    pacing = Pacing(let_others, lambda: now_ns)
    for _ in range(1000):
        now_ns += step_ns
        pacing.pause()
    waited = [b - a - decode_ns for a, b in pairwise(turns)]
    early = [ns for at, ns in zip(turns, waited, strict=False) if at + decode_ns <= LATE_NS]
    late = waited[len(early) :]
    assert set(early) == {2 * step_ns}  # whole steps that make a tenth
    assert {ns for ns in late if ns > 2 * step_ns} == {7 * step_ns}  # that make a moment
    assert max(late) <= MOMENT_NS + step_ns
    alone_ns = 1000 * step_ns
    assert now_ns < LATE_NS + alone_ns * (1 + decode_ns / MOMENT_NS)


def test_a_trace_that_ran_alone_has_saved_nothing() -> None:
    """The first to come after a long time waits for no more, and no less, than any other."""
    now_ns, is_waiting, turns = 0, False, 0

    def let_others() -> bool:
        nonlocal now_ns, turns
        turns += is_waiting
        now_ns += 500 * is_waiting
        return is_waiting

    pacing = Pacing(let_others, lambda: now_ns)
    for _ in range(1000):
        now_ns += 7
        pacing.pause()
    is_waiting = True
    for _ in range(8):
        now_ns += 7
        pacing.pause()
    assert turns == 1
