"""Files that hold a vocabulary and no weights, written with llama.cpp's own Python package."""

from collections.abc import Sequence
from pathlib import Path

import gguf

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

BYTE_CHARS = {
    **{byte: chr(byte) for byte in _PRINTABLE},
    **{byte: chr(256 + at) for at, byte in enumerate(_OTHERS)},
}
"""How byte-level vocabularies, from GPT-2 on, spell each byte."""


def write_vocabulary(
    path: Path,
    control: Sequence[str],
    *,
    pre: str = "gpt-2",
    pairs: Sequence[str] = (),
    adds_bos: bool = False,
    name: str = "Toy",
) -> Path:
    """Write a byte-level vocabulary: token n is byte n; pairs of letters and control tokens follow.

    The first control token begins a text, the second ends it.
    """
    out = _writer(path, name)
    tokens = [*(BYTE_CHARS[byte] for byte in range(256)), *pairs, *control]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(tokens)
    plain = len(tokens) - len(control)
    kinds = [gguf.TokenType.NORMAL] * plain + [gguf.TokenType.CONTROL] * len(control)
    out.add_token_types(kinds)
    out.add_token_merges([f"{pair[0]} {pair[1]}" for pair in pairs] or ["a a"])
    out.add_bos_token_id(plain)
    out.add_eos_token_id(plain + 1)
    out.add_add_bos_token(adds_bos)
    return _written(out, path)


def write_sentencepiece(path: Path, name: str = "Toy") -> Path:
    """Write a vocabulary as of SentencePiece and Llama 2: token n + 3 is byte n."""
    out = _writer(path, name)
    words = ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "ab", "▁ab"]
    out.add_tokenizer_model("llama")
    control = ["<|user|>", "<|end|>", "<|endoftext|>"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    out.add_token_list(["<unk>", "<s>", "</s>", *pieces, *words, *control])
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * len(words)
    out.add_token_types(kinds + [gguf.TokenType.CONTROL] * len(control))
    out.add_token_scores(
        [0.0] * 259 + [-float(at) for at in range(len(words))] + [0.0] * len(control)
    )
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    return _written(out, path)


def _writer(path: Path, name: str) -> gguf.GGUFWriter:
    out = gguf.GGUFWriter(path, "llama")
    out.add_name(name)
    out.add_block_count(1)
    out.add_context_length(64)
    out.add_embedding_length(32)
    out.add_feed_forward_length(32)
    out.add_head_count(1)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(32)
    return out


def _written(out: gguf.GGUFWriter, path: Path) -> Path:
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
