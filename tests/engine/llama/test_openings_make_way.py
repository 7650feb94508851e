"""What an opening does at once while others wait: one small thing, whatever its session holds."""

import json
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from p2pinfer.core.limits import BLOCK_ROWS
from p2pinfer.core.regimes import Regime
from p2pinfer.engine.frames import PartConfig, Splitter, WorkerConfig
from p2pinfer.engine.llama import loaded_part, worker
from p2pinfer.engine.llama.engine import READ_BYTES
from tests.support.tiny_models import TINY, write_tiny
from tests.support.whole import open_model

pytestmark = pytest.mark.real

OPENED = 0
"""The session whose rows are opened; all others are answered as fast as can be."""

DECODES_MAX = 8
"""How many decodes of eight sessions others may wait for an opening, in processor time. A step of
attention over 4,096 positions takes two to four; all of a layer would take more."""


class Busy:
    """A worker in which some sessions always wait for their next rows, while another is opened."""

    def __init__(self, stage: Path, layers: int, sessions: int, context: int) -> None:
        part = PartConfig(str(stage), tokens=False, logits=False)
        config = WorkerConfig((part,), sessions + 1, context, threads=1)
        self._frames: deque[list[Any]] = deque()
        self._answers, self._sent = Splitter(), deque[bytes]()
        self.made = worker._Worker(config, self, self._sent.append)  # type: ignore[arg-type]
        self._layers, self._context, self._at = layers, context, [0] * (sessions + 1)
        self.width = self.made.parts[0].slice.width
        numbers = np.random.default_rng(3).standard_normal((BLOCK_ROWS, self.width))
        self._rows = numbers.astype("<f4")
        self._number, self._asked = 0, dict[int, Callable[..., None]]()
        self.answered = Counter[int]()
        """Rows, by the session."""
        self.done: list[str] = []
        """What an opening did since the others' last decode."""
        self.turns: list[tuple[float, list[str]]] = []
        """Seconds of this thread between two decodes of others, and what was done there."""
        self.decodes: list[float] = []
        """Seconds of this thread for each decode of others."""
        self._since = time.thread_time()
        self._decode, self.made._decode = self.made._decode, self._measured  # type: ignore[method-assign]

    def frames(self, *, wait: bool) -> Iterator[list[Any]]:
        """Yield what was asked since, and what follows from the answers."""
        assert not wait
        while self._sent:
            for number, took, *values in self._answers.feed(self._sent.popleft()):
                assert took is not None, values
                self._asked.pop(number)(*values)
        while self._frames:
            yield self._frames.popleft()

    def ask(self, kind: str, *values: Any, then: Callable[..., None] = lambda *_: None) -> None:
        """Ask the worker, and call a function with the answer."""
        self._number += 1
        self._asked[self._number] = then
        self._frames.append([kind, self._number, *values])

    def row(self, slot: int, regime: Regime = Regime.NARROW) -> None:
        """Have a session's next rows computed, and again the next one when they are, if narrow."""
        at, many = self._at[slot], BLOCK_ROWS if regime is Regime.BLOCK else 1
        if at + many > self._context:
            self._frames.append(["close", slot])
            at = 0
        self._at[slot] = at + many

        def then(_: bytes) -> None:
            self.answered[slot] += 1
            if regime is Regime.NARROW:
                self.row(slot)

        rows = self._rows[:many].tobytes()
        self.ask("rows", slot, at, int(regime), rows, self._layers, then=then)

    def read_prompt(self, positions: int) -> None:
        """Let the session that will be opened read a prompt, alone."""
        for _ in range(positions // BLOCK_ROWS):
            self.row(OPENED, Regime.BLOCK)
        self.run(lambda: not self._asked)

    def run(self, until: Callable[[], bool]) -> None:
        """Work until something is so."""
        while not until():
            for frame in self.frames(wait=False):
                self.made.take(frame)
            self.made.step()

    def cells(self, positions: int) -> None:
        """Ask for all K and V of the copy, as a stage does that signs for them."""
        cell = self.made.parts[0].read(0, 0, 1)
        many = max(READ_BYTES // sum(map(len, cell)), 1)
        for layer in range(self._layers):
            for at in range(0, positions, many):
                asked = layer, at, min(at + many, positions)
                self.ask("read", *asked)

    def open(self, positions: int, traced: list[int]) -> None:
        """Copy the session, read its cells, run some rows again, and drop the copy."""
        found = list[str]()
        self.ask("copy", OPENED, positions, then=lambda _: found.append("copied"))
        self.run(lambda: bool(found))
        self.cells(positions)
        for at in traced:
            row = self._rows[at % BLOCK_ROWS].tobytes()
            asked = at, int(Regime.BLOCK), row, self._layers
            self.ask("trace", *asked, then=lambda _: found.append("traced"))
        self.run(lambda: len(found) == 1 + len(traced))
        self._frames.append(["drop"])
        turns = len(self.turns)
        self.run(lambda: len(self.turns) > turns + 2)

    def _measured(self) -> None:
        begun = time.thread_time()
        waiting = bool(self.made.parts[0].waiting)
        if waiting:
            self.turns.append((begun - self._since, self.done.copy()))
            self.done.clear()
        self._decode()
        if waiting:
            self._since = time.thread_time()
            self.decodes.append(self._since - begun)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Busy], None]:
    """Give a function that writes down what an opening does in a worker."""

    def watch(busy: Busy) -> None:
        errand, part = busy.made._run_errand, busy.made.parts[0]
        cells = part._places.cells

        def run(frame: list[Any]) -> None:
            if frame[0] != "copy":  # most of it happens beside others
                busy.done.append(frame[0])
            errand(frame)

        def copied(slot: int, bytes_max: int, room: Any) -> Any:
            found = cells(slot, bytes_max, room)
            busy.done.append(f"copied {found.words.nbytes}")
            return found

        monkeypatch.setattr(busy.made, "_run_errand", run)
        monkeypatch.setattr(part._places, "cells", copied)

    return watch


def test_others_decode_while_memory_is_found_and_cells_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watched: Callable[[Busy], None]
) -> None:
    """However long the system takes; and of the cells, few are sent between two decodes."""
    layers, positions = 3, 2 * BLOCK_ROWS
    whole = tmp_path / "whole.gguf"
    write_tiny(TINY["llama"], whole)
    busy = Busy(open_model(whole, tmp_path).stage(1, 1 + layers), layers, 3, 256)
    busy.read_prompt(positions)
    watched(busy)
    for slot in (1, 2, 3):
        busy.row(slot)
    slow, make = threading.Event(), loaded_part.LoadedPart._make_room

    def make_slowly(self: loaded_part.LoadedPart, *given: int) -> Any:
        assert slow.wait(60), "nobody was answered meanwhile"
        return make(self, *given)

    monkeypatch.setattr(loaded_part.LoadedPart, "_make_room", make_slowly)
    monkeypatch.setattr("tests.engine.llama.test_openings_make_way.READ_BYTES", 2000)
    busy.ask("copy", OPENED, positions)
    before = busy.answered[2]

    def are_answered() -> bool:
        if busy.answered[2] >= before + 5:
            slow.set()
        return not busy.made._errands and bool(busy.made.parts[0]._copy)

    monkeypatch.setattr(busy.made, "_let_others", _with(busy.made._let_others, are_answered))
    busy.run(are_answered)
    assert busy.answered[2] >= before + 5
    busy.turns.clear()
    busy.open(positions, [positions - 1])
    done = [each for _, each in busy.turns]
    reads = [each.count("read") for each in done]
    assert sum(reads) > 2 * worker.READS_A_TURN
    assert max(reads) == worker.READS_A_TURN
    assert {len(some) for some in done if "read" not in some} <= {0, 1}, done


def _with(work: Callable[[], bool], look: Callable[[], bool]) -> Callable[[], bool]:
    def let_others() -> bool:
        look()
        return work()

    return let_others


@pytest.mark.long
@pytest.mark.parametrize("positions", [256, 4096])
def test_eight_sessions_wait_for_a_step_of_an_opening_and_no_longer(
    positions: int,
    default_model: Path,
    tmp_path: Path,
    watched: Callable[[Busy], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One opening behind the other, while eight sessions of the model decode."""
    layers, sessions = 10, 8
    stage = open_model(default_model, tmp_path).stage(10, 10 + layers)
    busy = Busy(stage, layers, sessions, positions)
    busy.read_prompt(positions)
    watched(busy)
    for slot in range(1, sessions + 1):
        busy.row(slot)
    busy.run(lambda: len(busy.decodes) > 40)
    alone = median(busy.decodes[-30:])
    for _ in range(2):
        busy.open(positions, [positions // 2 - 1, positions - 1])
    longest: dict[str, float] = {}
    for seconds, done in busy.turns[41:]:
        kind = done[0].split()[0] if done else "step"
        longest[kind] = max(seconds, longest.get(kind, 0.0))
    figures = {
        "positions": positions,
        "decode_of_eight_ms": round(1e3 * alone, 1),
        "decodes": len(busy.decodes),
        "longest_ms": {kind: round(1e3 * each, 1) for kind, each in longest.items()},
    }
    with capsys.disabled():
        sys.stdout.write(f"\n{json.dumps(figures)}\n")
    assert {"copied", "read", "trace", "step"} <= longest.keys()
    assert max(longest.values()) < DECODES_MAX * alone
