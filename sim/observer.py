"""An observer of one hop: can it tell which sessions are of one user, by sizes and times?

The hop is the line between the last relay of a path and a stage, where all sessions come from the
relay's address and the ids are encrypted. Seen are the times and sizes of all encrypted records,
both ways. A session is one question and its answer, under an identity of its own. Users differ in
what lasts: the instructions before each question, the round trip and jitter of their line, and the
time that their machine takes for its own layers. The attack gets pairs of sessions, half of one
user each, learns from pairs of some users, and is judged by pairs of others: logistic regression on
how far the features of two sessions are apart. An attack that guesses is right in half of them.

What is sealed when is decided by the code that real connections and relays run
(`transports.libp2p.padding`), from messages and chunks as real sessions have them.

Users of the first population differ in nothing that a path leaves open: how many chunks a question
has and how many rows an answer, from the same distribution for all. Those of the second have habits
there as well, and what an attack gains from these is told beside it: no padding of rows hides that
somebody always sends the longest prompts.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import isinf
from random import Random
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.limits import BLOCK_ROWS, WIDE_ROWS_MAX
from p2pinfer.core.messages import Step
from p2pinfer.core.regimes import Regime, split
from p2pinfer.core.wire import encode
from transports.libp2p.padding import Beats, CellShape, Padder
from transports.libp2p.yamux import DATA, FRAME_BODY_BYTES_MAX, HEADER

ROW_BYTES: Final = 4 * 576
"""Of the default model."""

RECORD_BYTES: Final = 18
"""Around what is sealed: a length and a tag."""

ANSWER_S: Final = (1.5, 5.0)
"""How long an answer runs, which is another time each time."""

CHUNKS_MAX: Final = 4
STAGES_S: Final = (0.02, 0.06)
"""What a route takes for a row, which is another one each time."""

USERS_MIN, USERS_MAX = 20, 2000
SESSIONS: Final = 6
"""Of each user."""

TRAINED: Final = 0.5
"""Share of the users that the attack learns from."""

MARGIN: Final = 0.05
"""More than that above a guess is said to be linked."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _User:
    """What lasts."""

    instructions: int
    """Tokens before each question."""
    line_s: float
    """Round trip to the observed hop."""
    jitter_s: float
    ends_s: float
    """For its own layers, a row."""
    chunks: int
    """More of them than others, in the mean, where users have habits."""
    runs: float
    """How much longer its answers are, where users have habits."""


@dataclass(frozen=True)
class Mode:
    """What is done against observers."""

    name: str
    shape: CellShape | None


def modes(pace_ms: int) -> list[Mode]:
    """Return nothing but fresh identities, with padding, and with a pace as well."""
    return [
        Mode("bare", None),
        Mode("via", CellShape.for_rows(ROW_BYTES)),
        Mode("paced", CellShape.for_rows(ROW_BYTES, pace_ms)),
    ]


class _Line:
    """One direction of one session: from who speaks over a line and a relay to the observer."""

    def __init__(
        self, shape: CellShape | None, delay_s: float, jitter: Callable[[], float]
    ) -> None:
        self._shape, self._delay_s, self._jitter = shape, delay_s, jitter
        self.padder = Padder(shape) if shape else None
        self._beats = Beats(shape.pace_s) if shape and shape.pace_ms else None
        self._arrived = self._passed = 0.0
        self.seen: list[tuple[float, int]] = []
        """When records passed the observer, and how long they were."""

    def say(self, now: float, message: bytes) -> None:
        """Send a message."""
        framed = len(message).to_bytes(4, "big") + message
        size = len(framed) + (self._shape.behind(len(framed)) if self._shape else 0)
        while size > 0:  # as windows and records take it
            frame = _frame(min(size, FRAME_BODY_BYTES_MAX))
            size -= FRAME_BODY_BYTES_MAX
            self._seal(now, self.padder.put([frame], now) if self.padder else [frame])

    def arrives_s(self, now: float) -> float:
        """Return when the other end has what was said last."""
        if self.padder and self.padder.held_bytes:
            now += self.padder.wait_s(now)
            relayed = self._shape.pace_s / 2 if self._shape else 0.0
            return now + self._delay_s + relayed
        return self._passed

    def beat(self, now: float) -> None:
        """Send what a beat has."""
        assert self.padder
        self._seal(now, self.padder.beat(now))

    def _seal(self, now: float, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            # In order, as TCP has it; then through the relay, which may have beats of its own.
            self._arrived = max(self._arrived, now + self._delay_s + self._jitter())
            at = max(self._arrived, self._passed)
            if self._beats and at > self._passed:
                at += self._beats.wait_s(at, len(piece))
            self._passed = at
            self.seen.append((at, len(piece) + RECORD_BYTES))


def _frame(size: int) -> bytes:
    """Build a frame with that many bytes of a stream."""
    return HEADER.pack(0, DATA, 0, 1, size) + bytes(size)


def _step(number: int, position: int, rows: int, regime: Regime) -> bytes:
    return encode(Step(number, position, rows, regime, bytes(rows * ROW_BYTES)))


def observe(user: _User, mode: Mode, chunks: int, runs_s: float, chance: Random) -> list[Floats]:
    """Play one session; return what is seen to the stage and back: times and sizes."""
    stages_s = chance.uniform(*STAGES_S)

    def jitter() -> float:
        return chance.expovariate(1 / user.jitter_s)

    there = _Line(mode.shape, user.line_s / 2, jitter)
    back = _Line(mode.shape, 0.0, lambda: 0.0)
    prompt = (
        (chunks - 1) * BLOCK_ROWS
        + 1
        + (user.instructions - chance.randrange(3)) % (WIDE_ROWS_MAX - 1)
    )
    told = chance.random()
    events: list[tuple[float, int, Callable[[float], None]]] = []
    order = count()

    def at(when: float, act: Callable[[float], None]) -> None:
        heappush(events, (when, next(order), act))

    def say(line: _Line, other: _Line, now: float, message: bytes) -> None:
        before = line.padder.wait_s(now) if line.padder else 0.0
        line.say(now, message)
        if line.padder and isinf(before):
            keep_time(line, now)
        if mode.shape and mode.shape.pace_ms:  # the other end hears of data, and begins
            at(max(now, line.arrives_s(now)), lambda now: hear(other, now))

    def hear(line: _Line, now: float) -> None:
        assert line.padder
        is_idle = isinf(line.padder.wait_s(now))
        line.padder.touch(now)
        if is_idle:
            keep_time(line, now)

    def keep_time(line: _Line, now: float) -> None:
        assert line.padder
        if not isinf(wait := line.padder.wait_s(now)):
            at(now + wait, lambda now: beat(line, now))

    def beat(line: _Line, now: float) -> None:
        line.beat(now)
        keep_time(line, now)

    now, number, row = told, 0, 0
    for chunk in split(0, prompt, blocks=True):
        number += 1
        say(there, back, now, _step(number, chunk.start, chunk.end - chunk.start, chunk.regime))

    def answered(now: float) -> None:
        """Have the stage send a row back, and the user's machine make the next one of it."""
        nonlocal row
        row += 1
        say(back, there, now, _step(number + row, prompt + row, 1, Regime.NARROW))
        if now < told + runs_s:
            reaction = user.line_s / 2 + user.ends_s * chance.uniform(0.9, 1.1)
            at(back.arrives_s(now) + reaction + jitter(), asked)

    def asked(now: float) -> None:
        say(there, back, now, _step(number + row, prompt + row, 1, Regime.NARROW))
        at(there.arrives_s(now) + stages_s * chance.uniform(0.9, 1.1), answered)

    at(there.arrives_s(now) + stages_s * chunks, answered)
    while events:
        when, _, act = heappop(events)
        act(when)
    return [np.array(line.seen or [(0.0, 0)], np.float64) for line in (there, back)]


def features(seen: list[Floats]) -> list[list[float]]:
    """Return what an observer makes of a session: of sizes, and of times."""
    of_sizes: list[float] = []
    of_times: list[float] = []
    for line in seen:
        times, sizes = line[:, 0], line[:, 1]
        is_small = sizes < 2 * ROW_BYTES
        small, big, gaps = sizes[is_small], sizes[~is_small], np.diff(times[is_small])
        of_sizes += [len(big), big.sum(), big[-1] if len(big) else 0.0, *_summary(small)]
        of_times += [len(small), times[-1] - times[0], *_summary(gaps)]
    there, back = (line[:, 0] for line in seen)
    after = np.searchsorted(there, back, "right")
    of_times += _summary(there[after[after < len(there)]] - back[after < len(there)])
    before = np.searchsorted(back, there, "right")
    of_times += _summary(back[before[before < len(back)]] - there[before < len(back)])
    return [of_sizes, of_times]


def _summary(values: Floats) -> list[float]:
    """Return a mean, a spread, and quantiles."""
    if not len(values):
        return [0.0] * 9
    quantiles = np.quantile(values, (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95))
    return [float(values.mean()), float(values.std()), *map(float, quantiles)]


def _users(number: int, chance: Random, *, habits: bool) -> list[_User]:
    return [
        _User(
            chance.randrange(10_000),
            0.008 * chance.lognormvariate(1.0, 0.8),
            0.001 * chance.lognormvariate(0.0, 0.5),
            0.002 * chance.lognormvariate(0.7, 0.7),
            chance.choice((0, 0, 0, 4, 12)) if habits else 0,
            chance.lognormvariate(0.0, 0.6) if habits else 1.0,
        )
        for _ in range(number)
    ]


def link(
    users: int, mode: Mode, seed: int, on_share: Callable[[float], None], *, habits: bool
) -> dict[str, float]:
    """Return what share of pairs of unknown users an attack judges rightly, by what it looks at."""
    chance = Random(seed)  # noqa: S311 -- a simulation
    found: list[list[list[list[float]]]] = []
    for index, user in enumerate(_users(users, chance, habits=habits)):
        sessions = []
        for _ in range(SESSIONS):
            chunks = chance.randint(1, CHUNKS_MAX) + user.chunks
            runs_s = user.runs * chance.uniform(*ANSWER_S)
            sessions.append(features(observe(user, mode, chunks, runs_s, chance)))
        found.append(sessions)
        on_share((index + 1) / users)
    shares: dict[str, float] = {}
    for name, parts in (("sizes", [0]), ("times", [1]), ("all", [0, 1])):
        looked = [
            np.array([[value for part in parts for value in session[part]] for session in each])
            for each in found
        ]
        shares[name] = _attack(looked, Random(seed))  # noqa: S311 -- a simulation
    return shares


def _attack(found: list[Floats], chance: Random) -> float:
    """Learn from the sessions of some users; return the share of others' pairs judged rightly."""
    border = round(TRAINED * len(found))
    scale = _Scale(np.concatenate(found[:border]))
    scaled = [np.array([scale(each) for each in sessions]) for sessions in found]
    learned = _learn(*_pairs(scaled[:border], chance))
    apart, same = _pairs(scaled[border:], chance)
    return float(np.mean(learned(apart) == same))


class _Scale:
    """Brings features to the same scale, by their ranks among those of known sessions."""

    def __init__(self, known: Floats) -> None:
        self._sorted = np.sort(known, axis=0)

    def __call__(self, found: Floats) -> Floats:
        columns = [
            (np.searchsorted(column, value, "left") + np.searchsorted(column, value, "right"))
            / (2 * len(column))
            for column, value in zip(self._sorted.T, found, strict=True)
        ]
        return np.array(columns)


def _pairs(found: list[Floats], chance: Random) -> tuple[Floats, NDArray[np.bool_]]:
    """Return how far the two sessions of each pair are apart, and whether they are of one user."""
    apart: list[Floats] = []
    same: list[bool] = []
    for index, sessions in enumerate(found):
        for at, session in enumerate(sessions):
            for other in sessions[:at]:
                stranger = chance.choice([n for n in range(len(found)) if n != index])
                for is_same, second in ((True, other), (False, chance.choice(found[stranger]))):
                    apart.append(np.abs(session - second))
                    same.append(is_same)
    return np.array(apart), np.array(same)


def _learn(apart: Floats, same: NDArray[np.bool_]) -> Callable[[Floats], NDArray[np.bool_]]:
    """Fit a logistic regression, with its squares, by Newton's method; return what guesses."""

    def wide(distances: Floats) -> Floats:
        ones = np.ones((len(distances), 1))
        return np.concatenate([ones, distances, np.sqrt(distances)], axis=1)

    rows, wanted = wide(apart), same.astype(np.float64)
    weights = np.zeros(rows.shape[1])
    ridge = 1.0 * np.eye(rows.shape[1])
    for _ in range(20):
        likely = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        slope = rows.T @ (wanted - likely) - ridge @ weights
        bend = (rows * (likely * (1 - likely))[:, None]).T @ rows + ridge
        weights += np.linalg.solve(bend, slope)
    return lambda distances: wide(distances) @ weights > 0


def observer(
    users: int, pace_ms: int, seed: int, on_share: Callable[[float], None]
) -> dict[str, Any]:
    """Run the attack with nothing done, with padding, and with a pace; for both populations."""
    shares: dict[str, Any] = {}
    tried = modes(pace_ms)
    for number, mode in enumerate(tried):
        for habits in (False, True):

            def on_part(share: float, done: int = 2 * number + habits) -> None:
                on_share((done + share) / (2 * len(tried)))

            found = link(users, mode, seed, on_part, habits=habits)
            key = "with_habits" if habits else "alike"
            shares.setdefault(mode.name, {})[key] = {k: round(v, 3) for k, v in found.items()}
    held = shares["paced"]["alike"]["all"] <= 0.5 + MARGIN
    return {"users": users, "pace_ms": pace_ms, "seed": seed, **shares, "holds": held}
