"""How a guest gets the key of a private network, once: for a token that an invitation holds.

The token takes the place of the network's key in a handshake of its own, whose name says which
token it is, so that both sides know what to prove. What follows is no connection: one record with
the network's key, and the end. No protocol of the network is spoken, and nothing is learnt of it
but that key and who gave it. The token is used up before the key is sent, so that of two who hold
it one gets nothing; a guest that loses the connection then needs another one.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import trio
from libp2p.abc import IHost, IRawConnection, ISecureConn, ISecureTransport
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectError
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.security_multistream import SecurityMultistream

from p2pinfer.core.errors import NobodyServes, UserError
from p2pinfer.core.ids import PeerId
from transports.identity import ephemeral_identity
from transports.libp2p.dialling import REACHED, numeric, place, relay_of, root
from transports.libp2p.guest_doors import add_doors
from transports.libp2p.guest_passage import PASSAGE, ThroughRelay, take_guests
from transports.libp2p.private_noise import PrivateNoise
from transports.secret import SECRET_BYTES, token_id

GUEST_NOISE: Final = "/p2pinfer/noise-guest/1/"
"""The handshake's name, before the token's id."""

_NO_SUCH_DOOR: Final = "protocols not supported"
"""What libp2p says of a peer that does not speak a handshake."""

ASK_S_MAX: Final = 10.0
"""For one address to answer a guest, and hand the key over."""

NOT_KNOWN = "the invitation was used already, or it was revoked or has expired: ask for another one"


class Guests(Protocol):
    """The tokens that a peer has given away and not got back."""

    def token(self, known: str) -> bytes | None:
        """Return the token of an id; None if it was used, revoked or never given."""
        ...

    def claim(self, known: str) -> bool:
        """Use a token up; whether it was still there."""
        ...


def admit_guests(host: IHost, key_pair: KeyPair, network_key: bytes, guests: Guests) -> None:
    """Hand a private network's key to guests that call this host and prove a token.

    Also to those that a relay passes on.
    """

    def door(name: str) -> ISecureTransport | None:
        known = name.removeprefix(GUEST_NOISE)
        token = guests.token(known) if name.startswith(GUEST_NOISE) else None
        if token is None:
            return None
        return _Door(key_pair, token, network_key, lambda: guests.claim(known))

    swarm: Any = host.get_network()
    add_doors(swarm.upgrader.security_multistream, door)
    take_guests(host, door)


class _TooLateError(Exception):
    """The token was used up by another guest at the same moment."""


def _noise(key_pair: KeyPair, token: bytes) -> PrivateNoise:
    noise = PrivateNoise(key_pair, noise_privkey=x25519_key_pair().private_key)
    noise.key = token
    return noise


class _Door(ISecureTransport):
    """The side that has the network's key."""

    def __init__(
        self, key_pair: KeyPair, token: bytes, network_key: bytes, claim: Callable[[], bool]
    ) -> None:
        self._noise, self._network_key, self._claim = _noise(key_pair, token), network_key, claim

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        """Hand the key over; raises, since what follows is no connection."""
        session = await self._noise.secure_inbound(conn)
        if self._claim():
            await session.write(self._network_key)
            await session.read(1)  # until the guest has read it, and hangs up
        raise HandshakeFailure("a guest has what it came for, or came too late")

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:  # noqa: ARG002
        """Raise: a member is nobody's guest."""
        raise HandshakeFailure("a guest's handshake is for those who call")


async def fetch_network_key(addresses: Sequence[str], token: bytes) -> bytes:
    """Return the network's key that the peer at one of the addresses gives for a token.

    Raises:
        UserError: a peer is there, and does not know the token any more.
        NobodyServes: none of them answers.
    """
    faults: list[str] = []
    for address in addresses:
        try:
            peer = ID.from_string(address.rpartition("/p2p/")[2])
            with trio.fail_after(ASK_S_MAX):
                for target in await numeric(address):
                    return await _ask(target, peer, token)
        except trio.TooSlowError:
            faults.append(f"{place(address)}: no answer within {ASK_S_MAX:g} s")
        except Exception as error:  # the other end of a handshake provokes any
            reason = root(error)
            if isinstance(error, _TooLateError) or _NO_SUCH_DOOR in reason:
                raise UserError(NOT_KNOWN) from error
            faults.append(f"{place(address)}: {reason}")
    raise NobodyServes(
        "the machine that made the invitation does not answer, and only it can let a guest in"
        f" ({'; '.join(faults)}): p2pinfer join must run there"
    )


async def _ask(address: str, peer: ID, token: bytes) -> bytes:
    """Call one numeric address as a guest, and return the key."""
    found = REACHED.fullmatch(address)
    if not found:
        raise ValueError("it cannot be dialled")
    port = int(found[3].split("/")[2])
    async with await trio.open_tcp_stream(found[2], port) as stream:
        raw = RawConnection(TrioTCPStream(stream), initiator=True)
        if relay := relay_of(address):
            await _pass_through(raw, relay, peer)
        name = TProtocol(GUEST_NOISE + token_id(token))
        guest = _noise(ed25519_key_pair(ephemeral_identity().seed), token)
        session = await SecurityMultistream({name: guest}).secure_outbound(raw, peer)
        key = b""
        with suppress(BaseLibp2pError):  # it hung up
            while len(key) < SECRET_BYTES and (more := await session.read(SECRET_BYTES - len(key))):
                key += more
    if len(key) != SECRET_BYTES:
        raise _TooLateError
    return key


async def _pass_through(raw: RawConnection, relay: PeerId, hidden: ID) -> None:
    """Have a relay put the peer behind it in its own place; raises ValueError if it does not."""
    known = SecurityMultistream({TProtocol(f"{PASSAGE}{hidden}"): ThroughRelay()})
    try:
        await known.select_transport(raw, is_initiator=True)
    except MultiselectError:
        raise ValueError(
            f"the relay {relay} is not held by that machine now, or lets no guests through"
        ) from None
