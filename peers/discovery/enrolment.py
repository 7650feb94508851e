"""Staying a member of a network of founders: grants are renewed, and who has none is let go.

Before an epoch ends, each member asks peers until enough founders have signed for the next one; who
was expelled gets nothing from them. When it begins, connected peers show each other that they are
still members, on the connections that they have, so that no session notices. Two minutes later
those who have not are parted from.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Protocol

import trio
from attrs import evolve

from p2pinfer.core.enrolment import AskGrant, GrantIs, StillIn
from p2pinfer.core.errors import P2pinferError, PeerError, RemoteProtocolError, UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Denied, Message, Refusal
from peers.steps.messaging import receive, send
from transports.base import Channel
from transports.blocklist import GuardedTransport
from transports.envelope import BadEnvelopeError, EnvelopeKey, seal, unseal
from transports.identity import Identity, peer_of, public_key, verify
from transports.membership import Founding, Grant, NotAMemberError

_log = logging.getLogger("p2pinfer.enrolment")

ENROLMENT = "enrolment"

LOOK_S = 30.0
"""How often a member looks whether something is due: several times within the grace of an epoch."""

ASK_S = 300.0
"""How often founders are asked for the next epoch's grants, while they are lacking."""

ASKED_MAX = 16
"""Peers asked at a time, others each time: which of them are founders is not known."""

SHOWN_MAX = 64
"""Connected peers that proofs are exchanged with at a time; the rest follow at the next look, and
of two peers either may begin."""

EXCHANGE_S_MAX = 10.0
"""For 4 kB."""

EXCHANGES_MAX = 8
"""Answered at once; a peer that calls beyond that comes again."""

PURPOSE = b"grant"

_NO_BINDING = b""
"""The channel says who is there; only a handshake has a hash."""

_GRANT_BYTES = 9 + 64


class Enrolled(Protocol):
    """This machine's part in a network.

    Calls may read or write a few kilobytes, some once a week, and raise UserError.
    """

    @property
    def founding(self) -> Founding:
        """The network's."""
        ...

    @property
    def identity(self) -> Identity:
        """The member key."""
        ...

    def prove(self, me: PeerId, other: PeerId, binding: bytes) -> bytes:
        """Return a proof of membership; raises NotAMemberError."""
        ...

    def admit(self, proof: bytes, other: PeerId, me: PeerId, binding: bytes) -> None:
        """Take a proof; raises NotAMemberError."""
        ...

    def lapsed(self) -> list[PeerId]:
        """Return the peers that were admitted, and would not be now."""
        ...

    def behind(self) -> list[PeerId]:
        """Return the peers with which proofs of the newest epoch were not exchanged."""
        ...

    def lacks(self) -> list[int]:
        """Return the epochs, of this one and the next, that are not granted."""
        ...

    def renew_own(self) -> None:
        """As a founder, sign for this machine."""
        ...

    def sign_for(self, member: bytes, epoch: int) -> Grant | None:
        """Return a grant, as a founder; None where there is to be none."""
        ...

    def take(self, grants: Sequence[Grant]) -> None:
        """Keep grants that hold."""
        ...

    def forget(self, peer: PeerId) -> None:
        """Forget a peer's proof."""
        ...


class Enrolment:
    """Keeps this machine a member, and those that are none away.

    Args:
        transport: to the others.
        part: this machine's in the network.
        known: returns peers that may be founders, and their addresses.
        chance: picks which of them to ask.
        secret: returns as many random bytes.
    """

    def __init__(
        self,
        transport: GuardedTransport,
        part: Enrolled,
        known: Callable[[], Sequence[tuple[PeerId, tuple[str, ...]]]],
        chance: Random,
        secret: Callable[[int], bytes],
    ) -> None:
        self._transport, self._part, self._known = transport, part, known
        self._chance, self._secret = chance, secret
        self._answering = 0
        self._asked_s = -ASK_S

    def listen(self) -> None:
        """Answer other members from now on."""
        self._transport.handle(ENROLMENT, self._answer)

    async def run(self) -> None:
        """Do what is due, for ever."""
        while True:
            try:
                await self.look()
            except UserError as error:  # such as a full disk
                _log.warning("%s", error)
            await trio.sleep(LOOK_S * self._chance.uniform(0.8, 1.0))

    async def look(self) -> None:
        """Do what is due now; raises UserError."""
        lacking: list[int] = self._part.lacks()
        if lacking:
            self._part.renew_own()
            lacking = self._part.lacks()
        if lacking and trio.current_time() >= self._asked_s + ASK_S:
            self._asked_s = trio.current_time()
            await self._ask_founders(lacking)
        for peer in self._part.behind():
            if not self._transport.is_connected(peer):
                self._part.forget(peer)
        async with trio.open_nursery() as nursery:
            for peer in self._part.behind()[:SHOWN_MAX]:
                nursery.start_soon(self._show, peer)
        for peer in self._part.lapsed():
            _log.info("%s is no member any more", peer)
            self._part.forget(peer)
            self._transport.part(peer)

    async def _ask_founders(self, epochs: Sequence[int]) -> None:
        known = dict(self._known())
        known.pop(self._transport.peer_id, None)
        some = self._chance.sample(sorted(known), min(len(known), ASKED_MAX))
        async with trio.open_nursery() as nursery:
            for peer in some:
                nursery.start_soon(self._ask, peer, known[peer], epochs)

    async def _ask(self, peer: PeerId, addresses: tuple[str, ...], epochs: Sequence[int]) -> None:
        me = self._part.identity
        try:
            with trio.move_on_after(EXCHANGE_S_MAX):
                channel = await self._transport.open(peer, ENROLMENT, addresses)
                try:
                    for epoch in epochs:
                        key = EnvelopeKey(self._secret(32))
                        asked = AskGrant(public_key(me.peer_id), epoch, key.public, bytes(64))
                        await send(channel, evolve(asked, signature=me.sign(asked.to_sign())))
                        answer: GrantIs | Denied = await receive(channel, GrantIs, Denied)
                        if isinstance(answer, Denied):
                            return  # no founder, or one that has expelled this machine
                        await self._take(peer, key, answer, epoch)
                finally:
                    await channel.close()
        except P2pinferError as error:
            _log.debug("no grant from %s: %s", peer, error)

    async def _take(self, peer: PeerId, key: EnvelopeKey, answer: GrantIs, epoch: int) -> None:
        me = self._part.identity.peer_id
        try:
            opened = unseal(me, key, PURPOSE, answer.envelope)
            found = read_grant(opened.message)
        except (BadEnvelopeError, ValueError) as error:
            raise RemoteProtocolError(peer, f"its grant cannot be read: {error}") from error
        by = self._part.founding.founders
        if found.epoch != epoch or by.index(public_key(opened.sender)) != found.founder:
            raise RemoteProtocolError(peer, "its grant is another founder's, or epoch's")
        self._part.take([found])

    async def _show(self, peer: PeerId) -> None:
        """Exchange proofs of the new epoch with a connected peer."""
        try:
            with trio.move_on_after(EXCHANGE_S_MAX):
                channel = await self._transport.open(peer, ENROLMENT)
                try:
                    await self._send_proof(channel)
                    await self._admit(channel, await receive(channel, StillIn))
                finally:
                    await channel.close()
        except PeerError as error:
            _log.debug("%s has not shown that it is a member: %s", peer, error)

    async def _answer(self, channel: Channel) -> None:
        if self._answering >= EXCHANGES_MAX:
            return
        self._answering += 1
        try:
            with trio.move_on_after(EXCHANGE_S_MAX):
                while True:
                    asked: AskGrant | StillIn = await receive(channel, AskGrant, StillIn)
                    if isinstance(asked, StillIn):
                        await self._admit(channel, asked)
                        await self._send_proof(channel)
                    else:
                        await send(channel, await self._grant(channel.remote, asked))
        except P2pinferError as error:  # it knows enough; or the register cannot be read
            _log.debug("%s", error)
        finally:
            self._answering -= 1

    async def _grant(self, peer: PeerId, asked: AskGrant) -> Message:
        member = peer_of(asked.member)
        if not verify(member, asked.to_sign(), asked.signature):
            raise RemoteProtocolError(peer, "its question for a grant is not signed by the member")
        try:
            made: Grant | None = self._part.sign_for(asked.member, asked.epoch)
            if made is None:
                return Denied(0, Refusal.NOT_HELD)
            write = partial(seal, self._part.identity, member, asked.sealing_key, PURPOSE)
            return GrantIs(write(write_grant(made)))
        except ValueError as error:
            raise RemoteProtocolError(peer, f"its question for a grant: {error}") from error

    async def _send_proof(self, channel: Channel) -> None:
        me = self._transport.peer_id
        try:
            proof: bytes = self._part.prove(me, channel.remote, _NO_BINDING)
        except NotAMemberError as error:
            raise PeerError(channel.remote, str(error)) from error
        await send(channel, StillIn(proof))

    async def _admit(self, channel: Channel, shown: StillIn) -> None:
        remote, me = channel.remote, self._transport.peer_id
        try:
            self._part.admit(shown.proof, remote, me, _NO_BINDING)
        except NotAMemberError as error:
            raise RemoteProtocolError(remote, str(error)) from error


def write_grant(made: Grant) -> bytes:
    """Return a grant as bytes."""
    return made.epoch.to_bytes(8, "little") + bytes([made.founder]) + made.shown + made.secret


def read_grant(data: bytes) -> Grant:
    """Read a grant; raises ValueError."""
    if len(data) != _GRANT_BYTES:
        raise ValueError("a grant has another length")
    return Grant(int.from_bytes(data[:8], "little"), data[8], data[9:41], data[41:])
