"""What a model's metadata says of each of its layers: what it remembers, and how far it sees."""

from collections.abc import Sequence

from p2pinfer.engine.gguf.architectures import (
    RULES,
    STATE_INTERVAL_KEY,
    STATE_LAYERS_KEY,
    WINDOW_KEY,
    WINDOW_PATTERN_KEY,
    Memory,
)
from p2pinfer.engine.gguf.model_header import ModelInfo
from p2pinfer.engine.gguf.reader import GgufHeader
from p2pinfer.engine.gguf.values import Array


def layer_memories(header: GgufHeader, info: ModelInfo) -> Sequence[Memory] | None:
    """Return what each layer of a hybrid remembers; None if the model is none."""
    prefix, rules = info.architecture, RULES[info.architecture]
    if not rules.is_hybrid:
        return None
    if rules.state_interval is None:
        heads = _of_layers(header, f"{prefix}.attention.head_count_kv", info.layers)
        widths = _of_layers(header, f"{prefix}.feed_forward_length", info.layers)
        is_mixed = isinstance(header.metadata.get(f"{prefix}.feed_forward_length"), Array)
        return [
            Memory.CELLS if kv else Memory.NOTHING if is_mixed and wide else Memory.STATE
            for kv, wide in zip(heads, widths, strict=True)
        ]
    named = header.metadata.get(f"{prefix}.{STATE_LAYERS_KEY}")
    if isinstance(named, Array):
        keep = [bool(item) for item in named.decode()][: info.layers]
    else:
        interval = header.integer(f"{prefix}.{STATE_INTERVAL_KEY}") or rules.state_interval
        keep = [(layer + 1) % interval != 0 for layer in range(info.layers)]
    return [Memory.STATE if each else Memory.CELLS for each in keep]


def _of_layers(header: GgufHeader, key: str, layers: int) -> list[int]:
    """Return metadata that is a number for all layers, or one for each."""
    found = header.metadata.get(key)
    if isinstance(found, Array):
        return [int(item) for item in found.decode()][:layers]
    return [header.integer(key) or 0] * layers


def windowed_layers(header: GgufHeader, info: ModelInfo) -> Sequence[bool] | None:
    """Return for each layer whether its attention is windowed, or None if no layer's is.

    llama.cpp reads a window in other architectures' files too, and ignores it.
    """
    prefix, rules = info.architecture, RULES[info.architecture]
    if rules.windows is None or not header.integer(f"{prefix}.{WINDOW_KEY}"):
        return None
    pattern = header.metadata.get(f"{prefix}.{WINDOW_PATTERN_KEY}")
    if isinstance(pattern, Array):
        return [bool(item) for item in pattern.decode()][: info.layers]
    period = header.integer(f"{prefix}.{WINDOW_PATTERN_KEY}")
    if period is None:
        period = rules.windows.period
    assert period is not None  # of one that must name each layer, check_splits has found them
    full = 0 if rules.windows.full_first else period - 1
    return [period == 0 or layer % period != full for layer in range(info.layers)]
