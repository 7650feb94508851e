"""Rounding of activations has the bits of ggml's own functions, on this CPU's kernels."""

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
from llama_cpp._ggml import libggml_base_path
from numpy.typing import NDArray

from p2pinfer.core.requantise import Blocks, q8_0, q8_1, q8_k, seen_by

_TYPES = {"Q8_0": 8, "Q8_1": 9, "Q8_K": 15}
_LAYOUTS = {
    "Q8_0": np.dtype([("scale", "<f2"), ("codes", "i1", 32)]),
    "Q8_1": np.dtype([("scale", "<f2"), ("sum", "<f2"), ("codes", "i1", 32)]),
    "Q8_K": np.dtype([("scale", "<f4"), ("codes", "i1", 256), ("sums", "<i2", 16)]),
}


def by_ggml(kind: str, numbers: NDArray[np.float32]) -> NDArray[np.void]:
    """Return the blocks that ggml's kernel for this CPU writes."""
    cpu = ctypes.CDLL(str(min(libggml_base_path.glob("*ggml-cpu.*"))))
    cpu.ggml_cpu_init()
    cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(ctypes.c_void_p)
    from_float = cpu.ggml_get_type_traits_cpu(_TYPES[kind])[0]
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(from_float)
    layout = _LAYOUTS[kind]
    found = np.zeros(numbers.size // layout["codes"].shape[0], layout)
    call(numbers.ctypes.data, found.ctypes.data, numbers.size)
    return found


def numbers(seed: int) -> NDArray[np.float32]:
    """Return numbers of many sizes, with blocks of zeros, of one number, and of exact halves."""
    random = np.random.default_rng(seed)
    found = random.standard_normal((256, 256)) * np.exp2(random.integers(-20, 12, (256, 1)))
    found[1] = 0
    found[2, 1:] = 0
    found[3] = np.arange(256) - 127.5
    found[4] = np.tile([127.0, -0.5, 0.5, 1.5, 2.5, -2.5, 3.5, -127], 32)
    found[5] = -found[4]
    return found.astype(np.float32)


@pytest.mark.parametrize(("kind", "ours"), [("Q8_0", q8_0), ("Q8_1", q8_1), ("Q8_K", q8_k)])
@pytest.mark.parametrize("seed", range(8))
def test_has_the_bits_of_ggml(
    kind: str, ours: Callable[[NDArray[np.float32]], Blocks], seed: int
) -> None:
    """Scales, codes and sums are those that ggml writes, halves and zeros included."""
    given = numbers(seed)
    theirs, found = by_ggml(kind, given), ours(given)
    assert np.array_equal(found.codes.reshape(theirs["codes"].shape), theirs["codes"])
    assert np.array_equal(found.scales.ravel(), theirs["scale"].astype(np.float32))
    if kind == "Q8_1":
        assert found.sums is not None
        assert np.array_equal(found.sums.ravel(), theirs["sum"].astype(np.float32))


def test_matrices_see_rounded_numbers() -> None:
    """Each storage type sees numbers in the format of its kernels, shaped as they were."""
    given = numbers(0)
    for weights in ("Q4_0", "Q4_1", "Q6_K", "F16"):
        seen = seen_by(weights, given)
        assert seen.values.shape == given.shape
        assert 0 < np.abs(seen.values - given).max() / np.abs(given).max() < 0.01
        assert (seen.sums is not None) == (weights == "Q4_1")
    assert np.array_equal(seen_by("F32", given).values, given)
