"""Run a slice's rows in several chunkings, and compare them: whether settings are exact.

``probe`` says what for, and which settings are tried.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from p2pinfer.core.limits import BLOCK_ROWS, NARROW_ROWS_MAX, WIDE_ROWS_MAX
from p2pinfer.engine.cores import thread_counts
from p2pinfer.engine.llama.binding import Rows, Settings, Slice, Span, Tokens
from p2pinfer.engine.llama.probe import Probe

_FILL_ROWS = 9 * BLOCK_ROWS
"""576: past the 512 KV cells from which a one-row decode may split attention between threads."""
_TAIL_ROWS = 24
_NEAR_ROWS = 48
_NEAR_NARROW_ROWS = 28
CONTEXT = _FILL_ROWS + _TAIL_ROWS

Outputs = dict[int, bytes]
"""Outputs by position: of every row, or, for logits, of each span's last row."""

Layers = tuple[int | None, int | None]


def try_settings(
    load: Callable[[Settings], Slice],
    settings: Settings,
    *,
    tokens: bool,
    layers: Layers = (None, None),
    device: str = "",
) -> Probe | None:
    """Probe settings with their threads and with fewer; None when they are not exact.

    On a GPU, which takes long to load a slice and to prepare its kernels, the same slice is tried
    with fixed numbers of rows as well.

    Args:
        load: loads the slice with given settings, at least two sessions and ``CONTEXT`` positions.
        settings: the settings to try.
        tokens: whether the slice takes tokens rather than rows.
        layers: run only this many of its layers, at the beginning of a session and far into it;
            None: all.
        device: all that a GPU's arithmetic depends on.
    """
    part = load(settings)
    try:
        inputs = _inputs(part, tokens=tokens)
        found = _try(part, inputs, layers, settings, device)
        if found is None and settings.device:
            settings = replace(settings, fixed=True)
            part.use_fixed_rows()
            found = _try(part, inputs, layers, settings, device)
        if found is None:
            return None
        for fewer in thread_counts(settings.threads)[:-1]:
            part.use_threads(fewer)
            if _try(part, inputs, layers, settings, device) != found:
                return None
        return found
    finally:
        part.close()


class _Contradiction(Exception):
    """A position has other bits than in another run."""


def _try(
    part: Slice, inputs: Tokens | Rows, layers: Layers, settings: Settings, device: str
) -> Probe | None:
    """Probe one choice of settings; None when it is not exact."""
    if settings.fixed and part.keeps_state:
        return None  # into which padding would go
    near, far = (_Regimes(part, inputs, each, settings) for each in layers)
    try:
        # Short sessions first: where rows depend on their batch, most already do there.
        _run_near(near)
        _run_far(far)
    except _Contradiction:
        return None
    both = (near, far)
    runs = [run for each in both for regime in each for run in regime.outputs]
    digest = _digest(runs, device)
    agree = all(_consistent([*each.wide.outputs, *each.narrow.outputs]) for each in both)
    if part.keeps_state:
        return Probe(settings, agree, blocks=False, numerics_class=digest) if agree else None
    blocks = all(_consistent(each.block.outputs) for each in both)
    return Probe(settings, agree, blocks, digest)


def _run_near(runs: "_Regimes") -> None:
    """Run the first rows of a session."""
    for starts in ([0], [0, 8], [0, 13], [0, 35]):
        runs.wide.add(1, starts, _NEAR_ROWS)
    for each in (1, NARROW_ROWS_MAX):
        runs.narrow.add(1, range(0, _NEAR_NARROW_ROWS, each), _NEAR_NARROW_ROWS)
    if not runs.part.keeps_state:  # into which padding would go
        runs.block.add(1, [0], BLOCK_ROWS)
        runs.block.add(1, [0, 37], 37 + BLOCK_ROWS)


def _run_far(runs: "_Regimes") -> None:
    """Fill a session past the 512 cells from which attention is divided, and run more rows."""
    start, end = _FILL_ROWS, CONTEXT
    if not runs.part.keeps_state:
        runs.block.add(0, range(0, start, BLOCK_ROWS), start)
        runs.block.add(0, [start - BLOCK_ROWS, start - 43], start)
    for each in (1, 3, NARROW_ROWS_MAX):
        runs.narrow.add(0, range(start, end, each), end)
    runs.narrow.add_beside()
    for starts in ([start], [start, start + 8]):
        runs.wide.add(0, starts, end)
    if runs.settings.fixed:  # padding may reach into cells that other kernels read
        for edge in (512, 256):
            for starts in ([edge - 56], [edge - 56, edge - 32]):
                runs.wide.add(0, starts, edge - 8)


class _Regimes:
    """Runs of each regime through as many layers."""

    def __init__(
        self, part: Slice, inputs: Tokens | Rows, layers: int | None, settings: Settings
    ) -> None:
        self.part, self.settings = part, settings
        runs = partial(_Runs, part, inputs, layers)
        self.wide = runs(pad_to=WIDE_ROWS_MAX if settings.fixed else 0)
        self.narrow = runs()
        self.block = runs(pad_to=BLOCK_ROWS, must_agree=False)

    def __iter__(self) -> Iterator["_Runs"]:
        return iter((self.wide, self.narrow, self.block))


class _Runs:
    """Runs of one regime, and what came out.

    Unless they must not agree, the first contradiction between two of them is raised.
    """

    def __init__(
        self,
        part: Slice,
        inputs: Tokens | Rows,
        layers: int | None,
        *,
        pad_to: int = 0,
        must_agree: bool = True,
    ) -> None:
        self._part, self._inputs, self._layers = part, inputs, layers
        self._pad_to, self._must_agree = pad_to, must_agree
        self._seen: Outputs = {}
        self.outputs: list[Outputs] = []

    def add(self, slot: int, starts: Iterable[int], end: int) -> None:
        """Decode inputs up to ``end`` in spans that begin at ``starts``."""
        starts = [*starts]
        self._return_to(slot, starts[0])
        found: Outputs = {}
        for first, after in pairwise([*starts, end]):
            span = Span(slot, first, self._inputs[first:after], layers=self._layers)
            rows = self._part.decode([span], pad_to=self._pad_to)[0]
            found |= {after - len(rows) + i: row.tobytes() for i, row in enumerate(rows)}
            self._compare(found)
        self.outputs.append(found)

    def add_beside(self) -> None:
        """Decode one row of a long session together with one of a short session."""
        self._return_to(0, _FILL_ROWS)
        self._return_to(1, 14)
        inputs, layers = self._inputs, self._layers
        spans = [
            Span(0, _FILL_ROWS, inputs[_FILL_ROWS:][:1], layers=layers),
            Span(1, 14, inputs[14:15], layers=layers),
        ]
        found = {_FILL_ROWS: self._part.decode(spans)[0].tobytes()}
        self._compare(found)
        self.outputs.append(found)

    def _return_to(self, slot: int, position: int) -> None:
        """Have a session hold as many rows: where layers keep a state, all are read again."""
        if self._part.keeps_state and position:
            for at in range(0, position, WIDE_ROWS_MAX):
                rows = self._inputs[at : min(at + WIDE_ROWS_MAX, position)]
                self._part.decode([Span(slot, at, rows, layers=self._layers)])

    def _compare(self, found: Outputs) -> None:
        if not self._must_agree:
            return
        if any(self._seen.setdefault(at, row) != row for at, row in found.items()):
            raise _Contradiction


def _consistent(runs: Iterable[Outputs]) -> bool:
    """Whether all runs agree on the bits of every position they share."""
    seen: Outputs = {}
    return all(seen.setdefault(at, row) == row for run in runs for at, row in run.items())


def _digest(runs: Iterable[Outputs], device: str) -> str:
    """Return the class; a GPU with another driver is of another one, whatever the probe saw."""
    state = blake3(device.encode())
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
