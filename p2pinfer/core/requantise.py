"""Activations as llama.cpp's CPU kernels see them: rounded to 8 bits, block by block.

After the same rounding ``y = W q(x)`` holds to float noise, 1.4e-6 of ``|y|`` at most; without it
the two sides lie 1 to 5 % apart. So a peer that knows ``x`` and ``y`` can check a product in any
numerics class. Read in ggml's ``quants.c`` (the release that pyproject.toml pins); the tests
compare every bit with ggml's own functions. Its vector code rounds halves to even, as we do.

    Q8_0    blocks of 32: a float16 scale, 32 codes     for Q4_0, Q5_0, Q8_0
    Q8_1    the same, and a float16 sum of the block    for Q4_1, Q5_1: blocks with a minimum
    Q8_K    blocks of 256: a float32 scale, 256 codes   for K-quants
    F16     each number rounded to float16              for F16
    F32     as they are                                 for F32
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

SMALL_BLOCK: Final = 32
K_BLOCK: Final = 256
_CODE_MAX: Final = np.float32(127)

ROUNDED_TO: Final = {
    "F32": "F32",
    "F16": "F16",
    "Q4_0": "Q8_0",
    "Q5_0": "Q8_0",
    "Q8_0": "Q8_0",
    "Q4_1": "Q8_1",
    "Q5_1": "Q8_1",
    "Q2_K": "Q8_K",
    "Q3_K": "Q8_K",
    "Q4_K": "Q8_K",
    "Q5_K": "Q8_K",
    "Q6_K": "Q8_K",
}
"""The format that activations are rounded to, by that of the weights."""


class Blocks(NamedTuple):
    """Rounded numbers; the last axis of each array but ``scales`` runs within a block."""

    scales: Floats
    """One per block: a code times its scale is the rounded number."""
    codes: NDArray[np.int8]
    sums: Floats | None = None
    """Of each block, as weights with a minimum multiply it; only in Q8_1."""


class Seen(NamedTuple):
    """What a matrix is multiplied by."""

    values: Doubles
    """The rounded numbers, shaped like those that were given."""
    sums: Doubles | None
    """One per block of 32, for weights with a minimum."""


def q8_0(numbers: Floats) -> Blocks:
    """Round to Q8_0; the last axis must be a multiple of 32 long."""
    scales, codes = _small_blocks(numbers)
    return Blocks(_halved(scales), codes)


def q8_1(numbers: Floats) -> Blocks:
    """Round to Q8_1; the last axis must be a multiple of 32 long."""
    scales, codes = _small_blocks(numbers)
    sums = scales * codes.sum(axis=-1, dtype=np.int32).astype(np.float32)
    return Blocks(_halved(scales), codes, _halved(sums))


def q8_k(numbers: Floats) -> Blocks:
    """Round to Q8_K, whose largest number gets the code -127; a multiple of 256 is required."""
    blocks = _cut(numbers, K_BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
    is_zero = largest == 0
    inverse = -_CODE_MAX / np.where(is_zero, np.float32(1), largest)
    codes = np.minimum(np.rint(inverse * blocks), _CODE_MAX)
    scales = np.where(is_zero, np.float32(0), np.float32(1) / inverse)[..., 0]
    return Blocks(scales, np.where(is_zero, 0, codes).astype(np.int8))


def seen_by(weights: str, numbers: Floats) -> Seen:
    """Return numbers as a matrix of the named storage type sees them.

    Args:
        weights: a key of ``ROUNDED_TO``.
        numbers: float32; the last axis is the matrix's input.
    """
    rounded_to = ROUNDED_TO[weights]
    if rounded_to == "F32":
        return Seen(numbers.astype(np.float64), None)
    if rounded_to == "F16":
        return Seen(_halved(numbers).astype(np.float64), None)
    blocks = {"Q8_0": q8_0, "Q8_1": q8_1, "Q8_K": q8_k}[rounded_to](numbers)
    values = blocks.codes * blocks.scales.astype(np.float64)[..., None]
    sums = None if blocks.sums is None else blocks.sums.astype(np.float64)
    return Seen(values.reshape(numbers.shape), sums)


def _small_blocks(numbers: Floats) -> tuple[Floats, NDArray[np.int8]]:
    blocks = _cut(numbers, SMALL_BLOCK)
    largest = np.abs(blocks).max(axis=-1)
    inverse = np.where(largest > 0, _CODE_MAX / np.where(largest > 0, largest, 1), 0)
    codes = np.rint(blocks * inverse.astype(np.float32)[..., None]).astype(np.int8)
    return (largest / _CODE_MAX).astype(np.float32), codes


def _cut(numbers: Floats, size: int) -> Floats:
    assert numbers.dtype == np.float32
    assert numbers.shape[-1] % size == 0
    return numbers.reshape(*numbers.shape[:-1], -1, size)


def _halved(numbers: Floats) -> Floats:
    with np.errstate(over="ignore"):  # as ggml does: numbers past 65,504 become infinite
        return numbers.astype(np.float16).astype(np.float32)
