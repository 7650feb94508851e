"""Engines without arithmetic: the same protocols, with rows that are digests of all inputs.

After each layer a row is a keyed BLAKE3 of that layer's number, of every input of its session up
to its position, and of the regimes in which these ran; so equal histories give equal bits wherever
the layers are cut, and different ones do not.
Time is trio's, so that a decode may take a second of a mock clock.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import trio
from blake3 import blake3

from p2pinfer.core.errors import EngineDied, EngineError, PromptTooLong, UserError
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sampling import Sampling
from p2pinfer.core.traced import Traced
from p2pinfer.engine.base import (
    Candidate,
    Decoded,
    Done,
    EngineBusy,
    EngineSession,
    NextToken,
    Room,
    RowSteps,
    Superseded,
)
from p2pinfer.engine.special_tokens import SpecialTokens

WIDTH = 8
ROW_BYTES = 4 * WIDTH
CELL_BYTES = 16
"""Of K, and as many of V, per position and layer."""
VOCABULARY = 50
END_TOKEN = 0


class FakeMachine:
    """Runs one decode at a time, and may die."""

    def __init__(self, sessions: int = 4, context: int = 256) -> None:
        self.sessions, self.context = sessions, context
        self.decode_s = 0.0
        """How long each decode takes."""
        self.generation = 1
        self.open = self.copies = 0
        self.rows = 0
        """Rows run so far."""
        self.keeps_state = False
        """Positions can be dropped only all at once."""
        self._queue: deque[_Waiting] = deque()

    def take(self) -> None:
        """Count one more session; raises EngineBusy."""
        if self.open == self.sessions:
            raise EngineBusy(f"all {self.sessions} sessions are taken")
        self.open += 1

    def die(self) -> None:
        """Lose all sessions, as when the process ends and another one is started."""
        self.generation += 1

    def line_up(self, waiting: "_Waiting") -> None:
        """Run a decode when all queued ones have had their time."""
        self._queue.append(waiting)
        if len(self._queue) == 1:
            trio.lowlevel.spawn_system_task(self._work)

    def supersede(self, cells: object, position: int) -> None:
        """Skip what a session has queued from a position on; the first decode is under way."""
        for waiting in list(self._queue)[:0:-1]:
            if waiting.cells is cells and waiting.position >= position:
                self._queue.remove(waiting)
                self.rows -= waiting.rows
                waiting.done(Superseded())

    async def _work(self) -> None:
        while self._queue:
            await trio.sleep(self.decode_s)
            self._queue[0].finish()
            self._queue.popleft()


@dataclass(eq=False)
class _Waiting:
    """A decode that is queued."""

    cells: object
    position: int
    rows: int
    done: Done
    finish: Callable[[], None]


class FakeLayers:
    """One session's state in a range of layers: a running digest per position."""

    def __init__(self, machine: FakeMachine, key: str) -> None:
        self._machine = machine
        self._digests = [blake3(key.encode())]
        self._generation = machine.generation

    def run(self, position: int, inputs: list[bytes], *, regime: Regime) -> list[bytes]:
        """Return one digest per input; raises as the real engine."""
        self.check_alive()
        if position >= len(self._digests):
            raise EngineError(f"position {position} leaves a gap in the session")
        if position + len(inputs) > self._machine.context:
            raise EngineError(f"the context of {self._machine.context} positions is full")
        if self._machine.keeps_state and 0 < position < len(self._digests) - 1:
            raise EngineError(f"positions from {position} on cannot be dropped")
        del self._digests[position + 1 :]
        for each in inputs:
            state = self._digests[-1].copy()
            state.update(bytes([regime]) + each)
            self._digests.append(state)
        return [state.digest(ROW_BYTES) for state in self._digests[position + 1 :]]

    def inherit(self, parent: "FakeLayers", length: int) -> None:
        """Begin as another session's layers began; raises as the real engine."""
        parent.check_alive()
        if length >= len(parent._digests):
            raise EngineError(f"the other session does not hold {length} positions")
        self._digests = parent._digests[: length + 1]

    def copy(self, positions: int) -> "FakeLayers":
        """Return the first positions; raises EngineError if it holds fewer."""
        if positions >= len(self._digests):
            raise EngineError(f"the session holds {len(self._digests) - 1} positions")
        found = FakeLayers(self._machine, "")
        found._digests = self._digests[: positions + 1]
        found._generation = self._generation
        return found

    def cells(self, positions: int) -> list[bytes]:
        """Return what a cache would hold: K and V of each position, joined."""
        return [state.digest(2 * CELL_BYTES) for state in self._digests[1 : positions + 1]]

    def check_alive(self) -> None:
        """Raise EngineDied if the session's machine has died since it was opened."""
        if self._generation != self._machine.generation:
            raise EngineDied("the engine's process died, and the session's KV cache with it")


def row_of(digest: bytes) -> bytes:
    """Turn a digest into one row of float32 between -1 and 1."""
    whole = np.frombuffer(digest, "<i4")
    return (whole / np.float32(2**31)).astype("<f4").tobytes()


def rows_of(data: bytes) -> list[bytes]:
    """Split bytes into rows."""
    return [data[at : at + ROW_BYTES] for at in range(0, len(data), ROW_BYTES)]


class Outcome:
    """The future result of a decode, for a task that waits for it."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._outcome: Decoded | EngineError | None = None

    def take(self, outcome: Decoded | EngineError) -> None:
        """Take the outcome, once."""
        assert self._outcome is None
        self._outcome = outcome
        self._event.set()

    async def wait(self) -> Decoded:
        """Return the result, or raise the error."""
        await self._event.wait()
        assert self._outcome is not None
        if isinstance(self._outcome, EngineError):
            raise self._outcome
        return self._outcome


def submit(cells: EngineSession, position: int, rows: bytes, *, regime: Regime) -> Outcome:
    """Submit rows and return their future outcome."""
    outcome = Outcome()
    cells.submit(position, rows, outcome.take, regime=regime)
    return outcome


class _FakeCells:
    """A session of a machine: results come in order, and not after it is closed."""

    def __init__(self, machine: FakeMachine) -> None:
        machine.take()
        self._machine, self._closed = machine, False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._machine.open -= 1

    def _inherit(
        self,
        parent: "_FakeCells",
        own: Sequence[FakeLayers],
        its: Sequence[FakeLayers],
        length: int,
    ) -> None:
        if parent._closed:
            raise EngineError("the other session is over")
        for layer, other in zip(own, its, strict=False):
            layer.inherit(other, length)

    def _decode(
        self,
        layers: list[FakeLayers],
        position: int,
        inputs: list[bytes],
        done: Done,
        *,
        regime: Regime,
    ) -> None:
        assert not self._closed
        layers[0].check_alive()
        self._machine.supersede(layers, position)
        result: Decoded | EngineError
        try:
            for layer in layers:
                inputs = [row_of(digest) for digest in layer.run(position, inputs, regime=regime)]
            self._machine.rows += len(inputs)
            result = Decoded(b"".join(inputs), int(1e6 * self._machine.decode_s))
        except EngineError as error:
            result = error

        def finish() -> None:
            if self._closed:
                return
            try:
                layers[0].check_alive()
            except EngineDied as error:
                done(error)
            else:
                done(result)

        self._machine.line_up(_Waiting(layers, position, len(inputs), done, finish))


class _FakeCopy:
    """A copy of a session's layers; a row is traced behind any of its positions."""

    attention = "f16"

    def __init__(self, machine: FakeMachine, layers: list[FakeLayers], positions: int) -> None:
        self._machine = machine
        self._layers = [layer.copy(positions) for layer in layers]
        self._positions = positions
        machine.copies += 1
        self._closed = False

    async def read(self, layer: int, first: int, end: int) -> tuple[bytes, bytes]:
        await self._wait()
        if not (0 <= layer < len(self._layers) and 0 <= first <= end <= self._positions):
            raise EngineError("the copy has none such")
        cells = self._layers[layer].cells(end)[first:]
        return b"".join(c[:CELL_BYTES] for c in cells), b"".join(c[CELL_BYTES:] for c in cells)

    async def trace(self, position: int, row: bytes, *, regime: Regime) -> RowSteps:
        await self._wait()
        if not 0 <= position <= self._positions:
            raise EngineError("the copy does not hold what is before it")
        found: dict[tuple[int, str], bytes] = {}
        for number, layer in enumerate(self._layers):
            (digest,) = layer.copy(position).run(position, [row], regime=regime)
            row = row_of(digest)
            for step in Traced:
                of_step = blake3(step.encode() + digest).digest(ROW_BYTES)
                found[number, str(step)] = row if step is Traced.OUT else row_of(of_step)
        return found

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._machine.copies -= 1

    async def _wait(self) -> None:
        assert not self._closed
        await trio.sleep(self._machine.decode_s)
        self._layers[0].check_alive()


class _FakeStageSession(_FakeCells):
    def __init__(self, machine: FakeMachine, first: int, end: int) -> None:
        super().__init__(machine)
        self._layers = [FakeLayers(machine, f"layer {layer}") for layer in range(first, end)]

    def submit(self, position: int, rows: bytes, done: Done, *, regime: Regime) -> None:
        self._decode(self._layers, position, rows_of(rows), done, regime=regime)

    async def inherit(self, parent: "_FakeStageSession", length: int) -> None:
        self._inherit(parent, self._layers, parent._layers, length)
        await trio.lowlevel.checkpoint()

    async def copy(self, positions: int) -> _FakeCopy:
        self._layers[0].check_alive()
        await trio.lowlevel.checkpoint()
        if self._machine.copies:
            raise EngineBusy("another session's cells are copied just now")
        return _FakeCopy(self._machine, self._layers, positions)


class FakeStage:
    """A ``StageEngine``."""

    def __init__(self, first: int, end: int, *, sessions: int = 4, context: int = 256) -> None:
        self.first, self.end, self.width, self.context = first, end, WIDTH, context
        self.numerics_class, self.blocks = "0" * 32, True
        self.room = Room(context)
        self.machine = FakeMachine(sessions, context)

    def open(self, end: int, context: int | None = None) -> _FakeStageSession:
        """Reserve a session's cells up to a layer; raises EngineBusy."""
        assert self.first < end <= self.end
        return _FakeStageSession(self.machine, self.first, end)


class _FakeEndsSession(_FakeCells):
    def __init__(self, ends: "FakeEnds") -> None:
        super().__init__(ends.machine)
        self._ends = ends
        self._first = FakeLayers(ends.machine, "the first end")
        self._last = FakeLayers(ends.machine, "the last end")
        self._seed = b""
        self._told: int | None = None
        self._script: list[bytes] | None = None

    def start(self, sampling: Sampling, recent: list[int], said: Sequence[int] = ()) -> None:
        """Draw by a seed where the temperature is not 0, or say the next text of the script."""
        self._ends.started.append(sampling)
        self._ends.said.append(list(said))
        self._script = None
        if self._ends.script:
            text = self._ends.script.pop(0)
            self._script = [text[at : at + 3].encode() for at in range(0, len(text), 3)]
        self._seed = str(sampling.seed).encode() if sampling.temperature else b""
        self._told = sampling.top_logprobs

    async def inherit(self, parent: "_FakeEndsSession", length: int) -> None:
        its = [parent._first, parent._last]
        self._inherit(parent, [self._first, self._last], its, length)
        await trio.lowlevel.checkpoint()

    async def embed(self, position: int, tokens: list[int], *, regime: Regime) -> Decoded:
        inputs = [token.to_bytes(4, "little") for token in tokens]
        return await self._run(self._first, position, inputs, regime=regime)

    async def absorb(self, position: int, rows: bytes, *, regime: Regime) -> int:
        return (await self._run(self._last, position, rows_of(rows), regime=regime)).decoding_us

    async def _run(
        self, layers: FakeLayers, position: int, inputs: list[bytes], *, regime: Regime
    ) -> Decoded:
        outcome = Outcome()
        self._decode([layers], position, inputs, outcome.take, regime=regime)
        return await outcome.wait()

    async def score(
        self, position: int, rows: bytes, following: list[int], *, regime: Regime
    ) -> list[tuple[Candidate, ...]]:
        await self.absorb(position, rows, regime=regime)
        return self._scores(position, following)

    def _scores(self, position: int, following: Sequence[int]) -> list[tuple[Candidate, ...]]:
        """Find each token less likely than the one before it."""
        return [
            (Candidate(token, f" {token}".encode(), -1.0 - position - at), *self._likely(7))
            for at, token in enumerate(following)
        ]

    async def next(
        self,
        position: int,
        rows: bytes,
        *,
        regime: Regime,
        drafted: int | None = None,
        following: Sequence[int] = (),
    ) -> NextToken:
        found = await self._next(position, rows, regime=regime, drafted=drafted)
        return replace(found, scores=self._scores(position, following))

    async def _next(
        self, position: int, rows: bytes, *, regime: Regime, drafted: int | None
    ) -> NextToken:
        decoded = await self._run(self._last, position, rows_of(rows), regime=regime)
        token = self._ends.pick(decoded.rows[-ROW_BYTES:] + self._seed)
        if self._script is not None:
            token = END_TOKEN + 1 if self._script else END_TOKEN
        piece, is_end = f" {token}".encode(), token == END_TOKEN
        if self._script:
            piece = self._script.pop(0)
        following, us = position + len(rows) // ROW_BYTES, decoded.decoding_us
        if is_end or following >= self._ends.context or token == drafted:
            return NextToken(token, b"" if is_end else piece, is_end, b"", us, self._likely(token))
        embedded = await self.embed(following, [token], regime=Regime.NARROW)
        return NextToken(token, piece, False, embedded.rows, us, self._likely(token))

    def _likely(self, token: int) -> tuple[Candidate, ...]:
        """Make the drawn token the likeliest, and each following rank less likely."""
        if self._told is None:
            return ()
        found = [(token + rank) % VOCABULARY for rank in range(self._told)]
        ranked = [Candidate(n, f" {n}".encode(), -1.0 - rank) for rank, n in enumerate(found)]
        return (Candidate(token, f" {token}".encode(), -1.0), *ranked)


class FakeEnds:
    """``Ends`` that keep one layer each of a model of 30, and pick tokens by digest."""

    def __init__(
        self, *, sessions: int = 8, context: int = 256, ends_answers: bool = False
    ) -> None:
        self.first, self.end, self.width, self.context = 1, 29, WIDTH, context
        self.vocabulary, self.blocks = VOCABULARY, True
        self.started: list[Sampling] = []
        """How each answer was to be sampled."""
        self.said: list[list[int]] = []
        """What each had said before, where its grammar must know."""
        self.script: list[str] = []
        """What the next answers say, if anything is here: a stand-in for a model that can."""
        self.machine = FakeMachine(sessions, context)
        self._lowest = END_TOKEN if ends_answers else END_TOKEN + 1

    def pick(self, row: bytes) -> int:
        """Return the token that a row maps to."""
        drawn = int.from_bytes(blake3(row).digest(8), "little")
        return self._lowest + drawn % (VOCABULARY - self._lowest)

    async def tokenize(
        self, text: str, *, special: bool, literal: Sequence[int] = (), most: int | None = None
    ) -> list[int]:
        """Make each word a token."""
        tokens = [1 + sum(word.encode()) % (VOCABULARY - 1) for word in text.split()]
        if most is not None and len(tokens) > most:
            raise PromptTooLong(f"{len(tokens)} tokens", most)
        return tokens

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """Spell each token as its number."""
        return [f" {token}".encode() for token in tokens]

    async def read_grammar(self, text: str, *, is_gbnf: bool = False) -> str:
        """Find every grammar good but one that says bad."""
        if "bad" in text:
            raise UserError("the grammar or schema cannot be kept to: it is bad")
        return f"gbnf: {text}" if is_gbnf else text

    async def special_tokens(self) -> SpecialTokens:
        """Return none."""
        return SpecialTokens()

    def open(self, context: int | None = None) -> _FakeEndsSession:
        """Reserve a session's cells; raises EngineBusy."""
        return _FakeEndsSession(self)
