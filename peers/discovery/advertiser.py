"""A peer's own advertisement: signed, published at once when it matters, renewed in time."""

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
from transports.base import Reachability, Topic, Transport, is_circuit

PATIENCE_S_MIN = 60.0
PATIENCE_ROUNDS = 4
"""How long a peer waits to be dialled. In each round every peer calls another at random, and some
call peers not reached yet: if a thousand start at once, one in 200 dialable peers has not been
dialled by then, and hides needlessly; a newcomer is called by 16 peers in a round."""

HIDDEN_S = 900.0
"""For how long a peer that was not dialled advertises no address, before it tries again."""

HIDDEN_PERIODS = PERIOD_RATIO_MAX
"""A hidden peer renews its advertisement this many times less often: no peer relies on it."""

TWIN_WORDS = 3
"""Newer advertisements under this peer's key that it did not send, before it concludes that another
machine uses it too: from an earlier run whose clock was ahead, the swarm knows the last one, and
perhaps the one before."""


class Signer(Protocol):
    """This peer's identity."""

    @property
    def peer_id(self) -> PeerId:
        """The peer's id."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Return a signature of 64 bytes."""
        ...


class Advertiser:
    """Advertises this peer, to other peers and in its own view.

    A peer that others cannot dial, such as one behind NAT, becomes hidden: it advertises no
    address, so that other peers neither try in vain nor rely on it. The transport knows whether
    they can once others were asked to; where nobody can be asked, a peer that is never dialled
    although all know its address hides.

    Args:
        transport: knows whether others can dial this peer.
        identity: signs advertisements.
        view: of the swarm.
        topics: gossip topics that this peer currently takes part in.
        chance: spreads renewals.
        clock_ms: the wall-clock time, in milliseconds.
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
        """Called with whether this peer is hidden, whenever that changes."""
        self.on_twin: Callable[[], object] = lambda: None
        """Called once if another machine advertises under this peer's key."""
        self._transport, self._identity, self._view = transport, identity, view
        self._topics, self._chance, self._clock_ms = topics, chance, clock_ms
        self._announcer = Announcer()
        self._own: Advertisement | None = None
        self._foreign_words = 0
        self._signed_at = -float("inf")
        self._show_until = self._hide_until = -float("inf")
        view.on_newer_sequence = self._on_newer_sequence

    @property
    def is_on(self) -> bool:
        """Whether there is something to advertise."""
        return self._own is not None

    def say(self, advertisement: Advertisement) -> None:
        """Advertise this from now on; see `peers.discovery.directory.Directory.advertise`."""
        before = self._own
        self._own = evolve(advertisement, sequence=before.sequence if before else 0)
        if before is None or essence(before) != essence(advertisement):
            self._sign()
            self.hurry()

    def move(self, addresses: tuple[str, ...]) -> None:
        """Advertise new addresses at once, or that others can dial them, or cannot.

        Does nothing if this peer advertises nothing.
        """
        if self._own and self._own.addresses != addresses:
            self._hide_until = -float("inf")  # whether others can dial them is open again
            self.say(evolve(self._own, addresses=addresses))
        if self._own and self._transport.reachability is not Reachability.UNKNOWN:
            was_hidden = self.is_hidden
            self._judge(is_hidden=not addresses)
            if self.is_hidden != was_hidden:
                self.hurry()

    def leave(self) -> None:
        """Announce by gossip that this peer has left, and advertise nothing more."""
        if self._own:
            self._own = evolve(self._own, state=State.LEFT, end=self._own.first)
            heard = self._sign()
            if topic := self._topics.get(self._own.model):
                topic.publish(encode(heard))
            self._view.forget(self._transport.peer_id, trio.current_time())
            self._own = None

    def hurry(self) -> None:
        """Publish as soon as the rate limit allows."""
        self._announcer.hurry()

    def note_caller(self) -> None:
        """Record a call: if the caller dialled us, advertise at once that this peer is dialable."""
        is_open = self._transport.reachability is Reachability.UNKNOWN
        if self.is_hidden and is_open and self._transport.was_dialled:
            self.hurry()

    async def run(self, pause_s: Callable[[], float]) -> None:
        """Publish whenever it is due, for ever; ``pause_s`` is how often peers call each other."""
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
        """Judge whether others can dial this peer, now that it publishes its addresses."""
        if self._transport.reachability is not Reachability.UNKNOWN:
            self._judge(is_hidden=not self._transport.addresses)
            return
        now = trio.current_time()
        if now >= self._hide_until:
            self._show_until = now + patience_s
            self._hide_until = self._show_until + HIDDEN_S
        is_reached = self._transport.was_dialled or any(map(is_circuit, self._transport.addresses))
        self._judge(is_hidden=not is_reached and now >= self._show_until)

    def _judge(self, *, is_hidden: bool) -> None:
        was_hidden, self.is_hidden = self.is_hidden, is_hidden
        if self.is_hidden != was_hidden:
            self.on_hidden(self.is_hidden)

    def _period_s(self, own: Advertisement) -> float:
        times = HIDDEN_PERIODS if self.is_hidden else 1
        return min(times * self._view.period_s(own.model), PERIOD_MS_MAX / 1000)

    def _sign(self) -> Heard:
        """Number and sign our own advertisement, and renew it in our view."""
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
        """Number our own advertisement above one that an earlier run of this peer made.

        It may also come from another machine with the same key; then the two must not raise their
        numbers against each other as fast as they can.
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
