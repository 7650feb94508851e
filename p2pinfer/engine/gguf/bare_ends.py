"""Ends that keep none of a model's layers: the embedding, or the head, alone.

llama.cpp runs no model without layers. So such an end is a small model of another architecture,
whose one layer is made of zeros and adds nothing to its rows: a llama; where the embedding or the
logits are scaled, a granite; where the logits are capped, a gemma2. What stands before and behind
that layer is the whole model's own, and gives the same bits.
"""

import math

from p2pinfer.core.errors import BadModelFile, UserError
from p2pinfer.engine.gguf.architectures import NORM_TENSORS, Rules
from p2pinfer.engine.gguf.ggml_types import F32
from p2pinfer.engine.gguf.model_header import EMBEDDING, ModelInfo
from p2pinfer.engine.gguf.reader import GgufHeader
from p2pinfer.engine.gguf.slice_plan import PlannedTensor, SlicePlan
from p2pinfer.engine.gguf.values import Array, Value, ValueType

LAYERS_KEY = "p2pinfer.layers"
"""How many of the model's layers a slice has, where that is not what llama.cpp counts in it."""

LAYERS_BEFORE_KEY = "p2pinfer.layers_before"
"""How many layers of zeros stand in front of a slice's own, where some do to fill a period."""

_SIDE = 32
"""Numbers in the only head, and in the rows between the feed-forward's matrices."""

_EPSILON = "attention.layer_norm_rms_epsilon"
_OTHER_EPSILON = "attention.layer_norm_epsilon"
"""Of the same norm, in files of nemotron_h that lack the former."""

_Metadata = dict[str, Value | Array]


def plan_embedding(header: GgufHeader, info: ModelInfo, rules: Rules) -> SlicePlan:
    """Plan the first end: tokens in, rows in front of layer 0 out; raises as ``check_bare``."""
    check_bare(header, info, rules)
    scale = _embedding_scale(header, info, rules)
    stand_in = "llama" if scale is None else "granite"
    metadata = _metadata(header, info, stand_in, keeps_tokenizer=True)
    if scale is not None:
        metadata |= _granite_scales(scale, Value.of(ValueType.FLOAT32, 1.0))
    tensors = [_whole(header, EMBEDDING), _zeros(NORM_TENSORS[0], info.width)]
    return SlicePlan(metadata, (*tensors, *_layer(info.width, stand_in)))


def plan_head(header: GgufHeader, info: ModelInfo, rules: Rules) -> SlicePlan:
    """Plan the last end: rows behind the last layer in, logits out; raises as ``check_bare``."""
    check_bare(header, info, rules)
    cap, scale = _logits_cap(header, info, rules), _logits_scale(header, info, rules)
    stand_in = "gemma2" if cap else "granite" if scale else "llama"
    metadata = _metadata(header, info, stand_in, keeps_tokenizer=False)
    if cap:
        metadata["gemma2.final_logit_softcapping"] = cap
    elif scale:
        metadata |= _granite_scales(Value.of(ValueType.FLOAT32, 1.0), scale)
    has_head = "output.weight" in header.tensors
    head = _whole(header, "output.weight" if has_head else EMBEDDING)
    norm = _whole(header, rules.head_norm)
    tensors = [
        PlannedTensor(EMBEDDING, head.shape, head.type, head.source),  # where a tied head is
        PlannedTensor(NORM_TENSORS[0], norm.shape, norm.type, norm.source),
    ]
    return SlicePlan(metadata, (*tensors, *_layer(info.width, stand_in)))


def check_bare(header: GgufHeader, info: ModelInfo, rules: Rules) -> None:
    """Raise UserError if no end without layers computes what this model does behind its last."""
    for name in ("output.bias", NORM_TENSORS[1]):
        if name in header.tensors:
            raise UserError(
                f"an end of {info.name} must keep a layer: it has a tensor {name!r}, and no other"
                " architecture that llama.cpp knows stands in for its head; say --keep-layers 1"
            )
    odd = "the norm in front of its head" if rules.layer_norm else ""
    odd = odd or ("its logits' factor" if rules.multiplies_logits else "")
    if odd:
        raise UserError(
            f"an end of {info.name} must keep a layer: no other architecture that llama.cpp knows"
            f" stands in for {odd}; say --keep-layers 1"
        )


def _metadata(
    header: GgufHeader, info: ModelInfo, stand_in: str, *, keeps_tokenizer: bool
) -> _Metadata:
    """Give the stand-in's metadata, and what the model says of itself and its tokenizer."""
    kept: _Metadata = {
        key: value
        for key, value in header.metadata.items()
        if not key.startswith(f"{info.architecture}.")
        and (keeps_tokenizer or not key.startswith("tokenizer."))
    }
    kept["general.architecture"] = Value.of(ValueType.STRING, stand_in)
    if not keeps_tokenizer:
        kept["tokenizer.ggml.model"] = Value.of(ValueType.STRING, "no_vocab")
    counts = {
        "vocab_size": info.vocabulary_tokens,
        "context_length": info.context_tokens,
        "embedding_length": info.width,
        "feed_forward_length": _SIDE,
        "block_count": 1,
        "attention.head_count": 1,
        "attention.head_count_kv": 1,
        "attention.key_length": _SIDE,
        "attention.value_length": _SIDE,
        "rope.dimension_count": _SIDE,
    }
    kept |= {f"{stand_in}.{key}": Value.of(ValueType.UINT32, n) for key, n in counts.items()}
    said = (
        header.metadata.get(f"{info.architecture}.{name}") for name in (_EPSILON, _OTHER_EPSILON)
    )
    epsilon = next((value for value in said if value is not None), None)
    if epsilon is None:
        raise BadModelFile(f"{info.name} is damaged: it lacks {info.architecture}.{_EPSILON}")
    return kept | {
        f"{stand_in}.{_EPSILON}": epsilon,
        LAYERS_KEY: Value.of(ValueType.UINT32, 0),
    }


def _granite_scales(embedding: Value, logits: Value) -> _Metadata:
    return {"granite.embedding_scale": embedding, "granite.logit_scale": logits}


def _said(header: GgufHeader, info: ModelInfo, suffix: str) -> Value | None:
    """Return a number of the metadata, or None where it is absent or 0."""
    value = header.metadata.get(f"{info.architecture}.{suffix}")
    return value if isinstance(value, Value) and value.decode() else None


def _embedding_scale(header: GgufHeader, info: ModelInfo, rules: Rules) -> Value | None:
    """Return what the whole model multiplies embeddings by; None for nothing."""
    if rules.scales_by_width:
        return Value.of(ValueType.FLOAT32, math.sqrt(info.width))
    if not rules.scales_embeddings:
        return None
    said = _said(header, info, "embedding_scale")
    if said is None and rules.scale_default is not None:
        return Value.of(ValueType.FLOAT32, rules.scale_default)
    return said


def _logits_scale(header: GgufHeader, info: ModelInfo, rules: Rules) -> Value | None:
    """Return what the whole model divides logits by; None for nothing."""
    if not rules.scales_embeddings:
        return None
    said = _said(header, info, "logit_scale")
    if said is None and rules.scale_default is not None:
        return Value.of(ValueType.FLOAT32, 256 / info.width)  # a minicpm's, too
    return said


def _logits_cap(header: GgufHeader, info: ModelInfo, rules: Rules) -> Value | None:
    if rules.caps_logits_at is None:
        return None
    said = header.metadata.get(f"{info.architecture}.final_logit_softcapping")
    if not isinstance(said, Value):
        said = Value.of(ValueType.FLOAT32, rules.caps_logits_at)
    return said if said.decode() else None


def _whole(header: GgufHeader, name: str) -> PlannedTensor:
    tensor = header.tensors.get(name)
    if tensor is None:
        raise BadModelFile(f"{header.name} lacks the tensor {name!r}")
    return PlannedTensor(name, tensor.shape, tensor.type, name)


def _zeros(name: str, *shape: int) -> PlannedTensor:
    return PlannedTensor(name, shape, F32, None)


def _layer(width: int, stand_in: str) -> list[PlannedTensor]:
    """Give the one layer, which adds zeros to its rows."""
    shapes = {
        "attn_norm": (width,),
        "attn_q": (width, _SIDE),
        "attn_k": (width, _SIDE),
        "attn_v": (width, _SIDE),
        "attn_output": (_SIDE, width),
        "ffn_norm": (width,),
        "ffn_gate": (width, _SIDE),
        "ffn_up": (width, _SIDE),
        "ffn_down": (_SIDE, width),
    }
    if stand_in == "gemma2":
        shapes |= {"post_attention_norm": (width,), "post_ffw_norm": (width,)}
    return [_zeros(f"blk.0.{name}.weight", *shape) for name, shape in shapes.items()]
