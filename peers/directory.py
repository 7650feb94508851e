"""Who serves what: every peer keeps all advertisements that it heard, and compares notes.

Each advertisement is signed by the peer that it speaks of, so anyone may pass it on and nobody can
invent one. Every few seconds a peer exchanges all it knows with one other; an advertisement that
was not renewed in time is forgotten. What one peer says it serves is a hint until it has answered.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass

import trio
from attrs import evolve

from p2pinfer.core.errors import PeerError, PeerUnavailable, lone_errors
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.messages import ADVERTISEMENTS_MAX, Advertisement, Heard, Known
from p2pinfer.core.wire import BadMessage, decode, encode
from peers.talk import DIRECTORY, receive, send
from transports.base import Channel, Transport
from transports.identity import Identity, verify

_log = logging.getLogger("p2pinfer.directory")

RENEW_S = 10.0
"""How often a peer signs a new advertisement of itself."""

EXPIRE_S = 35.0
"""Three renewals missed: the peer is gone, or cut off."""

EXCHANGE_S = 5.0
"""How often a peer compares notes with another."""

EXCHANGE_S_MAX = 10.0
"""How long one comparison may take."""


@dataclass(frozen=True)
class _Entry:
    advertisement: Advertisement
    heard: Heard
    made_at: float
    """By this peer's own clock, in seconds."""


class Directory:
    """What this peer knows of the swarm, and says of itself."""

    def __init__(self, transport: Transport, identity: Identity, chance: random.Random) -> None:
        self._transport, self._identity, self._chance = transport, identity, chance
        self._entries: dict[PeerId, _Entry] = {}
        self._own: Advertisement | None = None

    def listen(self) -> None:
        """Answer others from now on."""
        self._transport.handle(DIRECTORY, self._answer)

    def advertise(self, advertisement: Advertisement) -> None:
        """Say this of the own peer from now on."""
        self._own = advertisement
        self._renew()

    def serving(self, model: ModelId) -> list[Advertisement]:
        """Return what other peers are known to serve of a model."""
        return [a for a in self.holding(model) if a.first < a.end]

    def holding(self, model: ModelId) -> list[Advertisement]:
        """Return the other peers that hold something of a model, those that still join too."""
        self._forget_the_silent()
        found = (entry.advertisement for entry in self._entries.values())
        return [a for a in found if a.model == model and a.peer != self._transport.peer_id]

    def models(self) -> dict[ModelId, str]:
        """Return the names of all models that are known to be served."""
        self._forget_the_silent()
        return {e.advertisement.model: e.advertisement.model_name for e in self._entries.values()}

    async def run(self, ways_in: Sequence[str]) -> None:
        """Renew the own advertisement and compare notes, for ever.

        Args:
            ways_in: addresses that are tried again and again while nobody is known.
        """
        renewed = trio.current_time()
        while True:
            await trio.sleep(EXCHANGE_S)
            if self._own and trio.current_time() - renewed >= RENEW_S:
                self._renew()
                renewed = trio.current_time()
            self._forget_the_silent()
            others = sorted(self._entries.keys() - {self._transport.peer_id})
            try:
                if others:
                    await self.exchange(self._chance.choice(others))
                else:
                    await self.enter(ways_in)
            except PeerError as error:
                _log.info("%s", error)

    async def enter(self, ways_in: Sequence[str]) -> list[PeerError]:
        """Exchange with the peer at each address; return what went wrong with those that failed.

        Raises:
            UserError: one of them is no address.
        """
        failures: list[PeerError] = []

        async def try_one(address: str) -> None:
            try:
                await self.exchange(await self._transport.connect(address))
            except PeerError as error:
                failures.append(error)

        with lone_errors():
            async with trio.open_nursery() as nursery:
                for address in ways_in:
                    nursery.start_soon(try_one, address)
        return failures

    async def exchange(self, peer: PeerId) -> None:
        """Tell a peer all that is known here, and learn what it knows.

        Raises:
            PeerUnavailable, RemoteProtocolError, RefusedError: nothing was learnt.
        """
        entry = self._entries.get(peer)
        addresses = entry.advertisement.addresses if entry else ()
        try:
            with trio.fail_after(EXCHANGE_S_MAX):
                channel = await self._transport.open(peer, DIRECTORY, addresses)
                try:
                    await send(channel, self._known())
                    self._learn(await receive(channel, Known))
                finally:
                    await channel.close()
        except trio.TooSlowError:
            raise PeerUnavailable(peer, f"{peer} did not answer") from None

    async def _answer(self, channel: Channel) -> None:
        with trio.move_on_after(EXCHANGE_S_MAX):
            self._learn(await receive(channel, Known))
            await send(channel, self._known())

    def _renew(self) -> None:
        assert self._own
        self._own = evolve(self._own, sequence=self._own.sequence + 1)
        body = encode(self._own)
        heard = Heard(body, self._identity.sign(body), 0)
        self._entries[self._own.peer] = _Entry(self._own, heard, trio.current_time())

    def _known(self) -> Known:
        self._forget_the_silent()
        now = trio.current_time()
        newest = sorted(self._entries.values(), key=lambda entry: -entry.made_at)
        return Known(
            tuple(
                evolve(entry.heard, age_ms=int(1000 * (now - entry.made_at)))
                for entry in newest[:ADVERTISEMENTS_MAX]
            )
        )

    def _learn(self, known: Known) -> None:
        """Keep what is new, genuine and fresh of what another peer knows."""
        now = trio.current_time()
        for heard in known.heard:
            try:
                found = decode(heard.body, Advertisement)
            except BadMessage as error:
                _log.info("dropped an advertisement: %s", error)
                continue
            before = self._entries.get(found.peer)
            if (
                found.peer == self._transport.peer_id
                or heard.age_ms > 1000 * EXPIRE_S
                or (before and before.advertisement.sequence >= found.sequence)
                or (not before and len(self._entries) >= ADVERTISEMENTS_MAX)
                or not verify(found.peer, heard.body, heard.signature)
            ):
                continue
            self._entries[found.peer] = _Entry(found, heard, now - heard.age_ms / 1000)

    def _forget_the_silent(self) -> None:
        oldest = trio.current_time() - EXPIRE_S
        self._entries = {p: e for p, e in self._entries.items() if e.made_at > oldest}
