"""An invitation into a swarm: one line to send, or to scan, that says all a newcomer must know.

``P2PINFER:`` and base32 without padding: letters and digits that survive any messenger, in any
case, and that a QR code holds in its dense mode. Inside: a version, the length, a msgpack array of
the fields, and four bytes of their BLAKE3, so that a slip is told from an invitation to somewhere
else. The invitation into a private network holds its key, unless it is for a single guest.
"""

import base64
import re
from typing import Any, Final

import msgpack
from attrs import field, frozen
from blake3 import blake3

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from transports.base import NETWORK_NAME
from transports.secret import SECRET_BYTES

SCHEME: Final = "P2PINFER:"

VERSION: Final = 1

ADDRESSES_MAX: Final = 3
"""Ways in. With more of them the QR code outgrows the width of a terminal."""

ADDRESS_BYTES_MAX: Final = 128
"""In multiaddr's own encoding; a circuit over IPv6 takes 103."""

CHARS_MAX: Final = 2048
"""Looked at; the longest invitation has some 800."""

SHOWN_CHARS: Final = 24
"""Of what a person typed instead of an invitation."""

_CHECK_BYTES: Final = 4
_HEAD: Final = 3
"""The version, and two bytes for the length of all that is encoded."""

_BASE32: Final = re.compile(r"[A-Z2-7]*")


@frozen
class Invitation:
    """What a newcomer must know to enter a swarm."""

    network: str = "main"
    key: bytes | None = field(default=None, repr=False)
    """The key of a private network."""
    model: ModelId | None = None
    """The model that it is about; None leaves that to the swarm."""
    addresses: tuple[str, ...] = ()
    """Multiaddrs of peers in the swarm, at most `ADDRESSES_MAX`."""
    token: bytes | None = field(default=None, repr=False)
    """What one guest gets the key for, once, from the peer there; instead of the key."""


def link_of(invitation: Invitation) -> str:
    """Return the line that stands for an invitation."""
    fields = [
        invitation.network,
        invitation.token or invitation.key or b"",
        bytes.fromhex(invitation.model or ""),
        [_packed(address) for address in invitation.addresses],
        invitation.token is not None,
    ]
    body: bytes = msgpack.packb(fields)
    length = _HEAD + len(body) + _CHECK_BYTES
    said = bytes([VERSION]) + length.to_bytes(2, "big") + body
    encoded = base64.b32encode(said + _check(said)).decode().rstrip("=")
    return SCHEME + encoded


def read_link(text: str) -> Invitation:
    """Return the invitation that a line stands for; spaces and line ends in it do not count.

    Raises:
        UserError: it is none, or not whole.
    """
    link = "".join(text[:CHARS_MAX].split()).upper()
    if not link.startswith(SCHEME):
        raise UserError(
            f"{_shown(text)} is not an invitation: one begins with {SCHEME}, and p2pinfer invite"
            " prints it"
        )
    encoded = link.removeprefix(SCHEME)
    if not _BASE32.fullmatch(encoded):
        wrong = sorted(set(_BASE32.sub("", encoded)))
        raise UserError(
            f"the invitation is mistyped: {' '.join(wrong)} cannot be in one, which has letters and"
            " the digits 2 to 7 only; copy it again"
        )
    head = base64.b32decode(encoded[:8].ljust(8, "A"))
    if len(encoded) >= 2 and head[0] > VERSION:
        raise UserError(
            "the invitation comes from a newer p2pinfer: update the one on this machine"
        )
    there, due = len(encoded), _chars(int.from_bytes(head[1:_HEAD], "big"))
    if there < 8 or there < due:
        missing = f", {due - there} are missing at its end" if there >= 8 else ""
        raise UserError(f"the invitation is cut short{missing}: copy all of it")
    said = base64.b32decode(encoded + "=" * (-there % 8)) if there == due else b""
    body, check = said[:-_CHECK_BYTES], said[-_CHECK_BYTES:]
    if _check(body) != check:
        raise UserError("the invitation is mistyped, or something was added to it: copy it again")
    try:
        return _parsed(body[_HEAD:])
    except Exception as error:  # msgpack's and multiaddr's are five families
        raise UserError(
            f"the invitation says nothing that this p2pinfer understands ({error}): ask for another"
        ) from error


def _parsed(body: bytes) -> Invitation:
    """Return what a body says; raises ValueError, or whatever the libraries raise."""
    network, key, model, addresses, is_once = msgpack.unpackb(body)
    if not (isinstance(network, str) and NETWORK_NAME.fullmatch(network)):
        raise ValueError("the network has no name")
    if not (isinstance(key, bytes) and len(key) in (0, SECRET_BYTES)):
        raise ValueError("the key has another length")
    if not isinstance(is_once, bool) or (is_once and not key):
        raise ValueError("the token is missing")
    if not (isinstance(model, bytes) and len(model) in (0, SECRET_BYTES)):
        raise ValueError("the model's id has another length")
    if not (isinstance(addresses, list) and len(addresses) <= ADDRESSES_MAX):
        raise ValueError("there are too many addresses")
    found = tuple(_unpacked(each) for each in addresses)
    about = ModelId(model.hex()) if model else None
    if is_once:
        return Invitation(network, None, about, found, key)
    return Invitation(network, key or None, about, found)


def _packed(address: str) -> bytes:
    return bytes(_multiaddr()(address).to_bytes())


def _unpacked(packed: object) -> str:
    if not (isinstance(packed, bytes) and len(packed) <= ADDRESS_BYTES_MAX):
        raise ValueError("an address is too long")
    return str(_multiaddr()(packed))


def _multiaddr() -> Any:
    from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

    return Multiaddr  # a tenth of a second of imports


def _chars(length: int) -> int:
    """Return how many characters of base32 that many bytes take."""
    return -(-length * 8 // 5)


def _check(said: bytes) -> bytes:
    return blake3(said).digest(_CHECK_BYTES)


def _shown(text: str) -> str:
    """Return the beginning of what a person typed; a key that it may hold stays out of logs."""
    return repr(text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…")
