"""Learning with noise: no example counts for more than the norm; killed runs repeat themselves."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from p2pinfer.core.privacy import Noise, epsilon
from p2pinfer.engine.store.assemble import open_parts
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from p2pinfer.engine.training.descent import Course, Example, LearningState, learn
from p2pinfer.engine.training.network import Network
from p2pinfer.engine.training.weights import read_top
from tests.support.tiny_models import TINY, quantise, write_tiny
from tests.support.toys import quiet

SECRET = bytes(range(32))
COURSE = Course(seed=1, passes=3, batch=2, rate=0.01)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """Give the last layers of a tiny model."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny(TINY["llama"], folder / "full.gguf")
    quantise(folder / "full.gguf", folder / "model.gguf", "Q8_0")
    store = Store(folder / "store")
    model = open_parts(store, add_model(store, folder / "model.gguf", quiet), folder / "cache")
    return Network(read_top(model, 2), 4, seed=1)


def examples(network: Network, count: int, seed: int = 0) -> list[Example]:
    """Make up rows and what should follow."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        rows = chance.standard_normal((9, network.shape.width)).astype(np.float32)
        tokens = chance.integers(3, 250, 4).astype(np.int32)
        found.append(Example(partial(np.array, rows), 5, tokens))
    return found


def run(
    network: Network,
    lessons: Sequence[Example],
    course: Course,
    secret: bytes = SECRET,
    most: int = 99,
) -> LearningState:
    """Learn, or take some steps."""
    state = LearningState.new(network.trained.size)
    for _ in zip(range(most), learn(network, state, lessons, course, secret), strict=False):
        pass
    return state


def test_a_wide_norm_without_noise_changes_nothing(network: Network) -> None:
    """Clipping that never clips gives the adapter of plain learning."""
    lessons = examples(network, 5)
    plain = run(network, lessons, COURSE)
    wide = run(network, lessons, replace(COURSE, noise=Noise(1e6, 0.0)))
    np.testing.assert_allclose(wide.numbers, plain.numbers, atol=1e-4)
    assert COURSE.epsilon() is None


def test_no_example_counts_for_more_than_the_norm(network: Network) -> None:
    """Another example in a step moves the sum of its gradients by twice the norm at most."""
    norm = 0.05
    course = replace(COURSE, noise=Noise(norm, 0.0))
    lessons = examples(network, 2)
    sums = []
    for other in examples(network, 6, seed=9):
        state = run(network, [lessons[0], other], course, most=1)
        sums.append(state.mean / 0.1 * 2)  # Adam's mean after one step is a tenth of it
    apart = [np.linalg.norm(one - sums[0]) for one in sums[1:]]
    assert max(apart) <= 2 * norm * 1.001
    assert max(apart) > norm / 2  # they do differ
    loose = [
        run(network, [lessons[0], other], COURSE, most=1).mean / 0.1 * 2
        for other in examples(network, 2, seed=9)
    ]
    assert np.linalg.norm(loose[0] - loose[1]) > 2 * norm  # without clipping by more


def test_noise_is_as_promised_and_comes_again(network: Network) -> None:
    """It has the promised deviation, is the same for a step that is taken again, and is secret."""
    noise = Noise(norm=0.05, multiplier=2.0)
    course, lessons = replace(COURSE, noise=noise), examples(network, 4)
    bare = run(network, lessons, replace(COURSE, noise=Noise(0.05, 0.0)), most=1)
    one = run(network, lessons, course, most=1)
    added = (one.mean - bare.mean) / 0.1 * 2
    assert added.std() == pytest.approx(noise.norm * noise.multiplier, rel=0.05)
    again, other = (
        run(network, lessons, course, most=1),
        run(network, lessons, course, bytes(32), 1),
    )
    np.testing.assert_array_equal(again.mean, one.mean)
    assert abs(np.corrcoef(other.mean, one.mean)[0, 1]) < 0.1
    two = run(network, lessons, course, most=2)
    second = two.mean - 0.9 * one.mean
    assert abs(np.corrcoef(second, one.mean)[0, 1]) < 0.1  # of each step its own
    assert course.epsilon() == epsilon(1e-5, noise.multiplier, COURSE.passes)
    with pytest.raises(AssertionError, match="secret"):
        next(learn(network, LearningState.new(network.trained.size), lessons, course))


def test_all_passes_are_taken_with_noise(network: Network) -> None:
    """When to end would tell of the examples; without noise it ends when all is learned."""
    lessons = examples(network, 1)
    course = Course(seed=1, passes=200, batch=1, rate=0.05)
    assert run(network, lessons, course, most=999).step < 200
    silent = replace(course, passes=60, noise=Noise(1e6, 0.0))
    assert run(network, lessons, silent, os.urandom(32), most=999).step == 60
    assert run(network, lessons, replace(course, passes=200), most=999).is_learned
