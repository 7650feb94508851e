"""LoRA adapters with random numbers, as llama.cpp's ``convert_lora_to_gguf.py`` writes them."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from p2pinfer.engine.gguf.model_header import split_layer
from p2pinfer.engine.gguf.reader import Tensor, read_header

RANK = 4


def is_matrix_of_a_layer(tensor: Tensor) -> bool:
    """Whether a tensor is what adapters usually change."""
    return split_layer(tensor.name) is not None and len(tensor.shape) == 2


def write_adapter(
    model: Path,
    path: Path,
    changes: Callable[[Tensor], bool] = is_matrix_of_a_layer,
    *,
    rank: int = RANK,
    strength: float = 0.5,
    architecture: str | None = None,
    dtype: type = np.float32,
) -> None:
    """Write an adapter that changes a model's answers; equal arguments give equal files."""
    header = read_header(model)
    kind = architecture or header.string("general.architecture") or ""
    out = gguf.GGUFWriter(path, kind)
    out.add_string("general.type", "adapter")
    out.add_string("general.name", "Random changes")
    out.add_string("adapter.type", "lora")
    out.add_float32("adapter.lora.alpha", float(rank))
    random = np.random.default_rng(5)
    for tensor in filter(changes, header.tensors.values()):
        inputs, outputs = tensor.shape
        a = random.standard_normal((rank, inputs)) / np.sqrt(inputs)
        b = random.standard_normal((outputs, rank)) * strength / np.sqrt(rank)
        if tensor.name == "token_embd.weight":  # whose rows are looked up, and not multiplied
            a, b = (
                random.standard_normal((outputs, rank)) / np.sqrt(rank),
                random.standard_normal((inputs, rank)) * strength / np.sqrt(inputs),
            )
        out.add_tensor(f"{tensor.name}.lora_a", a.astype(dtype))
        out.add_tensor(f"{tensor.name}.lora_b", b.astype(dtype))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
