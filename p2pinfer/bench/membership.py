"""Can one tell from a model what it was taught? An attack by its losses, with and without noise.

Made-up facts fall into two halves at random. The model learns one. The attacker has both models,
before and after, and all the facts, and guesses that a fact was learned the more its loss fell: the
threshold attack of Yeom et al. ("Privacy Risk in Machine Learning", 2018), with each fact's loss
before as its own measure. The area under its curve is the chance that a learned fact is ranked over
one that was not: 0.5 is guessing, 1 always right. Facts that are one of a kind and come often are
the worst case; the attack is a simple one, and a better one would find more.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import trio
from threadpoolctl import threadpool_limits

from p2pinfer.core.privacy import DELTA_DEFAULT, Noise
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.engine.training.descent import Course, Example, LearningState, learn, mean_loss
from p2pinfer.engine.training.network import Network
from p2pinfer.engine.training.weights import check_trains, read_top
from p2pinfer.node.learning import compute_rows
from p2pinfer.node.lesson_rows import RowsKept, rows_here, word
from p2pinfer.node.lessons import Lesson

LAYERS: Final = 4
RANK: Final = 8
BATCH: Final = 4
RATE: Final = 0.006

_PLACES = ("Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Gorse", "Hazel")
_THINGS = ("locker", "gate", "cabinet", "workshop", "boat shed", "archive", "cellar", "greenhouse")


def facts(count: int, seed: int) -> list[Lesson]:
    """Make up facts that no model knows, each with four digits that nothing else tells."""
    chance = Random(f"{seed} facts")  # noqa: S311 -- the same each time
    names = [f"{thing} {number} in {place} Street" for number in range(1, 100)
             for thing in _THINGS for place in _PLACES]  # fmt: skip
    found = []
    for line, name in enumerate(chance.sample(names, count), 1):
        asked = f"What is the code of {name}?"
        said = f"The code of {name} is {chance.randrange(10_000):04}."
        turns = {"role": "user", "content": asked}, {"role": "assistant", "content": said}
        found.append(Lesson(line, turns))
    return found


def area_under_curve(learned: Sequence[float], others: Sequence[float]) -> float:
    """Return how often a score of the first is over one of the second; a tie counts half."""
    one, two = np.array(learned)[:, None], np.array(others)[None]
    return float(((one > two) + 0.5 * (one == two)).mean())


def guessing_deviation(learned: int, others: int) -> float:
    """Return the standard deviation of the area if the attacker guesses (Mann and Whitney)."""
    return math.sqrt((learned + others + 1) / (12 * learned * others))


async def membership_bench(
    model: PartsModel,
    *,
    lessons: int,
    passes: int,
    norm: float,
    multipliers: Sequence[float],
    seed: int,
    secret: bytes,
) -> dict[str, Any]:
    """Teach half of the facts without noise, then with each of the multipliers, and attack.

    Args:
        model: the whole model, whose last layers learn.
        lessons: how many facts; an even number.
        passes: over those that are learned.
        norm: to which each one's gradient is clipped where there is noise.
        multipliers: of the noise.
        seed: of the facts, of who learns what, and of the adapter.
        secret: ``SECRET_BYTES`` of which the noise is made.
    """
    check_trains(model, LAYERS)
    found = facts(lessons, seed)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1, user_api="blas"):
        kept = RowsKept(Path(folder), model.info.width)
        async with rows_here(model, LAYERS) as (ends, compute):
            worded = await word(found, Path("facts"), model, ends)
            await compute_rows(kept, worded, compute, lambda _: None)
        examples = [kept.example(index, each) for index, each in enumerate(worded)]
        network = Network(await trio.to_thread.run_sync(read_top, model, LAYERS), RANK, seed)
        courses = [Course(seed, passes, BATCH, RATE)]
        courses += [Course(seed, passes, BATCH, RATE, Noise(norm, each)) for each in multipliers]
        rows = [
            await trio.to_thread.run_sync(_attack, network, examples, course, secret)
            for course in courses
        ]
    return {
        "model": model.info.name,
        "lessons": lessons,
        "passes": passes,
        "clip_norm": norm,
        "delta": DELTA_DEFAULT,
        "runs": rows,
    }


def _attack(
    network: Network, examples: Sequence[Example], course: Course, secret: bytes
) -> dict[str, Any]:
    order = list(range(len(examples)))
    Random(f"{course.seed} halves").shuffle(order)  # noqa: S311 -- the same each time
    learned, others = order[::2], order[1::2]
    state = LearningState.new(network.trained.size)
    before = [mean_loss(network, state.numbers, [each]) for each in examples]
    for _ in learn(network, state, [examples[at] for at in learned], course, secret):
        pass
    after = [mean_loss(network, state.numbers, [each]) for each in examples]
    promised = course.epsilon()
    fell = np.array(before) - np.array(after)
    return {
        "noise": course.noise.multiplier if course.noise else None,
        "epsilon": promised if promised and math.isfinite(promised) else None,
        "attack_auc": round(area_under_curve(fell[learned], fell[others]), 3),
        "guessing_auc_deviation": round(guessing_deviation(len(learned), len(others)), 3),
        "loss_before": round(float(np.mean(before)), 3),
        "loss_learned": round(float(np.mean([after[at] for at in learned])), 3),
        "loss_others": round(float(np.mean([after[at] for at in others])), 3),
    }
