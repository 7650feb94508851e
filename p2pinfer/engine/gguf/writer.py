"""Write GGUF files: the same metadata and tensors always give the same bytes."""

import contextlib
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from p2pinfer.core.errors import BadModelFile, UserError
from p2pinfer.engine.gguf.ggml_types import GgmlType
from p2pinfer.engine.gguf.reader import MAGIC, VERSION, alignment_bytes, padded, tensor_bytes
from p2pinfer.engine.gguf.values import Array, Metadata, ValueType, encode_string

COPY_BLOCK_BYTES = 1 << 20
"""Copying holds this much in memory, however large the model."""


class _Zeros(bytes):
    """A run of zeros, which takes no room on the disk where files may have holes."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes in a file."""

    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to write: where its bytes come from, or None for zeros."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    source: Extent | None

    @property
    def nbytes(self) -> int:
        """Bytes without padding."""
        return tensor_bytes(self.shape, self.type)


def encode_header(metadata: Metadata, tensors: Sequence[NewTensor]) -> bytes:
    """Encode everything before the tensors' bytes, padding included."""
    alignment = alignment_bytes(metadata, "the file to write")
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts.append(encode_string(key))
        if isinstance(value, Array):
            parts.append(struct.pack("<IIQ", ValueType.ARRAY, value.element, value.count))
        else:
            parts.append(struct.pack("<I", value.type))
        parts.append(value.raw)
    offset = 0
    for tensor in tensors:
        sizes = tensor.shape
        layout = f"<I{len(sizes)}QIQ"
        parts.append(encode_string(tensor.name))
        parts.append(struct.pack(layout, len(sizes), *sizes, tensor.type.number, offset))
        offset += padded(tensor.nbytes, alignment)
    header = b"".join(parts)
    return header.ljust(padded(len(header), alignment), b"\0")


def write_gguf(path: Path, metadata: Metadata, tensors: Sequence[NewTensor]) -> None:
    """Write a file, all or nothing: it appears under its name once it is whole and on disk.

    Raises:
        BadModelFile: a source ends before its extent does.
        UserError: a file cannot be read or written, for example because the disk is full.
    """
    try:
        with _appearing_whole(path) as file:
            for block in gguf_blocks(metadata, tensors):
                if isinstance(block, _Zeros):
                    file.seek(len(block), os.SEEK_CUR)
                else:
                    file.write(block)
            file.truncate()
    except OSError as error:
        culprit = error.filename or path
        raise UserError(f"cannot write {path}: {culprit}: {error.strerror}") from error


def gguf_blocks(metadata: Metadata, tensors: Sequence[NewTensor]) -> Iterator[bytes]:
    """Yield a whole file's bytes in order.

    Raises:
        BadModelFile: a source ends before its extent does.
        OSError: a source cannot be read.
    """
    alignment = alignment_bytes(metadata, "the file to write")
    yield encode_header(metadata, tensors)
    for tensor in tensors:
        yield from _blocks(tensor)
        yield bytes(padded(tensor.nbytes, alignment) - tensor.nbytes)


def _blocks(tensor: NewTensor) -> Iterator[bytes]:
    """Yield a tensor's bytes, a block at a time."""
    left = tensor.nbytes
    if tensor.source is None:
        while left:
            yield _Zeros(min(left, COPY_BLOCK_BYTES))
            left -= min(left, COPY_BLOCK_BYTES)
        return
    source = tensor.source
    assert source.nbytes == left, (tensor, source)
    with source.path.open("rb") as file:
        file.seek(source.offset)
        while left:
            block = file.read(min(left, COPY_BLOCK_BYTES))
            if not block:
                raise BadModelFile(f"{source.path} became shorter while it was being read")
            yield block
            left -= len(block)


@contextlib.contextmanager
def _appearing_whole(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write that is renamed to ``path`` once it is synced, or else removed."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as temporary:
        try:
            yield temporary.file
            temporary.flush()
            os.fsync(temporary.fileno())
            Path(temporary.name).replace(path)
        except BaseException:
            Path(temporary.name).unlink()
            raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
