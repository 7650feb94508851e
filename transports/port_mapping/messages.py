"""The messages of NAT-PMP (RFC 6886) and PCP (RFC 6887), by which a router is asked for a port.

Pure: bytes in, values out. Everything that a router sends by these two is checked here.
"""

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

SERVER_PORT: Final = 5351
"""Of the router, in both protocols."""

ANSWER_BYTES_MAX: Final = 1100
"""PCP's longest message (RFC 6887, section 7)."""

NONCE_BYTES: Final = 12
"""Of PCP: only who asked for a port can give it back."""

LEASE_S: Final = 3600
"""For which a port is asked: a machine that crashes leaves it open no longer."""

EPOCH_SLACK_S: Final = 2
"""What two clocks may differ by, beside an eighth of the time that has passed."""

_NATPMP_VERSION, _PCP_VERSION = 0, 2
_OUTSIDE, _NATPMP_TCP = 0, 2
_ANNOUNCE, _MAP = 0, 1
_ANSWER: Final = 0x80
_TCP: Final = 6

_NATPMP_HEAD: Final = struct.Struct(">BBHI")
"""Version, opcode, result, epoch in seconds."""
_NATPMP_MAP: Final = struct.Struct(">BBHHHI")
_NATPMP_MAPPED: Final = struct.Struct(">HHI")
_PCP_REQUEST: Final = struct.Struct(">BBHI16s")
_PCP_ANSWER: Final = struct.Struct(">BBBBII12x")
"""Version, opcode, reserved, result, lifetime and epoch in seconds."""
_PCP_MAP: Final = struct.Struct(">12sB3xHH16s")

UNSUPPORTED_VERSION: Final = 1
"""The result of both protocols that means: speak the other one."""

_NATPMP_REASONS: Final = {
    UNSUPPORTED_VERSION: "it speaks another version",
    2: "it is set not to",
    3: "it has no address itself",
    4: "it has no port left",
    5: "it does not know how",
}

_PCP_REASONS: Final = {
    UNSUPPORTED_VERSION: "it speaks another version",
    2: "it is set not to",
    3: "it cannot read the question",
    4: "it does not know how",
    5: "it does not know an option",
    6: "it cannot read an option",
    7: "it has no address itself",
    8: "it has no port left",
    9: "it passes on no TCP",
    10: "this machine holds too many ports",
    11: "it cannot give that port",
    12: "another NAT is between it and this machine",
    13: "it passes on for too many others",
}


class RouterAnswerError(ValueError):
    """What came is no answer to the question; the wait goes on."""


class RouterSilence(Exception):
    """The router does not answer, or says that nobody listens."""


class RouterRefusal(Exception):
    """The router says no; the text says why, for a person."""

    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Granted:
    """A port that a router passes on."""

    port: int
    """The outer one; 0 if it was given back."""
    lease_s: int
    epoch_s: int
    """Since when the router knows its ports: it runs backwards when they are lost."""
    host: str | None = None
    """The outer address, where the answer says it."""


@dataclass(frozen=True)
class Outside:
    """A router's outer address, as it says."""

    host: str
    epoch_s: int


def natpmp_outside() -> bytes:
    """Ask for the outer address (RFC 6886, section 3.2)."""
    return bytes([_NATPMP_VERSION, _OUTSIDE])


def natpmp_map(inner: int, outer: int, lease_s: int = LEASE_S) -> bytes:
    """Ask for a port (RFC 6886, section 3.3); with a lease of 0, give it back."""
    asked = outer if lease_s else 0
    return _NATPMP_MAP.pack(_NATPMP_VERSION, _NATPMP_TCP, 0, inner, asked, lease_s)


def read_natpmp_outside(answer: bytes) -> Outside:
    """Read the answer to `natpmp_outside`.

    Raises:
        RouterAnswerError: it is none.
        RouterRefusal: the router has no outer address, or does not tell it.
    """
    epoch_s, body = _natpmp_body(answer, _OUTSIDE, 4)
    return Outside(str(ipaddress.IPv4Address(body)), epoch_s)


def read_natpmp_map(answer: bytes, inner: int) -> Granted:
    """Read the answer to `natpmp_map`; raises as `read_natpmp_outside`."""
    epoch_s, body = _natpmp_body(answer, _NATPMP_TCP, _NATPMP_MAPPED.size)
    port, outer, lease_s = _NATPMP_MAPPED.unpack(body)
    return Granted(*_checked(port, inner, outer, lease_s), epoch_s)


def _natpmp_body(answer: bytes, opcode: int, size: int) -> tuple[int, bytes]:
    """Return the epoch, and what follows it."""
    if len(answer) < 4 or answer[0] != _NATPMP_VERSION or answer[1] != _ANSWER | opcode:
        raise RouterAnswerError("not an answer of NAT-PMP to this question")
    code = int.from_bytes(answer[2:4], "big")
    if code:
        raise RouterRefusal(_NATPMP_REASONS.get(code, f"error {code} of NAT-PMP"), code)
    if len(answer) < _NATPMP_HEAD.size + size:
        raise RouterAnswerError(f"an answer of {len(answer)} bytes is too short")
    epoch_s: int = _NATPMP_HEAD.unpack_from(answer)[3]
    return epoch_s, answer[_NATPMP_HEAD.size :][:size]


def pcp_map(own_host: str, nonce: bytes, inner: int, outer: int, lease_s: int = LEASE_S) -> bytes:
    """Ask for a port (RFC 6887, section 11.1); with a lease of 0, give it back.

    Args:
        own_host: this machine's address, as the router sees it.
        nonce: the same for all questions about one port.
        inner: the port that this machine listens on.
        outer: the wanted one.
        lease_s: in seconds.
    """
    assert len(nonce) == NONCE_BYTES, "the RFC says so"
    head = _PCP_REQUEST.pack(_PCP_VERSION, _MAP, 0, lease_s, _as_ipv6(own_host))
    return head + _PCP_MAP.pack(nonce, _TCP, inner, outer, _as_ipv6("0.0.0.0"))  # noqa: S104 - any


def pcp_announce(own_host: str) -> bytes:
    """Ask for a sign of life, and the epoch (RFC 6887, section 14.1)."""
    return _PCP_REQUEST.pack(_PCP_VERSION, _ANNOUNCE, 0, 0, _as_ipv6(own_host))


def read_pcp_map(answer: bytes, nonce: bytes, inner: int) -> Granted:
    """Read the answer to `pcp_map`; raises as `read_natpmp_outside`.

    A router that speaks NAT-PMP alone refuses in its own words, with `UNSUPPORTED_VERSION`.
    """
    lease_s, epoch_s, body = _pcp_body(answer, _MAP)
    if len(body) < _PCP_MAP.size:
        raise RouterAnswerError(f"an answer of {len(answer)} bytes is too short")
    found, protocol, port, outer, host = _PCP_MAP.unpack_from(body)
    if found != nonce or protocol != _TCP:
        raise RouterAnswerError("an answer to another question")
    outside = ipaddress.IPv6Address(host).ipv4_mapped
    if outside is None:
        raise RouterAnswerError("the outer address is not of IPv4")
    return Granted(*_checked(port, inner, outer, lease_s), epoch_s, str(outside))


def read_pcp_announce(answer: bytes) -> int:
    """Return the epoch, in seconds, of the answer to `pcp_announce`; raises as above."""
    return _pcp_body(answer, _ANNOUNCE)[1]


def _pcp_body(answer: bytes, opcode: int) -> tuple[int, int, bytes]:
    """Return the lifetime, the epoch, and what follows them."""
    if len(answer) >= 4 and answer[0] == _NATPMP_VERSION and answer[1] & _ANSWER:
        if int.from_bytes(answer[2:4], "big") == UNSUPPORTED_VERSION:
            raise RouterRefusal(_PCP_REASONS[UNSUPPORTED_VERSION], UNSUPPORTED_VERSION)
        raise RouterAnswerError("an answer of NAT-PMP")
    if len(answer) < 4 or answer[0] != _PCP_VERSION or answer[1] != _ANSWER | opcode:
        raise RouterAnswerError("not an answer of PCP to this question")
    if len(answer) > ANSWER_BYTES_MAX:
        raise RouterAnswerError("an answer of more bytes than PCP has")
    if code := answer[3]:
        raise RouterRefusal(_PCP_REASONS.get(code, f"error {code} of PCP"), code)
    if len(answer) < _PCP_ANSWER.size:
        raise RouterAnswerError(f"an answer of {len(answer)} bytes is too short")
    *_, lease_s, epoch_s = _PCP_ANSWER.unpack_from(answer)
    return lease_s, epoch_s, answer[_PCP_ANSWER.size :]


def _checked(port: int, inner: int, outer: int, lease_s: int) -> tuple[int, int]:
    """Return the outer port and the lease of an answer about this port."""
    if port != inner:
        raise RouterAnswerError("an answer about another port")
    if lease_s and not outer:
        raise RouterAnswerError("port 0 cannot be dialled")
    return outer, lease_s


def _as_ipv6(host: str) -> bytes:
    """Return an IPv4 address as PCP writes it."""
    return bytes(10) + b"\xff\xff" + ipaddress.IPv4Address(host).packed


def may_be_lost(before_s: int, elapsed_s: float, now_s: int) -> bool:
    """Whether a port may be lost, by the router's epoch (RFC 6886, 3.6; RFC 6887, 8.5).

    Either the router has restarted, or this machine has slept and its own clock stood still.

    Args:
        before_s: the epoch of an earlier answer.
        elapsed_s: since that answer, by this machine's clock.
        now_s: the epoch of the latest answer.
    """
    passed_s = now_s - before_s
    return (
        passed_s < elapsed_s * 7 / 8 - EPOCH_SLACK_S or passed_s > elapsed_s * 8 / 7 + EPOCH_SLACK_S
    )
