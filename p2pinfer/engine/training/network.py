"""The last layers of a model, forward and backward, with an adapter whose B is trained.

An adapter adds B A x to what a matrix W makes of x (LoRA, arXiv 2106.09685). A is drawn from a seed
and never changes (FFA-LoRA, arXiv 2403.12313): what is trained is half as large, and the mean of
several people's B is exactly the adapter with the mean of their changes. At first B is zero, and
the model is what it was.

All layers below are frozen, so what goes in are their rows, computed once; and gradients need no
more than these layers. Each function of the layers stands beside its backward one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from p2pinfer.engine.training.weights import MATRICES, Floats, Top

A_GAIN: Final = 2.0
"""Standard deviation of what A makes of a normed row: the larger, the faster B is learned."""

_A_CONTEXT: Final = "p2pinfer 1 the frozen half of an adapter"

Tokens = NDArray[np.int32]
Matrices = Sequence[Mapping[str, Floats]]
"""Of each layer, by the name of the tensor that they change."""


def frozen_half(seed: int, layer: int, name: str, rank: int, inputs: int) -> NDArray[np.float32]:
    """Draw A of one matrix, rank by inputs: the same numbers for a seed on every machine."""
    key = blake3(f"{seed} {layer} {name}".encode(), derive_key_context=_A_CONTEXT)
    drawn = np.frombuffer(key.digest(length=4 * rank * inputs), "<u4").astype(np.float64)
    even = drawn / 2**31 - 1  # from -1 to 1; uniform numbers have a variance of a third
    found: NDArray[np.float32] = (even * A_GAIN * np.sqrt(3 / inputs)).astype(np.float32)
    return found.reshape(rank, inputs)


class TrainedHalf:
    """Where each matrix's B lies in one vector of numbers.

    Args:
        top: the layers.
        rank: of the adapter.
    """

    def __init__(self, top: Top, rank: int) -> None:
        self._places: list[dict[str, tuple[int, tuple[int, int]]]] = []
        at = 0
        for layer in top.layers:
            places = {}
            for name in MATRICES:
                outputs = layer[name].shape[0]
                places[name] = at, (outputs, rank)
                at += outputs * rank
            self._places.append(places)
        self.size = at
        """Numbers in all."""

    def views(self, numbers: Floats) -> Matrices:
        """Return each B, outputs by rank, as a view into a vector of ``size`` numbers."""
        return [
            {
                name: numbers[at : at + outputs * rank].reshape(outputs, rank)
                for name, (at, (outputs, rank)) in places.items()
            }
            for places in self._places
        ]


@dataclass
class Trail:
    """What a forward pass leaves for the backward one."""

    layers: list[dict[str, Any]]
    wanted: slice
    last: Floats
    inverse: Floats
    """Of the output norm."""


class Network:
    """The layers; numbers have the dtype of the weights.

    Args:
        top: the weights.
        rank: of the adapter.
        seed: what A is drawn from.
    """

    def __init__(self, top: Top, rank: int, seed: int) -> None:
        self.top, self.shape = top, top.shape
        self.trained = TrainedHalf(top, rank)
        self.frozen: Matrices = [
            {
                name: frozen_half(
                    seed, top.shape.first + index, name, rank, layer[name].shape[1]
                ).astype(layer[name].dtype)
                for name in MATRICES
            }
            for index, layer in enumerate(top.layers)
        ]

    def forward(self, rows: Floats, start: int, b: Matrices) -> tuple[Floats, Trail]:
        """Return the logits behind row ``start`` and all that follow.

        Args:
            rows: of the residual stream in front of the first layer, positions by width.
            start: the first position whose logits are wanted.
            b: the trained half of the adapter.
        """
        turns = self._turns(len(rows), rows.dtype)
        layers: list[dict[str, Any]] = []
        for index in range(len(self.top.layers)):
            saved: dict[str, Any] = {}
            rows = self._layer(index, rows, b, turns, saved)
            layers.append(saved)
        last = rows[start:]
        normed, inverse = self._norm(last, self.top.norm)
        logits = normed @ self.top.head.T
        if self.top.head_bias is not None:
            logits = logits + self.top.head_bias
        return logits, Trail(layers, slice(start, len(rows)), last, inverse)

    def backward(self, slope: Floats, trail: Trail, b: Matrices, into: Matrices) -> None:
        """Add the gradients of B to ``into``; ``slope``: of the loss by each logit."""
        total = len(trail.layers[0]["rows"])
        d = np.zeros((total, self.shape.width), slope.dtype)
        d[trail.wanted] = _norm_back(
            slope @ self.top.head, trail.last, trail.inverse, self.top.norm
        )
        turns = self._turns(total, slope.dtype)
        for index in reversed(range(len(trail.layers))):
            d = self._layer_back(index, d, b, turns, trail.layers[index], into[index])

    # One layer

    def _layer(
        self, index: int, rows: Floats, b: Matrices, turns: tuple[Floats, Floats], saved: Any
    ) -> Floats:
        shape, layer = self.shape, self.top.layers[index]
        count = len(rows)
        saved["rows"] = rows
        normed, saved["inverse"] = self._norm(rows, layer["attn_norm.weight"])
        q, k, v = (self._linear(index, f"attn_{each}", normed, b, saved) for each in "qkv")
        q = q.reshape(count, shape.heads, shape.head_width)
        k = k.reshape(count, shape.kv_heads, shape.head_width)
        if "attn_q_norm.weight" in layer:
            saved |= {"q_raw": q, "k_raw": k}
            q, saved["q_inverse"] = self._norm(q, layer["attn_q_norm.weight"])
            k, saved["k_inverse"] = self._norm(k, layer["attn_k_norm.weight"])
        q, k = (_rotate(each, turns, halves=shape.halves) for each in (q, k))
        mixed = self._attend(q, k, v.reshape(count, shape.kv_heads, shape.head_width), saved)
        rows = rows + self._linear(index, "attn_output", mixed, b, saved)
        saved["middle"] = rows
        normed, saved["ffn_inverse"] = self._norm(rows, layer["ffn_norm.weight"])
        gate = self._linear(index, "ffn_gate", normed, b, saved)
        up = self._linear(index, "ffn_up", normed, b, saved)
        sigmoid = 1 / (1 + np.exp(-gate))
        saved |= {"gate": gate, "up": up, "sigmoid": sigmoid}
        return rows + self._linear(index, "ffn_down", gate * sigmoid * up, b, saved)

    def _layer_back(
        self,
        index: int,
        d: Floats,
        b: Matrices,
        turns: tuple[Floats, Floats],
        saved: Any,
        into: Mapping[str, Floats],
    ) -> Floats:
        shape, layer = self.shape, self.top.layers[index]
        count = len(d)
        gate, up, sigmoid = saved["gate"], saved["up"], saved["sigmoid"]
        swish = gate * sigmoid
        inner = self._linear_back(index, "ffn_down", d, b, saved, into)
        d_gate = inner * up * (sigmoid + swish * (1 - sigmoid))
        normed = self._linear_back(index, "ffn_gate", d_gate, b, saved, into)
        normed += self._linear_back(index, "ffn_up", inner * swish, b, saved, into)
        of_norm = layer["ffn_norm.weight"]
        d = d + _norm_back(normed, saved["middle"], saved["ffn_inverse"], of_norm)
        mixed = self._linear_back(index, "attn_output", d, b, saved, into)
        d_q, d_k, d_v = self._attend_back(mixed, saved)
        back = (turns[0], -turns[1])
        d_q, d_k = (_rotate(each, back, halves=shape.halves) for each in (d_q, d_k))
        if "attn_q_norm.weight" in layer:
            d_q = _norm_back(d_q, saved["q_raw"], saved["q_inverse"], layer["attn_q_norm.weight"])
            d_k = _norm_back(d_k, saved["k_raw"], saved["k_inverse"], layer["attn_k_norm.weight"])
        normed = np.zeros_like(d)
        for name, each in (("attn_q", d_q), ("attn_k", d_k), ("attn_v", d_v)):
            normed += self._linear_back(index, name, each.reshape(count, -1), b, saved, into)
        return d + _norm_back(normed, saved["rows"], saved["inverse"], layer["attn_norm.weight"])

    # A matrix with its adapter: W x + B A x + bias

    def _linear(self, index: int, name: str, x: Floats, b: Matrices, saved: Any) -> Floats:
        weight = f"{name}.weight"
        low = x @ self.frozen[index][weight].T
        saved[weight] = low
        y = x @ self.top.layers[index][weight].T + low @ b[index][weight].T
        bias = self.top.layers[index].get(f"{name}.bias")
        return y if bias is None else y + bias

    def _linear_back(
        self,
        index: int,
        name: str,
        d: Floats,
        b: Matrices,
        saved: Any,
        into: Mapping[str, Floats],
    ) -> Floats:
        weight = f"{name}.weight"
        gradient = into[weight]
        gradient += d.T @ saved[weight]
        return (
            d @ self.top.layers[index][weight] + (d @ b[index][weight]) @ self.frozen[index][weight]
        )

    # Norms and attention

    def _norm(self, x: Floats, weight: Floats) -> tuple[Floats, Floats]:
        inverse = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + self.shape.epsilon)
        return x * inverse.astype(x.dtype) * weight, inverse.astype(x.dtype)

    def _attend(self, q: Floats, k: Floats, v: Floats, saved: Any) -> Floats:
        """Mix the values of earlier positions; heads share keys and values in groups."""
        shape, count = self.shape, len(q)
        groups = shape.heads // shape.kv_heads
        q = q.transpose(1, 0, 2).reshape(shape.kv_heads, groups, count, shape.head_width)
        k, v = (each.transpose(1, 0, 2)[:, None] for each in (k, v))
        scores = q @ k.swapaxes(-1, -2) * q.dtype.type(shape.head_width**-0.5)
        scores[..., np.triu(np.ones((count, count), bool), 1)] = -np.inf
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        saved |= {"q": q, "k": k, "v": v, "shares": shares}
        mixed: Floats = (shares @ v).reshape(shape.heads, count, -1)
        return mixed.transpose(1, 0, 2).reshape(count, -1)

    def _attend_back(self, d: Floats, saved: Any) -> tuple[Floats, Floats, Floats]:
        shape, count = self.shape, len(d)
        q, k, v, shares = (saved[name] for name in ("q", "k", "v", "shares"))
        d = d.reshape(count, shape.heads, shape.head_width).transpose(1, 0, 2).reshape(q.shape)
        d_v = (shares.swapaxes(-1, -2) @ d).sum(1)
        d_shares = d @ v.swapaxes(-1, -2)
        d_scores = shares * (d_shares - (d_shares * shares).sum(-1, keepdims=True))
        d_scores *= d.dtype.type(shape.head_width**-0.5)
        d_q = (d_scores @ k).reshape(shape.heads, count, shape.head_width)
        d_k = (d_scores.swapaxes(-1, -2) @ q).sum(1)
        return d_q.transpose(1, 0, 2), d_k.transpose(1, 0, 2), d_v.transpose(1, 0, 2)

    def _turns(self, count: int, dtype: Any) -> tuple[Floats, Floats]:
        """Return cosines and sines by which rope turns each position's pairs of numbers."""
        angles = np.arange(count)[:, None, None] * self.shape.frequencies
        return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def _norm_back(d: Floats, x: Floats, inverse: Floats, weight: Floats) -> Floats:
    weighted = d * weight
    found: Floats = inverse * (
        weighted - x * inverse * inverse * (weighted * x).mean(-1, keepdims=True)
    )
    return found


def _rotate(x: Floats, turns: tuple[Floats, Floats], *, halves: bool) -> Floats:
    """Turn pairs of a head's numbers by their position; with sines negated, back."""
    half = x.shape[-1] // 2
    one, other = (x[..., :half], x[..., half:]) if halves else (x[..., 0::2], x[..., 1::2])
    cosines, sines = turns
    turned = one * cosines - other * sines, one * sines + other * cosines
    if halves:
        return np.concatenate(turned, axis=-1)
    return np.stack(turned, axis=-1).reshape(x.shape)


def loss_and_slope(logits: Floats, tokens: Tokens) -> tuple[float, Floats]:
    """Return the mean cross-entropy of the tokens that should come, and its slope by logit."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    likely = shifted / shifted.sum(-1, keepdims=True)
    places = np.arange(len(tokens)), tokens
    loss = float(-np.log(np.maximum(likely[places], np.finfo(likely.dtype).tiny)).mean())
    likely[places] -= 1
    return loss, likely / likely.dtype.type(len(tokens))
