"""What relays, hidden peers and callers say to each other before a circuit carries bytes.

Circuit relay v2: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md
No message of ours holds a ``limit``: who sees one takes the circuit for one of a few kilobytes,
and refuses most protocols on it. Our relays limit rates instead, by reading no faster, which needs
no message.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from transports.libp2p import protobuf
from transports.libp2p.stream import Stream

HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"
"""Spoken by relays: to reserve, and to be connected."""

STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"
"""Spoken by hidden peers: a relay brings a caller."""

MESSAGE_BYTES_MAX = 4096
"""As the specification and go-libp2p have it."""

PEER_ID_BYTES_MAX = 64
"""An Ed25519 key's id is 38 bytes, the hash of any other key's 34."""

ADDRESSES_MAX = 16
"""Of a relay that are looked at; the rest are ignored."""

GOODBYE_S_MAX = 1.0
"""For the other side to read the last word on a stream and close it, too."""

_RESERVE, _CONNECT, _HOP_STATUS = 0, 1, 2
_STOP_CONNECT, _STOP_STATUS = 0, 1
_TYPE, _PEER, _RESERVATION, _STOP_STATUS_FIELD, _HOP_STATUS_FIELD = 1, 2, 3, 4, 5
_ID, _EXPIRE, _ADDRESSES = 1, 1, 2
_PACE_MS = 100
"""Of a message to a relay; circuit-v2 has no such field."""


class CircuitStatus(IntEnum):
    """What a request came to, in the specification's numbers."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


class MalformedMessage(Exception):
    """The remote sent what no correct peer sends."""


@dataclass(frozen=True)
class Reserve:
    """A hidden peer asks to be reachable through this relay."""


@dataclass(frozen=True)
class ConnectTo:
    """A caller asks to be connected with a hidden peer."""

    peer: ID
    pace_ms: int = 0
    """In what rhythm bytes are to be passed on; 0: as they come. Our own, for paths."""


@dataclass(frozen=True)
class RelayAnswer:
    """What a relay, or a hidden peer, says to that."""

    status: int
    expires_unix_s: int = 0
    """When a reservation ends; 0 where there is none."""
    addresses: tuple[str, ...] = ()
    """At which the relay says to be reached."""

    @property
    def name(self) -> str:
        """The status in words."""
        names = {each.value: each.name.lower().replace("_", " ") for each in CircuitStatus}
        return names.get(self.status, f"status {self.status}")


def read_hop_request(body: bytes) -> Reserve | ConnectTo:
    """Judge what came on a HOP stream at a relay; raises MalformedMessage."""
    kind, said = _parse(body)
    if kind == _RESERVE:  # for the one who asks, even if it names another
        return Reserve()
    if kind == _CONNECT:
        try:
            return ConnectTo(_peer(said), protobuf.number_of(said, _PACE_MS))
        except ValueError as error:
            raise MalformedMessage(str(error)) from error
    raise MalformedMessage("no request to a relay")


def read_hop_answer(body: bytes) -> RelayAnswer:
    """Judge what a relay answered; raises MalformedMessage."""
    kind, said = _parse(body)
    if kind != _HOP_STATUS:
        raise MalformedMessage("no answer of a relay")
    try:
        status = protobuf.number_of(said, _HOP_STATUS_FIELD)
        granted = protobuf.parse(protobuf.data_of(said, _RESERVATION) or b"")
        expires = protobuf.number_of(granted, _EXPIRE)
        raw = protobuf.all_data_of(granted, _ADDRESSES)[:ADDRESSES_MAX]
    except ValueError as error:
        raise MalformedMessage(str(error)) from error
    return RelayAnswer(status, expires, tuple(text for each in raw if (text := _address(each))))


def read_stop_request(body: bytes) -> ID:
    """Return the caller that a relay brings; raises MalformedMessage."""
    kind, said = _parse(body)
    if kind != _STOP_CONNECT:
        raise MalformedMessage("no call")
    return _peer(said)


def read_stop_answer(body: bytes) -> RelayAnswer:
    """Judge what a hidden peer answered; raises MalformedMessage."""
    kind, said = _parse(body)
    if kind != _STOP_STATUS:
        raise MalformedMessage("no answer to a call")
    try:
        return RelayAnswer(protobuf.number_of(said, _STOP_STATUS_FIELD))
    except ValueError as error:
        raise MalformedMessage(str(error)) from error


def reserve_request() -> bytes:
    """Ask a relay for a reservation."""
    return protobuf.delimited(protobuf.number(_TYPE, _RESERVE))


def connect_request(peer: ID, pace_ms: int = 0) -> bytes:
    """Ask a relay for a circuit; those of before pass over what they do not know."""
    return _with_peer(_CONNECT, peer, protobuf.number(_PACE_MS, pace_ms) if pace_ms else b"")


def reserved(expires_unix_s: int, addresses: list[str]) -> bytes:
    """Grant a reservation."""
    raw = [protobuf.data(_ADDRESSES, Multiaddr(address).to_bytes()) for address in addresses]
    granted = protobuf.number(_EXPIRE, expires_unix_s) + b"".join(raw)
    return protobuf.delimited(
        protobuf.number(_TYPE, _HOP_STATUS)
        + protobuf.data(_RESERVATION, granted)
        + protobuf.number(_HOP_STATUS_FIELD, CircuitStatus.OK)
    )


def hop_answer(status: CircuitStatus) -> bytes:
    """Answer a request to a relay."""
    return protobuf.delimited(
        protobuf.number(_TYPE, _HOP_STATUS) + protobuf.number(_HOP_STATUS_FIELD, status)
    )


def stop_request(caller: ID) -> bytes:
    """Bring a caller to a hidden peer."""
    return _with_peer(_STOP_CONNECT, caller)


def stop_answer(status: CircuitStatus) -> bytes:
    """Answer a call."""
    return protobuf.delimited(
        protobuf.number(_TYPE, _STOP_STATUS) + protobuf.number(_STOP_STATUS_FIELD, status)
    )


async def hang_up(stream: Stream) -> None:
    """Close a stream whose last word was said, once the other side has read it."""
    stream.finish()
    with trio.move_on_after(GOODBYE_S_MAX):
        await stream.wait_end()
    stream.abort()


def _with_peer(kind: int, peer: ID, more: bytes = b"") -> bytes:
    named = protobuf.data(_ID, peer.to_bytes())
    return protobuf.delimited(protobuf.number(_TYPE, kind) + protobuf.data(_PEER, named) + more)


def _parse(body: bytes) -> tuple[int, protobuf.Fields]:
    try:
        said = protobuf.parse(body)
        if _TYPE not in said:
            raise ValueError("a message without a type")
        return protobuf.number_of(said, _TYPE), said
    except ValueError as error:
        raise MalformedMessage(str(error)) from error


def _peer(said: protobuf.Fields) -> ID:
    try:
        raw = protobuf.data_of(protobuf.parse(protobuf.data_of(said, _PEER) or b""), _ID) or b""
    except ValueError as error:
        raise MalformedMessage(str(error)) from error
    if not 2 < len(raw) <= PEER_ID_BYTES_MAX:
        raise MalformedMessage(f"a peer id of {len(raw)} bytes")
    return ID(raw)


def _address(raw: bytes) -> str:
    """Return an address as text, empty if it is none."""
    try:
        return str(Multiaddr(raw))
    except Exception:  # noqa: BLE001 - multiaddr has many, and an odd address harms nobody
        return ""
