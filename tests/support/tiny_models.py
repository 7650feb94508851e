"""Tiny models with random weights, written with llama.cpp's own Python package and quantiser.

To llama.cpp they are real models, though they talk nonsense: 7 to 14 layers of width 256 (K-quants
pack 256 numbers), a byte tokenizer, and weights scaled so that activations neither vanish nor
explode.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

WIDTH = 256
FEED_FORWARD = 512
HEADS = 4
KV_HEADS = 2
EXPERTS = 8
EXPERTS_USED = 2
CONTEXT_TOKENS = 2048
SHORT_CONTEXT_TOKENS = 512
"""In longer contexts llama.cpp takes phi-3's long rope factors."""
WINDOW_TOKENS = 16
"""Short, so that a prompt of 100 tokens is far longer than a windowed layer's window."""

QUANTISATIONS = {
    "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q6_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
}
OF_EXPERTS = {"MXFP4": llama_cpp.LLAMA_FTYPE_MOSTLY_MXFP4_MOE}
"""Those that hold experts alone, and all else in Q8_0."""

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
WORD_TOKENS = tuple(f"▁{chr(97 + i)}" for i in range(26))
TOKENS = (*SPECIAL_TOKENS, *BYTE_TOKENS, *WORD_TOKENS)


@dataclass(frozen=True)
class Tiny:
    """The composition of a tiny model of one architecture."""

    architecture: str
    layers: int = 7
    head_width: int = WIDTH // HEADS
    tied: bool = False
    biases: bool = False
    fused: bool = False
    """One matrix for queries, keys and values, and one for gate and up."""
    head_norms: bool = False
    post_norms: bool = False
    experts: bool = False
    more: Callable[["_Writer"], None] = lambda _: None


class _Writer:
    """A GGUF being written, and the random numbers that fill it."""

    def __init__(self, tiny: Tiny, path: Path) -> None:
        self.tiny = tiny
        self.gguf = gguf.GGUFWriter(path, tiny.architecture)
        self._random = np.random.default_rng(list(tiny.architecture.encode()))

    def matrix(self, name: str, columns: int, *rows: int) -> None:
        """Add weights that keep the variance of what they multiply."""
        weights = self._random.standard_normal((*rows, columns), np.float32)
        self.gguf.add_tensor(f"{name}.weight", weights / np.float32(columns**0.5))

    def vector(self, name: str, mean: float, size: int | None = None) -> None:
        """Add a norm's weights or a bias."""
        spread = self._random.standard_normal(size or WIDTH, np.float32) / 10
        self.gguf.add_tensor(name, (mean + spread).astype(np.float32))


def _rope_frequencies(writer: _Writer) -> None:
    factors: NDArray[np.float32] = np.linspace(1, 8, WIDTH // HEADS // 2, dtype=np.float32)
    writer.gguf.add_tensor("rope_freqs.weight", factors)


def _long_rope(writer: _Writer) -> None:
    """Add factors as in phi-3 with 128k, chosen by the length of the context."""
    half = WIDTH // HEADS // 2
    writer.gguf.add_rope_scaling_orig_ctx_len(SHORT_CONTEXT_TOKENS)
    writer.gguf.add_rope_scaling_attn_factors(1.19)
    writer.gguf.add_sliding_window(WINDOW_TOKENS)  # llama.cpp ignores it
    writer.gguf.add_tensor("rope_factors_long.weight", np.linspace(1, 30, half, dtype=np.float32))
    writer.gguf.add_tensor("rope_factors_short.weight", np.ones(half, np.float32))


def _window(writer: _Writer) -> None:
    writer.gguf.add_sliding_window(WINDOW_TOKENS)
    writer.gguf.add_rope_freq_base(1_000_000)
    writer.gguf.add_float32(f"{writer.tiny.architecture}.rope.freq_base_swa", 10_000)


def _soft_caps(writer: _Writer) -> None:
    _window(writer)
    writer.gguf.add_attn_logit_softcapping(50)
    writer.gguf.add_final_logit_softcapping(30)


TINY = {
    "llama": Tiny("llama", more=_rope_frequencies),
    "qwen2": Tiny("qwen2", biases=True),
    "qwen3": Tiny("qwen3", head_width=128, tied=True, head_norms=True),
    "gemma2": Tiny("gemma2", tied=True, post_norms=True, more=_soft_caps),
    "gemma3": Tiny("gemma3", layers=14, tied=True, head_norms=True, post_norms=True, more=_window),
    "phi3": Tiny("phi3", fused=True, more=_long_rope),
    "qwen3moe": Tiny("qwen3moe", head_norms=True, experts=True),
    "mixtral": Tiny("llama", experts=True),
}
"""By the names that tests use; gemma3 has two periods of its window pattern and a rest."""


def write_tiny(tiny: Tiny, path: Path) -> None:
    """Write a model in float32; equal arguments give equal files."""
    writer = _Writer(tiny, path)
    _add_metadata(writer)
    tiny.more(writer)
    writer.matrix("token_embd", WIDTH, len(TOKENS))
    for layer in range(tiny.layers):
        _add_layer(writer, f"blk.{layer}")
    writer.vector("output_norm.weight", 3)  # logits far enough apart to have a clear winner
    if not tiny.tied:
        writer.matrix("output", WIDTH, len(TOKENS))
    if tiny.biases:
        writer.vector("output.bias", 0, len(TOKENS))
    writer.gguf.write_header_to_file()
    writer.gguf.write_kv_data_to_file()
    writer.gguf.write_tensors_to_file()
    writer.gguf.close()


def quantise(source: Path, path: Path, quantisation: str) -> None:
    """Write a float32 model again, quantised by llama.cpp."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 1
    params.ftype = {**QUANTISATIONS, **OF_EXPERTS}[quantisation]
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(path).encode(), ctypes.byref(params)
    )
    assert status == 0, f"llama.cpp cannot quantise {source} to {quantisation}"


def tiny_model(folder: Path, name: str, quantisation: str) -> Path:
    """Return a tiny model in a quantisation, which is written the first time."""
    full, path = folder / f"{name}-F32.gguf", folder / f"{name}-{quantisation}.gguf"
    if not full.exists():
        write_tiny(TINY[name], full)
    if not path.exists():
        quantise(full, path, quantisation)
    return path


def _add_metadata(writer: _Writer) -> None:
    out, tiny = writer.gguf, writer.tiny
    out.add_name("Tiny random weights")  # llama.cpp gives some names a meaning
    out.add_license("apache-2.0")
    out.add_context_length(CONTEXT_TOKENS)
    out.add_embedding_length(WIDTH)
    out.add_block_count(tiny.layers)
    out.add_feed_forward_length(FEED_FORWARD)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_key_length(tiny.head_width)
    out.add_value_length(tiny.head_width)
    out.add_rope_dimension_count(tiny.head_width)
    out.add_layer_norm_rms_eps(1e-6)
    if tiny.experts:
        out.add_expert_count(EXPERTS)
        out.add_expert_used_count(EXPERTS_USED)
        out.add_expert_feed_forward_length(FEED_FORWARD)
    out.add_tokenizer_model("llama")
    out.add_token_list(TOKENS)
    out.add_token_scores([0.0] * len(TOKENS))
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * len(WORD_TOKENS)
    out.add_token_types(kinds)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)


def _add_layer(writer: _Writer, layer: str) -> None:
    tiny = writer.tiny
    queries, keys = HEADS * tiny.head_width, KV_HEADS * tiny.head_width
    writer.vector(f"{layer}.attn_norm.weight", 1)
    if tiny.fused:
        writer.matrix(f"{layer}.attn_qkv", WIDTH, queries + 2 * keys)
    else:
        for name, size in (("q", queries), ("k", keys), ("v", keys)):
            writer.matrix(f"{layer}.attn_{name}", WIDTH, size)
            if tiny.biases:
                writer.vector(f"{layer}.attn_{name}.bias", 0, size)
    if tiny.head_norms:
        writer.vector(f"{layer}.attn_q_norm.weight", 1, tiny.head_width)
        writer.vector(f"{layer}.attn_k_norm.weight", 1, tiny.head_width)
    writer.matrix(f"{layer}.attn_output", queries, WIDTH)
    if tiny.post_norms:
        writer.vector(f"{layer}.post_attention_norm.weight", 1)
        writer.vector(f"{layer}.post_ffw_norm.weight", 1)
    writer.vector(f"{layer}.ffn_norm.weight", 1)
    if tiny.experts:
        writer.matrix(f"{layer}.ffn_gate_inp", WIDTH, EXPERTS)
        writer.matrix(f"{layer}.ffn_gate_exps", WIDTH, EXPERTS, FEED_FORWARD)
        writer.matrix(f"{layer}.ffn_up_exps", WIDTH, EXPERTS, FEED_FORWARD)
        writer.matrix(f"{layer}.ffn_down_exps", FEED_FORWARD, EXPERTS, WIDTH)
        return
    if tiny.fused:
        writer.matrix(f"{layer}.ffn_up", WIDTH, 2 * FEED_FORWARD)
    else:
        writer.matrix(f"{layer}.ffn_gate", WIDTH, FEED_FORWARD)
        writer.matrix(f"{layer}.ffn_up", WIDTH, FEED_FORWARD)
    writer.matrix(f"{layer}.ffn_down", FEED_FORWARD, WIDTH)
