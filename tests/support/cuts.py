"""A whole model's answers, and those of a chain of its slices."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2pinfer.engine.gguf.model_header import model_info
from p2pinfer.engine.gguf.reader import GgufHeader, read_header
from p2pinfer.engine.gguf.slicing import (
    SlicePlan,
    extents,
    plan_first_end,
    plan_last_end,
    plan_stage,
    write_slice,
)
from p2pinfer.engine.llama.binding import Rows, Settings, Slice, Span, Tokens

BLOCK, WIDE, NARROW = 64, 48, 5
"""Rows of decodes that are computed each in its own way."""


@dataclass(frozen=True)
class Questions:
    """How a model is run: a random prompt in chunks, and on with what the model says."""

    chunks: tuple[int, ...] = (BLOCK, WIDE, NARROW)
    greedy_tokens: int = 8
    context: int = 256
    threads: int = 1
    repack: bool = True


Answers = list[tuple[Tokens, NDArray[np.float32]]]
"""What the whole model was given, and the logits that it gave."""


@contextmanager
def _loaded(path: Path, how: Questions, *, logits: bool) -> Iterator[Slice]:
    settings = Settings(how.threads, how.repack)
    part = Slice(path, logits=logits, settings=settings, sessions=1, context=how.context)
    with closing(part):
        yield part


def ask_whole(path: Path, how: Questions) -> Answers:
    """Run the whole model."""
    answers: Answers = []
    position = 0
    with _loaded(path, how, logits=True) as whole:
        random = np.random.default_rng(1)
        for count in (*how.chunks, *[1] * how.greedy_tokens):
            if len(answers) < len(how.chunks):
                told = random.integers(0, whole.vocabulary, count)
            else:
                told = answers[-1][1].argmax(axis=1)
            tokens = told.astype(np.int32)
            answers.append((tokens, whole.decode([Span(0, position, tokens)])[0].copy()))
            position += count
    return answers


def plan_chain(header: GgufHeader, bounds: Sequence[int]) -> list[SlicePlan]:
    """Plan an end of layers up to the first bound, stages between bounds, and the other end."""
    stages = [plan_stage(header, first, end) for first, end in pairwise(bounds)]
    keep = model_info(header).layers - bounds[-1]
    return [plan_first_end(header, bounds[0]), *stages, plan_last_end(header, keep)]


def chain_difference(
    model: Path, plans: Sequence[SlicePlan], answers: Answers, how: Questions, folder: Path
) -> float:
    """Run the planned slices as the whole model was run; return how far logits are apart at most.

    Raises:
        BadModelFile: llama.cpp does not load a slice.
    """
    sources = extents(read_header(model), model)
    paths = [folder / f"{number}-{model.name}" for number in range(len(plans))]
    for plan, path in zip(plans, paths, strict=True):
        write_slice(plan, sources, path)
    return slices_difference(paths, answers, how)


def slices_difference(paths: Sequence[Path], answers: Answers, how: Questions) -> float:
    """Run slices, the first and the last an end, as ``chain_difference`` does."""
    worst, position = 0.0, 0
    with ExitStack() as stack:
        chain = [
            stack.enter_context(_loaded(path, how, logits=path == paths[-1])) for path in paths
        ]
        for tokens, logits in answers:
            rows: Tokens | Rows = tokens
            for part in chain:
                rows = part.decode([Span(0, position, rows)])[0]
            worst = max(worst, float(np.abs(rows - logits).max()))
            position += len(tokens)
    return worst
