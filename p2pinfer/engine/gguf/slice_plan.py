"""What a slice's file will contain, as a pure value."""

from collections.abc import Mapping
from dataclasses import dataclass

from p2pinfer.engine.gguf.ggml_types import GgmlType
from p2pinfer.engine.gguf.values import Array, Value


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A slice's tensor, and the whole model's tensor that it comes from, or None for zeros."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    source: str | None


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """Everything that a slice's file will contain."""

    metadata: Mapping[str, Value | Array]
    tensors: tuple[PlannedTensor, ...]
