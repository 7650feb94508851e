"""Slices compute exactly what the whole model computes, or the cut is refused.

The architectures whose tiny models are written by hand are here, with random weights, in five
quantisations, and the default model in several cuts; test_architectures.py has all others. A prompt
of 150 tokens (a block, two wide chunks, a narrow one, and a block that is padded), then 32 greedy
tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from p2pinfer.core.limits import BLOCK_ROWS
from p2pinfer.engine.gguf.model_header import model_info
from p2pinfer.engine.gguf.reader import GgufHeader, read_header
from p2pinfer.engine.gguf.slice_plan import SlicePlan
from p2pinfer.engine.gguf.slicing import (
    extents,
    plan_first_end,
    plan_last_end,
    plan_stage,
    write_slice,
)
from p2pinfer.engine.llama.binding import Rows, Settings, Slice, Span, Tokens
from tests.support.tiny_models import QUANTISATIONS, TINY, tiny_model

CONTEXT = 256
CHUNKS = ((64, BLOCK_ROWS), (48, 0), (11, 0), (4, 0), (23, BLOCK_ROWS))
"""Rows of a prompt's decodes, and the padded number. Models with experts skip the last: outside
workers, a row depends on how many others, padding included, use its expert."""

GREEDY_TOKENS = 32

Steps = list[tuple[Tokens, int, NDArray[np.float32]]]
"""The whole model's inputs, the padded number of rows, and the logits for each."""

Models = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Give a function that writes a tiny model in a quantisation, once."""
    return partial(tiny_model, tmp_path_factory.mktemp("tiny"))


@contextmanager
def loaded(path: Path, *, logits: bool, context: int = CONTEXT) -> Iterator[Slice]:
    """Load a slice with the settings that suit its quantisation, and free it afterwards."""
    settings = Settings(repack="_K" not in path.name)
    part = Slice(path, logits=logits, settings=settings, sessions=1, context=context)
    with closing(part):
        yield part


def greedy_steps(path: Path) -> Steps:
    """Run the whole model over a random prompt, and then its own greedy tokens."""
    steps: Steps = []
    chunks = CHUNKS[:-1] if model_info(read_header(path)).experts else CHUNKS
    with loaded(path, logits=True) as whole:
        random = np.random.default_rng(1)
        position = 0
        for rows, pad_to in (*chunks, *[(1, 0)] * GREEDY_TOKENS):
            if len(steps) < len(chunks):
                told = random.integers(0, whole.vocabulary, rows)
            else:
                told = steps[-1][2].argmax(axis=1)
            tokens = told.astype(np.int32)
            (logits,) = whole.decode([Span(0, position, tokens)], pad_to=pad_to)
            steps.append((tokens, pad_to, logits.copy()))
            position += rows
    return steps


def plan_chain(header: GgufHeader, bounds: Sequence[int]) -> list[SlicePlan]:
    """Plan a first end up to the first bound, stages between bounds, and the last end."""
    stages = [plan_stage(header, first, end) for first, end in pairwise(bounds)]
    keep = model_info(header).layers - bounds[-1]
    return [plan_first_end(header, bounds[0]), *stages, plan_last_end(header, keep)]


def largest_difference(
    model: Path, steps: Steps, bounds: Sequence[int], folder: Path, context: int = CONTEXT
) -> float:
    """Cut the model at the bounds, run the same steps, and compare all logits."""
    header = read_header(model)
    return chain_difference(model, plan_chain(header, bounds), steps, folder, context)


def chain_difference(
    model: Path,
    plans: Sequence[SlicePlan],
    steps: Steps,
    folder: Path,
    context: int = CONTEXT,
    depths: Sequence[int | None] | None = None,
) -> float:
    """Write and load the planned slices, run the steps through them, and compare all logits.

    ``depths``: how many of its layers each slice runs; all by default.
    """
    depths = depths or [None] * len(plans)
    sources = extents(read_header(model), model)
    worst, position = 0.0, 0
    with ExitStack() as stack:
        chain = []
        for number, plan in enumerate(plans):
            path = folder / f"{number}-{model.name}"
            write_slice(plan, sources, path)
            is_last = number == len(plans) - 1
            chain.append(stack.enter_context(loaded(path, logits=is_last, context=context)))
        for tokens, pad_to, logits in steps:
            rows: Tokens | Rows = tokens
            for part, layers in zip(chain, depths, strict=True):
                span = Span(0, position, rows, layers=layers)
                rows = part.decode([span], pad_to=pad_to)[0]
            worst = max(worst, float(np.abs(rows - logits).max()))
            position += len(tokens)
    return worst


@pytest.fixture(scope="module")
def default_steps(default_model: Path) -> Steps:
    """Provide the whole default model's steps."""
    return greedy_steps(default_model)


@pytest.mark.parametrize(
    "bounds",
    [(10, 20), (1, 10, 20, 29), (1, 4, 18, 27), (1, 2, 29), (29,)],
    ids=["thirds", "even", "uneven", "single-layer", "ends-only"],
)
def test_default_model(
    default_model: Path, default_steps: Steps, bounds: Sequence[int], tmp_path: Path
) -> None:
    """The default model's slices give its logits."""
    assert largest_difference(default_model, default_steps, bounds, tmp_path) == 0.0


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
@pytest.mark.parametrize("name", TINY)
def test_tiny_models(models: Models, name: str, quantisation: str, tmp_path: Path) -> None:
    """Ends of one layer and stages of two, one and the rest give the whole model's logits."""
    model = models(name, quantisation)
    steps = greedy_steps(model)
    logits = np.stack([logits for _, _, logits in steps])
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1
    assert largest_difference(model, steps, (1, 3, 4, 6), tmp_path) == 0.0


@pytest.mark.parametrize("quantisation", ["F16", "Q4_0", "Q4_K_M"])
@pytest.mark.parametrize("name", TINY)
def test_slices_that_overlap(models: Models, name: str, quantisation: str, tmp_path: Path) -> None:
    """A slice stopped where the next begins gives the same rows as one that ends there."""
    model = models(name, quantisation)
    header = read_header(model)
    layers = model_info(header).layers
    plans = [
        plan_first_end(header, 1),
        plan_stage(header, 1, layers - 1),
        plan_stage(header, 2, layers),
        plan_last_end(header, 1),
    ]
    depths = [None, 1, layers - 3, None]
    assert chain_difference(model, plans, greedy_steps(model), tmp_path, depths=depths) == 0.0


@pytest.mark.parametrize(
    "bounds",
    [range(1, 14), (6, 12), (5, 6, 11), (1, 12)],
    ids=["every layer alone", "on the period", "full layers alone", "off the period"],
)
def test_windowed_layers(models: Models, bounds: Sequence[int], tmp_path: Path) -> None:
    """A gemma3 may be cut anywhere: slices record for each layer whether it is windowed."""
    model = models("gemma3", "F16")
    assert largest_difference(model, greedy_steps(model), bounds, tmp_path) == 0.0


def test_windowed_layers_cut_naively_are_wrong(models: Models, tmp_path: Path) -> None:
    """Without the pattern that slices carry, a gemma3 cut off its period is silently wrong."""
    model = models("gemma3", "F16")
    plans = plan_chain(read_header(model), (1, 12))
    naive = [
        SlicePlan(
            {k: v for k, v in plan.metadata.items() if not k.endswith("window_pattern")},
            plan.tensors,
        )
        for plan in plans
    ]
    assert chain_difference(model, naive, greedy_steps(model), tmp_path) > 0.01


def test_contexts_may_differ(models: Models, tmp_path: Path) -> None:
    """A phi3 computes the same in a context long enough for llama.cpp's long rope factors."""
    model = models("phi3", "F16")
    steps = greedy_steps(model)
    assert largest_difference(model, steps, (1, 6), tmp_path, context=1024) == 0.0
