"""Tiny models of any architecture that llama.cpp knows, from a few lines of metadata.

llama.cpp itself says which tensors an architecture has, and of which sizes: it is asked to make a
model of the metadata alone, and calls back once for each tensor that it wants filled. The model
is then written with random numbers, as ``tiny_models`` does.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from llama_cpp import llama_cpp as api
from llama_cpp._ggml import libggml_base_path
from numpy.typing import NDArray

from tests.support.tiny_models import (
    BYTE_TOKENS,
    CONTEXT_TOKENS,
    FEED_FORWARD,
    HEADS,
    KV_HEADS,
    SPECIAL_TOKENS,
    TOKENS,
    WIDTH,
    WORD_TOKENS,
)

HEAD_WIDTH = WIDTH // HEADS
EXPERT_FEED_FORWARD = 256
"""K-quants pack as many numbers."""

Plain = int | float | bool | str | Sequence[int] | Sequence[float] | Sequence[bool]

BASE: Mapping[str, Plain] = {
    "context_length": CONTEXT_TOKENS,
    "embedding_length": WIDTH,
    "feed_forward_length": FEED_FORWARD,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.key_length": HEAD_WIDTH,
    "attention.value_length": HEAD_WIDTH,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.dimension_count": HEAD_WIDTH,
}
"""Metadata of all of them, behind the architecture's name."""

EXPERTS: Mapping[str, Plain] = {
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": EXPERT_FEED_FORWARD,
}

NEAR_ONE = ("norm.weight", "norm_1.weight", "norm_2.weight", "scale.weight", ".scale")
"""How tensors' names end that rows are multiplied by."""


@dataclass(frozen=True)
class Recipe:
    """What to tell llama.cpp of an architecture, besides ``BASE``."""

    architecture: str
    layers: int = 5
    metadata: Mapping[str, Plain] = field(default_factory=dict)
    without: Sequence[str] = ()
    """Metadata that is left out again."""
    scales: tuple[str, ...] = ()
    """Scales that files of the architecture have; llama.cpp would take one for every matrix, as
    files in NVFP4 have them."""
    drafting_blocks: int = 0
    """Blocks like layers behind the last one, which llama.cpp does not run."""

    def values(self) -> dict[str, Plain]:
        """Return the metadata by its full names, but for that of drafting blocks."""
        said = {**BASE, "block_count": self.layers + self.drafting_blocks, **self.metadata}
        prefix = self.architecture
        return {f"{prefix}.{key}": said[key] for key in said if key not in self.without}


def write_model(recipe: Recipe, path: Path) -> None:
    """Write a model in float32; equal recipes give equal files."""
    bare = path.with_suffix(".metadata.gguf")
    _write(recipe, {}, bare)  # without drafting blocks, of which llama.cpp makes none this way
    shapes = {  # all but a classifier's and most scales, which llama.cpp would take too
        name: shape
        for name, shape in _wanted_tensors(bare).items()
        if not name.startswith(("cls", "dense_2"))
        and (not name.endswith("scale") or name.endswith(recipe.scales))
    }
    for block in range(recipe.layers, recipe.layers + recipe.drafting_blocks):
        shapes[f"blk.{block}.nextn.eh_proj.weight"] = (2 * WIDTH, WIDTH)
        shapes[f"blk.{block}.nextn.enorm.weight"] = (WIDTH,)
        shapes[f"blk.{block}.nextn.hnorm.weight"] = (WIDTH,)
    _write(recipe, shapes, path)
    bare.unlink()


def _write(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    out = gguf.GGUFWriter(path, recipe.architecture)
    out.add_name("Tiny random weights")  # llama.cpp reads meaning into some names
    for key, value in recipe.values().items():
        out.add_key_value(key, value, *_types(value))
    if shapes and recipe.drafting_blocks:
        out.add_nextn_predict_layers(recipe.drafting_blocks)
    _add_tokenizer(out)
    random = np.random.default_rng(list(recipe.architecture.encode()))
    for name, shape in shapes.items():
        out.add_tensor(name, _numbers(name, shape, random))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _types(value: Plain) -> tuple[Any, ...]:
    """Return how a value is stored, and for an array how its items are."""
    kinds = gguf.GGUFValueType
    if isinstance(value, Sequence) and not isinstance(value, str):
        return (kinds.ARRAY, _types(value[0])[0])
    if isinstance(value, bool):
        return (kinds.BOOL,)
    if isinstance(value, int):
        return (kinds.UINT32,)
    return (kinds.FLOAT32 if isinstance(value, float) else kinds.STRING,)


def _add_tokenizer(out: gguf.GGUFWriter) -> None:
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * (len(SPECIAL_TOKENS) - 1)]
    kinds += [gguf.TokenType.BYTE] * len(BYTE_TOKENS)
    kinds += [gguf.TokenType.NORMAL] * len(WORD_TOKENS)
    out.add_tokenizer_model("llama")
    out.add_token_list(TOKENS)
    out.add_token_scores([0.0] * len(TOKENS))
    out.add_token_types(kinds)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)


def _numbers(name: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float32]:
    """Draw a tensor's numbers, so that activations neither fade nor blow up."""
    drawn: NDArray[np.floating] = random.standard_normal(shape[::-1], np.float32)
    if name == "rope_freqs.weight":
        drawn = np.linspace(1, 8, shape[0], dtype=np.float32)
    elif name == "output_norm.weight":
        drawn = 3 + drawn / 10  # logits wide enough to have one clear winner
    elif name.endswith("ssm_a"):
        drawn = -np.abs(drawn) - 0.1  # what is remembered fades
    elif name.endswith(NEAR_ONE):
        drawn = 1 + drawn / 10
    elif len(shape) == 1:
        drawn = drawn / 10
    else:
        drawn = drawn / np.sqrt(shape[0])
    return drawn.astype(np.float32)


class _InitParams(ctypes.Structure):
    """``gguf_init_params``."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class _TensorHead(ctypes.Structure):
    """The first members of ``ggml_tensor``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
    )


_SetTensor = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


def _wanted_tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes, fastest-running first, of all tensors of a model of this metadata."""
    ggml = ctypes.CDLL(str(next(libggml_base_path.glob("*ggml-base.*"))))
    ggml.gguf_init_from_file.restype = ctypes.c_void_p
    ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, _InitParams]
    ggml.gguf_free.argtypes = ggml.ggml_get_name.argtypes = [ctypes.c_void_p]
    ggml.ggml_get_name.restype = ctypes.c_char_p
    found: dict[str, tuple[int, ...]] = {}

    @_SetTensor  # type: ignore[untyped-decorator] # ctypes' own
    def note(tensor: int, _: Any) -> None:
        sizes = list(_TensorHead.from_address(tensor).ne)
        while len(sizes) > 1 and sizes[-1] == 1:
            sizes.pop()
        found[ggml.ggml_get_name(tensor).decode()] = tuple(sizes)

    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    make = api._lib.llama_model_init_from_user
    make.restype = ctypes.c_void_p
    make.argtypes = [ctypes.c_void_p, _SetTensor, ctypes.c_void_p, type(params)]
    metadata = ggml.gguf_init_from_file(str(path).encode(), _InitParams(True, None))
    assert metadata, f"no GGUF: {path}"
    model = make(metadata, note, None, params)
    ggml.gguf_free(metadata)
    assert model, f"llama.cpp makes no model of the metadata in {path}"
    api.llama_model_free(ctypes.cast(model, api.llama_model_p_ctypes))
    return found
