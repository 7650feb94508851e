"""Runs a whole model and its slices on a GPU, in a process of its own, and prints JSON.

The process that runs the tests has loaded another llama.cpp, which knows no GPU:
``python -m tests.support.on_gpu alone|cut|apart MODEL DEVICE FIXED [FOLDER]``.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.bounds import DEFAULT_BOUNDS, distances, first_outside
from p2pinfer.core.limits import BLOCK_ROWS, WIDE_ROWS_MAX
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.gguf.slicing import (
    extents,
    plan_first_end,
    plan_last_end,
    plan_stage,
    write_slice,
)
from p2pinfer.engine.llama.binding import Settings, Slice, Span, Vocabulary

CONTEXT = 256
PROMPT_TOKENS = 5
ANSWER_TOKENS = 12
PROMPTS = 20

CHUNKS = ((BLOCK_ROWS, BLOCK_ROWS), (24, WIDE_ROWS_MAX), (9, WIDE_ROWS_MAX), *[(1, 0)] * 12)
"""Rows of decodes, and what they are padded to."""


@contextmanager
def loaded(path: Path, settings: Settings, *, logits: bool) -> Iterator[Slice]:
    """Load a slice, and free it afterwards."""
    part = Slice(path, logits=logits, settings=settings, sessions=1, context=CONTEXT)
    with closing(part):
        yield part


def alone(model: Path, settings: Settings) -> dict[str, Any]:
    """Return a prompt, and what the whole model says to it without coming to an end."""
    with loaded(model, settings, logits=True) as whole:
        is_end = Vocabulary(whole.vocab).is_end
        for seed in range(PROMPTS):
            random = np.random.default_rng(seed)
            prompt = random.integers(3, whole.vocabulary, PROMPT_TOKENS).astype(np.int32)
            found: list[int] = []
            told, position, pad_to = prompt, 0, WIDE_ROWS_MAX if settings.fixed else 0
            while len(found) < ANSWER_TOKENS:
                logits = whole.decode([Span(0, position, told)], pad_to=pad_to)[0]
                found.append(int(logits.argmax()))
                position, pad_to = position + len(told), 0
                told = np.array(found[-1:], np.int32)
            if not any(map(is_end, found)):
                return {"prompt": prompt.tolist(), "answer": found}
    raise AssertionError("every prompt has a short answer")


def cut(model: Path, settings: Settings, folder: Path) -> dict[str, Any]:
    """Return how far the logits of a chain of slices are from the whole model's, at most."""
    header = read_header(model)
    plans = [plan_first_end(header, 1), plan_stage(header, 1, 4), plan_last_end(header, 3)]
    paths = [folder / f"{number}.gguf" for number in range(len(plans))]
    for plan, path in zip(plans, paths, strict=True):
        write_slice(plan, extents(header, model), path)
    with ExitStack() as stack:
        whole = stack.enter_context(loaded(model, settings, logits=True))
        parts = [
            stack.enter_context(loaded(path, settings, logits=path == paths[-1])) for path in paths
        ]
        tokens = np.random.default_rng(1).integers(3, whole.vocabulary, CONTEXT).astype(np.int32)
        worst, largest, position = 0.0, 0.0, 0
        for count, pad_to in CHUNKS:
            rows: NDArray[Any] = tokens[position : position + count]
            expected = whole.decode([Span(0, position, rows)], pad_to=pad_to)[0].copy()
            for part in parts:
                rows = part.decode([Span(0, position, rows)], pad_to=pad_to)[0]
            worst = max(worst, float(np.abs(rows - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
            position += count
    return {"difference": worst, "largest": largest}


def apart(stage: Path, settings: Settings) -> dict[str, Any]:
    """Return how far a stage's rows are from the CPU's, at most, and whether the bounds hold."""
    found = []
    for each in (settings, Settings(repack=False)):
        with loaded(stage, each, logits=False) as part:
            random, rows, position = np.random.default_rng(1), [], 0
            for count, pad_to in CHUNKS:
                inputs = random.standard_normal((count, part.width)).astype(np.float32)
                span = Span(0, position, inputs)
                rows.append(part.decode([span], pad_to=pad_to)[0].tobytes())
                position += count
            found.append(b"".join(rows))
    on_gpu, on_cpu = found
    distance = distances(on_gpu, on_cpu, position)
    return {"apart": float(distance.max()), "outside": first_outside(distance, DEFAULT_BOUNDS)}


def main() -> None:
    """Do what the command line says."""
    what, model, device, fixed, *folder = sys.argv[1:]
    settings = Settings(device=device, fixed=fixed == "fixed")
    if what == "alone":
        found = alone(Path(model), settings)
    elif what == "apart":
        found = apart(Path(model), settings)
    else:
        found = cut(Path(model), settings, Path(*folder))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
