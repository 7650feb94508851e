"""Measure what exact settings of a slice cost on this machine: other threads, other attention.

Settings take turns decode by decode, so that what else the machine does meets all of them; the
least time of several counts. They share the weights, where the weights are arranged alike.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from p2pinfer.core.limits import BLOCK_ROWS
from p2pinfer.engine.llama.binding import Settings, Slice, Span
from p2pinfer.engine.llama.core_shares import in_turn

FAR_POSITIONS = 3584
"""Where it is measured, near the end of the usual context: kernels of attention differ by how their
time grows with positions, and hardly at all near a session's start."""

CONTEXT = FAR_POSITIONS + BLOCK_ROWS

ROUNDS = 7
"""Of which the fastest counts."""

PROMPT_ROWS_PER_ROW = 1
"""A turn reads about as many rows of prompt as it decodes singly: what a kept session holds is
not read again. Both count by their time."""

Load = Callable[[Settings, Slice | None], Slice]
"""Loads a slice, or another context of one, whose settings may differ in all but ``repack`` and the
device."""


def measure(
    load: Load,
    choices: Sequence[Settings],
    *,
    tokens: bool,
    layers: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return for each choice the seconds of a single row and its share of a prompt's blocks.

    Args:
        load: loads the slice with one session and ``CONTEXT`` positions.
        choices: what to measure.
        tokens: whether the slice takes tokens rather than rows.
        layers: run only this many of its layers; None: all.
        clock: in seconds.
    """
    found = dict[Settings, float]()
    for kind in dict.fromkeys((each.repack, each.device) for each in choices):
        alike = [each for each in choices if (each.repack, each.device) == kind]
        found |= _measure_alike(load, alike, tokens, layers, clock)
    return [found[each] for each in choices]


def _measure_alike(
    load: Load,
    choices: Sequence[Settings],
    tokens: bool,
    layers: int | None,
    clock: Callable[[], float],
) -> dict[Settings, float]:
    with _loaded(load, choices) as parts:
        inputs = _inputs(next(iter(parts.values())), tokens=tokens)
        block = Span(0, FAR_POSITIONS, inputs[-BLOCK_ROWS:], layers=layers)
        row = Span(0, FAR_POSITIONS, inputs[-1:], layers=layers)
        for part in parts.values():
            for at in range(0, FAR_POSITIONS, BLOCK_ROWS):
                part.occupy(Span(0, at, inputs[at : at + BLOCK_ROWS]))
        least: dict[tuple[Settings, int], float] = {}
        for _ in range(ROUNDS):
            for settings in choices:
                part = parts[replace(settings, threads=_most(choices, settings))]
                part.use_threads(settings.threads)
                for span in (row, row, block):  # the first one starts the threads
                    started = clock()
                    part.decode([span], pad_to=len(span) if len(span) > 1 else 0)
                    key = settings, len(span)
                    least[key] = min(least.get(key, np.inf), clock() - started)
    share = PROMPT_ROWS_PER_ROW / BLOCK_ROWS
    return {each: least[each, 1] + share * least[each, BLOCK_ROWS] for each in choices}


def measured_once(
    measure: Callable[[Sequence[Settings]], list[float]],
    paths: Sequence[Path],
    key: str,
    choices: Sequence[Settings],
) -> list[float]:
    """Measure, unless a file keeps what was measured: all slices of a model choose alike then.

    Engines that start together measure one after the other.

    Args:
        measure: returns nothing where it failed.
        paths: the files, which slices with layers of the same kinds share; any will do.
        key: what the figures hold for.
        choices: the settings.
    """
    what = [FAR_POSITIONS, PROMPT_ROWS_PER_ROW]
    asked = [key, what, [asdict(each) for each in choices]]
    with in_turn():
        for path in paths:
            with suppress(OSError, ValueError, KeyError, TypeError):
                kept = json.loads(path.read_text())
                if kept["asked"] == asked:
                    return [float(each) for each in kept["seconds"]]
        if seconds := measure(choices):
            for path in paths:
                with suppress(OSError):  # a full disk: it is measured again next time
                    path.write_text(json.dumps({"asked": asked, "seconds": seconds}))
        return seconds


@contextmanager
def _loaded(load: Load, choices: Sequence[Settings]) -> Iterator[dict[Settings, Slice]]:
    """Load a context for each kind of settings, whatever their threads."""
    with ExitStack() as stack:
        parts: dict[Settings, Slice] = {}
        first: Slice | None = None
        for settings in dict.fromkeys(
            replace(each, threads=_most(choices, each)) for each in choices
        ):
            part = load(settings, first)
            stack.callback(part.close)
            parts[settings], first = part, first or part
        yield parts


def _most(choices: Sequence[Settings], like: Settings) -> int:
    """Return the most threads among choices of one kind."""
    return max(each.threads for each in choices if replace(each, threads=like.threads) == like)


def _inputs(part: Slice, *, tokens: bool) -> np.ndarray:
    random = np.random.default_rng(1)
    if tokens:
        return random.integers(0, part.vocabulary, CONTEXT).astype(np.int32)
    return random.standard_normal((CONTEXT, part.width)).astype(np.float32)
