"""Quantised matrices as numbers, to multiply with them outside llama.cpp.

Layouts were read in ggml's ``ggml-common.h``; the tests compare with llama.cpp's Python package.
That one would bring an HTTP client, and adds each block's minimum to its numbers, which llama.cpp's
kernels multiply apart: see ``core.requantise``.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.errors import UnsupportedModel
from p2pinfer.engine.gguf.reader import Tensor

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class Matrix(NamedTuple):
    """A matrix without rounding errors of its own: codes times scales."""

    weights: Floats
    """Outputs by inputs; without the minima."""
    minima: Floats | None
    """Outputs by blocks of 32 inputs, to be added to each weight of a block; of Q4_1 and Q5_1."""


def dequantise(tensor: Tensor, data: bytes) -> Matrix:
    """Return a matrix of a GGUF file.

    Args:
        tensor: its place in the file, with two sizes.
        data: its bytes.

    Raises:
        UnsupportedModel: its storage type is not known here.
    """
    inputs, outputs = tensor.shape
    kind = tensor.type
    if kind.name in ("F32", "F16"):
        plain = np.frombuffer(data, "<f4" if kind.name == "F32" else "<f2")
        return Matrix(plain.astype(np.float32).reshape(outputs, inputs), None)
    if kind.name == "BF16":  # the upper half of a float32
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return Matrix(wide.view(np.float32).reshape(outputs, inputs), None)
    read = _READERS.get(kind.name)
    if read is None:
        raise UnsupportedModel(f"{tensor.name} is stored as {kind.name}, which no proof key covers")
    numbers, minima = read(np.frombuffer(data, np.uint8).reshape(-1, kind.block_bytes))
    found = None if minima is None else minima.reshape(outputs, -1)
    return Matrix(numbers.reshape(outputs, inputs), found)


_Read = tuple[Floats, Floats | None]


def _half(blocks: Bytes, at: int) -> Floats:
    """Read a float16 of each block, as a column."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    bits = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    return bits * np.uint8(16)


def _q4_0(blocks: Bytes) -> _Read:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8), None


def _q4_1(blocks: Bytes) -> _Read:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]), _half(blocks, 2)


def _q5_0(blocks: Bytes) -> _Read:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return _half(blocks, 0) * (codes.astype(np.float32) - 16), None


def _q5_1(blocks: Bytes) -> _Read:
    return _half(blocks, 0) * (_nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)), _half(blocks, 2)


def _q8_0(blocks: Bytes) -> _Read:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8), None


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Unpack eight scales and eight minima of 6 bits each, times those of their block."""
    low, high, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (rest & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([high & 63, (rest >> 4) | (high >> 6 << 4)], axis=1)
    return _half(blocks, 0) * scales, _half(blocks, 2) * minima


def _k_codes(packed: Bytes) -> Bytes:
    """Unpack 128 bytes to eight runs of 32 codes: low halves of 32 bytes, then their high ones."""
    return _nibbles(packed.reshape(-1, 4, 32)).reshape(-1, 8, 32)


def _q4_k(blocks: Bytes) -> _Read:
    scales, minima = _k_scales(blocks)
    return scales[..., None] * _k_codes(blocks[:, 16:]) - minima[..., None], None


def _q5_k(blocks: Bytes) -> _Read:
    scales, minima = _k_scales(blocks)
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    fifth = (blocks[:, None, 16:48] >> shifts & 1) << 4
    return scales[..., None] * (_k_codes(blocks[:, 48:]) | fifth) - minima[..., None], None


def _q6_k(blocks: Bytes) -> _Read:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3) << 4
    codes = (low | high).reshape(-1, 16, 16).astype(np.float32) - 32
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return scales[..., None] * codes, None


_READERS: Final[dict[str, Callable[[Bytes], _Read]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
