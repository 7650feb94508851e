"""One layer in NumPy, as far as a cheat needs it that invents what attention gives."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.requantise import seen_by
from p2pinfer.core.traced import LINEAR, Traced
from p2pinfer.engine.gguf.dequantise import dequantise
from p2pinfer.engine.gguf.model_header import split_layer
from p2pinfer.engine.gguf.reader import Tensor, read_header

Floats = NDArray[np.float32]

_EPSILON: Final = 1e-5
"""Where a model states none."""


class LayerArithmetic:
    """A layer of a file, whose matrices are held as numbers.

    Args:
        path: a GGUF file of a model, or of some of its layers.
        layer: its number there.
    """

    def __init__(self, path: Path, layer: int) -> None:
        header, data = read_header(path), path.read_bytes()
        architecture = header.string("general.architecture")
        epsilon = header.number(f"{architecture}.attention.layer_norm_rms_epsilon")
        self._epsilon = float(epsilon or _EPSILON)
        self._kv_heads = header.integer(f"{architecture}.attention.head_count_kv") or 1
        self._heads = header.integer(f"{architecture}.attention.head_count") or 1
        self._tensors: dict[str, Tensor] = {}
        self._numbers: dict[str, tuple[NDArray[np.float64], NDArray[np.float64] | None]] = {}
        for name, tensor in header.tensors.items():
            place = split_layer(name)
            if place is None or place[0] != layer:
                continue
            raw = data[tensor.offset : tensor.offset + tensor.nbytes]
            self._tensors[place[1]] = tensor
            if len(tensor.shape) == 1:
                self._numbers[place[1]] = np.frombuffer(raw, "<f4").astype(np.float64), None
            else:
                weights, minima = dequantise(tensor, raw)
                least = None if minima is None else minima.astype(np.float64)
                self._numbers[place[1]] = weights.astype(np.float64), least

    def self_centred(self, given: Floats) -> dict[Traced, Floats]:
        """Return a row's steps from attention on, where it attends to itself alone."""
        value = self._product(Traced.VALUE, self._norm("attn_norm.weight", given))
        if "attn_v.bias" in self._numbers:
            value = (value + self._numbers["attn_v.bias"][0]).astype(np.float32)
        each = value.reshape(self._kv_heads, -1)
        attention = np.repeat(each, self._heads // self._kv_heads, axis=0).ravel()
        out = self._product(Traced.ATTENTION_OUT, attention)
        middle = given + out
        norm = self._norm("ffn_norm.weight", middle)
        gate, up = self._product(Traced.GATE, norm), self._product(Traced.UP, norm)
        gated = (gate / (1 + np.exp(-gate.astype(np.float64))) * up).astype(np.float32)
        down = self._product(Traced.DOWN, gated)
        return {
            Traced.ATTENTION: attention,
            Traced.ATTENTION_OUT: out,
            Traced.FFN_NORM: norm,
            Traced.GATE: gate,
            Traced.UP: up,
            Traced.GATED: gated,
            Traced.DOWN: down,
            Traced.OUT: middle + down,
        }

    def _product(self, step: Traced, given: Floats) -> Floats:
        name = LINEAR[step][1]
        weights, minima = self._numbers[name]
        seen = seen_by(self._tensors[name].type.name, given)
        found = weights @ seen.values
        if minima is not None:
            assert seen.sums is not None
            found += minima @ seen.sums
        return found.astype(np.float32)

    def _norm(self, name: str, row: Floats) -> Floats:
        wide = row.astype(np.float64)
        scale = 1 / np.sqrt((wide * wide).mean() + self._epsilon)
        found: Floats = (wide * scale * self._numbers[name][0]).astype(np.float32)
        return found
