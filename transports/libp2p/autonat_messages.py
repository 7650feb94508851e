"""The messages of AutoNAT v2, by which a peer asks another to dial it.

https://github.com/libp2p/specs/blob/master/autonat/autonat-v2.md
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from transports.libp2p import protobuf

DIAL_REQUEST: Final = "/libp2p/autonat/2/dial-request"
DIAL_BACK: Final = "/libp2p/autonat/2/dial-back"

MESSAGE_BYTES_MAX = 8 * 1024
"""The longest message of the protocol; go-libp2p has the same limit."""

ADDRESSES_MAX = 50
"""In one request; the same as go-libp2p's."""

CHUNK_BYTES = 4096
"""Of the bytes that a server may ask for; the specification's most."""


class RequestStatus(IntEnum):
    """What a server says of a request as a whole."""

    INTERNAL_ERROR = 0
    REQUEST_REJECTED = 100
    """It has answered too many already."""
    DIAL_REFUSED = 101
    """It dials none of these addresses."""
    OK = 200


class DialStatus(IntEnum):
    """What a server says of the dial."""

    UNUSED = 0
    DIAL_ERROR = 100
    """It could not connect."""
    DIAL_BACK_ERROR = 101
    """It connected, but could not hand over the nonce."""
    OK = 200


@dataclass(frozen=True)
class DialRequest:
    """Asks to dial the first of these addresses that the server is willing to."""

    addresses: tuple[str, ...]
    nonce: int


@dataclass(frozen=True)
class DialDataRequest:
    """Asks for bytes first, so that a request costs its sender more than its target."""

    index: int
    size: int


@dataclass(frozen=True)
class DialDataResponse:
    """Some of those bytes."""

    size: int


@dataclass(frozen=True)
class DialResponse:
    """Says how it went."""

    status: RequestStatus
    index: int = 0
    dial_status: DialStatus = DialStatus.UNUSED


AutonatMessage = DialRequest | DialDataRequest | DialDataResponse | DialResponse


def encode(message: AutonatMessage) -> bytes:
    """Return a message with its length before it."""
    match message:
        case DialRequest(addresses, nonce):
            body = b"".join(protobuf.data(1, Multiaddr(each).to_bytes()) for each in addresses)
            return protobuf.delimited(protobuf.data(1, body + protobuf.fixed64(2, nonce)))
        case DialResponse(status, index, dial_status):
            body = protobuf.number(1, status) + protobuf.number(2, index)
            return protobuf.delimited(protobuf.data(2, body + protobuf.number(3, dial_status)))
        case DialDataRequest(index, size):
            body = protobuf.number(1, index) + protobuf.number(2, size)
            return protobuf.delimited(protobuf.data(3, body))
        case DialDataResponse(size):
            return protobuf.delimited(protobuf.data(4, protobuf.data(1, bytes(size))))


def decode(message: bytes) -> AutonatMessage:
    """Read a message without its length.

    Addresses that this program does not know are left out of a request as empty strings, so that
    the others keep their places.

    Raises:
        ValueError: it is none of the protocol's.
    """
    for kind, bodies in protobuf.parse(message).items():
        if kind in (1, 2, 3, 4) and isinstance(body := bodies[-1], bytes):
            return _decode(kind, protobuf.parse(body))
    raise ValueError("no message of AutoNAT")


def _decode(kind: int, fields: protobuf.Fields) -> AutonatMessage:
    if kind == 1:
        addresses = protobuf.all_data_of(fields, 1)[:ADDRESSES_MAX]
        return DialRequest(tuple(map(_address, addresses)), protobuf.number_of(fields, 2))
    if kind == 4:
        return DialDataResponse(len(protobuf.data_of(fields, 1) or b""))
    first, second = protobuf.number_of(fields, 1), protobuf.number_of(fields, 2)
    if kind == 3:
        return DialDataRequest(first, second)
    return DialResponse(RequestStatus(first), second, DialStatus(protobuf.number_of(fields, 3)))


def _address(encoded: bytes) -> str:
    try:
        return str(Multiaddr(encoded))
    except Exception:  # noqa: BLE001 - the library raises a dozen kinds for a stranger's bytes
        return ""


def encode_nonce(nonce: int) -> bytes:
    """Return the one message of a dial back."""
    return protobuf.delimited(protobuf.fixed64(1, nonce))


def decode_nonce(message: bytes) -> int:
    """Read it; raises ValueError."""
    return protobuf.number_of(protobuf.parse(message), 1)


TAKEN: Final = protobuf.delimited(protobuf.number(1, 0))
"""The answer to it: OK."""


def is_taken(message: bytes) -> bool:
    """Whether the answer is OK; raises ValueError."""
    return protobuf.number_of(protobuf.parse(message), 1) == 0
