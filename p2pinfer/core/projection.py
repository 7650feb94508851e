"""Checking a product ``y = W q(x)`` without ``W``, by secret projections (R. Freivalds, 1977).

The checker draws a vector ``r`` that nobody else knows, computes ``v = r W`` once, and then may
forget ``W``: that is 0.2 to 1 % of its bytes. Where ``y`` is true, ``v q(x)`` and ``r y`` differ by
float noise. A false one, made without knowing ``r``, differs by an error of relative size ``e`` in
one projection with a chance of about ``1e-5 / e`` of not being seen: 1e-3 at 1 %, and with two
projections 1e-6. Each rejection tells a cheat something about ``r``: draw another.
"""

from typing import Any, Final

import numpy as np
from attrs import field, frozen
from blake3 import blake3
from numpy.typing import NDArray

from p2pinfer.core.checks import blob
from p2pinfer.core.requantise import Doubles, Floats, seen_by

PROJECTIONS: Final = 2

RESIDUAL_MAX: Final = 1e-5
"""Relative to ``y``. Honest products in five storage types, of any kernels, lie at most 1.4e-6
apart: sums of float32 in another order. Without the rounding of ``x`` it would be 1e-2."""

SEED_BYTES: Final = 32

_SPREAD: Final = 3**-0.5
"""Standard deviation of a secret's numbers, which are drawn evenly from -1 to 1."""

_SEED: Any = blob(SEED_BYTES, SEED_BYTES)


@frozen(eq=False)
class FoldedMatrix:
    """What a checker keeps of a matrix."""

    seed: bytes = field(validator=_SEED, repr=False)
    """From which the secret vectors are drawn again."""
    name: str
    """Of the tensor, in the whole model: each has secrets of its own."""
    stored_as: str
    """Storage type, which says how activations are rounded."""
    outputs: int
    weights: Floats
    """Projections by inputs."""
    minima: Floats | None = None
    """Projections by blocks of inputs, where the storage type has them."""

    @property
    def nbytes(self) -> int:
        """How much is kept."""
        return self.weights.nbytes + (0 if self.minima is None else self.minima.nbytes)

    def residual(self, given: Floats, found: Floats) -> float:
        """Return how far a product is from the true one, by the worse of the projections.

        Args:
            given: what goes in, before it is rounded: float32, one row.
            found: what is said to come out: float32, one row.

        Returns:
            The distance relative to ``found``; infinity where sizes or numbers are wrong.
        """
        if given.shape != self.weights.shape[1:] or found.shape != (self.outputs,):
            return np.inf
        if not (np.isfinite(given).all() and np.isfinite(found).all()):
            return np.inf
        with np.errstate(invalid="ignore"):  # scales past float16's range are infinite
            seen = seen_by(self.stored_as, given)
            true = _product(self.weights, seen.values)
            if self.minima is not None:
                assert seen.sums is not None
                true += _product(self.minima, seen.sums)
        if not np.isfinite(true).all():
            return np.inf
        outs = found.astype(np.float64)
        secrets = _secrets(self.seed, self.name, self.outputs)
        apart = float(np.abs(true - _product(secrets, outs)).max())
        size = float(np.linalg.norm(outs)) * _SPREAD
        return apart / size if size else (np.inf if apart else 0.0)


def residual_of(
    stored_as: str, weights: Floats, minima: Floats | None, given: Floats, found: Floats
) -> float:
    """Return how far a product is from the true one, relative to ``found``, by the matrix itself.

    Args:
        stored_as: its storage type.
        weights: float32, outputs by inputs, without minima.
        minima: float32, outputs by blocks of inputs, or None.
        given: what goes in, before it is rounded: float32, one row.
        found: what is said to come out: float32, one row.

    Returns:
        Infinity where sizes or numbers are wrong.
    """
    if given.shape != weights.shape[1:] or found.shape != (len(weights),):
        return np.inf
    if not (np.isfinite(given).all() and np.isfinite(found).all()):
        return np.inf
    with np.errstate(invalid="ignore"):
        seen = seen_by(stored_as, given)
        true = _product(weights, seen.values)
        if minima is not None:
            assert seen.sums is not None
            true += _product(minima, seen.sums)
    if not np.isfinite(true).all():
        return np.inf
    apart, size = float(np.linalg.norm(true - found)), float(np.linalg.norm(found))
    return apart / size if size else (np.inf if apart else 0.0)


def _product(matrix: NDArray[np.floating], numbers: Doubles) -> Doubles:
    """Multiply in float64, by this thread alone.

    What ``@`` calls shares such small work among threads, which wait for each other in a loop:
    where others need the cores, it took 17 times as much of them.
    """
    found: Doubles = np.einsum("nm,m->n", matrix, numbers)
    return found


def fold(
    seed: bytes, name: str, stored_as: str, weights: Floats, minima: Floats | None
) -> FoldedMatrix:
    """Fold a matrix, after which it can be forgotten.

    Args:
        seed: secret, 32 bytes.
        name: of the tensor, in the whole model.
        stored_as: its storage type.
        weights: float32, outputs by inputs, without minima.
        minima: float32, outputs by blocks of inputs, or None.
    """
    outputs = len(weights)
    secrets = _secrets(seed, name, outputs)
    kept, least = (
        None if each is None else np.einsum("pn,nm->pm", secrets, each).astype(np.float32)
        for each in (weights, minima)
    )
    assert kept is not None
    return FoldedMatrix(seed, name, stored_as, outputs, kept, least)


def _secrets(seed: bytes, name: str, outputs: int) -> NDArray[np.float64]:
    """Draw the vectors of a matrix, evenly from -1 to 1: the same on every machine."""
    drawn = blake3(name.encode(), key=seed).digest(4 * PROJECTIONS * outputs)
    return np.frombuffer(drawn, "<i4").reshape(PROJECTIONS, outputs) / 2.0**31
