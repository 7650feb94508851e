"""A member of a learning task hides its lessons the same way each time a round begins again."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve
from threadpoolctl import threadpool_limits

from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.learning import LearningTask
from p2pinfer.core.privacy import Noise, epsilon
from p2pinfer.engine.store.assemble import PartsModel, open_parts
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from p2pinfer.engine.training.descent import Example
from p2pinfer.node.learning_together import LessonWork
from tests.support.tiny_models import TINY, quantise, write_tiny
from tests.support.toys import quiet

TASK = LearningTask(
    proposer=PeerId("1" * 52),
    name="facts",
    base=ModelId("ab" * 32),
    layers=2,
    rank=4,
    seed=1,
    rounds=3,
    steps=4,
    rate_millionths=10_000,
    members=3,
    least=3,
    group=3,
    clip=1 << 20,
    outer_percent=200,
    join_ms=1,
    talk_ms=1,
    train_ms=1,
    judge_ms=1,
)
NOISE = Noise(norm=0.4, multiplier=2.0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture
def model(tmp_path: Path) -> PartsModel:
    """Give a tiny model."""
    write_tiny(TINY["llama"], tmp_path / "full.gguf")
    quantise(tmp_path / "full.gguf", tmp_path / "model.gguf", "Q8_0")
    store = Store(tmp_path / "store")
    return open_parts(store, add_model(store, tmp_path / "model.gguf", quiet), tmp_path / "cache")


async def no_wait() -> None:
    """Work at once."""


async def test_a_round_has_noise_of_its_own_and_always_the_same(model: PartsModel) -> None:
    """Taken again it gives the same update; another round or another secret gives others."""
    chance = np.random.default_rng(3)
    lessons = []
    for _ in range(6):
        rows = chance.standard_normal((9, model.info.width)).astype(np.float32)
        tokens = chance.integers(3, 250, 4).astype(np.int32)
        lessons.append(Example(partial(np.array, rows), 5, tokens))

    def working(noise: Noise | None, secret: bytes = b"") -> LessonWork:
        return LessonWork(model, TASK, lessons, lessons[:1], no_wait, noise, secret)

    hidden = working(NOISE, bytes(32))
    start = np.zeros(hidden.size, np.int32)
    first = await hidden.train(start, 1)
    np.testing.assert_array_equal(await hidden.train(start, 1), first)
    plain = await working(None).train(start, 1)
    others = [
        await hidden.train(start, 2),
        await working(NOISE, b"\1" * 32).train(start, 1),
        plain,
    ]
    for other in others:
        assert np.corrcoef(other, first)[0, 1] < 0.5
    # The last of three rounds takes small steps, unless there is as much left to learn as at first.
    last = await working(None).train(start, 3)
    assert np.linalg.norm(last) > 0.8 * np.linalg.norm(plain)
    hidden_last = await hidden.train(start, 3)
    assert np.linalg.norm(hidden_last) < 0.5 * np.linalg.norm(first)
    assert working(None).epsilon() is None
    # Six lessons in steps of at most four: two steps a pass, so two passes in each of three rounds.
    assert hidden.epsilon() == epsilon(1e-5, NOISE.multiplier, 6)
    one = LessonWork(model, evolve(TASK, rounds=1), lessons[:3], lessons, no_wait, NOISE, bytes(32))
    assert one.epsilon() == epsilon(1e-5, NOISE.multiplier, 4)
