"""Quantised matrices have the numbers that llama.cpp's own package reads from the same bytes."""

import gguf
import numpy as np
import pytest
from gguf import quants

from p2pinfer.core.errors import UnsupportedModel
from p2pinfer.engine.gguf.dequantise import dequantise
from p2pinfer.engine.gguf.ggml_types import GGML_TYPES
from p2pinfer.engine.gguf.reader import Tensor

INPUTS, OUTPUTS = 512, 24
BY_NAME = {kind.name: kind for kind in GGML_TYPES.values()}


@pytest.mark.parametrize(
    "name", ["F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
)
def test_reads_the_numbers_of_llama_cpp(name: str) -> None:
    """Any bytes give the same numbers, once minima are added again."""
    kind = BY_NAME[name]
    tensor = Tensor("blk.0.ffn_up.weight", (INPUTS, OUTPUTS), kind, 0)
    raw = np.random.default_rng(1).integers(
        0, 256, (tensor.nbytes // kind.block_bytes, kind.block_bytes)
    )
    blocks = raw.astype(np.uint8)
    if name in ("F32", "F16"):
        numbers = np.random.default_rng(1).standard_normal(INPUTS * OUTPUTS)
        blocks = numbers.astype("<f4" if name == "F32" else "<f2").view(np.uint8)
    else:  # scales that are numbers
        at = 208 if name == "Q6_K" else 0
        halves = 2 if name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else 1
        scales = np.random.default_rng(2).standard_normal((len(blocks), halves)).astype("<f2")
        blocks[:, at : at + 2 * halves] = scales.view(np.uint8)
    found = dequantise(tensor, blocks.tobytes())
    theirs = quants.dequantize(blocks.reshape(-1), gguf.GGMLQuantizationType[name])
    whole = found.weights.astype(np.float64)
    if found.minima is not None:
        whole += np.repeat(found.minima, 32, axis=1)
    assert (found.minima is not None) == (name in ("Q4_1", "Q5_1"))
    np.testing.assert_allclose(whole, theirs.reshape(OUTPUTS, INPUTS), rtol=1e-6, atol=1e-5)


def test_refuses_other_types() -> None:
    """A type without a reader is refused by its name."""
    tensor = Tensor("blk.0.ffn_up.weight", (INPUTS, OUTPUTS), BY_NAME["IQ4_XS"], 0)
    with pytest.raises(UnsupportedModel, match="IQ4_XS"):
        dequantise(tensor, bytes(tensor.nbytes))
