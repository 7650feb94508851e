"""What a trace shows of a row is what llama.cpp computed, and its products can be checked."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from p2pinfer.core.errors import UnsupportedModel
from p2pinfer.core.limits import BLOCK_ROWS, NARROW_ROWS_MAX
from p2pinfer.core.projection import RESIDUAL_MAX, fold
from p2pinfer.core.requantise import seen_by
from p2pinfer.core.traced import LINEAR, Traced
from p2pinfer.engine.gguf.dequantise import dequantise
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.llama.binding import Settings, Slice, Span
from p2pinfer.engine.llama.tracing import Trace
from tests.support.tiny_models import tiny_model

Models = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Give a function that writes a tiny model in a quantisation, once."""
    return partial(tiny_model, tmp_path_factory.mktemp("traced"))


@contextmanager
def loaded(path: Path, *, repack: bool = False) -> Iterator[Slice]:
    """Load all layers of a model, and free them afterwards."""
    part = Slice(path, logits=False, settings=Settings(repack=repack), sessions=1, context=128)
    with closing(part):
        yield part


def traced(part: Slice, position: int, pad_to: int) -> tuple[Trace, bytes]:
    """Trace one token behind a prompt; also the row that a plain decode of it gives."""
    tokens = np.random.default_rng(3).integers(3, part.vocabulary, position + 1).astype(np.int32)
    part.decode([Span(0, 0, tokens[:position])])
    (plain,) = part.decode([Span(0, position, tokens[position:])], pad_to=pad_to)
    row = plain.tobytes()
    return part.trace(Span(0, position, tokens[position:]), pad_to=pad_to), row


def residuals(path: Path, trace: Trace, layer: int) -> Iterator[tuple[float, float]]:
    """Yield how far each product of a layer is from its output, with and without rounding."""
    header, data = read_header(path), path.read_bytes()
    for step, (given, name) in LINEAR.items():
        tensor = header.tensors[f"blk.{layer}.{name}"]
        weights, minima = dequantise(tensor, data[tensor.offset : tensor.offset + tensor.nbytes])
        numbers, out = trace[layer, given], trace[layer, step].astype(np.float64)
        seen, size = seen_by(tensor.type.name, numbers), np.linalg.norm(out)
        found = weights.astype(np.float64) @ seen.values
        plain = weights.astype(np.float64) @ numbers
        if minima is not None:
            assert seen.sums is not None
            found += minima @ seen.sums
            plain += np.repeat(minima, 32, axis=1) @ numbers
        yield float(np.linalg.norm(found - out) / size), float(np.linalg.norm(plain - out) / size)


@pytest.mark.parametrize("pad_to", [0, NARROW_ROWS_MAX + 1, BLOCK_ROWS])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("quantisation", "repack"),
    [("Q4_0", False), ("Q4_0", True), ("Q4_1", False), ("Q8_0", False), ("Q4_K_M", True)],
)
def test_products_hold_to_float_noise(
    models: Models, name: str, quantisation: str, repack: bool, pad_to: int
) -> None:
    """Every product of every layer holds once its input is rounded as llama.cpp rounds it."""
    path = models(name, quantisation)
    with loaded(path, repack=repack) as part:
        trace, row = traced(part, 20, pad_to)
        assert trace[part.layers - 1, Traced.OUT].tobytes() == row
        apart = [each for layer in range(part.layers) for each in residuals(path, trace, layer)]
    assert len(apart) == 7 * part.layers
    assert max(rounded for rounded, _ in apart) < RESIDUAL_MAX
    assert min(plain for _, plain in apart) > 100 * RESIDUAL_MAX


@pytest.mark.parametrize("quantisation", ["Q4_0", "Q4_1", "Q8_0", "Q4_K_M"])
def test_products_are_checked_without_the_matrices(models: Models, quantisation: str) -> None:
    """A checker that kept only projections takes true products, and none of a noisy row."""
    path = models("qwen2", quantisation)
    header, data = read_header(path), path.read_bytes()
    with loaded(path) as part:
        trace, _ = traced(part, 20, 0)
    noise = 1 + 0.001 * np.random.default_rng(4).standard_normal(2048)
    for step, (given, name) in LINEAR.items():
        tensor = header.tensors[f"blk.2.{name}"]
        matrix = dequantise(tensor, data[tensor.offset : tensor.offset + tensor.nbytes])
        folded = fold(bytes(32), tensor.name, tensor.type.name, *matrix)
        numbers, out = trace[2, given], trace[2, step]
        assert folded.residual(numbers, out) < RESIDUAL_MAX
        assert folded.residual(numbers, (out * noise[: out.size]).astype("f4")) > RESIDUAL_MAX


def test_a_session_goes_on_after_a_trace(models: Models) -> None:
    """A decode behind a traced row has the bits that it has behind a plain one."""
    token = np.array([7], np.int32)
    with loaded(models("llama", "Q4_0")) as part:
        traced(part, 20, 0)
        after = part.decode([Span(0, 21, token)])[0].tobytes()
        part.truncate(0, 0)
        tokens = np.random.default_rng(3).integers(3, part.vocabulary, 21).astype(np.int32)
        part.decode([Span(0, 0, tokens[:20])])
        part.decode([Span(0, 20, tokens[20:])])
        assert part.decode([Span(0, 21, token)])[0].tobytes() == after


@pytest.mark.parametrize(("name", "why"), [("mixtral", "experts"), ("phi3", "phi3")])
def test_refuses_what_it_does_not_know(models: Models, name: str, why: str) -> None:
    """Layers with experts, and of other architectures, are refused with the reason."""
    with loaded(models(name, "Q8_0")) as part, pytest.raises(UnsupportedModel, match=why):
        part.trace(Span(0, 0, np.array([7], np.int32)))
