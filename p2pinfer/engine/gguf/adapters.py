"""LoRA adapters: small matrices that change a model's, read from a GGUF and cut like the model.

An adapter adds ``alpha / rank * B A x`` to what a matrix W makes of x. llama.cpp's script
``convert_lora_to_gguf.py`` writes A and B as the tensors ``W.lora_a`` and ``W.lora_b``. A layer's
adapter concerns that layer alone, so slices with the adapter's parts of their layers compute what
the whole model with the whole adapter does, to the last bit.

A slice's adapter lies beside it, under the slice's name and ``.adapter``: what runs,
tries or measures the slice does so with its adapter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from p2pinfer.core.errors import BadModelFile, UnsupportedModel
from p2pinfer.engine.gguf.model_header import EMBEDDING, model_info, split_layer
from p2pinfer.engine.gguf.reader import GgufHeader, Tensor, read_header
from p2pinfer.engine.gguf.values import Metadata, Value, ValueType

ALPHA_KEY = "adapter.lora.alpha"
OUTPUT_HEAD = "output.weight"

RANK_MAX = 512
"""Adapters in use have 4 to 256; above, a full matrix would be smaller for narrow models."""

_A, _B = ".lora_a", ".lora_b"
_TYPES = ("F32", "F16", "BF16", "Q8_0")
"""What llama.cpp's script writes."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """The two matrices that change one of a model's."""

    changes: str
    """The name of the model's tensor."""
    a: Tensor
    b: Tensor


def adapter_path(slice_path: Path) -> Path:
    """Return where a slice's adapter lies, if it has one."""
    return Path(f"{slice_path}.adapter")


def read_slice_header(path: Path) -> GgufHeader:
    """Read a slice's header with its adapter's tensors, if it has one; raises BadModelFile."""
    header, beside = read_header(path), adapter_path(path)
    if not beside.exists():
        return header
    tensors = {**header.tensors, **read_header(beside).tensors}
    return GgufHeader(header.name, header.metadata, tensors)


def is_adapter(header: GgufHeader) -> bool:
    """Whether a file is an adapter."""
    return _text(header, "general.type") == "adapter"


def check_is_adapter(header: GgufHeader) -> None:
    """Raise BadModelFile if a file is none."""
    if not is_adapter(header):
        raise BadModelFile(
            f"{header.name} is no adapter: add a model of its own without --base, and convert an"
            " adapter of PEFT with llama.cpp's convert_lora_to_gguf.py first"
        )


def check_adapter(header: GgufHeader, base: GgufHeader) -> list[LowRank]:
    """Return what an adapter changes of a model, in its file's order.

    Raises:
        BadModelFile: it is none, is damaged, or was made for another model.
        UnsupportedModel: it is of a kind that is not served.
    """
    check_is_adapter(header)
    kind = _text(header, "adapter.type")
    if kind != "lora" or any(key.startswith("adapter.alora.") for key in header.metadata):
        what = "an aLoRA" if kind == "lora" else kind or "unknown"
        raise UnsupportedModel(f"{header.name} is an adapter of the kind {what}, not a plain LoRA")
    made_for, architecture = (_text(each, "general.architecture") for each in (header, base))
    if made_for != architecture:
        raise BadModelFile(
            f"{header.name} was made for a model of the kind {made_for or 'unknown'}, and"
            f" {model_info(base).name} is a {architecture}: name the model that it was trained on"
        )
    if header.number(ALPHA_KEY) is None:
        raise BadModelFile(f"{header.name} is damaged: it lacks {ALPHA_KEY}")
    found = list(_pairs(header))
    for each in found:
        _check_fits(each, header, base)
    if not found:
        raise BadModelFile(f"{header.name} changes nothing: it has no lora_a and lora_b")
    return found


def ignored(header: GgufHeader) -> list[str]:
    """Name the tensors of an adapter that llama.cpp does not use: whole norms, trained beside it.

    Raises:
        BadModelFile: there are others that it would not take.
    """
    others = [name for name in header.tensors if not name.endswith((_A, _B))]
    for name in others:
        if not name.endswith("_norm.weight"):
            raise BadModelFile(f"{header.name} is damaged: {name!r} belongs to no LoRA")
    return others


def adapter_metadata(architecture: str, alpha: float) -> Metadata:
    """Return what llama.cpp wants to read in an adapter's file."""
    return {
        "general.architecture": Value.of(ValueType.STRING, architecture),
        "general.type": Value.of(ValueType.STRING, "adapter"),
        "adapter.type": Value.of(ValueType.STRING, "lora"),
        ALPHA_KEY: Value.of(ValueType.FLOAT32, alpha),
    }


def renumbered(name: str, first: int) -> str:
    """Return a tensor's name in a slice whose first layer is the model's ``first``."""
    place = split_layer(name)
    return f"blk.{place[0] - first}.{place[1]}" if place else name


def pair_names(changes: str) -> tuple[str, str]:
    """Return the names of A and B."""
    return changes + _A, changes + _B


def _pairs(header: GgufHeader) -> Iterator[LowRank]:
    ignored(header)
    for name, a in header.tensors.items():
        if name.endswith(_B) and name.removesuffix(_B) + _A not in header.tensors:
            raise BadModelFile(f"{header.name} is damaged: it has {name!r} without its lora_a")
        if name.endswith(_A):
            changes = name.removesuffix(_A)
            b = header.tensors.get(changes + _B)
            if b is None:
                raise BadModelFile(f"{header.name} is damaged: it has {name!r} without its lora_b")
            yield LowRank(changes, a, b)


def _check_fits(pair: LowRank, header: GgufHeader, base: GgufHeader) -> None:
    """Check a pair against the matrix that it changes; raises as ``check_adapter``."""
    info, target = model_info(base), base.tensors.get(pair.changes)
    advice = f"it was not made for {info.name}: name the model that it was trained on"
    place = split_layer(pair.changes)
    if place is not None and place[0] >= info.layers:
        target = None  # a block that drafts tokens, which nobody runs
    if pair.changes == OUTPUT_HEAD and target is None:
        raise UnsupportedModel(
            f"{header.name} changes the head of {info.name}, which has none of its own"
        )
    if target is None:
        raise BadModelFile(
            f"{header.name} changes {pair.changes!r}, which {info.name} lacks: {advice}"
        )
    if place is None and pair.changes not in (EMBEDDING, OUTPUT_HEAD):
        raise UnsupportedModel(f"{header.name} changes {pair.changes!r}, which is not served")
    if pair.changes == EMBEDDING and OUTPUT_HEAD not in base.tensors:
        raise UnsupportedModel(
            f"{header.name} changes the token embedding of {info.name}, which is its head too:"
            " llama.cpp does not run that"
        )
    for each in (pair.a, pair.b):
        if each.type.name not in _TYPES:
            raise UnsupportedModel(
                f"{header.name} stores {each.name!r} as {each.type.name}: convert the adapter"
                " again with --outtype f32"
            )
    if len(target.shape) != 2 or len(pair.a.shape) != 2 or len(pair.b.shape) != 2:
        raise UnsupportedModel(
            f"{header.name} changes {pair.changes!r}, which is no plain matrix (experts are not"
            " served with adapters)"
        )
    (inputs, rank), (other, outputs) = pair.a.shape, pair.b.shape
    if pair.changes == EMBEDDING:  # looked up, not multiplied: A is stored the other way round
        (rank, outputs), (other, inputs) = pair.a.shape, pair.b.shape
    if rank != other:
        raise BadModelFile(
            f"{header.name} is damaged: of {pair.changes!r}, lora_a has rank {rank} and lora_b"
            f" {other}"
        )
    if (inputs, outputs) != target.shape:
        made, has = f"{outputs} x {inputs}", f"{target.shape[1]} x {target.shape[0]}"
        raise BadModelFile(
            f"{header.name} changes a matrix {pair.changes!r} of {made}, and that of {info.name}"
            f" is {has}: {advice}"
        )
    if rank > RANK_MAX:
        raise UnsupportedModel(
            f"{header.name} has rank {rank}, and {RANK_MAX} is the most: merge it into its model"
        )


def _text(header: GgufHeader, key: str) -> str:
    value = header.metadata.get(key)
    if isinstance(value, Value) and value.type is ValueType.STRING:
        return str(value.decode())
    return ""
