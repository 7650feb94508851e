"""What a peer says of itself: signed, told at once where it matters, and renewed in time."""

from collections.abc import Callable, Mapping
from random import Random
from typing import Protocol

import trio
from attrs import evolve

from p2pinfer.core.advertisement import PERIOD_MS_MAX, Advertisement, Heard, State
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.wire import encode
from peers.discovery.gossip import ALONE_S, Announcer, essence
from peers.discovery.model_index import Parsed
from peers.discovery.view import PERIOD_RATIO_MAX, SwarmView
from transports.base import Topic, Transport

PATIENCE_S_MIN = 60.0
PATIENCE_ROUNDS = 4
"""How long a peer waits to be dialled. In each round every peer calls another at random, and some
call peers not reached yet: if a thousand start at once, one in 200 that can be dialled is not by
then, and hides for nothing; a newcomer is called by 16 peers in a round."""

HIDDEN_S = 900.0
"""For how long a peer that nobody has dialled names no address, before it tries again."""

HIDDEN_PERIODS = PERIOD_RATIO_MAX
"""It renews its word so many times as seldom, since nobody counts on it."""

TWIN_WORDS = 3
"""Newer words of the own peer, none of which it has said, that show that somebody else says them:
of a former run, whose clock was ahead, the swarm knows the last, and perhaps one before."""


class Signer(Protocol):
    """Whoever this peer is."""

    @property
    def peer_id(self) -> PeerId:
        """Who."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Return a signature of 64 bytes."""
        ...


class Advertiser:
    """Speaks of the own peer, to others and into the own view.

    A peer that nobody dials while all know where it is, as one behind NAT, is hidden from then on:
    it names no address, so that others need not try in vain, nor count on it. That is its own
    finding, and nobody else can bring it about.

    Args:
        transport: knows whether this peer was dialled.
        identity: signs what is said.
        view: of the swarm.
        topics: of gossip that this peer takes part in at present.
        chance: spreads renewals.
        clock_ms: the time on everybody's clock, in milliseconds.
    """

    def __init__(
        self,
        transport: Transport,
        identity: Signer,
        view: SwarmView,
        topics: Mapping[ModelId, Topic],
        chance: Random,
        clock_ms: Callable[[], int],
    ) -> None:
        self.is_hidden = False
        self.on_hidden: Callable[[bool], object] = lambda _: None
        """Told whether this peer is hidden, whenever that changes."""
        self.on_twin: Callable[[], object] = lambda: None
        """Told once if another machine speaks as this peer."""
        self._transport, self._identity, self._view = transport, identity, view
        self._topics, self._chance, self._clock_ms = topics, chance, clock_ms
        self._announcer = Announcer()
        self._own: Advertisement | None = None
        self._foreign_words = 0
        self._signed_at = -float("inf")
        self._show_until = self._hide_until = -float("inf")
        view.on_newer_sequence = self._on_newer_sequence

    def say(self, advertisement: Advertisement) -> None:
        """Say this from now on; see `peers.discovery.directory.Directory.advertise`."""
        before = self._own
        self._own = evolve(advertisement, sequence=before.sequence if before else 0)
        if before is None or essence(before) != essence(advertisement):
            self._sign()
            self.hurry()

    def move(self, addresses: tuple[str, ...]) -> None:
        """Say at once that this peer has other addresses, if it says anything.

        Whether others can dial those is open, however it was before.
        """
        if self._own and self._own.addresses != addresses:
            self._hide_until = -float("inf")
            self.say(evolve(self._own, addresses=addresses))

    def leave(self) -> None:
        """Say that this peer is gone, as far as gossip carries it, and nothing more."""
        if self._own:
            self._own = evolve(self._own, state=State.LEFT, end=self._own.first)
            heard = self._sign()
            if topic := self._topics.get(self._own.model):
                topic.publish(encode(heard))
            self._view.forget(self._transport.peer_id, trio.current_time())
            self._own = None

    def hurry(self) -> None:
        """Speak as soon as may be."""
        self._announcer.hurry()

    def note_caller(self) -> None:
        """Take in that somebody called: if it dialled, others are told at once that they can."""
        if self.is_hidden and self._transport.was_dialled:
            self.hurry()

    async def run(self, pause_s: Callable[[], float]) -> None:
        """Speak whenever it is due, for ever; ``pause_s`` is how often others call each other."""
        while True:
            await self._announcer.wait_due(self._chance)
            if self._own is None:
                self._announcer.wait(float("inf"))
                continue
            topic = self._topics.get(self._own.model)
            if topic and topic.neighbours:
                self._look(max(PATIENCE_S_MIN, PATIENCE_ROUNDS * pause_s()))
                topic.publish(encode(self._sign()))
                self._announcer.published(self._period_s(self._own))
            else:
                if trio.current_time() - self._signed_at >= self._period_s(self._own):
                    self._sign()
                self._announcer.wait(ALONE_S)

    def _look(self, patience_s: float) -> None:
        """Judge whether others can dial this peer, now that it tells them where it is."""
        now, was_hidden = trio.current_time(), self.is_hidden
        if now >= self._hide_until:
            self._show_until = now + patience_s
            self._hide_until = self._show_until + HIDDEN_S
        self.is_hidden = not self._transport.was_dialled and now >= self._show_until
        if self.is_hidden != was_hidden:
            self.on_hidden(self.is_hidden)

    def _period_s(self, own: Advertisement) -> float:
        times = HIDDEN_PERIODS if self.is_hidden else 1
        return min(times * self._view.period_s(own.model), PERIOD_MS_MAX / 1000)

    def _sign(self) -> Heard:
        """Number and sign the own advertisement, and renew it in the own view."""
        assert self._own
        period_ms = round(1000 * self._period_s(self._own))
        sequence = max(self._own.sequence + 1, self._clock_ms())
        self._own = evolve(self._own, sequence=sequence, period_ms=period_ms)
        said = evolve(self._own, addresses=()) if self.is_hidden else self._own
        body = encode(said)
        heard = Heard(body, self._identity.sign(body), 0)
        self._signed_at = trio.current_time()
        self._view.put(Parsed.of(said), heard, self._signed_at)
        return heard

    def _on_newer_sequence(self, sequence: int) -> None:
        """Number the own advertisement beyond one that a former run of this peer made.

        Or that another machine makes, which has the same key; the two must not outdo each other
        as fast as they can.
        """
        if self._own is None or self._own.sequence > sequence:
            return
        if self._own.sequence < sequence:
            self._foreign_words += 1
            if self._foreign_words == TWIN_WORDS:
                self.on_twin()
        self._own = evolve(self._own, sequence=sequence)
        if self._foreign_words < TWIN_WORDS:
            self.hurry()
