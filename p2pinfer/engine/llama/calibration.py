"""How far apart honest machines' rows of a model lie: measured, not assumed.

The same rows go through the model's layers many times, as one slice and in thirds: with other
numbers of threads, other chunks, without flash attention, without repacked weights, and through
float16 on the wire. Each of these imitates a machine that may exist. The largest distance from the
reference, times a margin for processors that are not here, gives the bounds to which audits between
numerics classes hold stages. They are kept in the store, beside the model's manifest.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import attrs
import numpy as np

from p2pinfer.core.bounds import Bounds, distances
from p2pinfer.core.limits import NARROW_ROWS_MAX, WIDE_ROWS_MAX
from p2pinfer.core.receipts import CHECKPOINT_POSITIONS
from p2pinfer.engine.llama.binding import Rows, Settings, Slice, Span, Vocabulary
from p2pinfer.engine.store.assemble import PartsModel

ROWS: Final = 5 * CHECKPOINT_POSITIONS
"""Of a text: five checkpoints, of which the one furthest from the reference counts."""

MARGINS: Final = Bounds(median=2.0, row=4.0)
"""Other machines may lie as far again from these, and a single row occasionally farther: in texts
longer than this one, a few rows' attention hinges on tiny differences."""

LEAST: Final = Bounds(median=0.03, row=0.2)
"""The least bounds, for a model whose rows hardly differ here: other processors differ in ways that
no setting imitates, by 1.4 to 4 %, and a slice of the next lower quantisation by 10 %."""

TEXT: Final = (
    "Rain had fallen all night, and the river stood so high that nobody dared cross the bridge. "
    "At seven the miller came, looked at the water, counted the planks (there were 31), and said: "
    "'Wait.' Why should we? Because 31 planks carry three people, not four, and one has a cow. "
    "def cross(people, planks): return planks // 10 >= people. By noon it was 2.5 m lower. "
) * 3

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Variant:
    """One way to compute the same rows."""

    name: str
    settings: Settings = field(default_factory=Settings)
    chunk: int = WIDE_ROWS_MAX
    float16: bool = False


VARIANTS: Final = (
    Variant("2 threads", Settings(threads=2)),
    Variant("values in bfloat16", Settings(values_bf16=True)),
    Variant("weights not repacked", Settings(repack=False)),
    Variant("no flash attention", Settings(flash_attention=False)),
    Variant("chunks of 8", chunk=8),
    Variant(f"chunks of {NARROW_ROWS_MAX}", chunk=NARROW_ROWS_MAX),
    Variant("row by row", chunk=1),
    Variant("row by row, 2 threads", Settings(threads=2), 1),
    Variant("float16 on the wire", float16=True),
)


def calibrate(model: PartsModel, tell: Tell) -> dict[str, Any]:
    """Measure a model that is here as a whole; return its bounds and the measurements.

    Raises:
        MissingChunk, DamagedPart, BadModelFile, UserError: as ``PartsModel.stage``.
    """
    if model.info.experts:
        os.environ["GGML_CPU_TILED_MM"] = "0"  # as in workers
    inputs = _embed(model)
    found: dict[str, tuple[float, float]] = {variant.name: (0.0, 0.0) for variant in VARIANTS}
    for first, end, whole in _ranges(model.manifest.layers):
        tell(f"layers {first}:{end}")
        reference = _run(model, first, end, inputs, Variant("reference"))
        for variant in VARIANTS:
            rows = _run(model, first, end, inputs, variant)
            apart = distances(rows.tobytes(), reference.tobytes(), len(rows))
            checkpoints = apart.reshape(-1, CHECKPOINT_POSITIONS)
            median, row = float(np.median(checkpoints, axis=1).max()), float(apart.max())
            before = found[variant.name]
            found[variant.name] = max(before[0], median), max(before[1], row)
        if not whole:
            inputs = reference
    bounds = Bounds(
        max(LEAST.median, MARGINS.median * max(median for median, _ in found.values())),
        max(LEAST.row, MARGINS.row * max(row for _, row in found.values())),
    )
    return {
        "bounds": attrs.asdict(bounds),
        "rows": ROWS,
        "margins": attrs.asdict(MARGINS),
        "measured": {
            name: {"median": round(median, 6), "row": round(row, 6)}
            for name, (median, row) in found.items()
        },
    }


def _ranges(layers: int) -> Iterator[tuple[int, int, bool]]:
    """Yield all layers between ends of one layer, then the same in up to three slices."""
    first, end = 1, layers - 1
    yield first, end, True
    cuts = sorted({first + (end - first) * third // 3 for third in range(4)})
    for start, after in pairwise(cuts):
        yield start, after, False


def _embed(model: PartsModel) -> Rows:
    path, _ = model.ends(1)
    part = Slice(path, logits=False, settings=Settings(), sessions=1, context=ROWS)
    try:
        tokens = Vocabulary(part.vocab).tokenize(TEXT, special=False)
        wanted = np.resize(np.array(tokens, np.int32), ROWS)
        return _decode(part, wanted, WIDE_ROWS_MAX)
    finally:
        part.close()


def _run(model: PartsModel, first: int, end: int, inputs: Rows, variant: Variant) -> Rows:
    path = model.stage(first, end)
    part = Slice(path, logits=False, settings=variant.settings, sessions=1, context=ROWS)
    try:
        given = _halved(inputs) if variant.float16 else inputs
        rows = _decode(part, given, variant.chunk)
        return _halved(rows) if variant.float16 else rows
    finally:
        part.close()


def _decode(part: Slice, inputs: Any, chunk: int) -> Rows:
    spans = (Span(0, at, inputs[at : at + chunk]) for at in range(0, ROWS, chunk))
    return np.concatenate([part.decode([span])[0] for span in spans])


def _halved(rows: Rows) -> Rows:
    return rows.astype(np.float16).astype(np.float32)
