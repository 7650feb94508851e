"""Fold a model's layers into what a verifier keeps of them; see ``core.layer_key``."""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from p2pinfer.core.errors import UnsupportedModel
from p2pinfer.core.layer_key import (
    ATTENTION_NORM,
    FFN_NORM,
    MATRICES,
    VECTORS,
    LayerKey,
    LayerShape,
)
from p2pinfer.core.projection import fold, residual_of
from p2pinfer.engine.gguf.architectures import ROPE_FREQUENCIES
from p2pinfer.engine.gguf.dequantise import dequantise
from p2pinfer.engine.gguf.model_header import split_layer
from p2pinfer.engine.gguf.reader import GgufHeader, Tensor
from p2pinfer.engine.gguf.values import Array

Floats = NDArray[np.float32]

Read = Callable[[Tensor], bytes]
"""Returns a tensor's bytes."""

_IS_HALVED: Final = {"llama": False, "qwen2": True, "qwen3": True}
"""The architectures whose layers can be proven, and whether RoPE turns halves of a head."""

_BASE_DEFAULT = 10_000.0
_SIMPLE_SCALINGS = ("none", "linear")
_NEUTRAL: Final = {"attention.clamp_kqv": 0.0, "rope.scaling.attn_factor": 1.0}
"""What no check covers at any other value."""

_NEEDED: Final = frozenset((*MATRICES, ATTENTION_NORM, FFN_NORM))


def layer_shape(header: GgufHeader, read: Read) -> LayerShape:
    """Return how a model's layers compute.

    Args:
        header: of the whole model.
        read: for the tensor of RoPE's factors.

    Raises:
        UnsupportedModel: its layers cannot be proven; the text says why.
        BadModelFile: its header makes no sense.
    """
    name = header.string("general.architecture") or ""
    if header.integer(f"{name}.expert_count"):
        raise UnsupportedModel(
            "layers with experts cannot be proven: which experts run is not open"
        )
    if name not in _IS_HALVED:
        known = ", ".join(_IS_HALVED)
        raise UnsupportedModel(
            f"layers of architecture {name} cannot be proven, only those of {known}"
        )
    heads = _same_for_all(header, f"{name}.attention.head_count", 0)
    kv_heads = _same_for_all(header, f"{name}.attention.head_count_kv", heads)
    width = (header.integer(f"{name}.embedding_length") or 0) // max(heads, 1)
    head_width = header.integer(f"{name}.attention.key_length") or width
    values = header.integer(f"{name}.attention.value_length") or width
    for key, neutral in _NEUTRAL.items():
        if header.number(f"{name}.{key}") not in (None, neutral):
            raise UnsupportedModel(
                f"layers with another {name}.{key} than {neutral} are not proven"
            )
    if not heads or not kv_heads or heads % kv_heads or values != head_width:
        raise UnsupportedModel("layers with heads of such sizes cannot be proven")
    factors = header.tensors.get(ROPE_FREQUENCIES)
    return LayerShape(
        architecture=name,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        epsilon=float(header.number(f"{name}.attention.layer_norm_rms_epsilon") or 0.0),
        scale=float(header.number(f"{name}.attention.scale") or head_width**-0.5),
        rotated=header.integer(f"{name}.rope.dimension_count") or head_width,
        base=float(header.number(f"{name}.rope.freq_base") or _BASE_DEFAULT),
        stretch=_stretch(header, name),
        is_halved=_IS_HALVED[name],
        factors=np.frombuffer(read(factors), "<f4") if factors else None,
    )


def layer_key(seed: bytes, layer: int, tensors: Mapping[str, Tensor], read: Read) -> LayerKey:
    """Fold one layer, after which it can be forgotten.

    Args:
        seed: secret, 32 bytes.
        layer: its number in the whole model.
        tensors: those of its part, by their names in the whole model; others are passed over.
        read: returns a tensor's bytes.

    Raises:
        UnsupportedModel: it has a tensor that no check covers.
        BadModelFile: it lacks one.
    """
    matrices, vectors = {}, {}
    for name, tensor in _of_layer(layer, tensors).items():
        if name in MATRICES:
            matrix = dequantise(tensor, read(tensor))
            matrices[name] = fold(seed, tensor.name, tensor.type.name, *matrix)
        else:
            vectors[name] = _vector(tensor, read)
    return LayerKey(matrices, vectors)


def whole_layer(layer: int, tensors: Mapping[str, Tensor], read: Read) -> LayerKey:
    """Return one layer as it is, for a machine that holds it: products are computed, not projected.

    Raises as ``layer_key``.
    """
    matrices, vectors = {}, {}
    for name, tensor in _of_layer(layer, tensors).items():
        if name in MATRICES:
            matrices[name] = WholeMatrix(tensor, read)
        else:
            vectors[name] = _vector(tensor, read)
    return LayerKey(matrices, vectors)


@frozen(eq=False)
class WholeMatrix:
    """A matrix that is read when it is needed."""

    tensor: Tensor
    read: Read

    @property
    def nbytes(self) -> int:
        """How much is kept."""
        return self.tensor.nbytes

    @property
    def outputs(self) -> int:
        """Numbers of a product."""
        return self.tensor.shape[1]

    def residual(self, given: Floats, found: Floats) -> float:
        """Return how far a product is from the true one, relative to it; see ``FoldedMatrix``."""
        inputs, outputs = self.tensor.shape
        if given.shape != (inputs,) or found.shape != (outputs,):
            return np.inf
        matrix = dequantise(self.tensor, self.read(self.tensor))
        return residual_of(self.tensor.type.name, *matrix, given, found)


def _of_layer(layer: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        place = split_layer(name)
        if place is None or place[0] != layer:
            continue
        if place[1] not in MATRICES | VECTORS:
            raise UnsupportedModel(f"layers with {place[1]} cannot be proven")
        found[place[1]] = tensor
    if missing := _NEEDED - found.keys():
        raise UnsupportedModel(f"layers without {min(missing)} cannot be proven")
    return found


def _vector(tensor: Tensor, read: Read) -> Floats:
    if tensor.type.name != "F32":
        raise UnsupportedModel(f"{tensor.name} is stored as {tensor.type.name}, not as F32")
    return np.frombuffer(read(tensor), "<f4")


def _same_for_all(header: GgufHeader, key: str, default: int) -> int:
    """Return a count that may be stated for each layer, and must be the same for all."""
    value = header.metadata.get(key)
    if not isinstance(value, Array):
        return header.integer(key) or default
    counts = {item for item in value.decode() if isinstance(item, int)}
    if len(counts) != 1:
        raise UnsupportedModel(f"layers that differ in {key} cannot be proven")
    return counts.pop()


def _stretch(header: GgufHeader, name: str) -> float:
    """Return what linear scaling multiplies angles by."""
    kind = header.string(f"{name}.rope.scaling.type") or "linear"
    if kind not in _SIMPLE_SCALINGS:
        raise UnsupportedModel(f"layers whose positions are scaled by {kind} cannot be proven")
    factor = header.number(f"{name}.rope.scaling.factor")
    factor = factor or header.number(f"{name}.rope.scale_linear")
    return 1.0 / factor if factor and kind == "linear" else 1.0
