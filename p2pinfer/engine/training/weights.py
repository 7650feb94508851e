"""The last layers of a model as numbers, to train an adapter for them.

Which models: llama, qwen2 and qwen3, dense. Everything their files can say that would change what
the layers compute is either computed here or refused. Read in llama.cpp's ``src/models/`` and
``src/llama-model.cpp`` (the release that pyproject.toml pins); the tests compare with it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.errors import BadModelFile, UnsupportedModel, UserError
from p2pinfer.core.manifest import EMBEDDING, METADATA, OUTPUT, Manifest, layer_part
from p2pinfer.core.model_names import readable_name
from p2pinfer.engine.gguf.dequantise import dequantise
from p2pinfer.engine.gguf.model_header import split_layer
from p2pinfer.engine.gguf.reader import GgufHeader, Tensor
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.engine.store.slice_adapters import part_header

Floats = NDArray[np.floating]

MATRICES: Final = (
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
)
"""Of each layer; all of them are trained."""

_NORMS: Final = ("attn_norm.weight", "ffn_norm.weight")
_HEAD_NORMS: Final = ("attn_q_norm.weight", "attn_k_norm.weight")
_BIASES: Final = tuple(name.replace(".weight", ".bias") for name in MATRICES)
_ROPE_FREQUENCIES: Final = "rope_freqs.weight"
_KNOWN: Final = {*MATRICES, *_NORMS, *_BIASES}

TRAINED: Final[Mapping[str, bool]] = {"llama": False, "qwen2": True, "qwen3": True}
"""The architectures, and whether rope turns the two halves of a head against each other, or
neighbours."""

_BASE_DEFAULT, _BLOCK = 10_000.0, 32
_KEYS_REFUSED: Final = ("attention.scale", "logit_scale", "residual_scale", "embedding_scale")


@dataclass(frozen=True)
class TopShape:
    """What the layers have in common."""

    first: int
    """The first of them, as the whole model counts."""
    width: int
    heads: int
    kv_heads: int
    head_width: int
    epsilon: float
    halves: bool
    """As in ``TRAINED``."""
    frequencies: NDArray[np.float64]
    """By how much a position turns each pair of numbers of a head, in radians."""


@dataclass(frozen=True)
class Top:
    """The last layers of a model, its output norm and its head."""

    shape: TopShape
    layers: tuple[Mapping[str, Floats], ...]
    """Each one's tensors by their names in the layer: outputs by inputs, or a vector."""
    norm: Floats
    head: Floats
    """Tokens by width."""
    head_bias: Floats | None = None


def check_trains(model: PartsModel, layers: int) -> None:
    """Check that the last layers of a model can be trained.

    Raises:
        UnsupportedModel: they cannot; the text says why.
        UserError: the model has fewer layers.
    """
    header, info = model.header, model.info
    kind = info.architecture
    if kind not in TRAINED or info.experts:
        known = ", ".join(TRAINED)
        what = "a mixture of experts" if info.experts else f"a {kind}"
        raise UnsupportedModel(f"{info.name} is {what}, and only dense {known} models are trained")
    scaling = header.string(f"{kind}.rope.scaling.type")
    if scaling not in (None, "none"):
        raise UnsupportedModel(f"{info.name} has the rope scaling {scaling}, which is not trained")
    for key in _KEYS_REFUSED:
        if f"{kind}.{key}" in header.metadata:
            raise UnsupportedModel(f"{info.name} has {kind}.{key}, which is not trained")
    known_names = _KNOWN | ({*_HEAD_NORMS} if kind == "qwen3" else set())
    for tensor in header.tensors.values():
        place = split_layer(tensor.name)
        if place and place[1] not in known_names:
            raise UnsupportedModel(f"{info.name} has {tensor.name!r}, which is not trained")
    heads, kv_heads, head_width = _heads(header, kind, info.width)
    dimensions = header.integer(f"{kind}.rope.dimension_count")
    if heads % kv_heads or head_width % 2 or dimensions not in (None, head_width):
        raise UnsupportedModel(f"the heads of {info.name} are of a kind that is not trained")
    if not 1 <= layers < info.layers:
        raise UserError(
            f"from 1 to {info.layers - 1} layers of {info.name} can be trained, not {layers}"
        )


def top_bytes(manifest: Manifest, layers: int) -> int:
    """Return the bytes of the last layers and the head as float32."""
    first, total, heads = manifest.layers - layers, 0, {}
    for row in manifest.tensors:
        count, place = int(np.prod(row.shape)), split_layer(row.name)
        if place and place[0] >= first:
            total += count
        elif row.name in ("output.weight", "token_embd.weight"):
            heads[row.name] = count
    return 4 * (total + heads.get("output.weight", heads.get("token_embd.weight", 0)))


def read_top(model: PartsModel, layers: int) -> Top:
    """Read the last layers of a model as float32.

    Raises:
        UnsupportedModel, UserError: as ``check_trains``.
        MissingChunk, DamagedPart: a part is not here, or no longer.
    """
    check_trains(model, layers)
    first = model.info.layers - layers
    found = tuple(
        {name.split(".", 2)[2]: numbers for name, numbers in _tensors(model, layer_part(layer))}
        for layer in range(first, model.info.layers)
    )
    out = dict(_tensors(model, OUTPUT))
    head = out.get("output.weight")
    if head is None:
        head = dict(_tensors(model, EMBEDDING))["token_embd.weight"]
    shape = _shape(model, first)
    for layer in found:
        lacking = {*MATRICES, *_NORMS} - layer.keys()
        if lacking:
            raise BadModelFile(f"{model.info.name} is damaged: a layer lacks {min(lacking)}")
    return Top(shape, found, out["output_norm.weight"], head, out.get("output.bias"))


def _shape(model: PartsModel, first: int) -> TopShape:
    header, kind, width = model.header, model.info.architecture, model.info.width
    heads, kv_heads, head_width = _heads(header, kind, width)
    epsilon = header.number(f"{kind}.attention.layer_norm_rms_epsilon")
    if epsilon is None:
        raise BadModelFile(f"{model.info.name} lacks {kind}.attention.layer_norm_rms_epsilon")
    base = header.number(f"{kind}.rope.freq_base") or _BASE_DEFAULT
    frequencies = float(base) ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    if _ROPE_FREQUENCIES in header.tensors:
        factors = dict(_tensors(model, METADATA))[_ROPE_FREQUENCIES]
        frequencies = frequencies / factors.astype(np.float64)
    return TopShape(
        first, width, heads, kv_heads, head_width, float(epsilon), TRAINED[kind], frequencies
    )


def _heads(header: GgufHeader, kind: str, width: int) -> tuple[int, int, int]:
    heads = header.integer(f"{kind}.attention.head_count") or 1
    kv_heads = header.integer(f"{kind}.attention.head_count_kv") or heads
    return heads, kv_heads, header.integer(f"{kind}.attention.key_length") or width // heads


def _tensors(model: PartsModel, name: str) -> Iterator[tuple[str, Floats]]:
    """Yield a part's tensors as float32, each with its name in the model."""
    part, store = model.manifest.part(name), model.store
    store.verify(part)
    pieces = store.pieces(part)
    for tensor in part_header(store, part).tensors.values():
        yield tensor.name, _numbers(tensor, pieces.read(tensor.offset, tensor.nbytes), model)


def _numbers(tensor: Tensor, data: bytes, model: PartsModel) -> Floats:
    if len(tensor.shape) == 1:
        if tensor.type.name != "F32":
            name = readable_name(model.manifest.name)
            raise UnsupportedModel(f"{name} stores {tensor.name!r} as {tensor.type.name}")
        return np.frombuffer(data, "<f4").astype(np.float32)
    weights, minima = dequantise(tensor, data)
    return weights if minima is None else weights + np.repeat(minima, _BLOCK, axis=1)
