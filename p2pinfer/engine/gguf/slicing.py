"""Cut a model into layer ranges: first a plan, which is a pure value, then a file.

    first end   token embedding, layers [0, k)         tokens in, rows out; keeps the tokenizer
    stage       layers [a, b)                          rows in, rows out; no vocabulary
    last end    layers [n-k, n), output norm, head     rows in, logits out; no tokenizer

Each is a GGUF that llama.cpp loads as a model of its own, with its layers counted from 0. Tensors
that llama.cpp insists on and a slice never uses are zeros, so that they need not be fetched.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from p2pinfer.core.errors import BadModelFile, UserError
from p2pinfer.engine.gguf.architectures import (
    PER_LAYER_KEYS,
    ROPE_TENSORS,
    WINDOW_KEY,
    WINDOW_PATTERN_KEY,
    check_splits,
    windowed_layers,
)
from p2pinfer.engine.gguf.ggml_types import F32, GgmlType
from p2pinfer.engine.gguf.model_header import EMBEDDING, ModelInfo, model_info, split_layer
from p2pinfer.engine.gguf.reader import GgufHeader
from p2pinfer.engine.gguf.values import Array, Value, ValueType
from p2pinfer.engine.gguf.writer import Extent, NewTensor, write_gguf

STAGE_VOCABULARY_TOKENS = 32
"""llama.cpp wants a vocabulary; this many rows of zeros suffice."""


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


def plan_stage(header: GgufHeader, first: int, end: int) -> SlicePlan:
    """Plan the slice of layers ``first`` up to but not including ``end``.

    Raises:
        BadModelFile: the model's header makes no sense.
        UnsupportedModel: the model is not proven to split exactly.
        UserError: the model has no such layers.
    """
    info = _checked(header)
    if not 0 <= first < end <= info.layers:
        raise UserError(
            f"{info.name} has no layers {first}:{end}; choose a range within 0:{info.layers}"
        )
    metadata = _without_tokenizer(header, info, STAGE_VOCABULARY_TOKENS)
    metadata |= _layer_metadata(header, info, first, end)
    embedding_shape = (info.width, STAGE_VOCABULARY_TOKENS)
    tensors = (
        PlannedTensor(EMBEDDING, embedding_shape, F32, None),
        _zero_norm(info),
        *_layer_tensors(header, first, end),
    )
    return SlicePlan(_present(metadata), tensors)


def plan_first_end(header: GgufHeader, keep: int) -> SlicePlan:
    """Plan the slice that turns tokens into rows after layer ``keep - 1``; raises as a stage."""
    info = _checked(header)
    _check_keep(info, keep)
    metadata = {**header.metadata, **_layer_metadata(header, info, 0, keep)}
    tensors = (
        _same(header, EMBEDDING),
        _zero_norm(info),
        *_layer_tensors(header, 0, keep),
    )
    return SlicePlan(_present(metadata), tensors)


def plan_last_end(header: GgufHeader, keep: int) -> SlicePlan:
    """Plan the slice of the last ``keep`` layers, which gives logits; raises as a stage."""
    info = _checked(header)
    _check_keep(info, keep)
    first = info.layers - keep
    metadata = _without_tokenizer(header, info, info.vocabulary_tokens)
    metadata |= _layer_metadata(header, info, first, info.layers)
    # A separate head goes where llama.cpp looks for a tied one: no tokens are embedded here, and
    # so the slice holds one large matrix instead of two.
    head = _same(header, "output.weight" if "output.weight" in header.tensors else EMBEDDING)
    tensors = [replace(head, name=EMBEDDING), _same(header, "output_norm.weight")]
    if "output.bias" in header.tensors:
        tensors.append(_same(header, "output.bias"))
    return SlicePlan(_present(metadata), (*tensors, *_layer_tensors(header, first, info.layers)))


def write_slice(plan: SlicePlan, sources: Mapping[str, Extent], path: Path) -> None:
    """Write a plan's file, taking each tensor's bytes from ``sources``; raises as write_gguf."""
    tensors = [
        NewTensor(t.name, t.shape, t.type, None if t.source is None else sources[t.source])
        for t in plan.tensors
    ]
    write_gguf(path, plan.metadata, tensors)


def extents(header: GgufHeader, path: Path) -> dict[str, Extent]:
    """Return where the bytes of each tensor lie in the model's own file."""
    return {t.name: Extent(path, t.offset, t.nbytes) for t in header.tensors.values()}


_Changes = dict[str, Value | Array | None]
"""Metadata to set, or with None to leave out."""


def _present(metadata: Mapping[str, Value | Array | None]) -> dict[str, Value | Array]:
    return {key: value for key, value in metadata.items() if value is not None}


def _checked(header: GgufHeader) -> ModelInfo:
    info = model_info(header)
    check_splits(header, info)
    return info


def _check_keep(info: ModelInfo, keep: int) -> None:
    if not 1 <= keep <= info.layers:
        raise UserError(
            f"an end of {info.name} can keep from 1 to {info.layers} layers, not {keep}"
        )


def _without_tokenizer(header: GgufHeader, info: ModelInfo, vocabulary_tokens: int) -> _Changes:
    """Keep all metadata but the tokenizer's, of which only the vocabulary's size is kept."""
    kept: _Changes = {k: v for k, v in header.metadata.items() if not k.startswith("tokenizer.")}
    kept["tokenizer.ggml.model"] = Value.of(ValueType.STRING, "no_vocab")
    size = Value.of(ValueType.UINT32, vocabulary_tokens)
    kept[f"{info.architecture}.vocab_size"] = size
    return kept


def _layer_metadata(header: GgufHeader, info: ModelInfo, first: int, end: int) -> _Changes:
    """Return the per-layer metadata, restricted to the layers of the slice."""
    prefix = info.architecture
    changes: _Changes = {f"{prefix}.block_count": Value.of(ValueType.UINT32, end - first)}
    for suffix in PER_LAYER_KEYS:
        array = header.metadata.get(f"{prefix}.{suffix}")
        if isinstance(array, Array):
            items = array.decode()[first:end]
            changes[f"{prefix}.{suffix}"] = Array.of(array.element, items)
    windowed = windowed_layers(header, info)
    if windowed is not None:
        kept = windowed[first:end]
        pattern = Array.of(ValueType.BOOL, kept) if any(kept) else None
        changes[f"{prefix}.{WINDOW_PATTERN_KEY}"] = pattern
        if pattern is None:  # llama.cpp aborts on a window that no layer has
            changes[f"{prefix}.{WINDOW_KEY}"] = None
    return changes


def _layer_tensors(header: GgufHeader, first: int, end: int) -> list[PlannedTensor]:
    """Return the layers' own tensors, renumbered from 0, and those that all layers share."""
    tensors = [
        replace(_same(header, source), name=name)
        for name, source in ROPE_TENSORS.items()
        if name in header.tensors
    ]
    for tensor in header.tensors.values():
        place = split_layer(tensor.name)
        if place is not None and first <= place[0] < end:
            name = f"blk.{place[0] - first}.{place[1]}"
            tensors.append(PlannedTensor(name, tensor.shape, tensor.type, tensor.name))
    return tensors


def _same(header: GgufHeader, name: str) -> PlannedTensor:
    tensor = header.tensors.get(name)
    if tensor is None:
        raise BadModelFile(f"{header.name} lacks the tensor {name!r}")
    return PlannedTensor(name, tensor.shape, tensor.type, name)


def _zero_norm(info: ModelInfo) -> PlannedTensor:
    return PlannedTensor("output_norm.weight", (info.width,), F32, None)
