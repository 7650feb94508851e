"""Which layers of a slice are of one kind, so that what is found out about one holds for all.

Layers are of one kind if their tensors have the same names, shapes and types, and metadata says the
same of them: then llama.cpp runs the same kernels for them. Quantisers mix types from layer to
layer, windows come and go, and the first layers of some models have no experts.
"""

from pathlib import Path

from blake3 import blake3

from p2pinfer.engine.gguf.adapters import read_slice_header
from p2pinfer.engine.gguf.architectures import DENSE_LEAD_KEY, RULES
from p2pinfer.engine.gguf.bare_ends import LAYERS_BEFORE_KEY
from p2pinfer.engine.gguf.model_header import DRAFTING_BLOCKS_KEY, split_layer
from p2pinfer.engine.gguf.reader import GgufHeader
from p2pinfer.engine.gguf.values import Array, Scalar

_COUNTS = ("block_count", DRAFTING_BLOCKS_KEY, DENSE_LEAD_KEY)
"""Metadata about how many layers there are, and not what they are."""


PROBED_BYTES_MIN = 32 << 20
"""Where kernels disagree, they do so for some numbers only. In layers of real widths a hundred rows
show it; small ones, of which two or three may happen to agree, cost nothing to probe whole."""


ATTENTION_BYTES_MIN = 8 << 20
"""Where attention is looked at, each row of a small layer shows it, too; but to be timed, layers
must take longer than what surrounds them."""


def layer_kinds(header: GgufHeader, *, by_type: bool = True) -> list[str]:
    """Return for each layer of a slice, or a model, a text that layers of its kind share.

    ``by_type``: tell layers apart by the types of their weights, too. Attention does not depend on
    these, since what it computes with was multiplied by them before.
    """
    tensors: dict[int, list[str]] = {}
    for tensor in header.tensors.values():
        if place := split_layer(tensor.name):
            of_layer = tensors.setdefault(place[0], [])
            type_ = tensor.type.name if by_type else "any"
            of_layer.append(f"{place[1]} {type_} {tensor.shape}")
    arrays = _arrays(header)
    rules = RULES.get(header.string("general.architecture") or "")
    period = rules.period if rules else 1
    return [
        "\n".join(
            [
                *sorted(tensors[layer]),
                *(f"{k} {v[layer]}" for k, v in arrays.items()),
                *([f"{layer % period} of {period}"] if period > 1 else []),
            ]
        )
        for layer in sorted(tensors)
    ]


def layers_to_probe(
    header: GgufHeader, least_bytes: int = PROBED_BYTES_MIN, *, by_type: bool = True
) -> int:
    """Return how many of a slice's first layers to probe: one of each kind is among them.

    They have ``least_bytes`` of weights, or are all there are. Layers of zeros in front, which run
    anyway, are not counted.
    """
    before = header.integer(LAYERS_BEFORE_KEY) or 0
    kinds = layer_kinds(header, by_type=by_type)[before:]
    sizes = [0] * (before + len(kinds))
    for tensor in header.tensors.values():
        if place := split_layer(tensor.name):
            sizes[place[0]] += tensor.nbytes
    count = max((kinds.index(kind) + 1 for kind in set(kinds)), default=0)
    while count < len(kinds) and sum(sizes[before:][:count]) < least_bytes:
        count += 1
    return count


def layers_of_attention(header: GgufHeader) -> int:
    """Return how many of a slice's first layers have each kind of attention among them."""
    return layers_to_probe(header, ATTENTION_BYTES_MIN, by_type=False)


def kinds_digest(path: Path, *, layers_only: bool = False) -> str:
    """Return a text that slices have in common whose layers, and whose rest, are alike.

    How many layers there are of each kind, and in which order, makes no difference; nor do the
    weights.

    Args:
        path: the slice's file.
        layers_only: whatever the rest is, and which layers have which types; so ends may be like
            stages.

    Raises:
        BadModelFile: the file cannot be read.
    """
    header = read_slice_header(path)
    rest = [
        f"{name} {tensor.type.name} {tensor.shape}"
        for name, tensor in header.tensors.items()
        if split_layer(name) is None and not layers_only
    ]
    architecture = header.string("general.architecture") or ""
    ignored = (*_COUNTS, "vocab_size") if layers_only else _COUNTS
    said = [
        f"{key} {value.decode()}"
        for key, value in header.metadata.items()
        if key.startswith(f"{architecture}.")
        and key not in _arrays(header)
        and key.removeprefix(f"{architecture}.") not in ignored
    ]
    kinds = {*layer_kinds(header, by_type=not layers_only)}
    if layers_only:
        kinds |= {
            tensor.type.name for tensor in header.tensors.values() if split_layer(tensor.name)
        }
    text = "\n\n".join([architecture, *sorted(rest), *sorted(said), *sorted(kinds)])
    return blake3(text.encode()).hexdigest(length=16)


def _arrays(header: GgufHeader) -> dict[str, list[Scalar]]:
    """Return the metadata that has an item for each layer, or block behind them."""
    architecture = header.string("general.architecture")
    blocks = header.integer(f"{architecture}.block_count") or 0
    return {
        key: value.decode()
        for key, value in header.metadata.items()
        if isinstance(value, Array) and key.startswith(f"{architecture}.") and value.count == blocks
    }
