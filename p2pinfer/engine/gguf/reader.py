"""What a GGUF file says before its tensors' bytes, read strictly.

Layout, after ``docs/gguf.md`` of the ggml project; everything is little-endian:

    "GGUF"  version u32  tensors u64  pairs u64
    pairs × (key string, type u32, value)            string = length u64, bytes
    tensors × (name string, dimensions u32, sizes u64…, type u32, offset u64)
    zeros up to a multiple of the alignment
    the tensors' bytes, in the same order, each padded to the alignment

A header may come from a stranger. Reading one costs memory and time in proportion to its own size,
which is bounded, and gives a consistent header or :class:`BadModelFile`.
"""

import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from p2pinfer.core.errors import BadModelFile
from p2pinfer.engine.gguf.ggml_types import GGML_TYPES, GgmlType
from p2pinfer.engine.gguf.values import STRUCT_CODES, Array, Metadata, Scalar, Value, ValueType

MAGIC = b"GGUF"
VERSION = 3
VERSIONS_READ = (2, 3)  # 3 only added big-endian files

HEADER_BYTES_MAX = 64 << 20
"""The largest vocabularies in use (262,144 tokens) make headers of about 16 MiB."""
PAIRS_MAX = 1024  # real files have about 30
TENSORS_MAX = 16_384  # real files have up to about 2,000
KEY_BYTES_MAX = 256
STRING_BYTES_MAX = 1 << 20  # the longest known are chat templates of under 100 KiB
ARRAY_ITEMS_MAX = 4 << 20  # the longest known are merges, about 600,000
TENSOR_NAME_BYTES_MAX = 63  # GGML_MAX_NAME, less its terminating zero
DIMENSIONS_MAX = 4  # GGML_MAX_DIMS
ALIGNMENT_BYTES_DEFAULT = 32
ALIGNMENT_BYTES_MAX = 64 << 10

_FIRST_READ_BYTES = 4 << 20  # holds the whole header of most models
_ALIGNMENT_KEY = "general.alignment"
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's name, sizes (fastest-varying first), storage type, and place in its file."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    """Bytes from the start of the file."""

    @property
    def nbytes(self) -> int:
        """Bytes without padding."""
        return tensor_bytes(self.shape, self.type)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A GGUF file without its tensors' bytes; ``name`` is what messages call the file."""

    name: str
    metadata: Metadata
    tensors: Mapping[str, Tensor]

    def integer(self, key: str) -> int | None:
        """Return an integer, or None if the key is absent; raises BadModelFile."""
        value = self._scalar(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise BadModelFile(f"{self.name} is damaged: {key} is not a whole number")

    def number(self, key: str) -> float | None:
        """Return an integer or float, or None if the key is absent; raises BadModelFile."""
        value = self._scalar(key)
        if isinstance(value, bool | str):
            raise BadModelFile(f"{self.name} is damaged: {key} is not a number")
        return value

    def string(self, key: str) -> str | None:
        """Return a string, or None if the key is absent; raises BadModelFile."""
        value = self._scalar(key)
        if value is None or isinstance(value, str):
            return value
        raise BadModelFile(f"{self.name} is damaged: {key} is not a string")

    def _scalar(self, key: str) -> Scalar | None:
        value = self.metadata.get(key)
        if isinstance(value, Array):
            raise BadModelFile(f"{self.name} is damaged: {key} is an array, not one value")
        return None if value is None else value.decode()


def tensor_bytes(shape: Sequence[int], ggml_type: GgmlType) -> int:
    """Return the bytes that a tensor takes, without padding."""
    return math.prod(shape) // ggml_type.block_elements * ggml_type.block_bytes


def read_header(path: Path) -> GgufHeader:
    """Read and check a file's header; raises BadModelFile."""
    try:
        with path.open("rb") as file:
            return _read_header(file, path.name)
    except OSError as error:
        raise BadModelFile(f"cannot read {path}: {error.strerror}; name a GGUF file") from error


def _read_header(file: BinaryIO, name: str) -> GgufHeader:
    file_bytes = file.seek(0, os.SEEK_END)
    prefix_bytes = _FIRST_READ_BYTES
    while True:
        file.seek(0)
        try:
            return parse_header(file.read(prefix_bytes), file_bytes, name)
        except _PrefixTooShort:
            prefix_bytes *= 4


def parse_header(prefix: bytes, file_bytes: int, name: str) -> GgufHeader:
    """Parse the header at the start of a file of ``file_bytes`` bytes; raises BadModelFile.

    ``prefix`` must hold the whole header.
    """
    cursor = _Cursor(prefix, file_bytes, name)
    if cursor.take(len(MAGIC)) != MAGIC:
        raise BadModelFile(f"{name} is not a GGUF file")
    version = cursor.u32()
    if version not in VERSIONS_READ:
        if version.to_bytes(4, "little") in (v.to_bytes(4, "big") for v in VERSIONS_READ):
            raise BadModelFile(f"{name} is a big-endian GGUF file, which this machine cannot use")
        raise BadModelFile(f"{name} has GGUF version {version}; only 2 and 3 can be used")
    tensor_count = cursor.count("tensors", TENSORS_MAX)
    pair_count = cursor.count("metadata keys", PAIRS_MAX)
    metadata: dict[str, Value | Array] = {}
    for _ in range(pair_count):
        key = cursor.text("a metadata key", KEY_BYTES_MAX)
        if key in metadata:
            raise cursor.bad(f"the key {key!r} appears twice")
        metadata[key] = cursor.value(key)
    tensors = _tensors(cursor, tensor_count, alignment_bytes(metadata, name))
    return GgufHeader(name, metadata, tensors)


def alignment_bytes(metadata: Metadata, name: str) -> int:
    """Return the tensor alignment in a file with this metadata; raises BadModelFile."""
    value = metadata.get(_ALIGNMENT_KEY)
    if value is None:
        return ALIGNMENT_BYTES_DEFAULT
    if isinstance(value, Value) and value.type is ValueType.UINT32:
        (alignment,) = _U32.unpack(value.raw)
        if 1 <= alignment <= ALIGNMENT_BYTES_MAX and alignment & (alignment - 1) == 0:
            return int(alignment)
    raise BadModelFile(f"{name} is damaged: {_ALIGNMENT_KEY} is not a power of two in range")


def padded(nbytes: int, alignment: int) -> int:
    """Round up to a multiple of ``alignment``."""
    return -(-nbytes // alignment) * alignment


def _tensors(cursor: "_Cursor", count: int, alignment: int) -> dict[str, Tensor]:
    """Read the tensor table, and check that the tensors are contiguous in the file."""
    table = [_tensor(cursor) for _ in range(count)]
    start = padded(cursor.at, alignment)
    tensors: dict[str, Tensor] = {}
    expected = 0
    for tensor in table:
        if tensor.name in tensors:
            raise cursor.bad(f"the tensor {tensor.name!r} appears twice")
        if tensor.offset != expected:  # llama.cpp, too, accepts no gaps, overlaps or other orders
            raise cursor.bad(f"the tensor {tensor.name!r} does not follow the one before it")
        end = start + expected + tensor.nbytes
        if end > cursor.file_bytes:
            raise BadModelFile(
                f"{cursor.name} is cut short: it has {cursor.file_bytes:,} bytes, and"
                f" {tensor.name!r} ends at {end:,}"
            )
        tensors[tensor.name] = Tensor(tensor.name, tensor.shape, tensor.type, start + expected)
        expected += padded(tensor.nbytes, alignment)
    return tensors


def _tensor(cursor: "_Cursor") -> Tensor:
    """Read one row of the tensor table; its offset counts from where the tensors begin."""
    name = cursor.text("a tensor's name", TENSOR_NAME_BYTES_MAX)
    dimensions = cursor.u32()
    if not 1 <= dimensions <= DIMENSIONS_MAX:
        raise cursor.bad(f"the tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.u64() for _ in range(dimensions))
    type_number = cursor.u32()
    ggml_type = GGML_TYPES.get(type_number)
    if ggml_type is None:
        raise cursor.bad(f"the tensor {name!r} has the unknown type {type_number}")
    if math.prod(shape) == 0:
        raise cursor.bad(f"the tensor {name!r} is empty")
    if shape[0] % ggml_type.block_elements:
        raise cursor.bad(f"a row of {name!r} is not a whole number of {ggml_type.name} blocks")
    return Tensor(name, shape, ggml_type, offset=cursor.u64())


class _PrefixTooShort(Exception):
    """The header goes on after the bytes at hand: read more, and parse again."""


class _Cursor:
    """A place in the header; each method advances it, or raises BadModelFile."""

    def __init__(self, prefix: bytes, file_bytes: int, name: str) -> None:
        self._prefix = prefix
        self.file_bytes = file_bytes
        self.name = name
        self.at = 0

    def bad(self, reason: str) -> BadModelFile:
        """Return the error for a header that contradicts itself."""
        return BadModelFile(f"{self.name} is damaged: {reason}")

    def short(self, end: int) -> Exception:
        """Return the error for a header that goes on to ``end``, past the bytes at hand."""
        if end > self.file_bytes:
            return BadModelFile(f"{self.name} is cut short: it ends within its header")
        if end > HEADER_BYTES_MAX:
            return self.bad(f"its header is longer than {HEADER_BYTES_MAX >> 20} MiB")
        return _PrefixTooShort()

    def take(self, nbytes: int) -> bytes:
        """Return the next bytes."""
        end = self.at + nbytes
        if end > len(self._prefix):
            raise self.short(end)
        taken = self._prefix[self.at : end]
        self.at = end
        return taken

    def u32(self) -> int:
        """Return the next 4 bytes as a number."""
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        """Return the next 8 bytes as a number."""
        return int.from_bytes(self.take(8), "little")

    def count(self, what: str, most: int) -> int:
        """Return the next 8 bytes as a count."""
        count = self.u64()
        if count > most:
            raise self.bad(f"it claims {count:,} {what}; {most:,} is the limit")
        return count

    def text(self, what: str, bytes_max: int) -> str:
        """Return a string that must not be empty."""
        raw = self.take(self.count(f"bytes in {what}", bytes_max))
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise self.bad(f"{what} is not UTF-8") from None
        if not text or "\0" in text:
            raise self.bad(f"{what} is empty or holds a zero")
        return text

    def value(self, key: str) -> Value | Array:
        """Return the value of a metadata key."""
        value_type = self._type(key)
        if value_type is ValueType.ARRAY:
            return self._array(key)
        start = self.at
        if value_type is ValueType.STRING:
            raw = self.take(self.count(f"bytes in {key!r}", STRING_BYTES_MAX))
            try:
                raw.decode()
            except UnicodeDecodeError:
                raise self.bad(f"{key!r} is not UTF-8") from None
        else:
            self._fixed(key, value_type, 1)
        return Value(value_type, self._prefix[start : self.at])

    def _type(self, key: str) -> ValueType:
        number = self.u32()
        try:
            return ValueType(number)
        except ValueError:
            raise self.bad(f"{key!r} has the unknown type {number}") from None

    def _array(self, key: str) -> Array:
        element = self._type(key)
        if element is ValueType.ARRAY:  # llama.cpp does not read them either
            raise self.bad(f"{key!r} is an array of arrays")
        count = self.count(f"items in {key!r}", ARRAY_ITEMS_MAX)
        start = self.at
        if element is ValueType.STRING:
            self._strings(count)
        else:
            self._fixed(key, element, count)
        return Array(element, count, self._prefix[start : self.at])

    def _fixed(self, key: str, value_type: ValueType, count: int) -> None:
        raw = self.take(count * struct.calcsize(f"<{STRUCT_CODES[value_type]}"))
        if value_type is ValueType.BOOL and raw.strip(b"\0\1"):
            raise self.bad(f"{key!r} holds a truth value that is neither 0 nor 1")

    def _strings(self, count: int) -> None:
        """Skip ``count`` strings; a vocabulary has 100,000, so this loop is kept bare."""
        if self.at + count * _U64.size > self.file_bytes:
            raise self.short(self.file_bytes + 1)
        prefix, at, unpack = self._prefix, self.at, _U64.unpack_from
        try:
            for _ in range(count):
                at += 8 + unpack(prefix, at)[0]
        except (struct.error, OverflowError):  # the next string is past the bytes at hand
            raise self.short(at + _U64.size) from None
        if at > len(prefix):
            raise self.short(at)
        self.at = at
