"""Training's layers compute what llama.cpp does, and their gradients are right."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from p2pinfer.core.errors import UnsupportedModel, UserError
from p2pinfer.engine.llama.binding import Settings, Slice, Span
from p2pinfer.engine.store.adapters import keep_adapter
from p2pinfer.engine.store.assemble import PartsModel, open_parts
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from p2pinfer.engine.training.network import Network, frozen_half, loss_and_slope
from p2pinfer.engine.training.weights import MATRICES, Top, read_top, top_bytes
from tests.support.tiny_models import TINY, quantise, write_tiny
from tests.support.toys import quiet

KEEP, RANK, START = 2, 4, 9
TOKENS = np.random.default_rng(2).integers(3, 250, 24).astype(np.int32)
TRAINED = ["llama", "qwen2", "qwen3"]


@pytest.fixture(scope="module", params=TRAINED)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PartsModel:
    """Give a tiny model of each architecture that is trained."""
    return tiny(request.param, "F16", tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with threadpool_limits(1, user_api="blas"):
        yield


def tiny(name: str, quantisation: str, folder: Path) -> PartsModel:
    """Write a tiny model, and add it to a store."""
    full, path = folder / "full.gguf", folder / "model.gguf"
    write_tiny(TINY[name], full)
    quantise(full, path, quantisation)
    store = Store(folder / "store")
    return open_parts(store, add_model(store, path, quiet), folder / "cache")


def rows_and_logits(model: PartsModel) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Have llama.cpp run the tokens; return the rows between the ends, and logits one by one."""
    settings = Settings()
    first, last = model.meeting_ends(KEEP)
    below = Slice(first, logits=False, settings=settings, sessions=1, context=64)
    above = Slice(last, logits=True, settings=settings, sessions=1, context=64)
    with closing(below), closing(above):
        rows = below.decode([Span(0, 0, TOKENS)])[0].copy()
        above.decode([Span(0, 0, rows[:START])])
        spans = (Span(0, at, rows[at : at + 1]) for at in range(START, len(rows)))
        found = [above.decode([span])[0][0].copy() for span in spans]
    return rows, found


def wide(top: Top) -> Top:
    """Return weights as float64, in which finite differences are exact enough."""
    return replace(
        top,
        layers=tuple(
            {name: each.astype(np.float64) for name, each in layer.items()} for layer in top.layers
        ),
        norm=top.norm.astype(np.float64),
        head=top.head.astype(np.float64),
    )


def test_computes_what_llama_cpp_does(model: PartsModel) -> None:
    """As closely as float16 lets, with an adapter that changes nothing and with one that does."""
    network = Network(read_top(model, KEEP), RANK, seed=1)
    numbers = np.zeros(network.trained.size, np.float32)
    random = np.random.default_rng(4)
    for strength in (0.0, 0.3):
        numbers = random.standard_normal(numbers.size).astype(np.float32) * np.float32(strength)
        b = network.trained.views(numbers)
        first = model.info.layers - KEEP
        changes = {
            f"blk.{first + index}.{name}": (network.frozen[index][name], b[index][name])
            for index in range(KEEP)
            for name in MATRICES
        }
        child = keep_adapter(
            model.store, model.manifest, changes, RANK, f"changed by {strength}", None
        )
        rows, expected = rows_and_logits(open_parts(model.store, child, model.cache))
        logits, _ = network.forward(rows, START, b)
        spread = np.std(expected)
        assert np.abs(logits - np.array(expected)).max() < 0.05 * spread
        assert (logits.argmax(-1) == np.array(expected).argmax(-1)).all()


def test_gradients_equal_finite_differences(model: PartsModel) -> None:
    """Along random directions in each matrix of each layer."""
    network = Network(wide(read_top(model, KEEP)), RANK, seed=1)
    random = np.random.default_rng(5)
    rows = random.standard_normal((14, model.info.width))
    tokens = TOKENS[:5]
    numbers = random.standard_normal(network.trained.size) * 0.1

    def loss(at: NDArray[np.float64]) -> float:
        logits, _ = network.forward(rows, START, network.trained.views(at))
        return loss_and_slope(logits, tokens)[0]

    gradient = np.zeros_like(numbers)
    b, into = network.trained.views(numbers), network.trained.views(gradient)
    logits, trail = network.forward(rows, START, b)
    network.backward(loss_and_slope(logits, tokens)[1], trail, b, into)
    for index in range(KEEP):
        for name in MATRICES:
            direction = np.zeros_like(numbers)
            part = network.trained.views(direction)[index][name]
            part[:] = random.standard_normal(part.shape)
            step = 1e-5
            slope = (loss(numbers + step * direction) - loss(numbers - step * direction)) / step / 2
            assert slope == pytest.approx(gradient @ direction, rel=1e-5, abs=1e-9), (index, name)


@pytest.mark.parametrize("quantisation", ["Q4_1", "Q4_K_M", "Q8_0"])
def test_quantised_models_are_near(quantisation: str, tmp_path: Path) -> None:
    """Only llama.cpp rounds what goes into its matrices; memory is as it was said to be."""
    model = tiny("llama", quantisation, tmp_path)
    top = read_top(model, KEEP)
    network = Network(top, RANK, seed=1)
    rows, expected = rows_and_logits(model)
    b = network.trained.views(np.zeros(network.trained.size, np.float32))
    logits, _ = network.forward(rows, START, b)
    assert np.abs(logits - np.array(expected)).max() < 0.2 * np.std(expected)
    held = sum(each.nbytes for layer in top.layers for each in layer.values()) + top.head.nbytes
    assert held == top_bytes(model.manifest, KEEP)


def test_what_is_not_trained_is_refused(tmp_path: Path) -> None:
    """With the reason."""
    for name, why in (("gemma2", "is a gemma2"), ("mixtral", "a mixture of experts")):
        folder = tmp_path / name
        folder.mkdir()
        with pytest.raises(UnsupportedModel, match=why):
            read_top(tiny(name, "F16", folder), KEEP)
    with pytest.raises(UserError, match="from 1 to 6 layers"):
        read_top(tiny("llama", "F16", tmp_path), 7)


def test_the_frozen_half_never_changes() -> None:
    """Machines that learn together draw the same from a seed."""
    drawn = frozen_half(7, 26, "attn_q.weight", 8, 576)
    assert drawn.shape == (8, 576)
    assert drawn.std() * 576**0.5 == pytest.approx(2, rel=0.05)
    assert drawn[0, :2].tolist() == [0.05366422235965729, -0.0545249842107296]
    assert not np.array_equal(drawn, frozen_half(8, 26, "attn_q.weight", 8, 576))
