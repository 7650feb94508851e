"""A smoke test of llama.cpp as it was compiled here: `python -m p2pinfer.engine.llama.smoke`.

Two layers of the default model are decoded with 1, 7, 48 and 64 rows, which run different kernels,
with weights rearranged for this CPU and with weights as they are. A miscompiled kernel, or one that
the machine refuses, ends this process instead of a user's chat; setup reads how it ended.
"""

import contextlib
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np

from p2pinfer.core.bounds import DEFAULT_BOUNDS, distances, first_outside
from p2pinfer.core.limits import BLOCK_ROWS, NARROW_ROWS_MAX, WIDE_ROWS_MAX
from p2pinfer.engine.gguf.model_header import default_model_path
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.gguf.slicing import extents, plan_stage, write_slice
from p2pinfer.engine.llama.binding import Rows, Settings, Slice, Span

CHUNKS = (1, NARROW_ROWS_MAX, WIDE_ROWS_MAX, BLOCK_ROWS)
"""Rows per decode: a single row, the most of the narrow and wide regimes, and a block."""

SMOKE_S_MAX = 120
"""It takes a second; a test not finished by then hangs, and SIGALRM ends the process."""


def decode(path: Path, *, repack: bool) -> Rows:
    """Run fixed inputs through a slice in each chunk size, printing each; return all outputs.

    Raises:
        BadModelFile, EngineError: llama.cpp refuses.
    """
    random = np.random.default_rng(1)
    settings = Settings(repack=repack)
    part = Slice(path, logits=False, settings=settings, sessions=1, context=sum(CHUNKS))
    with contextlib.closing(part):
        found, at = [], 0
        for rows in CHUNKS:
            print(f"decoding {rows} rows, weights {'' if repack else 'not '}repacked", flush=True)
            inputs = random.standard_normal((rows, part.width)).astype(np.float32)
            found.append(part.decode([Span(0, at, inputs)])[0].copy())
            at += rows
        return np.concatenate(found)


def main() -> int:
    """Return 0 if both ways give the same numbers, except for rounding."""
    model = default_model_path()
    header = read_header(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "slice.gguf")
        write_slice(plan_stage(header, 10, 12), extents(header, model), path)
        repacked, plain = (decode(path, repack=repack) for repack in (True, False))
    apart = distances(repacked.tobytes(), plain.tobytes(), len(plain))
    if first_outside(apart, DEFAULT_BOUNDS) is not None:
        print(f"repacked weights give other numbers: {apart.max():.0%} apart", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    signal.alarm(SMOKE_S_MAX)
    sys.exit(main())
