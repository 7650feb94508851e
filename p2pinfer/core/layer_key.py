"""What a verifier keeps of a model's layers: secret projections, and the few numbers beside them.

A layer is checked with its folded matrices, the weights of its norms, and its biases; with all
layers alike, the shape says how they compute. Made once from the layers, which are then forgotten.
"""

from collections.abc import Mapping
from typing import Any, Final, Protocol

import numpy as np
from attrs import field, frozen
from attrs import validators as v
from numpy.typing import NDArray

from p2pinfer.core.traced import LINEAR

Floats = NDArray[np.float32]

ATTENTION_NORM: Final = "attn_norm.weight"
FFN_NORM: Final = "ffn_norm.weight"
QUERY_NORM: Final = "attn_q_norm.weight"
KEY_NORM: Final = "attn_k_norm.weight"
QUERY_BIAS, KEY_BIAS, VALUE_BIAS = (f"attn_{name}.bias" for name in "qkv")

MATRICES: Final = frozenset(name for _, name in LINEAR.values())
VECTORS: Final = frozenset(
    (ATTENTION_NORM, FFN_NORM, QUERY_NORM, KEY_NORM, QUERY_BIAS, KEY_BIAS, VALUE_BIAS)
)
"""All vectors that a layer may have, by their names in GGUF files."""

_COUNT: Any = v.and_(v.instance_of(int), v.ge(1))
_POSITIVE: Any = v.and_(v.instance_of(float), v.gt(0))


@frozen(eq=False)
class LayerShape:
    """How the layers of a model compute."""

    architecture: str
    heads: int = field(validator=_COUNT)
    kv_heads: int = field(validator=_COUNT)
    head_width: int = field(validator=_COUNT)
    """Numbers of one head of Q, K and V."""
    epsilon: float = field(validator=_POSITIVE)
    """Of the RMS norms."""
    scale: float = field(validator=_POSITIVE)
    """Of products of queries and keys."""
    rotated: int = field(validator=_COUNT)
    """Numbers of a head that RoPE turns."""
    base: float = field(validator=_POSITIVE)
    """Of RoPE's frequencies."""
    stretch: float = field(validator=_POSITIVE)
    """What RoPE's angles are multiplied by."""
    is_halved: bool
    """RoPE turns a head's first half with its second one; otherwise neighbours."""
    factors: Floats | None = None
    """What each of RoPE's frequencies is divided by."""


class CheckedMatrix(Protocol):
    """A matrix, or what is kept of it."""

    @property
    def nbytes(self) -> int:
        """How much is kept."""
        ...

    @property
    def outputs(self) -> int:
        """Numbers of a product."""
        ...

    def residual(self, given: Floats, found: Floats) -> float:
        """Return how far a product is from the true one, relative to it."""
        ...


@frozen(eq=False)
class LayerKey:
    """What is kept of one layer."""

    matrices: Mapping[str, CheckedMatrix]
    """By their names in a layer, as in ``LINEAR``."""
    vectors: Mapping[str, Floats]
    """Weights of norms, and biases, by their names in a layer."""

    @property
    def nbytes(self) -> int:
        """How much is kept."""
        matrices = sum(each.nbytes for each in self.matrices.values())
        return matrices + sum(each.nbytes for each in self.vectors.values())
