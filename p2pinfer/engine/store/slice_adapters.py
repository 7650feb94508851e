"""A slice's adapter: the parts that an adapter has for the slice's layers, in one file."""

from collections.abc import Iterable
from pathlib import Path

from p2pinfer.core.errors import BadModelFile
from p2pinfer.core.manifest import Part
from p2pinfer.engine.gguf.adapters import ALPHA_KEY, adapter_metadata, renumbered
from p2pinfer.engine.gguf.reader import GgufHeader, parse_header, read_header
from p2pinfer.engine.gguf.writer import NewTensor, write_gguf
from p2pinfer.engine.store.store import Store


def part_header(store: Store, part: Part) -> GgufHeader:
    """Read the header of a part that is here, wherever its bytes lie; raises BadModelFile."""
    pieces = store.pieces(part)
    if not pieces.sources:
        return read_header(store.path(part))
    head = pieces.all[0]
    return parse_header(head if isinstance(head, bytes) else b"", part.size, part.name)


def write_slice_adapter(
    store: Store, parts: Iterable[Part], architecture: str, first: int, path: Path
) -> None:
    """Write the adapter of a slice whose first layer is ``first``.

    Raises:
        MissingChunk, DamagedPart: a part is not here, or no longer.
        BadModelFile: the parts make no sense together.
        UserError: it cannot be written.
    """
    tensors: list[NewTensor] = []
    alpha: float | None = None
    for part in parts:
        store.verify(part)
        header = part_header(store, part)
        alpha = header.number(ALPHA_KEY) if alpha is None else alpha
        for tensor in header.tensors.values():
            extent = store.pieces(part).locate(tensor.offset, tensor.nbytes)
            if extent is None:
                raise BadModelFile(f"{tensor.name!r} of {part.name} does not lie where it was")
            name = renumbered(tensor.name, first)
            tensors.append(NewTensor(name, tensor.shape, tensor.type, extent))
    if alpha is None:
        raise BadModelFile(f"the adapter's parts lack {ALPHA_KEY}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(path, adapter_metadata(architecture, alpha), tensors)
