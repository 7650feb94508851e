"""Learning an adapter from examples, step by step, in an order that a seed fixes.

Adam (arXiv 1412.6980) on the trained half, with a rate that falls to zero along the way. All that
the next step depends on is in ``LearningState``: a run that was killed goes on from the last one
that was kept, and ends with the same numbers.

With noise, each example's gradient is clipped to a norm, and noise is added to the sum of a step's
(Abadi et al., "Deep Learning with Differential Privacy", arXiv 1607.00133). An example is in one
step of each pass, so the passes are the rounds that it is seen in: ``Course.epsilon``. When to end
would tell of the examples, too, so no pass is left out then.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from p2pinfer.core.privacy import DELTA_DEFAULT, Noise, clipped, epsilon, normal
from p2pinfer.engine.training.network import Network, Tokens, loss_and_slope
from p2pinfer.engine.training.weights import Floats

_DECAY, _DECAY_OF_SQUARES, _EPSILON = 0.9, 0.999, 1e-8

LEARNED_LOSS: Final = 0.02
"""A pass over all examples with a smaller mean loss is the last one: nothing is left to learn."""

SECRET_BYTES: Final = blake3.key_size
"""What noise is made of."""


@dataclass(frozen=True)
class Example:
    """A conversation of which the last answer is learned."""

    rows: Callable[[], Floats]
    """Returns the rows in front of the trained layers, positions by width: they lie on the disk."""
    start: int
    """The first position whose next token is learned."""
    tokens: Tokens
    """What should come after ``start`` and each position behind it."""


@dataclass(frozen=True)
class Course:
    """How to learn."""

    seed: int
    passes: int
    """Over all examples, at most."""
    batch: int
    """Examples in a step."""
    rate: float
    """How far each number moves in the first steps."""
    noise: Noise | None = None
    """What hides each example, if anything."""

    def epsilon(self, delta: float = DELTA_DEFAULT) -> float | None:
        """Return what the noise promises for each example, or None without noise.

        That holds against all who see the numbers of every step, let alone the adapter.
        """
        return epsilon(delta, self.noise.multiplier, self.passes) if self.noise else None

    def steps(self, examples: int) -> int:
        """Return the number of steps."""
        return self.passes * self.steps_in_pass(examples)

    def steps_in_pass(self, examples: int) -> int:
        """Return the number of steps in a pass."""
        return -(-examples // self.batch)

    def batch_of(self, step: int, examples: int) -> Sequence[int]:
        """Return which examples a step takes."""
        number, at = divmod(step, self.steps_in_pass(examples))
        order = list(range(examples))
        chance = Random(f"{self.seed} {number}")  # noqa: S311 -- an order, the same each time
        chance.shuffle(order)
        return order[at * self.batch : (at + 1) * self.batch]


@dataclass
class LearningState:
    """Where the learning stands."""

    numbers: NDArray[np.float32]
    """The trained half of the adapter."""
    mean: NDArray[np.float32]
    """Of recent gradients."""
    squares: NDArray[np.float32]
    """Their mean square."""
    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Of the examples of the current pass."""
    is_learned: bool = False

    @classmethod
    def new(cls, size: int) -> "LearningState":
        """Begin with an adapter that changes nothing."""
        return cls(
            np.zeros(size, np.float32), np.zeros(size, np.float32), np.zeros(size, np.float32)
        )


def rate_share(number: int, rounds: int, left: float) -> float:
    """Return at which share of a task's rate a round is learned: less in each, as all settle.

    But a member that has much left to learn, as sums with its lessons were refused or it came
    late, is not slowed down.

    Args:
        number: of the round, from 1.
        rounds: of the task.
        left: the loss of the member's lessons, in parts of what it was at first.
    """
    return max(1 - (number - 1) / rounds, min(left, 1.0))


def mean_loss(network: Network, numbers: Floats, examples: Sequence[Example]) -> float:
    """Return the mean loss of some examples."""
    b = network.trained.views(numbers)
    losses = []
    for example in examples:
        logits, _ = network.forward(example.rows(), example.start, b)
        losses.append(loss_and_slope(logits, example.tokens)[0])
    return float(np.mean(losses))


def learn(
    network: Network,
    state: LearningState,
    examples: Sequence[Example],
    course: Course,
    secret: bytes = b"",
) -> Iterator[float]:
    """Take the steps that are left, and yield the mean loss of each one's examples.

    ``state`` changes between two yields, and may be kept at each.

    Args:
        network: what learns.
        state: where it stands.
        examples: what it learns.
        course: how.
        secret: ``SECRET_BYTES`` random ones that nobody else knows, of which noise is made, the
            same for a step that is taken again.
    """
    assert not course.noise or len(secret) == SECRET_BYTES, "noise without a secret"
    total = course.steps(len(examples))
    gradient = np.zeros(network.trained.size, np.float32)
    of_one = np.zeros_like(gradient) if course.noise else gradient
    while state.step < total and not state.is_learned:
        gradient[:] = 0
        b, into = network.trained.views(state.numbers), network.trained.views(of_one)
        batch = course.batch_of(state.step, len(examples))
        losses = []
        for index in batch:
            example = examples[index]
            logits, trail = network.forward(example.rows(), example.start, b)
            loss, slope = loss_and_slope(logits, example.tokens)
            if course.noise:
                of_one[:] = 0
                network.backward(slope, trail, b, into)
                gradient += clipped(of_one, course.noise.norm)
            else:
                network.backward(slope / slope.dtype.type(len(batch)), trail, b, into)
            losses.append(loss)
        if course.noise:
            gradient += _noise_of(state.step, course.noise, gradient.size, secret)
            gradient /= len(batch)
        _move(state, gradient, course.rate * (1 - state.step / total))
        state.losses += losses
        if state.step % course.steps_in_pass(len(examples)) == 0:  # the pass is over
            state.is_learned = not course.noise and float(np.mean(state.losses)) < LEARNED_LOSS
            state.losses = []
        yield float(np.mean(losses))


def _noise_of(step: int, noise: Noise, size: int, secret: bytes) -> NDArray[np.float64]:
    stream = blake3(str(step).encode(), key=secret)
    drawn = normal(lambda count: stream.digest(length=count), size)
    return noise.multiplier * noise.norm * drawn


def _move(state: LearningState, gradient: NDArray[np.float32], rate: float) -> None:
    state.step += 1
    state.mean += (1 - _DECAY) * (gradient - state.mean)
    state.squares += (1 - _DECAY_OF_SQUARES) * (gradient * gradient - state.squares)
    mean = state.mean / (1 - _DECAY**state.step)
    squares = state.squares / (1 - _DECAY_OF_SQUARES**state.step)
    state.numbers -= (rate * mean / (np.sqrt(squares) + _EPSILON)).astype(np.float32)
