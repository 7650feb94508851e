"""Which models can be cut into layer ranges that compute exactly the same, and why not the others.

To llama.cpp a slice is a model of its own, with its layers counted from 0. It computes the same if

- the rows that come in as embeddings are taken as they are;
- the last layer's output is the residual stream behind everything that the layer does;
- nothing depends on a layer's number, or on how many layers there are, but what we rewrite.

What there is to rewrite says ``RULES``, architecture by architecture. All of it was read in
llama.cpp's ``src/models/`` (the release that pyproject.toml pins), and is proven by
``tests/engine/llama/``: equal logits, to the last bit, for every cut. What is not in the table is
refused, and ``REFUSED`` knows why.
"""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from p2pinfer.core.errors import BadModelFile, UnsupportedModel, UserError
from p2pinfer.engine.gguf.model_header import ModelInfo, drafting_blocks, split_layer
from p2pinfer.engine.gguf.reader import GgufHeader
from p2pinfer.engine.gguf.refused import REFUSED
from p2pinfer.engine.gguf.values import Array, Value, ValueType

Derived = Callable[[GgufHeader, ModelInfo], dict[str, Value]]
"""Metadata of a whole model that llama.cpp otherwise derives from how many layers there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Which layers see the latest positions only. A slice names them one by one."""

    period: int | None = None
    """In files that do not name the windowed layers, one layer in each period sees everything.
    None: files must name them."""
    full_first: bool = False
    """That layer is the first of each period, and not the last."""
    optional: bool = False
    """A file without a window has no such layers. Else llama.cpp aborts where no layer is windowed:
    a slice of full layers alone then gets a block behind its last layer, of those that draft
    tokens, which is windowed, has no tensors and never runs."""
    in_zeros: bool = False
    """That block must be a layer, of zeros: what is in front of all layers, or the sizes of shared
    tensors, depends on one that is windowed."""


class Memory(Enum):
    """What a layer of a hybrid remembers of the positions before."""

    STATE = "a state of one size, which cannot be taken back to an earlier position"
    CELLS = "keys and values of each position"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a slice of an architecture says instead of what the whole model says."""

    models: str
    """What people know of it."""
    windows: Windows | None = None
    dense_lead: bool = False
    """The first layers have no experts: a slice counts those that it has of them."""
    scales_embeddings: bool = False
    """By a factor in the metadata, which is 1 in slices that take rows."""
    scale_default: float | None = None
    """That factor, where the metadata lacks it."""
    scales_by_width: bool = False
    """By the square root of the width; rows are never scaled."""
    caps_logits_at: float | None = None
    """Softly, where the metadata does not say at what; 0: then not at all."""
    head_everywhere: bool = False
    """llama.cpp wants a head beside the embedding in every file: zeros, where nobody uses it."""
    rope_of_full_layers: bool = False
    """Only layers that see everything use the tensor of rope frequencies, and llama.cpp refuses it
    in a slice that has none of them."""
    period: int = 1
    """What a layer is goes by its number modulo this, which no metadata changes: a slice has layers
    of zeros in front of its first, which add nothing, to begin at a multiple."""
    whole_period: bool = False
    """llama.cpp aborts on a slice without the last layer of a period: zeros behind stand for it."""
    blocks_min: int = 1
    """llama.cpp aborts where there are fewer; a block that drafts tokens makes up for one."""
    is_hybrid: bool = False
    """Some layers keep a state and others attend; llama.cpp aborts on a slice without either. A
    slice that lacks one kind gets a layer of it, of zeros, which adds nothing."""
    state_interval: int | None = None
    """Every layer but the last of so long an interval keeps a state, where the metadata does not
    say which; None: those without heads for keys and values."""
    layer_norm: bool = False
    """Means are taken off in norms (LayerNorm), as in no architecture that stands in for ends."""
    multiplies_logits: bool = False
    """By a factor; what stands in for ends divides by one, which is not the same."""
    head_norm: str = "output_norm.weight"
    """The tensor in front of the head."""
    out_of_layer: str = "l_out"
    """The graph's node behind a layer."""
    out_of_last: str | None = None
    """And behind the last one, without a number, where nodes are named for the next layer."""
    rows_into: str | None = None
    """The graph's node that rows are written into: given as embeddings, they would be scaled, or
    llama.cpp would want more of them, or none."""
    left_out: tuple[str, ...] = ()
    """Metadata that only pictures need."""
    derived: Derived | None = None
    only_at: Mapping[str, tuple[Sequence[int], str]] = field(default_factory=dict)
    """Metadata that must have one of these values, or else the reason why the model is refused."""


def _float32(number: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return rounded


def _minicpm_scale(header: GgufHeader, info: ModelInfo) -> dict[str, Value]:
    """Residuals are scaled by the number of layers where the file names no factor."""
    if "minicpm.residual_scale" in header.metadata:
        return {}
    scale = _float32(_float32(1.4) / _float32(math.sqrt(info.layers)))
    return {"minicpm.residual_scale": Value.of(ValueType.FLOAT32, scale)}


_DEEPSEEK2_LITE = (26, 27)
"""llama.cpp takes a model of 26 or 27 layers for one whose queries are not compressed."""
_GLM_FLASH = (47, 48)
_GLM_FLASH_TOKENS = 154_880
_GATED_BY_SOFTMAX, _GATED_BY_SIGMOID = 1, 2


def _compresses_queries(header: GgufHeader) -> bool:
    return "blk.0.attn_q_a.weight" in header.tensors


def _deepseek2_kind(header: GgufHeader, info: ModelInfo) -> dict[str, Value]:
    """Whether queries are compressed, and how experts are gated, goes by the number of layers."""
    prefix, found = info.architecture, {}
    if not _compresses_queries(header):
        found[f"{prefix}.attention.q_lora_rank"] = Value.of(ValueType.UINT32, 0)
    if not header.integer(f"{prefix}.expert_gating_func"):
        is_glm = info.layers in _GLM_FLASH and info.vocabulary_tokens == _GLM_FLASH_TOKENS
        gate = _GATED_BY_SIGMOID if is_glm else _GATED_BY_SOFTMAX
        found[f"{prefix}.expert_gating_func"] = Value.of(ValueType.UINT32, gate)
    return found


_PER_LAYER_INPUTS = ((0,), "every layer takes the tokens themselves, not only rows")
_SHARED_CELLS = ((0,), "its last layers use the KV cells of layers before them")

_LFM2_NORM = "token_embd_norm.weight"
"""The norm in front of the head, by a wrong name that files have."""

WINDOW_KEY = "attention.sliding_window"
WINDOW_PATTERN_KEY = "attention.sliding_window_pattern"

_EMBEDDED, _SCALED, _GIVEN = "embd", "inp_scaled", "model.input_embed"

RULES: Mapping[str, Rules] = {
    # Nothing depends on a layer's number.
    "arcee": Rules(models="Arcee AFM"),
    "arctic": Rules(models="Snowflake Arctic"),
    "ernie4_5": Rules(models="ERNIE 4.5, dense"),
    "exaone": Rules(models="EXAONE 3 and 3.5"),
    "exaone4": Rules(models="EXAONE 4.0 1.2B"),
    "hunyuan-dense": Rules(models="Hunyuan, dense"),
    "hunyuan-moe": Rules(models="Hunyuan A13B"),
    "internlm2": Rules(models="InternLM 2 and 3", head_everywhere=True),
    "jais2": Rules(models="Jais 2", layer_norm=True),
    "llama": Rules(models="Llama 1 to 3, Mistral, Mixtral, R1 distilled into Llama, SmolLM2"),
    "mistral3": Rules(models="Ministral 3, Devstral 2"),
    "phi3": Rules(models="Phi 3 and 4"),
    "qwen2": Rules(models="Qwen 2 and 2.5, R1 distilled into Qwen"),
    "qwen3": Rules(models="Qwen 3"),
    "qwen3moe": Rules(models="Qwen 3 30B-A3B, 235B-A22B, Coder"),
    "seed_oss": Rules(models="Seed-OSS 36B"),
    "starcoder2": Rules(models="StarCoder 2"),
    "dbrx": Rules(models="DBRX", head_everywhere=True, layer_norm=True),
    "minimax-m2": Rules(models="MiniMax M2", head_everywhere=True),
    "nemotron": Rules(models="Nemotron 4, Minitron", head_everywhere=True, layer_norm=True),
    "olmoe": Rules(models="OLMoE", head_everywhere=True),
    "phimoe": Rules(models="Phi 3.5 MoE", head_everywhere=True),
    "qwen2moe": Rules(models="Qwen 1.5 and 2 MoE", head_everywhere=True),
    # The embedding is scaled.
    "granite": Rules(models="Granite 3 and 4, dense", scales_embeddings=True),
    "granitemoe": Rules(models="Granite 3, MoE", scales_embeddings=True),
    "minicpm": Rules(
        models="MiniCPM 1 and 2",
        scales_embeddings=True,
        scale_default=12.0,
        derived=_minicpm_scale,
    ),
    "gemma": Rules(models="Gemma 1", scales_by_width=True, rows_into=_SCALED),
    "grok": Rules(
        models="Grok 1 and 2",
        scales_embeddings=True,
        scale_default=78.38367176906169,
        multiplies_logits=True,
    ),
    # Positions have several directions, for pictures, or embeddings are taken for pictures.
    "glm4": Rules(models="GLM 4", rows_into=_EMBEDDED),
    "glm4moe": Rules(models="GLM 4.5, 4.6, 4.7", dense_lead=True, rows_into=_EMBEDDED),
    "qwen3vl": Rules(
        models="Qwen 3 VL, text alone", rows_into=_EMBEDDED, left_out=("n_deepstack_layers",)
    ),
    "qwen3vlmoe": Rules(
        models="Qwen 3 VL MoE, text alone", rows_into=_EMBEDDED, left_out=("n_deepstack_layers",)
    ),
    # The first layers are dense.
    "bailingmoe": Rules(models="Ling 1", dense_lead=True, head_everywhere=True),
    "bailingmoe2": Rules(models="Ling 2", dense_lead=True, head_everywhere=True),
    "deepseek": Rules(models="DeepSeek 1 MoE", dense_lead=True),
    "deepseek2": Rules(
        models="DeepSeek V2, V3, R1; Kimi K2; GLM 4.7 Flash",
        dense_lead=True,
        derived=_deepseek2_kind,
    ),
    "dots1": Rules(models="dots.llm1", dense_lead=True, head_everywhere=True),
    "ernie4_5-moe": Rules(
        models="ERNIE 4.5 MoE",
        dense_lead=True,
        only_at={
            "interleave_moe_layer_step": ((1,), "which of its layers have experts goes by number")
        },
    ),
    "hy_v3": Rules(models="Hunyuan 3", dense_lead=True),
    "mistral4": Rules(models="Mistral Small 4", dense_lead=True, derived=_deepseek2_kind),
    # Some layers are windowed.
    "exaone-moe": Rules(
        models="K-EXAONE",
        windows=Windows(period=4, in_zeros=True),
        dense_lead=True,
        head_everywhere=True,
    ),
    "gemma2": Rules(
        models="Gemma 2",
        windows=Windows(period=2),
        scales_by_width=True,
        caps_logits_at=30.0,
        rows_into=_SCALED,
    ),
    "gemma3": Rules(
        models="Gemma 3",
        windows=Windows(period=6, optional=True),
        scales_by_width=True,
        caps_logits_at=0.0,
    ),
    "gemma4": Rules(
        models="Gemma 4 26B-A4B, 31B",
        windows=Windows(),
        scales_by_width=True,
        caps_logits_at=30.0,
        blocks_min=2,
        rope_of_full_layers=True,
        only_at={
            "embedding_length_per_layer_input": _PER_LAYER_INPUTS,
            "attention.shared_kv_layers": _SHARED_CELLS,
        },
    ),
    "gpt-oss": Rules(models="gpt-oss 20B, 120B", windows=Windows(period=2), head_everywhere=True),
    "laguna": Rules(
        models="Laguna", windows=Windows(period=4, full_first=True, optional=True), dense_lead=True
    ),
    "mellum": Rules(
        models="Mellum 2", windows=Windows(period=4, optional=True), head_everywhere=True
    ),
    "mimo2": Rules(models="MiMo V2", windows=Windows(), dense_lead=True, head_everywhere=True),
    "olmo2": Rules(
        models="OLMo 2 and 3", windows=Windows(period=4, optional=True), head_everywhere=True
    ),
    "cohere2": Rules(
        models="Command R7B, Command A",
        windows=Windows(period=4, in_zeros=True),
        layer_norm=True,
    ),
    "step35": Rules(
        models="Step 3.5",
        windows=Windows(in_zeros=True),
        dense_lead=True,
        head_everywhere=True,
        out_of_layer="attn_norm_in",
        out_of_last="h_nextn",
    ),
    # Every fourth layer goes without positions.
    "afmoe": Rules(
        models="Arcee Trinity",
        windows=Windows(period=4),
        period=4,
        dense_lead=True,
        scales_by_width=True,
        rows_into="inp_embd_scaled",
    ),
    "llama4": Rules(
        models="Llama 4 Scout, Maverick",
        period=4,
        whole_period=True,
        only_at={
            "interleave_moe_layer_step": (
                (0, 1, 2, 4),
                "which of its layers have experts goes by number, in another period than positions",
            ),
            WINDOW_KEY: (
                (8192,),
                "a window of its own makes llama.cpp take positions from the last layer alone",
            ),
            WINDOW_PATTERN_KEY: (
                (4,),
                "its layers without positions are others than its full ones",
            ),
        },
    ),
    "smollm3": Rules(models="SmolLM3", period=4),
    # Some layers keep a state.
    "granitehybrid": Rules(models="Granite 4 H", is_hybrid=True, scales_embeddings=True),
    "lfm2": Rules(models="LFM 2 and 2.5", is_hybrid=True, head_norm=_LFM2_NORM),
    "lfm2moe": Rules(
        models="LFM 2 and 2.5, MoE", is_hybrid=True, dense_lead=True, head_norm=_LFM2_NORM
    ),
    "nemotron_h": Rules(
        models="Nemotron H",
        is_hybrid=True,
        out_of_layer="nemotron_h_block_out",
    ),
    "nemotron_h_moe": Rules(
        models="Nemotron 3",
        is_hybrid=True,
        out_of_layer="nemotron_h_block_out",
    ),
    "qwen35": Rules(
        models="Qwen 3.5 and 3.6, dense", is_hybrid=True, state_interval=4, rows_into=_GIVEN
    ),
    "qwen35moe": Rules(
        models="Qwen 3.5 and 3.6, MoE", is_hybrid=True, state_interval=4, rows_into=_GIVEN
    ),
    "qwen3next": Rules(
        models="Qwen 3 Next, Coder Next",
        is_hybrid=True,
        state_interval=4,
        rows_into="model.embed_tokens",
    ),
}
"""The architectures that split exactly, by their names in GGUF files."""

NORM_TENSORS = ("output_norm.weight", "output_norm.bias", _LFM2_NORM)
ROPE_FREQUENCIES = "rope_freqs.weight"
ROPE_TENSORS = {
    ROPE_FREQUENCIES: ROPE_FREQUENCIES,
    "rope_factors_short.weight": "rope_factors_short.weight",
    "rope_factors_long.weight": "rope_factors_short.weight",
}
"""Tensors of no layer that every layer uses, and the whole model's tensor that stands for each.

llama.cpp takes the long factors when its *context* is longer than the model's original one. Peers
choose their contexts independently, and must agree, so the short ones stand for both; a session is
then no longer than the original context (``ModelInfo.context_tokens``).
"""
_SHARED_TENSORS = frozenset(
    ("token_embd.weight", "output.weight", "output.bias", *NORM_TENSORS, *ROPE_TENSORS)
)

_CLAMPS = ("swiglu_clamp_exp", "swiglu_clamp_shexp")
"""What experts' outputs are limited to, 0 for nothing; all other arrays hold counts."""
_COUNTS = (ValueType.UINT32, ValueType.INT32, ValueType.BOOL)

PER_LAYER_KEYS = (
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_used_count",
    "attention.head_count",
    "attention.head_count_kv",
    *_CLAMPS,
)
"""Metadata that may be an array with an item per layer."""

_SECTIONS_KEY = "rope.dimension_sections"
DENSE_LEAD_KEY = "leading_dense_block_count"
EMBEDDING_SCALE_KEY = "embedding_scale"
_NEUTRAL = {"attention.causal": 1, "pooling_type": 0}
"""Metadata that is left alone only at this value, at which llama.cpp does not use it."""

STATE_LAYERS_KEY = "attention.recurrent_layers"
STATE_INTERVAL_KEY = "full_attention_interval"
_SCALED_BY_LAYERS = {"gemma2": 46, "gemma3": 62}
"""llama.cpp takes a model of exactly this number of layers for the 27B, and scales its attention
as the 27B's."""
_EXAONE4_WINDOWED_LAYERS = 64
"""llama.cpp takes an exaone4 of exactly this many layers for the 32B, which alone has windows."""


def check_splits(header: GgufHeader, info: ModelInfo) -> Rules:
    """Return the rules by which this model is cut exactly; raises UnsupportedModel if none do."""
    architecture = info.architecture
    rules = RULES.get(architecture)
    if rules is None:
        reason = REFUSED.get(architecture, "it is not proven to compute the same when it is cut")
        raise UnsupportedModel(f"a model of architecture {architecture} cannot be split: {reason}")
    for name in header.tensors:
        if name not in _SHARED_TENSORS and split_layer(name) is None:
            raise _unsupported(info, f"it has a tensor {name!r} of which no layer is known")
    neutral = _NEUTRAL if rules.dense_lead else {**_NEUTRAL, DENSE_LEAD_KEY: 0}
    for suffix, value in neutral.items():
        if not _is_at(header, f"{architecture}.{suffix}", (value,)):
            raise _unsupported(info, f"its {architecture}.{suffix} is not {value}")
    for suffix, (values, reason) in rules.only_at.items():
        if not _is_at(header, f"{architecture}.{suffix}", values):
            raise _unsupported(info, reason)
    if rules.whole_period and info.layers % rules.period:
        raise _unsupported(info, f"its number of layers is no multiple of {rules.period}")
    for key, array in header.metadata.items():
        if isinstance(array, Array) and key.startswith(f"{architecture}."):
            _check_array(header, info, key, array)
    _check_windows(header, info, rules)
    if info.layers >= _SCALED_BY_LAYERS.get(architecture, info.layers + 1):
        _check_attention_scale(header, info)
    if architecture == "exaone4" and info.layers >= _EXAONE4_WINDOWED_LAYERS:
        raise _unsupported(info, "llama.cpp knows its windows by its number of layers alone")
    return rules


def layers_at_once_max(header: GgufHeader, info: ModelInfo) -> int:
    """Return how many layers a peer may choose to serve; any fewer are fine too."""
    return min(_odd_lengths(header, info), default=info.layers + 1) - 1


def layers_of_zeros_max(info: ModelInfo) -> int:
    """Return how many layers of zeros may stand, and run, in front of a slice's own."""
    return RULES[info.architecture].period - 1


def check_range(header: GgufHeader, info: ModelInfo, first: int, end: int) -> None:
    """Raise UserError if llama.cpp would take a slice of this range for another model."""
    odd = _odd_lengths(header, info)
    if end - first in odd and end - first < info.layers:
        raise UserError(
            f"{info.name} cannot be served by {end - first} layers at once, which llama.cpp takes"
            f" for another model; choose at most {min(odd) - 1}, or more than {max(odd)}"
        )


def _odd_lengths(header: GgufHeader, info: ModelInfo) -> tuple[int, ...]:
    is_deepseek2 = RULES[info.architecture].derived is _deepseek2_kind
    return _DEEPSEEK2_LITE if is_deepseek2 and _compresses_queries(header) else ()


def _unsupported(info: ModelInfo, reason: str) -> UnsupportedModel:
    return UnsupportedModel(f"{info.name} cannot be split: {reason}")


def _is_at(header: GgufHeader, key: str, allowed: Sequence[int]) -> bool:
    """Whether metadata is absent, or has one of these values."""
    value = header.metadata.get(key)
    return value is None or (isinstance(value, Value) and value.decode() in allowed)


def _check_array(header: GgufHeader, info: ModelInfo, key: str, array: Array) -> None:
    suffix = key.removeprefix(f"{info.architecture}.")
    if suffix == _SECTIONS_KEY and RULES[info.architecture].rows_into:
        return  # llama.cpp makes the other directions' positions itself for tokens, and only then
    if suffix not in (*PER_LAYER_KEYS, WINDOW_PATTERN_KEY, STATE_LAYERS_KEY):
        raise _unsupported(info, f"it is not known how to cut its array {key}")
    are_counts = suffix not in _CLAMPS
    if array.element not in (_COUNTS if are_counts else (ValueType.FLOAT32,)):
        raise BadModelFile(f"{info.name} is damaged: {key} holds no numbers that llama.cpp reads")
    if array.count != info.layers + drafting_blocks(header):
        raise BadModelFile(
            f"{info.name} is damaged: {key} has {array.count} items for {info.layers} layers"
        )
    may_be_zero = RULES[info.architecture].is_hybrid
    is_positive = all(isinstance(item, int) and item > 0 for item in array.decode())
    if suffix in PER_LAYER_KEYS and are_counts and not (is_positive or may_be_zero):
        raise BadModelFile(f"{info.name} is damaged: {key} holds a number below 1")


def _check_windows(header: GgufHeader, info: ModelInfo, rules: Rules) -> None:
    """Check what llama.cpp wants of a model that must have windows."""
    if rules.windows is None or rules.windows.optional:
        return
    key = f"{info.architecture}.{WINDOW_KEY}"
    if not header.integer(key):
        raise BadModelFile(f"{info.name} is damaged: it lacks {key}")
    pattern = f"{info.architecture}.{WINDOW_PATTERN_KEY}"
    if rules.windows.period is None and not isinstance(header.metadata.get(pattern), Array):
        raise BadModelFile(f"{info.name} is damaged: it lacks {pattern}")


def _check_attention_scale(header: GgufHeader, info: ModelInfo) -> None:
    """Refuse a model whose attention is scaled by how many layers it has."""
    prefix = info.architecture
    heads = header.integer(f"{prefix}.attention.head_count")
    head_width = header.integer(f"{prefix}.attention.key_length")
    if heads is None or info.width // heads != (head_width or info.width // heads):
        raise _unsupported(
            info,
            f"llama.cpp scales the attention of a {prefix} by its number of layers when that is"
            f" {_SCALED_BY_LAYERS[prefix]}",
        )
