"""Cut a model into layer ranges: first a plan, which is a pure value, then a file.

    first end   token embedding, layers [0, k)         tokens in, rows out; keeps the tokenizer
    stage       layers [a, b)                          rows in, rows out; no vocabulary
    last end    layers [n-k, n), output norm, head     rows in, logits out; no tokenizer

Each is a GGUF that llama.cpp loads as a model of its own, with its layers counted from 0. Tensors
that llama.cpp insists on and a slice never uses are zeros, so that they need not be fetched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from p2pinfer.core.errors import BadModelFile, UserError
from p2pinfer.engine.gguf.architectures import (
    DENSE_LEAD_KEY,
    EMBEDDING_SCALE_KEY,
    NORM_TENSORS,
    PER_LAYER_KEYS,
    ROPE_FREQUENCIES,
    ROPE_TENSORS,
    STATE_INTERVAL_KEY,
    STATE_LAYERS_KEY,
    WINDOW_KEY,
    WINDOW_PATTERN_KEY,
    Memory,
    Rules,
    check_range,
    check_splits,
)
from p2pinfer.engine.gguf.bare_ends import LAYERS_BEFORE_KEY, LAYERS_KEY, plan_embedding, plan_head
from p2pinfer.engine.gguf.ggml_types import F16, F32, Q4_0, GgmlType
from p2pinfer.engine.gguf.layer_facts import layer_memories, windowed_layers
from p2pinfer.engine.gguf.model_header import (
    DRAFTING_BLOCKS_KEY,
    EMBEDDING,
    ModelInfo,
    drafting_blocks,
    model_info,
    split_layer,
)
from p2pinfer.engine.gguf.reader import GgufHeader
from p2pinfer.engine.gguf.slice_plan import PlannedTensor, SlicePlan
from p2pinfer.engine.gguf.values import Array, Value, ValueType
from p2pinfer.engine.gguf.writer import Extent, NewTensor, write_gguf

STAGE_VOCABULARY_TOKENS = 32
"""llama.cpp wants a vocabulary; this many rows of zeros suffice."""


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

    With ``keep`` 0 it is the embedding alone. ``two_matrices``: embedding and head are not to be
    one, even where one is zeros: llama.cpp finds what an adapter changes by its name.
    """
    info, rules = _checked(header)
    _check_keep(info, keep)
    if keep == 0:
        return plan_embedding(header, info, rules)
    metadata: _Changes = {**header.metadata, **_layer_metadata(header, info, rules, 0, keep)}
    tensors = (
        _same(header, EMBEDDING),
        *_zero_output(header, info, rules, info.vocabulary_tokens, has_head=two_matrices),
        *_layer_tensors(header, info, rules, 0, keep),
    )
    return SlicePlan(_present(metadata), tensors)


def plan_last_end(header: GgufHeader, keep: int, *, two_matrices: bool = False) -> SlicePlan:
    """Plan the slice of the last ``keep`` layers, which gives logits; raises as a stage.

    With ``keep`` 0 it is the head alone. ``two_matrices``: as for the first end.
    """
    info, rules = _checked(header)
    _check_keep(info, keep)
    if keep == 0:
        return plan_head(header, info, rules)
    first = info.layers - keep
    metadata = _without_tokenizer(header, info, rules, info.vocabulary_tokens)
    metadata |= _layer_metadata(header, info, rules, first, info.layers, is_last=True)
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
    layers = _layer_tensors(header, info, rules, first, info.layers, is_last=True)
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
    for name in (EMBEDDING, rules.head_norm):
        _same(header, name)
    return info, rules


def _check_keep(info: ModelInfo, keep: int) -> None:
    if not 0 <= keep <= info.layers:
        raise UserError(
            f"an end of {info.name} can keep from 0 to {info.layers} layers, not {keep}"
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
    header: GgufHeader,
    info: ModelInfo,
    rules: Rules,
    first: int,
    end: int,
    *,
    is_last: bool = False,
) -> _Changes:
    """Give the metadata that speaks of layers, for the layers of the slice alone."""
    prefix = info.architecture
    windowed = windowed_layers(header, info)
    order = _order(header, info, rules, first, end, is_last=is_last)
    kept = [windowed[layer] for layer, _ in order] if windowed else []
    # What llama.cpp insists on and the slice has not, a block behind its layers stands for: it has
    # no tensors, never runs, and has the metadata of the last layer.
    spare = 1 if _lacks_windows(rules, kept) or end - first < rules.blocks_min else 0
    blocks = len(order) + spare
    changes: _Changes = {f"{prefix}.block_count": Value.of(ValueType.UINT32, blocks)}
    if len(order) > end - first:
        changes[LAYERS_KEY] = Value.of(ValueType.UINT32, end - first)
    if before := first % rules.period:
        changes[LAYERS_BEFORE_KEY] = Value.of(ValueType.UINT32, before)
    for suffix in PER_LAYER_KEYS:
        array = header.metadata.get(f"{prefix}.{suffix}")
        if isinstance(array, Array):
            whole = array.decode()
            items = [whole[layer] for layer, _ in order]
            items += items[len(items) - spare :]
            changes[f"{prefix}.{suffix}"] = Array.of(array.element, items)
    memories = layer_memories(header, info)
    if memories and rules.state_interval:
        keeps = [memories[layer] is Memory.STATE for layer, _ in order]
        changes[f"{prefix}.{STATE_LAYERS_KEY}"] = Array.of(ValueType.BOOL, keeps)
        changes[f"{prefix}.{STATE_INTERVAL_KEY}"] = None
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
        begin = first - first % rules.period  # zeros in front are of their layers' kind
        held = min(max(lead - begin, 0), end - begin)
        changes[f"{prefix}.{DENSE_LEAD_KEY}"] = Value.of(ValueType.UINT32, held)
    changes |= dict.fromkeys(f"{prefix}.{suffix}" for suffix in rules.left_out)
    if rules.derived:
        changes |= rules.derived(header, info)
    return changes


def _lacks_windows(rules: Rules, windowed: Sequence[bool]) -> bool:
    return rules.windows is not None and not rules.windows.optional and not any(windowed)


def _layer_tensors(
    header: GgufHeader,
    info: ModelInfo,
    rules: Rules,
    first: int,
    end: int,
    *,
    is_last: bool = False,
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
    order = _order(header, info, rules, first, end, is_last=is_last)
    numbers = {layer: number for number, (layer, is_zeros) in enumerate(order) if not is_zeros}
    for tensor in header.tensors.values():
        place = split_layer(tensor.name)
        if place is not None and place[0] in numbers:
            name = f"blk.{numbers[place[0]]}.{place[1]}"
            tensors.append(PlannedTensor(name, tensor.shape, tensor.type, tensor.name))
    for number, (layer, is_zeros) in enumerate(order):
        for tensor in header.tensors.values() if is_zeros else ():
            place = split_layer(tensor.name)
            if place is not None and place[0] == layer:
                name = f"blk.{number}.{place[1]}"
                tensors.append(_small_zeros(name, tensor.shape, tensor.type))
    return tensors


def _order(
    header: GgufHeader, info: ModelInfo, rules: Rules, first: int, end: int, *, is_last: bool
) -> list[tuple[int, bool]]:
    """Return a slice's layers, and whether each stands there as zeros, for its kind alone.

    Those stand behind the others and never run; in the last end, where the last layer is the one
    that runs for the last row alone, they stand in front. What makes a slice begin at a period's
    first layer stands in front in any slice.
    """
    begin = first - first % rules.period
    own = [(layer, layer < first) for layer in range(begin, end)]
    zeros = [(layer, True) for layer in _lacking_kinds(header, info, rules, first, end)]
    return zeros + own if is_last else own + zeros


def _lacking_kinds(
    header: GgufHeader, info: ModelInfo, rules: Rules, first: int, end: int
) -> list[int]:
    """Return layers of the kinds that llama.cpp wants in a slice and this one lacks.

    Of a hybrid the last of each kind: behind a slice's dense layers, llama.cpp wants one with
    experts.
    """
    if rules.whole_period and first // rules.period == end // rules.period:
        return [*range(end, end - end % rules.period + rules.period)]
    windowed = windowed_layers(header, info)
    if windowed and rules.windows and rules.windows.in_zeros and not any(windowed[first:end]):
        return [max(layer for layer, is_windowed in enumerate(windowed) if is_windowed)]
    memories = layer_memories(header, info)
    if memories is None:
        return []
    wanted = {Memory.STATE, Memory.CELLS} & set(memories)
    lacking = sorted(wanted - set(memories[first:end]), key=lambda each: each.name)
    return [max(n for n, each in enumerate(memories) if each is kind) for kind in lacking]


def _small_zeros(name: str, shape: tuple[int, ...], like: GgmlType) -> PlannedTensor:
    """Give a tensor of zeros, small on the disk; what is in float32 may have to be."""
    is_small = like is F32 or shape[0] % Q4_0.block_elements
    return PlannedTensor(name, shape, like if is_small else Q4_0, None)


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
