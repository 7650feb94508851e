"""Which models can be cut into layer ranges that compute exactly the same, and why not the others.

To llama.cpp a slice is a model of its own, with its layers counted from 0. It computes the same if

- the rows that come in as embeddings are taken as they are;
- the last layer's output, ``l_out``, is the residual stream after everything that the layer does;
- nothing depends on a layer's number or on the number of layers, except what we rewrite.

All three were checked in llama.cpp's ``src/models/`` (the release that pyproject.toml pins), and
every architecture of the table is proven by ``tests/engine/llama/test_conformance.py``: equal
logits, to the last bit, for every cut it makes. What is not in the table is refused.
"""

from collections.abc import Sequence

from p2pinfer.core.errors import BadModelFile, UnsupportedModel
from p2pinfer.engine.gguf.model_header import ModelInfo, split_layer
from p2pinfer.engine.gguf.reader import GgufHeader
from p2pinfer.engine.gguf.values import Array, ValueType

SPLIT_EXACTLY = ("gemma3", "llama", "phi3", "qwen2", "qwen3", "qwen3moe")
"""The architectures that the conformance suite proves, by their names in GGUF files."""

_SCALES_ROWS = "llama.cpp would scale its rows as embeddings once more in every slice"
_FEEDS_LAYERS = "its layers need more than the rows that the previous layer gives"
_REFUSED = {
    "gemma": _SCALES_ROWS,
    "gemma2": _SCALES_ROWS,
    "granite": _SCALES_ROWS,
    "gemma3n": _FEEDS_LAYERS,
    "gemma4": _FEEDS_LAYERS,
    "smollm3": "every fourth layer, counted from a slice's first, goes without positions",
}
"""Reasons; any other architecture is refused because it is not proven."""

HEAD_TENSORS = ("output.weight", "output.bias", "output_norm.weight")
ROPE_TENSORS = {
    "rope_freqs.weight": "rope_freqs.weight",
    "rope_factors_short.weight": "rope_factors_short.weight",
    "rope_factors_long.weight": "rope_factors_short.weight",
}
"""Tensors of no layer that every layer uses, and the whole model's tensor that stands for each.

llama.cpp takes the long factors when its *context* is longer than the model's original one. Peers
choose their contexts independently, and must agree, so the short ones stand for both; a session is
then no longer than the original context (``ModelInfo.context_tokens``).
"""
_SHARED_TENSORS = frozenset(("token_embd.weight", *HEAD_TENSORS, *ROPE_TENSORS))

PER_LAYER_KEYS = (
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_used_count",
    "attention.head_count",
    "attention.head_count_kv",
)
"""Metadata that may be an array with an item per layer."""

_NEUTRAL = {
    "nextn_predict_layers": 0,
    "leading_dense_block_count": 0,
    "attention.causal": 1,
    "pooling_type": 0,
}
"""Metadata that must have this value, at which llama.cpp does not use it."""

WINDOW_KEY = "attention.sliding_window"
WINDOW_PATTERN_KEY = "attention.sliding_window_pattern"
_GEMMA3_WINDOW_PERIOD = 6  # when the file names none: five windowed layers, then a full one
_GEMMA3_ODD_LAYERS = 62
"""llama.cpp takes a gemma3 of exactly this many layers for the 27B, and scales attention so."""


def check_splits(header: GgufHeader, info: ModelInfo) -> None:
    """Check that cutting this model is proven to be exact; raises UnsupportedModel."""
    architecture = info.architecture
    if architecture not in SPLIT_EXACTLY:
        reason = _REFUSED.get(architecture, "it is not proven to compute the same when it is cut")
        raise UnsupportedModel(f"a model of architecture {architecture} cannot be split: {reason}")
    for name in header.tensors:
        if name not in _SHARED_TENSORS and split_layer(name) is None:
            raise _unsupported(info, f"it has a tensor {name!r} that belongs to no known layer")
    for suffix, neutral in _NEUTRAL.items():
        value = header.metadata.get(f"{architecture}.{suffix}")
        if value is not None and (isinstance(value, Array) or value.decode() != neutral):
            raise _unsupported(info, f"its {architecture}.{suffix} is not {neutral}")
    for key, array in header.metadata.items():
        if isinstance(array, Array) and key.startswith(f"{architecture}."):
            _check_array(info, key, array)
    if architecture == "gemma3" and info.layers >= _GEMMA3_ODD_LAYERS:
        _check_gemma3_scale(header, info)


def _unsupported(info: ModelInfo, reason: str) -> UnsupportedModel:
    return UnsupportedModel(f"{info.name} cannot be split: {reason}")


def _check_array(info: ModelInfo, key: str, array: Array) -> None:
    suffix = key.removeprefix(f"{info.architecture}.")
    if suffix not in (*PER_LAYER_KEYS, WINDOW_PATTERN_KEY):
        raise _unsupported(info, f"it is not known how to cut its array {key}")
    if array.element not in (ValueType.UINT32, ValueType.INT32, ValueType.BOOL):
        raise BadModelFile(f"{info.name} is damaged: {key} holds no numbers that llama.cpp reads")
    if array.count != info.layers:
        raise BadModelFile(
            f"{info.name} is damaged: {key} has {array.count} items for {info.layers} layers"
        )
    is_positive = all(isinstance(item, int) and item > 0 for item in array.decode())
    if suffix in PER_LAYER_KEYS and not is_positive:
        raise BadModelFile(f"{info.name} is damaged: {key} holds a number below 1")


def _check_gemma3_scale(header: GgufHeader, info: ModelInfo) -> None:
    """Refuse a gemma3 whose attention is scaled by its number of layers."""
    heads = header.integer("gemma3.attention.head_count")
    head_width = header.integer("gemma3.attention.key_length")
    if heads is None or info.width // heads != (head_width or info.width // heads):
        raise _unsupported(
            info,
            f"llama.cpp scales the attention of a gemma3 by its number of layers when that is"
            f" {_GEMMA3_ODD_LAYERS}",
        )


def windowed_layers(header: GgufHeader, info: ModelInfo) -> Sequence[bool] | None:
    """Return for each layer whether its attention is windowed, or None if no layer's is.

    llama.cpp reads a window in other architectures' files too, and ignores it.
    """
    if info.architecture != "gemma3" or not header.integer(f"gemma3.{WINDOW_KEY}"):
        return None
    pattern = header.metadata.get(f"gemma3.{WINDOW_PATTERN_KEY}")
    if isinstance(pattern, Array):
        return [bool(item) for item in pattern.decode()]
    period = header.integer(f"gemma3.{WINDOW_PATTERN_KEY}")
    if period is None:
        period = _GEMMA3_WINDOW_PERIOD
    return [period == 0 or layer % period < period - 1 for layer in range(info.layers)]
