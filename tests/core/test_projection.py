"""Products are checked without their matrices: true ones pass, and false ones do not."""

import time
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from p2pinfer.core.projection import RESIDUAL_MAX, FoldedMatrix, fold, residual_of
from p2pinfer.core.requantise import seen_by

INPUTS, OUTPUTS = 256, 1100
SEED = bytes(range(32))


def product(stored_as: str) -> tuple[FoldedMatrix, NDArray[np.float32], NDArray[np.float32]]:
    """Return a folded matrix, what goes in, and what comes out, in float32 as kernels give it."""
    random = np.random.default_rng(5)
    weights = random.standard_normal((OUTPUTS, INPUTS)).astype(np.float32)
    has_minima = stored_as in ("Q4_1", "Q5_1")
    minima = random.standard_normal((OUTPUTS, INPUTS // 32)) if has_minima else None
    least = None if minima is None else minima.astype(np.float32)
    given = random.standard_normal(INPUTS).astype(np.float32)
    seen = seen_by(stored_as, given)
    found = weights @ seen.values.astype(np.float32)
    if least is not None:
        assert seen.sums is not None
        found += least @ seen.sums.astype(np.float32)
    return fold(SEED, "blk.3.ffn_up.weight", stored_as, weights, least), given, found


@pytest.mark.parametrize("stored_as", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q5_1", "Q6_K"])
def test_tells_true_products_from_false(stored_as: str) -> None:
    """Float noise passes; one output, all outputs, or the input changed by a thousandth do not."""
    folded, given, found = product(stored_as)
    assert folded.residual(given, found) < RESIDUAL_MAX
    one, noise = found.copy(), np.random.default_rng(6).standard_normal(OUTPUTS)
    one[7] += np.float32(0.001 * np.linalg.norm(found))
    assert folded.residual(given, one) > RESIDUAL_MAX
    noisy = (found * (1 + 0.001 * noise)).astype(np.float32)
    assert folded.residual(given, noisy) > RESIDUAL_MAX
    other = given.copy()
    other[9] = -other[9]
    assert folded.residual(other, found) > RESIDUAL_MAX


def test_unrounded_products_are_false() -> None:
    """Without llama.cpp's rounding an honest product would look like a cheat's."""
    folded, given, _ = product("Q4_0")
    weights = np.random.default_rng(5).standard_normal((OUTPUTS, INPUTS)).astype(np.float32)
    assert folded.residual(given, weights @ given) > 100 * RESIDUAL_MAX


def test_another_secret_folds_otherwise() -> None:
    """Vectors depend on the seed and the tensor's name, so that none can be guessed from others."""
    weights = np.ones((OUTPUTS, INPUTS), np.float32)
    folded = [
        fold(seed, name, "F32", weights, None).weights[0, 0]
        for seed in (SEED, bytes(32))
        for name in ("blk.0.ffn_up.weight", "blk.1.ffn_up.weight")
    ]
    assert len(set(folded)) == 4


def test_keeps_a_hundredth() -> None:
    """A folded matrix is small, whatever its number of outputs."""
    folded, _, _ = product("Q4_1")
    assert folded.nbytes == 2 * 4 * (INPUTS + INPUTS // 32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_false(bad: float) -> None:
    """NaN, infinity, other sizes and rows of zeros are never taken for true."""
    folded, given, found = product("Q8_0")
    for at in (given, found):
        kept, at[3] = at[3], bad
        assert folded.residual(given, found) == np.inf
        at[3] = kept
    assert folded.residual(given[:-32], found) == np.inf
    assert folded.residual(given, found[:-1]) == np.inf
    assert folded.residual(given, np.zeros_like(found)) == np.inf
    huge = np.full_like(given, np.float32(3e38))
    huge[::2] = 0
    assert folded.residual(huge, found) == np.inf


@pytest.mark.parametrize("stored_as", ["F16", "Q4_0", "Q8_0", "Q6_K"])
def test_a_holder_of_the_matrix_judges_alike(stored_as: str) -> None:
    """It needs no secret, and takes and refuses the same products."""
    _, given, found = product(stored_as)
    weights = np.random.default_rng(5).standard_normal((OUTPUTS, INPUTS)).astype(np.float32)
    assert residual_of(stored_as, weights, None, given, found) < RESIDUAL_MAX
    noise = 1 + 0.001 * np.random.default_rng(6).standard_normal(OUTPUTS)
    noisy = (found * noise).astype(np.float32)
    assert residual_of(stored_as, weights, None, given, noisy) == pytest.approx(0.001, rel=0.2)
    assert residual_of(stored_as, weights, None, given[:-32], found) == np.inf
    assert residual_of(stored_as, weights, None, given, np.full_like(found, np.nan)) == np.inf
    assert residual_of(stored_as, weights, None, given, np.zeros_like(found)) == np.inf


def test_no_other_threads_work_on_it() -> None:
    """Threads that wait for each other in a loop would take the cores that answers need."""
    weights = np.ones((1536, 576), np.float32)
    given, found = np.ones(576, np.float32), np.ones(1536, np.float32)
    for work in (
        partial(fold, SEED, "blk.3.ffn_up.weight", "Q8_0", weights, None),
        partial(residual_of, "Q8_0", weights, None, given, found),
    ):
        begun_ns, mine_ns = time.process_time_ns(), time.thread_time_ns()
        for _ in range(20):
            work()
        all_ns, mine_ns = time.process_time_ns() - begun_ns, time.thread_time_ns() - mine_ns
        assert all_ns < 1.5 * mine_ns
