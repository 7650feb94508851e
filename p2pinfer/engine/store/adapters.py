"""Models with an adapter: a child has all of its base's parts, and small ones of the adapter.

The parts of the base are the same bytes under the same hashes, so they are stored, fetched and
served once for both. The child has an id of its own: to peers, receipts and audits it is a model
like any other.

    adapter.embedding, adapter.layer.N, adapter.output
        a GGUF with the matrices that change the base's part of that name, in float32, which
        llama.cpp multiplies faster than the halves that adapters often come in
"""

from collections.abc import Mapping
from pathlib import Path

from p2pinfer.core.errors import UserError
from p2pinfer.core.manifest import (
    CHUNK_BYTES,
    LICENSE_CHARS_MAX,
    METADATA,
    NAME_CHARS_MAX,
    Manifest,
    Part,
    adapter_part,
    adapter_part_names,
    child_of,
)
from p2pinfer.core.model_names import readable_name
from p2pinfer.core.text import printable
from p2pinfer.engine.gguf.adapters import (
    ALPHA_KEY,
    adapter_metadata,
    check_adapter,
    pair_names,
)
from p2pinfer.engine.gguf.dequantise import Floats, dequantise
from p2pinfer.engine.gguf.ggml_types import F32
from p2pinfer.engine.gguf.reader import GgufHeader, Tensor, alignment_bytes, padded, read_header
from p2pinfer.engine.gguf.values import Metadata
from p2pinfer.engine.gguf.writer import NewTensor, encode_header
from p2pinfer.engine.store.assemble import whole_header
from p2pinfer.engine.store.damage import MissingChunk
from p2pinfer.engine.store.split import ChunkHasher, part_of
from p2pinfer.engine.store.store import Store

Matrices = Mapping[str, tuple[Floats, Floats]]
"""A and B by the name of the tensor that they change."""


def add_adapter(store: Store, path: Path, base: Manifest, name: str | None = None) -> Manifest:
    """Keep an adapter's parts and the manifest of the base with it.

    Args:
        store: keeps the parts; it holds the base's metadata.
        path: a GGUF that llama.cpp's ``convert_lora_to_gguf.py`` wrote.
        base: the model that it changes.
        name: what to call the child; the file's own name by default.

    Raises:
        BadModelFile, UnsupportedModel: as ``check_adapter``.
        UserError: the base is a child itself, its metadata is not here, or the parts do not fit.
    """
    header = read_header(path)
    whole = _base_header(store, base)
    pairs = check_adapter(header, whole)
    alpha = header.number(ALPHA_KEY)
    assert alpha is not None
    matrices = {each.changes: (_read(path, each.a), _read(path, each.b)) for each in pairs}
    if name is None:
        said = printable(header.string("general.name") or path.stem).strip()
        name = said[:NAME_CHARS_MAX] or "adapter"
    license_ = printable(header.string("general.license") or "").strip()[:LICENSE_CHARS_MAX]
    return keep_adapter(store, base, matrices, float(alpha), name, license_ or base.license)


def keep_adapter(
    store: Store,
    base: Manifest,
    matrices: Matrices,
    alpha: float,
    name: str,
    license_: str | None,
) -> Manifest:
    """Keep the parts of an adapter that fits its base, and the child's manifest.

    Raises:
        BadManifest: the name is not a line, or the child's manifest would be too long.
        UserError: the parts do not fit.
    """
    child, data = _child(base, matrices, alpha, name, license_)
    parts = child.adapter
    store.check_room(parts)
    store.add_manifest(base.encode(), base.id)
    store.add_manifest(child.encode(), child.id)
    for part in parts:
        blocks = (data[part.name][at : at + CHUNK_BYTES] for at in range(0, part.size, CHUNK_BYTES))
        store.write_chunks(part, dict(enumerate(blocks)))
        store.finish(part)
    return child


def child_manifest(
    base: Manifest, matrices: Matrices, alpha: float, name: str, license_: str | None
) -> Manifest:
    """Return the manifest that ``keep_adapter`` would keep; raises BadManifest."""
    return _child(base, matrices, alpha, name, license_)[0]


def _child(
    base: Manifest, matrices: Matrices, alpha: float, name: str, license_: str | None
) -> tuple[Manifest, dict[str, bytes]]:
    data = _part_bytes(base, matrices, alpha)
    parts = tuple(_part(name, each) for name, each in data.items())
    return child_of(base, name, license_, parts), data


def adapter_bytes(base: Manifest, matrices: Matrices, alpha: float) -> bytes:
    """Return a whole adapter as a GGUF that llama.cpp takes with ``--lora``."""
    names = [row.name for row in base.tensors if row.name in matrices]
    tensors = {
        name: each
        for changed in names
        for name, each in zip(pair_names(changed), matrices[changed], strict=True)
    }
    return _gguf_bytes(adapter_metadata(base.architecture, alpha), tensors)


def _base_header(store: Store, base: Manifest) -> GgufHeader:
    if base.base:
        raise UserError(
            f"{readable_name(base.name)} has an adapter already; name the model under it:"
            f" --base {base.base.id[:12]}"
        )
    try:
        return whole_header(store, base, METADATA)
    except MissingChunk as error:
        raise UserError(
            f"{readable_name(base.name)} is not here: add it from its file first, with p2pinfer"
            " model add FILE"
        ) from error


def _read(path: Path, tensor: Tensor) -> Floats:
    with path.open("rb") as file:
        file.seek(tensor.offset)
        return dequantise(tensor, file.read(tensor.nbytes)).weights


def _part_bytes(base: Manifest, matrices: Matrices, alpha: float) -> dict[str, bytes]:
    """Return the adapter's parts by their names, in the manifest's order."""
    metadata = adapter_metadata(base.architecture, alpha)
    found: dict[str, dict[str, Floats]] = {}
    for row in base.tensors:  # in their order, whatever the adapter's file's is
        if row.name in matrices:
            part = found.setdefault(adapter_part(part_of(row.name)), {})
            part |= dict(zip(pair_names(row.name), matrices[row.name], strict=True))
    return {
        name: _gguf_bytes(metadata, found[name])
        for name in adapter_part_names(base.layers)
        if name in found
    }


def _gguf_bytes(metadata: Metadata, tensors: Mapping[str, Floats]) -> bytes:
    alignment = alignment_bytes(metadata, "the adapter")
    rows = [NewTensor(name, each.shape[::-1], F32, None) for name, each in tensors.items()]
    blocks = [encode_header(metadata, rows)]
    for each in tensors.values():
        data = each.astype("<f4").tobytes()
        blocks.append(data.ljust(padded(len(data), alignment), b"\0"))
    return b"".join(blocks)


def _part(name: str, data: bytes) -> Part:
    hasher = ChunkHasher()
    hasher.feed(data)
    return hasher.part(name)
