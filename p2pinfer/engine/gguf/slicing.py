"""Cut a model into layer ranges: first a plan, which is a pure value, then a file.

    first end   token embedding, layers [0, k)         tokens in, rows out; keeps the tokenizer
    stage       layers [a, b)                          rows in, rows out; no vocabulary
    last end    layers [n-k, n), output norm, head     rows in, logits out; no tokenizer

Each is a GGUF that llama.cpp loads as a model of its own, with its layers counted from 0. Tensors
that llama.cpp insists on and a slice never uses are zeros, so that they need not be fetched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from p2pinfer.core.errors import BadModelFile, UserError
from p2pinfer.engine.gguf.architectures import (
    DENSE_LEAD_KEY,
    EMBEDDING_SCALE_KEY,
    NORM_TENSORS,
    PER_LAYER_KEYS,
    ROPE_FREQUENCIES,
    ROPE_TENSORS,
    WINDOW_KEY,
    WINDOW_PATTERN_KEY,
    Rules,
    check_range,
    check_splits,
    windowed_layers,
)
from p2pinfer.engine.gguf.ggml_types import F16, F32, Q4_0, GgmlType
from p2pinfer.engine.gguf.model_header import (
    DRAFTING_BLOCKS_KEY,
    EMBEDDING,
    ModelInfo,
    drafting_blocks,
    model_info,
    split_layer,
)
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
    info, rules = _checked(header)
    if not 0 <= first < end <= info.layers:
        raise UserError(
            f"{info.name} has no layers {first}:{end}; choose a range within 0:{info.layers}"
        )
    metadata = _without_tokenizer(header, info, rules, STAGE_VOCABULARY_TOKENS)
    metadata |= _layer_metadata(header, info, rules, first, end)
    embedding_shape = (info.width, STAGE_VOCABULARY_TOKENS)
    tensors = (
        PlannedTensor(EMBEDDING, embedding_shape, F32, None),
        *_zero_output(header, info, rules, STAGE_VOCABULARY_TOKENS),
        *_layer_tensors(header, info, rules, first, end),
    )
    return SlicePlan(_present(metadata), tensors)


def plan_first_end(header: GgufHeader, keep: int, *, two_matrices: bool = False) -> SlicePlan:
    """Plan the slice that turns tokens into rows behind layer ``keep - 1``; raises as a stage.

    ``two_matrices``: embedding and head are not to be one, even where one is zeros: llama.cpp finds
    what an adapter changes by its name.
    """
    info, rules = _checked(header)
    _check_keep(info, keep)
    metadata = {**header.metadata, **_layer_metadata(header, info, rules, 0, keep)}
    tensors = (
        _same(header, EMBEDDING),
        *_zero_output(header, info, rules, info.vocabulary_tokens, has_head=two_matrices),
        *_layer_tensors(header, info, rules, 0, keep),
    )
    return SlicePlan(_present(metadata), tensors)


def plan_last_end(header: GgufHeader, keep: int, *, two_matrices: bool = False) -> SlicePlan:
    """Plan the slice of the last ``keep`` layers, which gives logits; raises as a stage.

    ``two_matrices``: as for the first end.
    """
    info, rules = _checked(header)
    _check_keep(info, keep)
    first = info.layers - keep
    metadata = _without_tokenizer(header, info, rules, info.vocabulary_tokens)
    metadata |= _layer_metadata(header, info, rules, first, info.layers)
    has_head = rules.head_everywhere or "output.weight" in header.tensors
    head = _same(header, "output.weight" if has_head else EMBEDDING)
    # Nobody embeds tokens here. So a head of its own goes where llama.cpp looks for a tied one, and
    # the slice holds one large matrix; where llama.cpp wants two, one of them is zeros.
    tensors = [replace(head, name=EMBEDDING)]
    if rules.head_everywhere or two_matrices:
        tensors = [_zeros(EMBEDDING, info, info.vocabulary_tokens), head]
    tensors += [_same(header, name) for name in NORM_TENSORS if name in header.tensors]
    if "output.bias" in header.tensors:
        tensors.append(_same(header, "output.bias"))
    layers = _layer_tensors(header, info, rules, first, info.layers)
    return SlicePlan(_present(metadata), (*tensors, *layers))


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


def _checked(header: GgufHeader) -> tuple[ModelInfo, Rules]:
    info = model_info(header)
    rules = check_splits(header, info)
    for name in (EMBEDDING, NORM_TENSORS[0]):
        _same(header, name)
    return info, rules


def _check_keep(info: ModelInfo, keep: int) -> None:
    if not 1 <= keep <= info.layers:
        raise UserError(
            f"an end of {info.name} can keep from 1 to {info.layers} layers, not {keep}"
        )


def _without_tokenizer(
    header: GgufHeader, info: ModelInfo, rules: Rules, vocabulary_tokens: int
) -> _Changes:
    """Keep all metadata but the tokenizer's, for a slice that takes rows."""
    kept: _Changes = {k: v for k, v in header.metadata.items() if not k.startswith("tokenizer.")}
    kept["tokenizer.ggml.model"] = Value.of(ValueType.STRING, "no_vocab")
    size = Value.of(ValueType.UINT32, vocabulary_tokens)
    kept[f"{info.architecture}.vocab_size"] = size
    if rules.scales_embeddings:
        kept[f"{info.architecture}.{EMBEDDING_SCALE_KEY}"] = Value.of(ValueType.FLOAT32, 1.0)
    return kept


def _layer_metadata(
    header: GgufHeader, info: ModelInfo, rules: Rules, first: int, end: int
) -> _Changes:
    """Give the metadata that speaks of layers, for the layers of the slice alone."""
    prefix = info.architecture
    windowed = windowed_layers(header, info)
    kept = [*windowed[first:end]] if windowed else []
    # What llama.cpp insists on and the slice has not, a block behind its layers stands for: it has
    # no tensors, never runs, and has the metadata of the last layer.
    spare = 1 if _lacks_windows(rules, kept) or end - first < rules.blocks_min else 0
    changes: _Changes = {f"{prefix}.block_count": Value.of(ValueType.UINT32, end - first + spare)}
    for suffix in PER_LAYER_KEYS:
        array = header.metadata.get(f"{prefix}.{suffix}")
        if isinstance(array, Array):
            items = array.decode()[first:end]
            items += items[len(items) - spare :]
            changes[f"{prefix}.{suffix}"] = Array.of(array.element, items)
    if windowed is not None:
        kept += [True] * spare
        pattern = Array.of(ValueType.BOOL, kept) if any(kept) else None
        changes[f"{prefix}.{WINDOW_PATTERN_KEY}"] = pattern
        if pattern is None:  # llama.cpp aborts on a window that no layer has
            changes[f"{prefix}.{WINDOW_KEY}"] = None
    if spare or drafting_blocks(header):
        count = Value.of(ValueType.UINT32, spare) if spare else None
        changes[f"{prefix}.{DRAFTING_BLOCKS_KEY}"] = count
    lead = header.integer(f"{prefix}.{DENSE_LEAD_KEY}")
    if rules.dense_lead and lead is not None:
        held = min(max(lead - first, 0), end - first)
        changes[f"{prefix}.{DENSE_LEAD_KEY}"] = Value.of(ValueType.UINT32, held)
    changes |= dict.fromkeys(f"{prefix}.{suffix}" for suffix in rules.left_out)
    if rules.derived:
        changes |= rules.derived(header, info)
    return changes


def _lacks_windows(rules: Rules, windowed: Sequence[bool]) -> bool:
    return rules.windows is not None and not rules.windows.optional and not any(windowed)


def _layer_tensors(
    header: GgufHeader, info: ModelInfo, rules: Rules, first: int, end: int
) -> list[PlannedTensor]:
    """Give the layers' own tensors, renumbered from 0, and those that all layers share."""
    check_range(header, info, first, end)
    windowed = windowed_layers(header, info)
    no_rope = rules.rope_of_full_layers and windowed is not None and all(windowed[first:end])
    tensors = [
        replace(_same(header, source), name=name)
        for name, source in ROPE_TENSORS.items()
        if name in header.tensors and not (no_rope and name == ROPE_FREQUENCIES)
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


def _zeros(name: str, info: ModelInfo, tokens: int) -> PlannedTensor:
    """Give a matrix of a vocabulary's size that nobody uses, small on the disk."""
    is_large = tokens > STAGE_VOCABULARY_TOKENS
    small = Q4_0 if info.width % Q4_0.block_elements == 0 else F16
    return PlannedTensor(name, (info.width, tokens), small if is_large else F32, None)


def _zero_output(
    header: GgufHeader, info: ModelInfo, rules: Rules, tokens: int, *, has_head: bool = False
) -> list[PlannedTensor]:
    """Give what stands behind the last layer, and is not used where rows leave: zeros."""
    found = [
        PlannedTensor(name, (info.width,), F32, None)
        for name in NORM_TENSORS
        if name in header.tensors
    ]
    if rules.head_everywhere or has_head:
        found.append(_zeros("output.weight", info, tokens))
        if "output.bias" in header.tensors:
            found.append(PlannedTensor("output.bias", (tokens,), F32, None))
    return found
