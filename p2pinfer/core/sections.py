"""Files of evidence: named sections, each with its hash, and one signature over all of them.

    magic, sections, signature
    section    length of the name (1 byte), name, length of the body (4 bytes, little-endian), body,
               BLAKE3 of all that in 32 bytes
    signature  Ed25519 by the author, 64 bytes, over a prefix and the BLAKE3 of all before

Each body is msgpack. Every byte is covered twice, so a changed one is noticed and its section
named; changing a section together with its hash breaks the author's signature.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import msgpack
from blake3 import blake3

from p2pinfer.core.receipts import SIGNATURE_BYTES, BadReceipt

T = TypeVar("T")

SECTIONS_MAX = 256
_HASH_BYTES = 32


class BadFile(ValueError):
    """The file is not of this kind, or part of it was changed; the text says where."""


def write(magic: bytes, sections: Mapping[str, Any]) -> bytes:
    """Return a file without its signature."""
    return magic + b"".join(_section(name, values) for name, values in sections.items())


def to_sign(prefix: bytes, body: bytes) -> bytes:
    """Return the bytes that the author signs for a file's body."""
    return prefix + blake3(body).digest()


def read(
    data: bytes, magic: bytes, bytes_max: int, build: Callable[[dict[str, Any]], T]
) -> tuple[T, bytes, bytes]:
    """Return what ``build`` makes of a file's sections, the body, and the unchecked signature.

    Raises:
        BadFile: it is damaged, not of this kind, or not what ``build`` and ``body`` would write.
    """
    if not data.startswith(magic):
        kind = magic.decode().strip()
        raise BadFile(f"bytes 0 to {len(magic) - 1}: the file does not begin like a {kind}")
    if len(data) > bytes_max:
        raise BadFile(f"the file is longer than {bytes_max} bytes")
    body, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
    sections = dict(_sections(body, len(magic)))
    try:
        found: Any = build(sections)
        if found.body() != body:  # an order, a name or an encoding that p2pinfer never writes
            raise ValueError("its encoding is not the canonical one")
    except (ValueError, TypeError, KeyError, IndexError, BadReceipt) as error:
        raise BadFile(f"the sections do not fit together: {error}"[:300]) from error
    return found, body, signature


def _section(name: str, values: Any) -> bytes:
    packed: bytes = msgpack.packb(values)
    head = bytes([len(name)]) + name.encode() + len(packed).to_bytes(4, "little") + packed
    return head + blake3(head).digest()


def _sections(body: bytes, at: int) -> Iterator[tuple[str, Any]]:
    number = 0
    while at < len(body):
        start, number = at, number + 1
        name_end = start + 1 + body[start]
        size_end = name_end + 4
        end = size_end + int.from_bytes(body[name_end:size_end], "little")
        name = body[start + 1 : name_end].decode("ascii", "replace")
        shown = name if name.replace(" ", "").isalnum() else f"number {number}"
        where = f"section {shown}, bytes {start} to {min(end + _HASH_BYTES, len(body)) - 1}"
        at = end + _HASH_BYTES
        if at > len(body) or blake3(body[start:end]).digest() != body[end:at]:
            raise BadFile(f"{where}: it is damaged")
        if number > SECTIONS_MAX:
            raise BadFile(f"{where}: there are too many sections")
        try:
            yield name, msgpack.unpackb(body[size_end:end], use_list=False)
        except Exception as error:  # msgpack raises five families
            raise BadFile(f"{where}: it is not msgpack") from error
