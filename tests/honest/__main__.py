"""``make honest``: open rows of honest layers until enough held, and count false alarms.

Each session draws a model, a quantisation, how weights and V are kept, threads, other sessions
beside it, the type of rows on the wire, a length, and runs of rows in all regimes. Rows of it are
then opened, encoded, decoded, and checked as those of a stranger. Kernels are those of the
llama.cpp that Python finds: to try another build, put its folder first in PYTHONPATH.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from p2pinfer.bench.decode import PROMPT
from p2pinfer.core.errors import UnsupportedModel
from p2pinfer.core.opening import BadOpening, check_roots, check_shown, check_signed, decode, encode
from p2pinfer.core.regimes import Regime
from p2pinfer.core.verdict import Verdict, judge_row
from p2pinfer.engine.gguf.model_header import default_model_path
from p2pinfer.engine.llama.binding import Settings, Slice, api
from tests.support.openings import Floats, Known, Session, attention_of, known
from tests.support.tiny_models import TINY, tiny_model
from transports.identity import verify

ROWS = 10_000
PROGRESS_S = 15.0

ARCHITECTURES = ("llama", "qwen2", "qwen3")
QUANTISATIONS = ("Q4_0", "Q4_1", "Q8_0", "Q4_K_M", "Q6_K")
OF_EXPERTS = "mixtral"

LENGTHS = (80, 140, 300, 520, 1100, 2000, 4096)
OFTEN = (0.3, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02)
"""How often a session has that many positions: long ones take most of the time all the same."""

ROWS_OF_SESSION = 64
FEW_ROWS = 24
"""Opened of each; few of the default model, of long sessions, and with two threads."""

FEW_FROM = 500
"""Positions of a long session."""

REGIMES_OPENED = {Regime.NARROW: 0.5, Regime.WIDE: 0.3, Regime.BLOCK: 0.2}
"""Shares of opened rows: most rows of an answer are narrow, and those of blocks take longest."""

SPLIT_FROM = 256 - 64
"""Positions from which llama.cpp may split a row's float16 attention among threads, as it does from
512 cells on, in steps of 256: the probe rules those settings out, since rows then depend on how
they are batched."""

DEFAULT_EVERY = 12
"""Sessions from one of the default model to the next."""

THREADS_EVERY = 40
"""Sessions from one with several threads to the next, which may wait for each other for long."""

THREADS = (2, 3, 4)

PROMPT_SHARE = (0.3, 0.9)
"""Of a session's positions that are its prompt, where rows come one by one behind it."""


@dataclass(frozen=True)
class Drawn:
    """How one session runs."""

    model: str
    settings: Settings
    positions: int
    dtype: str
    sessions: int
    shape: str
    """Runs of all lengths and regimes in turn, or a prompt, and then rows one by one."""
    alone: bool
    """Each row in a decode of its own: rearranged K-quants have other bits in another batch."""


@dataclass
class Found:
    """What was opened so far."""

    sessions: int = 0
    rows: int = 0
    layers: int = 0
    alarms: list[dict[str, Any]] = field(default_factory=list)
    by: dict[str, Counter[str]] = field(default_factory=dict)
    """Rows, by what they were drawn from."""
    worst: dict[str, float] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)
    largest_bytes: int = 0

    def count(self, drawn: Drawn, regime: Regime, position: int) -> None:
        """Count a row."""
        self.rows += 1
        kinds = {
            "model": drawn.model,
            "regime": regime.name.lower(),
            "weights": "rearranged" if drawn.settings.repack else "as stored",
            "attention": attention_of(drawn.settings),
            "threads": str(drawn.settings.threads),
            "wire": drawn.dtype,
            "shape": drawn.shape,
            "beside others": str(drawn.sessions > 1),
            "positions": f"below {next(each for each in LENGTHS if position < each)}",
        }
        for kind, value in kinds.items():
            self.by.setdefault(kind, Counter())[value] += 1

    def take(self, verdict: Verdict) -> None:
        """Remember how far steps were apart."""
        self.layers += verdict.layers
        for ours, theirs in ((self.worst, verdict.worst), (self.used, verdict.used)):
            for step, apart in theirs.items():
                ours[step] = max(apart, ours.get(step, 0.0))

    def report(self, seed: int, seconds: float) -> dict[str, Any]:
        """Return what is printed."""
        system = api.llama_print_system_info().decode()
        return {
            "seed": seed,
            "kernels": [each.strip() for each in system.split("|") if "= 1" in each],
            "rows": self.rows,
            "layers": self.layers,
            "sessions": self.sessions,
            "false_alarms": len(self.alarms),
            "alarms": self.alarms[:20],
            "false_alarm_rate_below": None if self.alarms else 3 / self.rows,  # of 95 %
            "worst": {step: float(f"{apart:.1e}") for step, apart in sorted(self.worst.items())},
            "tolerance_used": {step: round(used, 3) for step, used in sorted(self.used.items())},
            "experts": _of_experts(),
            "rows_by": {kind: dict(sorted(each.items())) for kind, each in self.by.items()},
            "largest_bytes": self.largest_bytes,
            "seconds": round(seconds),
        }


class Models:
    """Models that are written, or found, when they are first drawn."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Known] = {}

    def find(self, name: str) -> Known:
        """Return a model by its architecture and quantisation, or ``default``."""
        if name not in self._known:
            path = (
                default_model_path()
                if name == "default"
                else tiny_model(self._folder, *name.split(" "))
            )
            self._known[name] = known(
                path, 30 if name == "default" else TINY[name.split(maxsplit=1)[0]].layers
            )
        return self._known[name]


def draw(chance: np.random.Generator, number: int, *, threaded: bool = False) -> Drawn:
    """Draw how a session runs: all models in turn, and all else by chance.

    Args:
        chance: decides.
        number: of the session.
        threaded: each has several threads, not only some.
    """
    names = [f"{name} {quantisation}" for name in ARCHITECTURES for quantisation in QUANTISATIONS]
    is_default = number % DEFAULT_EVERY == DEFAULT_EVERY - 1
    name = "default" if is_default else names[(number - number // DEFAULT_EVERY) % len(names)]
    positions = int(chance.choice(LENGTHS, p=OFTEN)) - int(chance.integers(24))
    repack, attention = bool(chance.random() < 0.5), chance.random()
    bf16, plain = bool(attention < 0.25), bool(attention > 0.6)
    bf16 = bf16 or (threaded and positions > SPLIT_FROM and not plain)
    is_split = positions > SPLIT_FROM and not (bf16 or plain)
    is_turn = threaded or number % THREADS_EVERY == THREADS_EVERY // 2
    threads = int(chance.choice(THREADS)) if is_turn and not is_split else 1
    alone = repack and "K" in name
    sessions = 1 if alone else int(chance.choice((1, 3)))
    dtype = "f16" if chance.random() < 0.2 else "f32"
    shape = "prompt, then rows" if chance.random() < 0.5 else "runs in turn"
    settings = Settings(threads, repack, bf16, flash_attention=not plain)
    return Drawn(name, settings, positions, dtype, sessions, shape, alone)


def _rows(chance: np.random.Generator, drawn: Drawn, model: Known, count: int) -> Floats:
    """Return rows of random tokens, or of a text where the model has read texts."""
    rows = model.rows(count, int(chance.integers(1 << 30)))
    if drawn.model == "default":
        tokens = _tokens(model.path)
        start = int(chance.integers(len(tokens)))
        rows = model.embedding[np.resize(np.roll(tokens, -start), count)]
    if drawn.dtype == "f16":
        rows = rows.astype(np.float16).astype(np.float32)
    return rows


_TOKENS: dict[Path, Any] = {}


def _tokens(path: Path) -> Any:
    if path not in _TOKENS:
        from p2pinfer.engine.llama.binding import Vocabulary

        _TOKENS[path] = np.array(Vocabulary.of_file(path).tokenize(PROMPT, special=False))
    return _TOKENS[path]


def _read(chance: np.random.Generator, drawn: Drawn, model: Known, session: Session) -> None:
    """Read rows in runs of random length and regime, or a prompt, and then rows one by one."""
    prompt = 0
    if drawn.shape != "runs in turn":
        prompt = int(drawn.positions * chance.uniform(*PROMPT_SHARE))
    while (at := len(session.received.tree)) < drawn.positions:
        regime = Regime(int(chance.integers(3)))
        many = int(chance.integers(1, regime.rows_max + 1))
        if at < prompt:  # as prompts are read: whole blocks, then a last chunk that is wide
            regime = Regime.BLOCK if prompt - at >= Regime.BLOCK.rows_max else Regime.WIDE
            many = min(regime.rows_max, prompt - at)
        elif prompt:
            regime, many = Regime.NARROW, 1
        if drawn.positions > 1000 and not drawn.alone and regime is Regime.NARROW and not prompt:
            many = regime.rows_max  # or it would take minutes
        rows = _rows(chance, drawn, model, min(many, drawn.positions - at))
        for some in np.split(rows, len(rows)) if drawn.alone else [rows]:
            session.read(some, regime)


def _choose(chance: np.random.Generator, drawn: Drawn, session: Session) -> set[int]:
    """Choose rows of each regime, and the first and last one."""
    is_slow = drawn.model == "default" or drawn.positions > FEW_FROM or drawn.settings.threads > 1
    regimes, found = session.received.regimes(drawn.positions), {0, drawn.positions - 1}
    for regime, share in REGIMES_OPENED.items():
        there = [at for at, each in enumerate(regimes) if each is regime]
        some = min(round(share * (FEW_ROWS if is_slow else ROWS_OF_SESSION)), len(there))
        found.update(int(at) for at in chance.choice(there, some, replace=False))
    return found


def _opened(
    chance: np.random.Generator, drawn: Drawn, model: Known, found: Found
) -> Iterator[tuple[int, Regime, Verdict | str]]:
    """Run a session, open rows of it, and yield what they show, or why they are refused."""
    part = Slice(
        model.path,
        logits=False,
        settings=drawn.settings,
        sessions=drawn.sessions,
        context=max(LENGTHS),
    )
    with closing(part):
        session = Session(part, len(model.keys), drawn.dtype)
        _read(chance, drawn, model, session)
        for position in sorted(_choose(chance, drawn, session), reverse=True):
            regime = session.received.regime(position)
            data = encode(session.open(position))
            found.largest_bytes = max(found.largest_bytes, len(data))
            try:
                opening = decode(data)
                check_signed(opening, verify)
                check_roots(opening)
                check_shown(opening, dict.fromkeys(range(len(model.keys)), True))
            except BadOpening as error:
                yield position, regime, str(error)
            else:
                yield position, regime, judge_row(opening, model.shape, model.keys)


def measure(
    rows: int, seed: int, folder: Path, tell: Callable[[str], None], *, threaded: bool = False
) -> dict[str, Any]:
    """Open rows until there are enough, and return the report.

    Args:
        rows: of all models.
        seed: of all that is drawn; each session can be repeated by its number.
        folder: for models.
        tell: gets progress messages.
        threaded: of sessions with several threads alone.
    """
    begun = told = time.monotonic()
    models, found = Models(folder), Found()
    while found.rows < rows and not _told_to_end:
        _measure_session(models, seed, found, tell, threaded=threaded)
        if (now := time.monotonic()) - told > PROGRESS_S:
            told = now
            tell(f"{found.rows:,} of {rows:,} rows, {len(found.alarms)} alarms")
    return found.report(seed, time.monotonic() - begun)


def _measure_session(
    models: Models, seed: int, found: Found, tell: Callable[[str], None], *, threaded: bool
) -> None:
    chance = np.random.default_rng([seed, found.sessions])
    drawn = draw(chance, found.sessions, threaded=threaded)
    for position, regime, said in _opened(chance, drawn, models.find(drawn.model), found):
        found.count(drawn, regime, position)
        fault = said if isinstance(said, str) else said.fault and said.fault.text()
        if isinstance(said, Verdict):
            found.take(said)
        if fault:
            where = {"session": found.sessions, "position": position, "regime": regime.name}
            found.alarms.append({**where, "said": fault, **asdict(drawn)})
            tell(f"alarm: {found.alarms[-1]}")
        if _told_to_end:
            break
    found.sessions += 1


def _of_experts() -> str:
    """Return what is said of layers that cannot be proven."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            known(tiny_model(Path(folder), OF_EXPERTS, "Q8_0"), 1)
        except UnsupportedModel as error:
            return f"refused: {error}"
    return "proven"


_told_to_end: list[bool] = []
"""Not an exception, which would get lost in what llama.cpp calls back."""


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    """Read how many, and print a report as JSON."""
    parser = argparse.ArgumentParser(prog="make honest", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="to open, at least")
    parser.add_argument("--seed", type=int, help="a fresh one unless it is given")
    parser.add_argument("--threaded", action="store_true", help="several threads in each session")
    asked = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # what was found until then is reported
        signal.signal(number, lambda *_: _told_to_end.append(True))
    seed = int.from_bytes(os.urandom(4), "little") if asked.seed is None else asked.seed
    with tempfile.TemporaryDirectory() as folder:
        report = measure(asked.rows, seed, Path(folder), _tell, threaded=asked.threaded)
    sys.stdout.write(f"{json.dumps(report, indent=1)}\n")


if __name__ == "__main__":
    main()
