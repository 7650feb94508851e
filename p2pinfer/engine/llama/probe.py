"""Find out how a slice computes on this machine by running it, instead of trusting a table.

Fixed pseudo-random inputs go through the slice in several chunkings: wide, narrow and in blocks,
from the first position and past 512 KV cells, alone and beside another session, with one thread and
with the worker's. Settings are exact if every row has the same bits however it was chunked, narrow
and wide. The fastest exact settings are used, with blocks if they are exact too; settings that
crash are ruled out. Peers whose probes gave the same digest are of one *numerics class*: their
arithmetic agrees bit for bit.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from p2pinfer._setup.wheel import cpu_features
from p2pinfer.core.errors import EngineError, UnsupportedModel
from p2pinfer.core.exits import NEEDS_LESS
from p2pinfer.core.limits import BLOCK_ROWS, NARROW_ROWS_MAX
from p2pinfer.engine.llama.binding import Rows, Settings, Slice, Span, Tokens, build_fingerprint

_VERSION = 3
_FILL_ROWS = 9 * BLOCK_ROWS
"""576: past the 512 KV cells from which a one-row decode may split attention between threads."""
_TAIL_ROWS = 24
CONTEXT = _FILL_ROWS + _TAIL_ROWS

Outputs = dict[int, bytes]
"""Outputs by position: of every row, or, for logits, of each span's last row."""


@dataclass(frozen=True)
class Probe:
    """How a slice computes on this machine."""

    settings: Settings
    regimes_agree: bool
    """A row has the same bits narrow and wide."""
    blocks: bool
    """Blocks are exact; they never agree with the other two regimes."""
    numerics_class: str
    """BLAKE3 over all of the probe's outputs, 32 hexadecimal digits."""

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "Probe":
        """Read back what ``asdict`` wrote; raises KeyError, TypeError or ValueError."""
        return cls(**{**values, "settings": Settings(**values["settings"])})


@dataclass(frozen=True)
class Crash:
    """The outcome of settings that ended the process that tried them."""

    how: str
    lacked_memory: bool
    """If so, another attempt may succeed."""


INEXACT = "its rows depend on how they are batched"

Attempt = Callable[[Settings], Probe | Crash | None]
"""Tries settings as ``try_settings`` does, but in a process that may crash."""


def probe(attempt: Attempt, threads: int, cache: Path) -> Probe:
    """Return the cached probe of a slice, or run and cache one, with the settings ruled out.

    Args:
        attempt: tries settings on the slice.
        threads: how many the worker will use.
        cache: the file for the result; a result of another build or CPU is ignored.

    Raises:
        UnsupportedModel: no settings give the same bits for every chunking.
        EngineError: none can be run: llama.cpp crashes, or memory runs out.
    """
    build, cpu = build_fingerprint(), cpu_features()
    key = f"{_VERSION} {threads} {build} {cpu}"
    if kept := _kept(cache, key):
        return kept
    ruled_out: list[tuple[Settings, Crash | None]] = []
    for settings in _candidates(threads):
        found = attempt(settings)
        if isinstance(found, Probe):
            if not any(crash and crash.lacked_memory for _, crash in ruled_out):
                report = {
                    "build": build,
                    "cpu": cpu,
                    "ruled_out": [
                        {"settings": asdict(each), "why": crash.how if crash else INEXACT}
                        for each, crash in ruled_out
                    ],
                }
                with suppress(OSError):  # a full disk: the slice is probed again next time
                    cache.write_text(json.dumps({"key": key, "probe": asdict(found), **report}))
            return found
        ruled_out.append((settings, found))
    raise _refusal([crash for _, crash in ruled_out])


def _candidates(threads: int) -> Iterator[Settings]:
    """Yield settings, fastest first."""
    for values_bf16 in (False, True):
        for repack in (True, False):
            yield Settings(threads, repack, values_bf16)


def _refusal(outcomes: Sequence[Crash | None]) -> EngineError | UnsupportedModel:
    crashes = [each for each in outcomes if each]
    if any(crash.lacked_memory for crash in crashes):
        return EngineError(f"memory ran out while the slice was tried: {NEEDS_LESS}")
    if len(crashes) == len(outcomes):
        return EngineError(
            f"llama.cpp crashes here with every setting: {crashes[0].how}; "
            "to have it compiled and tried again, type: make clean setup"
        )
    return UnsupportedModel(
        "llama.cpp does not compute this model the same way twice on this machine: its rows "
        "depend on how they are batched, so no peer could check them"
        + (f" (and some settings crash: {crashes[0].how})" if crashes else "")
    )


def _kept(cache: Path, key: str) -> Probe | None:
    try:
        data = json.loads(cache.read_text())
        if data["key"] == key:
            return Probe.parse(data["probe"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no result yet, or one that another version wrote
    return None


def try_settings(
    load: Callable[[Settings], Slice], settings: Settings, *, tokens: bool
) -> Probe | None:
    """Probe settings with their threads and with one; None when they are not exact.

    Args:
        load: loads the slice with given settings, at least two sessions and ``CONTEXT`` positions.
        settings: the settings to try.
        tokens: whether the slice takes tokens rather than rows.
    """
    found = _try(load, settings, tokens=tokens)
    if found and settings.threads > 1:
        alone = _try(load, replace(settings, threads=1), tokens=tokens)
        if alone is None or alone.numerics_class != found.numerics_class:
            return None
    return found


def _try(load: Callable[[Settings], Slice], settings: Settings, *, tokens: bool) -> Probe | None:
    """Probe one choice of settings; None when it is not exact."""
    part = load(settings)
    try:
        inputs = _inputs(part, tokens=tokens)
        run = _Runs(part, inputs).run
        start, end = _FILL_ROWS, _FILL_ROWS + _TAIL_ROWS
        block = [
            run(1, [0, 37], 37 + BLOCK_ROWS, pad_to=BLOCK_ROWS),
            run(0, range(0, start, BLOCK_ROWS), start, pad_to=BLOCK_ROWS),
            run(0, [start - BLOCK_ROWS, start - 43], start, pad_to=BLOCK_ROWS),
        ]
        wide = [
            run(0, [start], end),
            run(0, [start, start + 8], end),
            run(1, [0], 48),
            run(1, [0, 8], 48),
            run(1, [0, 13], 48),
            run(1, [0, 35], 48),
        ]
        narrow = [
            run(0, range(start, end), end),
            run(0, range(start, end, 3), end),
            run(0, range(start, end, NARROW_ROWS_MAX), end),
            run(1, range(14), 14),
            run(1, [0, 7], 14),
        ]
        narrow.append(_beside(part, inputs))
        if not (_consistent(wide) and _consistent(narrow)):
            return None
        digest = _digest(wide + narrow + block)
        return Probe(settings, _consistent(wide + narrow), _consistent(block), digest)
    finally:
        part.close()


@dataclass(frozen=True)
class _Runs:
    part: Slice
    inputs: Tokens | Rows

    def run(self, slot: int, starts: Iterable[int], end: int, *, pad_to: int = 0) -> Outputs:
        """Decode inputs up to ``end`` in spans that begin at ``starts``."""
        bounds = [*starts, end]
        found: Outputs = {}
        for first, after in pairwise(bounds):
            span = Span(slot, first, self.inputs[first:after])
            rows = self.part.decode([span], pad_to=pad_to)[0]
            found |= {after - len(rows) + i: row.tobytes() for i, row in enumerate(rows)}
        return found


def _beside(part: Slice, inputs: Tokens | Rows) -> Outputs:
    """Decode one row of a long session together with one of a short session."""
    spans = [Span(0, _FILL_ROWS, inputs[_FILL_ROWS:][:1]), Span(1, 14, inputs[14:15])]
    return {_FILL_ROWS: part.decode(spans)[0].tobytes()}


def _consistent(runs: Iterable[Outputs]) -> bool:
    """Whether all runs agree on the bits of every position they share."""
    seen: Outputs = {}
    return all(seen.setdefault(at, row) == row for run in runs for at, row in run.items())


def _digest(runs: Iterable[Outputs]) -> str:
    state = blake3()
    for run in runs:
        for at in sorted(run):
            state.update(at.to_bytes(4, "little") + run[at])
    return state.hexdigest(length=16)


def _inputs(part: Slice, *, tokens: bool) -> Tokens | Rows:
    """Return inputs that are the same on every machine: BLAKE3's stream, about unit variance."""
    count = CONTEXT if tokens else CONTEXT * part.width
    raw = np.frombuffer(blake3(b"p2pinfer probe").digest(length=4 * count), "<u4")
    if tokens:
        return (raw % part.vocabulary).astype(np.int32)
    uniform: NDArray[np.float32] = (raw / np.float32(2**31) - 1).astype(np.float32)
    return (uniform * np.float32(1.7)).reshape(CONTEXT, part.width)
