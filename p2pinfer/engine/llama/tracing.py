"""What a layer computes for one row, step by step: named nodes of llama.cpp's graph.

A trace asks for each of these nodes, so llama.cpp computes up to it and waits. That costs a fifth
of a decode, and is done for single rows that somebody asks about. The rows have the same bits as
without it.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.errors import UnsupportedModel
from p2pinfer.core.traced import Traced
from p2pinfer.engine.llama.ggml import Ggml

_DENSE: Final = {
    ("MUL", "attn_norm"): Traced.ATTENTION_NORM,
    ("MUL_MAT", "Qcur"): Traced.QUERY,
    ("MUL_MAT", "Kcur"): Traced.KEY,
    ("MUL_MAT", "Vcur"): Traced.VALUE,
    ("RESHAPE", "kqv_out"): Traced.ATTENTION,
    ("CONT", "kqv_out"): Traced.ATTENTION,  # without flash attention
    ("MUL", "ffn_norm"): Traced.FFN_NORM,
    ("MUL_MAT", "ffn_gate"): Traced.GATE,
    ("MUL_MAT", "ffn_up"): Traced.UP,
    ("SWIGLU", "ffn_swiglu"): Traced.GATED,
    ("MUL_MAT", "ffn_out"): Traced.DOWN,
    ("ADD", "l_out"): Traced.OUT,
}
"""By the operation and the name, without the layer; the product behind attention has no name in
some architectures, and is the first that follows."""

NODES: Final = {"llama": _DENSE, "qwen2": _DENSE, "qwen3": _DENSE}
"""The architectures that can be traced, by their names in GGUF files."""

Trace = dict[tuple[int, Traced], NDArray[np.float32]]
"""One row's numbers by the layer, counted from the slice's first, and the step."""


def check_traced(architecture: str, experts: int) -> None:
    """Raise UnsupportedModel, with the reason, where layers cannot be traced."""
    if experts:
        raise UnsupportedModel(
            "layers with experts cannot be proven: which experts run is not open"
        )
    if architecture not in NODES:
        known = ", ".join(NODES)
        raise UnsupportedModel(
            f"layers of architecture {architecture} cannot be proven, only those of {known}"
        )


class Tracer:
    """Answers llama.cpp's evaluation callback during one decode, and keeps its first row.

    Args:
        ggml: the loaded ggml.
        architecture: of the slice; one of ``NODES``.
        layers: how many to trace, from the slice's first on; the decode ends behind the last.
        rows: of the decode, padding included.
        pause: called behind each step but the last; what it raises ends the decode, and is kept as
            ``failure``.
    """

    def __init__(
        self,
        ggml: Ggml,
        architecture: str,
        layers: int,
        rows: int,
        pause: Callable[[], None] | None = None,
    ) -> None:
        self._ggml, self._nodes = ggml, NODES[architecture]
        self._layers, self._rows, self._pause = layers, rows, pause
        self.failure: Exception | None = None
        self._due: tuple[int, Traced] | None = None
        self._behind_attention: int | None = None
        self.trace: Trace = {}

    def answer(self, tensor: int) -> bool:
        """Say whether a node is wanted, and after a wanted one whether to go on."""
        if self._due is None:
            self._due = self._wanted(tensor)
            return self._due is not None
        due, self._due = self._due, None
        size = self._ggml.bytes_of(tensor) // self._rows
        self.trace[due] = np.frombuffer(self._ggml.read(tensor, size), np.float32)
        if due == (self._layers - 1, Traced.OUT):
            return False
        if self._pause:
            try:
                self._pause()
            except Exception as error:  # noqa: BLE001 -- raised by the caller: C code would drop it
                self.failure = error
        return self.failure is None

    def _wanted(self, tensor: int) -> tuple[int, Traced] | None:
        operation = self._ggml.operation_of(tensor).decode()
        if operation == "MUL_MAT" and self._behind_attention is not None:
            layer, self._behind_attention = self._behind_attention, None
            return layer, Traced.ATTENTION_OUT
        name, _, layer_text = self._ggml.name_of(tensor).decode().rpartition("-")
        step = self._nodes.get((operation, name))
        if step is None or not layer_text.isdecimal():
            return None
        layer = int(layer_text)
        if step is Traced.ATTENTION:
            self._behind_attention = layer
        return layer, step

    def is_whole(self) -> bool:
        """Whether every step of every layer was found."""
        return len(self.trace) == self._layers * len(Traced)
