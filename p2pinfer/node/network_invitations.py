"""How a machine becomes a member of a network of founders: two lines that people send each other.

    p2pinfer-member:…     a request: the member's key, the key to seal with, and its signature
    p2pinfer-network:…    an invitation: the network's file with a founder's grants, sealed for it

What follows the colon is base64. The request may be read by everybody; who changes it breaks it. An
invitation says who made it, and opens only for the member; the person who gets it decides whether
that founder is the right one.
"""

import base64
import binascii
import re
import time
from typing import Final

from attrs import evolve, frozen

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.node.inviting import ways_into
from p2pinfer.node.known_peers import KnownPeers
from p2pinfer.node.networks import (
    FILE_BYTES_MAX,
    Invited,
    Membership,
    NetworkFile,
    Register,
    member_key,
    network_path,
    read_network,
    register_path_of,
    sealing_key,
    write_network,
)
from transports.base import Reach
from transports.envelope import SEALING_KEY_BYTES, BadEnvelopeError, seal, unseal
from transports.identity import Identity, peer_of, public_key, verify

REQUEST: Final = "p2pinfer-member:"
INVITATION: Final = "p2pinfer-network:"

_PURPOSE: Final = b"invitation"
_SIGNED_AS: Final = b"p2pinfer member request 1\0"
_SPACE: Final = re.compile(r"\s+")
"""Mail programs break long lines."""


@frozen
class Request:
    """What a machine says that wants to be a member."""

    member: PeerId
    sealing_key: bytes


def write_request(member: Identity) -> str:
    """Return a member's request."""
    body = public_key(member.peer_id) + sealing_key(member).public
    return REQUEST + _text(body + member.sign(_SIGNED_AS + body))


def read_request(text: str) -> Request:
    """Read a request; raises UserError."""
    data = _bytes(text, REQUEST, "what p2pinfer network join prints on the new machine")
    body, signature = data[:-64], data[-64:]
    if len(body) != 32 + SEALING_KEY_BYTES:
        raise UserError("the request is not whole: copy all of what p2pinfer network join printed")
    member = peer_of(body[:32])
    if not verify(member, _SIGNED_AS + body, signature):
        raise UserError("the request was changed on its way: copy all of it again")
    return Request(member, body[32:])


def invite_member(part: Membership, asked: Request, name: str) -> str:
    """Sign for a member and write it down; return its invitation; raises UserError."""
    founding = part.founding
    if not part.is_founder:
        raise UserError(f"this machine is no founder of {founding.network}: only those can invite")
    if asked.member == part.member:  # a founder of several: the others need not write it down
        part.renew_own()
    register = Register(register_path_of(part))
    known = register.read().get(asked.member)
    since = known.since_s if known else time.time_ns() // 10**9
    register.put(asked.member, Invited(name or (known.name if known else ""), since))
    now = part.epoch_now
    key = public_key(asked.member)
    grants = tuple(made for epoch in (now, now + 1) if (made := part.sign_for(key, epoch)))
    addresses = ways_into(founding.network, founding.key) or part.addresses
    said = NetworkFile(founding, grants, addresses).encode().encode()
    try:
        sealed = seal(part.identity, asked.member, asked.sealing_key, _PURPOSE, said)
    except ValueError as error:
        raise UserError(f"the request cannot be used: {error}") from error
    return INVITATION + _text(sealed)


def accept(text: str) -> Membership:
    """Keep an invitation for this machine; raises UserError."""
    me = member_key()
    data = _bytes(text, INVITATION, "what p2pinfer network invite prints on a founder's machine")
    try:
        opened = unseal(me.peer_id, sealing_key(me), _PURPOSE, data)
        found = NetworkFile.decode(opened.message[:FILE_BYTES_MAX])
    except (BadEnvelopeError, ValueError) as error:
        raise UserError(
            f"the invitation cannot be opened here: {error}; it is for one machine, and is used"
            " there by the same user"
        ) from error
    founding, name = found.founding, public_key(me.peer_id)
    if public_key(opened.sender) not in founding.founders:
        raise UserError(f"{opened.sender} invites, and is no founder of {founding.network}")
    path = network_path(founding.network)
    before = NetworkFile(founding)
    if path.exists():
        before = read_network(path)
        if before.founding != founding:
            raise UserError(
                f"this machine is in another network with the name {founding.network}: move"
                f" {path} away first"
            )
    kept = evolve(before, addresses=found.addresses or before.addresses)
    write_network(path, kept.with_grants(found.grants, name))
    _remember(kept)
    made = Membership(path, me)
    made.renew_own()
    return made


def _remember(found: NetworkFile) -> None:
    """Have peers here look first where the founder's were."""
    places: dict[PeerId, tuple[str, ...]] = {}
    for address in found.addresses:
        peer = PeerId(address.rpartition("/p2p/")[2])
        places[peer] = (*places.get(peer, ()), address)
    now_s = time.time_ns() / 1e9
    known = KnownPeers(Reach(found.founding.network, found.founding.key))
    known.put({peer: (addresses, 0.0) for peer, addresses in places.items()}, now_s)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


def _bytes(text: str, kind: str, what: str) -> bytes:
    text = _SPACE.sub("", text)
    if not text.startswith(kind):
        raise UserError(f"this does not begin with {kind} as {what}")
    try:
        return base64.b64decode(text.removeprefix(kind), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"it is damaged ({error}): copy all of {what}") from error
