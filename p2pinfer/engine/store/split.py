"""Cut a model into parts, each a small GGUF.

    metadata    all of the model's metadata but the tokenizer's, and the tensors every layer uses
    tokenizer   all of the metadata, in its file's order; no tensors
    embedding   the token embedding, which is the head too where the model has no other
    layer.N     the tensors of a layer, under their names in the whole model; blocks behind the last
                layer, which draft tokens, have no part, since nobody runs them
    output      the output norm, and the head where there is one

The parts depend only on the model, not on its file's name, place or time. The tensors and their
order are in the manifest; ``assemble`` puts slices together from parts.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from p2pinfer.core.errors import BadModelFile, UserError
from p2pinfer.core.manifest import (
    ARCHITECTURE_CHARS_MAX,
    CHUNK_BYTES,
    EMBEDDING,
    LICENSE_CHARS_MAX,
    METADATA,
    NAME_CHARS_MAX,
    OUTPUT,
    TOKENIZER,
    Manifest,
    Part,
    TensorRow,
    layer_part,
    part_names,
)
from p2pinfer.core.text import printable
from p2pinfer.engine.gguf import model_header
from p2pinfer.engine.gguf.architectures import ROPE_TENSORS
from p2pinfer.engine.gguf.model_header import model_info, split_layer
from p2pinfer.engine.gguf.reader import GgufHeader, alignment_bytes, padded
from p2pinfer.engine.gguf.shards import ModelFiles, read_model
from p2pinfer.engine.gguf.slicing import plan_first_end, plan_last_end
from p2pinfer.engine.gguf.values import Metadata
from p2pinfer.engine.gguf.writer import COPY_BLOCK_BYTES, Extent, NewTensor, encode_header
from p2pinfer.engine.store.damage import WrongChunk, WrongSha256
from p2pinfer.engine.store.pieces import Piece, Pieces, Source, data_ranges
from p2pinfer.engine.store.store import Store

_ZERO_CHUNK = blake3(bytes(CHUNK_BYTES)).digest()

_KEYS_OF_EVERY_PART = ("general.architecture", "general.quantization_version")
"""What the GGUF specification requires in every file; no more, so that models can share parts."""

Progress = Callable[[str, int, int], None]
"""Gets the current activity, how many bytes of it are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class PartFile:
    """A part to be written."""

    metadata: Metadata
    tensors: Sequence[NewTensor]

    def pieces(self, sources: Sequence[Source] = ()) -> Pieces:
        """Return the bytes, piece by piece."""
        pieces: list[Piece] = [encode_header(self.metadata, self.tensors)]
        alignment = alignment_bytes(self.metadata, "the file to write")
        for tensor in self.tensors:
            pieces.append(tensor.nbytes if tensor.source is None else tensor.source)
            pieces.append(padded(tensor.nbytes, alignment) - tensor.nbytes)
        used = {piece.path.resolve() for piece in pieces if isinstance(piece, Extent)}
        return Pieces(pieces, [source for source in sources if source.path in used])

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes in chunks; raises BadModelFile if the model's file became shorter."""
        pieces = self.pieces()
        for start in range(0, pieces.size, CHUNK_BYTES):
            yield _read(pieces, start, min(CHUNK_BYTES, pieces.size - start))


def _read(pieces: Pieces, offset: int, nbytes: int) -> bytes:
    data = pieces.read(offset, nbytes)
    if len(data) < nbytes:
        raise BadModelFile("the model's file became shorter while it was being read")
    return data


def add_model(
    store: Store,
    path: Path,
    on_progress: Progress,
    *,
    in_place: bool = False,
    check: Mapping[Path, str] | None = None,
) -> Manifest:
    """Split a GGUF file, or one in shards, and keep its parts; those here are not written again.

    The files are read once for the manifest, in order, and once more for the parts unless these are
    served ``in_place``: then only what is small is copied, and the files must stay.

    Args:
        store: keeps the parts.
        path: the file, or any shard.
        on_progress: called with how far it is.
        in_place: leave the tensors where they are.
        check: what the SHA-256 of some files must be, in hexadecimal.

    Raises:
        BadModelFile: it cannot be read, is not a GGUF, makes no sense, or has another SHA-256.
        UnsupportedModel: it is not proven to split exactly.
        UserError: the parts do not fit.
    """
    try:
        model = read_model(path)
        sources = [Source.of(each) for each in model.paths]
        files = part_files(model.header, model.extents)
        manifest = describe(model, files, on_progress, check or {})
        if not all(source.is_same() for source in sources):
            raise UserError(f"{path} changed while it was being read; add it again")
        copied = [p for p in manifest.parts if not in_place or p.name in (METADATA, TOKENIZER)]
        store.check_room(copied)
        store.add_manifest(manifest.encode(), manifest.id)
        done, total = 0, sum(part.size for part in copied)
        for part in manifest.parts:
            if manifest.is_long:
                store.add_list(part, b"".join(part.chunks))
            if part not in copied:
                store.link(part, files[part.name].pieces(sources))
                continue
            on_progress("storing", done, total)
            _keep(store, part, files[part.name])
            done += part.size
        on_progress("storing", done, total)
    except WrongChunk as error:
        raise UserError(f"{path} changed while it was being read; add it again") from error
    except OSError as error:
        raise BadModelFile(f"cannot read {path}: {error.strerror}; name a GGUF file") from error
    return manifest


def _keep(store: Store, part: Part, file: PartFile) -> None:
    held = store.chunks_held(part)
    if len(held) < part.chunk_count:
        for index, data in enumerate(file.chunks()):
            if index not in held:
                store.write_chunk(part, index, data)
    store.finish(part)


def part_files(header: GgufHeader, extents: Mapping[str, Extent]) -> dict[str, PartFile]:
    """Plan every part of a model, whose tensors lie in ``extents``, by its name.

    Raises:
        BadModelFile: the header makes no sense.
        UnsupportedModel: the model is not proven to split exactly.
    """
    check_whole(header)
    tensors: dict[str, list[NewTensor]] = {}
    for tensor in header.tensors.values():
        new = NewTensor(tensor.name, tensor.shape, tensor.type, extents[tensor.name])
        tensors.setdefault(part_of(tensor.name), []).append(new)
    every = {key: header.metadata[key] for key in _KEYS_OF_EVERY_PART if key in header.metadata}
    metadata: dict[str, Metadata] = {
        METADATA: {k: v for k, v in header.metadata.items() if not k.startswith("tokenizer.")},
        TOKENIZER: header.metadata,
    }
    return {
        name: PartFile(metadata.get(name, every), tensors.get(name, []))
        for name in part_names(model_info(header).layers)
    }


def part_of(tensor: str) -> str:
    """Return the name of the part that holds a tensor of a model that can be split."""
    place = split_layer(tensor)
    if place is not None:
        return layer_part(place[0])
    if tensor in ROPE_TENSORS:
        return METADATA
    return EMBEDDING if tensor == model_header.EMBEDDING else OUTPUT


class ChunkHasher:
    """Takes a part's bytes as they come, and hashes them chunk by chunk."""

    def __init__(self) -> None:
        self.size = 0
        self.chunks: list[bytes] = []
        self._hash, self._filled = blake3(), 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        self.size += len(view)
        while view:
            taken = view[: CHUNK_BYTES - self._filled]
            self._hash.update(taken)
            self._filled += len(taken)
            view = view[len(taken) :]
            if self._filled == CHUNK_BYTES:
                self._end_chunk()

    def feed_zeros(self, count: int) -> None:
        """Take zeros; those that fill chunks are not hashed one by one."""
        head = min(count, -self._filled % CHUNK_BYTES)
        self.feed(bytes(head))
        whole, tail = divmod(count - head, CHUNK_BYTES)
        self.chunks += [_ZERO_CHUNK] * whole
        self.size += whole * CHUNK_BYTES
        self.feed(bytes(tail))

    def part(self, name: str) -> Part:
        """Return the part that the bytes are."""
        if self._filled:
            self._end_chunk()
        return Part(name, self.size, tuple(self.chunks))

    def _end_chunk(self) -> None:
        self.chunks.append(self._hash.digest())
        self._hash, self._filled = blake3(), 0


def describe(
    model: ModelFiles,
    files: Mapping[str, PartFile],
    on_progress: Progress,
    check: Mapping[Path, str],
) -> Manifest:
    """Hash every part in one pass over the model's files, and return the manifest.

    Holes, which read as zeros, are not read, but where a whole file's SHA-256 is to be checked.

    Raises:
        BadModelFile: a file became shorter, or has another SHA-256 than ``check`` says.
        OSError: a file cannot be read.
    """
    parts = {name: ChunkHasher() for name in files}
    alignment = {name: alignment_bytes(file.metadata, name) for name, file in files.items()}
    for name, file in files.items():
        parts[name].feed(encode_header(file.metadata, file.tensors))
    done, total = 0, sum(tensor.nbytes for tensor in model.header.tensors.values())
    for path in model.paths:
        whole = hashlib.sha256() if path in check else None
        with path.open("rb", buffering=0) as opened:
            at = 0
            for name, extent in model.extents.items():
                if extent.path != path:
                    continue
                on_progress("hashing", done, total)
                _hash_range(opened.fileno(), at, extent.offset, None, whole)
                at, part = extent.offset + extent.nbytes, part_of(name)
                hasher = parts.get(part)  # blocks that draft tokens are in none
                if _hash_range(opened.fileno(), extent.offset, at, hasher, whole) < at:
                    raise BadModelFile(f"{path} became shorter while it was being read")
                if hasher:
                    hasher.feed(bytes(-extent.nbytes % alignment[part]))
                done += extent.nbytes
            _hash_range(opened.fileno(), at, path.stat().st_size, None, whole)
        if whole and whole.hexdigest() != check[path].lower():
            raise WrongSha256(path)
    on_progress("hashing", done, total)
    return manifest_of(model.header, tuple(part.part(name) for name, part in parts.items()))


def _hash_range(
    file: int, start: int, end: int, part: "ChunkHasher | None", whole: "hashlib._Hash | None"
) -> int:
    """Hash a range of a file for its part, and for the whole file; return where reading ended."""
    if part is None and whole is None:
        return end
    at = start
    for data_start, data_end in [(start, end)] if whole else data_ranges(file, start, end):
        if part and data_start > at:
            part.feed_zeros(data_start - at)
        at = data_start
        while at < data_end:
            data = os.pread(file, min(COPY_BLOCK_BYTES, data_end - at), at)
            if not data:
                return at
            at += len(data)
            if part:
                part.feed(data)
            if whole:
                whole.update(data)
    if os.fstat(file).st_size < end:
        return at
    if part:
        part.feed_zeros(end - at)
    return end


def manifest_of(header: GgufHeader, parts: tuple[Part, ...]) -> Manifest:
    """Describe a model as a manifest."""
    info = model_info(header)
    return Manifest(
        # Not info.name, which falls back to the name that the file happens to have.
        name=_line(header.string("general.name"), NAME_CHARS_MAX) or info.architecture,
        license=_line(info.license, LICENSE_CHARS_MAX),
        architecture=info.architecture[:ARCHITECTURE_CHARS_MAX],
        layers=info.layers,
        width=info.width,
        vocabulary=info.vocabulary_tokens,
        context=info.context_tokens,
        tensors=tuple(TensorRow(t.name, t.type.number, t.shape) for t in header.tensors.values()),
        parts=parts,
    )


def _line(text: str | None, most: int) -> str | None:
    """Return a file's text as a printable line; None if nothing is left."""
    return printable(text or "").strip()[:most] or None


def check_whole(header: GgufHeader) -> None:
    """Check that a header is of a whole model that can be split; raises as the plans do."""
    plan_first_end(header, 1)
    plan_last_end(header, 1)
