"""Slices whose arithmetic has exactly one flaw each, which the probe must see."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.limits import BLOCK_ROWS, NARROW_ROWS_MAX
from p2pinfer.engine.gpu import Gpu
from p2pinfer.engine.llama.binding import Settings, Span
from p2pinfer.engine.llama.probe import Attempt, Probe, Tries, probe
from p2pinfer.engine.llama.trial import try_settings

Cost = Callable[[Settings], float]
"""Returns the seconds that settings take."""

Flaw = Callable[[Settings, Sequence[Span], int], float]
"""Returns an error to add to every row, from the settings, the decode, and the cells in use."""

WIDTH = 4
KINDS = "0" * 32


def exact(_settings: Settings, _spans: Sequence[Span], _cells: int) -> float:
    """Compute the same whatever the circumstances."""
    return 0.0


def regimes_differ(_settings: Settings, spans: Sequence[Span], _cells: int) -> float:
    """Compute wide decodes a little differently, as K-quants do."""
    return 1e-6 * (sum(map(len, spans)) > NARROW_ROWS_MAX)


def depends_on_rows(_settings: Settings, spans: Sequence[Span], _cells: int) -> float:
    """Each number of rows gives another result."""
    return 1e-6 * sum(map(len, spans))


def wide_rows_differ(_settings: Settings, spans: Sequence[Span], _cells: int) -> float:
    """Only 40 and more rows differ, as if another kernel began there."""
    return 1e-6 * (sum(map(len, spans)) >= 40)


def depends_on_other_sessions(_settings: Settings, spans: Sequence[Span], _cells: int) -> float:
    """Other sessions in the decode change a row."""
    return 1e-6 * (len(spans) > 1)


def depends_on_place(_settings: Settings, spans: Sequence[Span], _cells: int) -> float:
    """Rows depend on where their decode begins, however many there are."""
    return 1e-6 * (spans[0].position % BLOCK_ROWS) * (sum(map(len, spans)) > 1)


def gpu_is_inexact(settings: Settings, spans: Sequence[Span], _cells: int) -> float:
    """Only the CPU is exact."""
    return depends_on_place(settings, spans, _cells) if settings.device else 0.0


def gpu_needs_fixed_rows(settings: Settings, spans: Sequence[Span], _cells: int) -> float:
    """On the GPU each number of rows gives another result."""
    return 1e-6 * (1 + sum(map(len, spans))) if settings.device else 0.0


def gpu_needs_plain_attention(settings: Settings, spans: Sequence[Span], _cells: int) -> float:
    """As before, and attention depends on the place."""
    error = depends_on_place(settings, spans, _cells) if settings.flash_attention else 0.0
    return gpu_needs_fixed_rows(settings, spans, _cells) + (error if settings.device else 0.0)


def blocks_depend_on_place(_settings: Settings, spans: Sequence[Span], _cells: int) -> float:
    """Rows of a block depend on its first position, as if tiles were aligned to the cache."""
    return 1e-6 * (spans[0].position % BLOCK_ROWS) * (sum(map(len, spans)) >= BLOCK_ROWS)


def blocks_differ_past_512(_settings: Settings, spans: Sequence[Span], cells: int) -> float:
    """The same, but only if the cache is long."""
    return blocks_depend_on_place(_settings, spans, cells) * (cells >= 512)


def repacking_is_inexact(settings: Settings, spans: Sequence[Span], _cells: int) -> float:
    """It is exact only without repacking."""
    return 1e-6 * sum(map(len, spans)) * settings.repack


def one_row_is_split(settings: Settings, spans: Sequence[Span], cells: int) -> float:
    """Past 512 cells several threads share one row's attention, as llama.cpp's do."""
    single = sum(map(len, spans)) == 1 and cells >= 512
    splits = settings.threads > 1 and settings.flash_attention and not settings.values_bf16
    return 1e-6 * settings.threads * (single and splits)


def depends_on_threads(settings: Settings, _spans: Sequence[Span], _cells: int) -> float:
    """Each thread count is consistent, and differs from the others, but for V in bfloat16."""
    return 1e-6 * settings.threads * (not settings.values_bf16)


def plain_attention_is_inexact(settings: Settings, spans: Sequence[Span], cells: int) -> float:
    """Only flash attention is exact."""
    return one_row_is_split(settings, spans, cells) or depends_on_rows(settings, spans, cells) * (
        not settings.flash_attention
    )


def constant(_settings: Settings) -> float:
    """Take as long with all settings."""
    return 1.0


def threads_pay(settings: Settings) -> float:
    """Take half as long with twice as many threads."""
    return 1.0 / settings.threads


def four_threads_pay(settings: Settings) -> float:
    """Memory is no faster for more of them."""
    return 1.0 / min(settings.threads, 4)


def threads_are_in_the_way(settings: Settings) -> float:
    """As where other programs run."""
    return 1.0 * settings.threads


def plain_is_fast(settings: Settings) -> float:
    """Take a third of the time without flash attention, as on some CPUs."""
    return 1.0 if settings.flash_attention else 0.35


def plain_is_hardly_faster(settings: Settings) -> float:
    """Within what measuring may be wrong by."""
    return 1.0 if settings.flash_attention else 0.95


def _rows(span: Span) -> list[Span]:
    """Split a span into its rows."""
    return [
        Span(span.slot, span.position + i, span.inputs[i : i + 1], layers=span.layers)
        for i in range(len(span))
    ]


class FakeSlice:
    """What the probe needs of a slice."""

    width, vocabulary = WIDTH, 100
    keeps_state = False

    def __init__(self, settings: Settings, flaw: Flaw) -> None:
        self._settings, self._flaw = settings, flaw
        self.is_open = True
        self.rows = 0
        self.layers: set[int | None] = set()

    def decode(self, spans: Sequence[Span], *, pad_to: int = 0) -> list[NDArray[np.float32]]:
        """Return rows that depend on inputs and positions, and on the flaw."""
        if pad_to:
            (span,) = spans
            padding = np.zeros((pad_to - len(span), *span.inputs.shape[1:]), span.inputs.dtype)
            inputs = np.concatenate([span.inputs, padding])
            padded = Span(span.slot, span.position, inputs, layers=span.layers)
            return [self._decode([padded])[0][: len(span)]]
        if self._settings.fixed:
            return [np.concatenate([self._decode([row])[0] for row in _rows(s)]) for s in spans]
        return self._decode(spans)

    def _decode(self, spans: Sequence[Span]) -> list[NDArray[np.float32]]:
        self.rows += sum(map(len, spans))
        self.layers |= {span.layers for span in spans}
        cells = max(span.position for span in spans)
        error = np.float32(self._flaw(self._settings, spans, cells))
        found = []
        for span in spans:
            rows = np.asarray(span.inputs, np.float32).reshape(len(span), -1)
            positions = np.arange(span.position, span.position + len(span), dtype=np.float32)
            found.append((rows + positions[:, None]) * (1 + error))
        return found

    def use_threads(self, threads: int) -> None:
        """Compute with another number of threads."""
        self._settings = replace(self._settings, threads=threads)

    def use_fixed_rows(self) -> None:
        """Decode only one row, or one fixed number of them."""
        self._settings = replace(self._settings, fixed=True)

    def close(self) -> None:
        """Free it."""
        assert self.is_open
        self.is_open = False


class Loader:
    """Loads fakes and records their settings."""

    def __init__(self, flaw: Flaw) -> None:
        self.flaw = flaw
        self.loaded: list[FakeSlice] = []
        self.settings: list[Settings] = []

    def __call__(self, settings: Settings) -> FakeSlice:
        """Load a slice; the one before must be closed."""
        assert not any(part.is_open for part in self.loaded)
        self.loaded.append(FakeSlice(settings, self.flaw))
        self.settings.append(settings)
        return self.loaded[-1]


def trying(loader: Loader, *, tokens: bool = False) -> Attempt:
    """Try settings in this process."""
    return partial(_try_settings, loader, tokens)


def _try_settings(loader: Loader, tokens: bool, settings: Settings) -> Probe | None:
    return try_settings(loader, settings, tokens=tokens)  # type: ignore[arg-type] # a fake slice


def tries(attempt: Attempt, cost: Cost = constant) -> Tries:
    """Take times for measured."""
    return Tries(attempt, lambda choices: [cost(each) for each in choices])


def run(
    flaw: Flaw,
    cache: Path,
    *,
    threads: int = 1,
    tokens: bool = False,
    cost: Cost = constant,
    is_most: bool = False,
    gpu: Gpu | None = None,
    why_not_cpu: str = "",
) -> Probe:
    """Probe a fake."""
    loader = Loader(flaw)
    tried = tries(trying(loader, tokens=tokens), cost)
    found = probe(tried, threads, cache, KINDS, is_most=is_most, gpu=gpu, why_not_cpu=why_not_cpu)
    assert not any(part.is_open for part in loader.loaded)
    return found
