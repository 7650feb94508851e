"""Asking a swarm: find a chain of peers, open sessions along it, avoid peers that failed."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial

import trio
from attrs import evolve

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.errors import NobodyServes, PeerError, PeerUnavailable, lone_errors
from p2pinfer.core.ids import ModelId, PeerId, SessionId
from p2pinfer.core.limits import CONTEXT_DEFAULT
from p2pinfer.core.messages import Hop
from p2pinfer.core.model_names import readable_name
from p2pinfer.core.trust import AuditVerdict, Trust, short
from p2pinfer.engine.base import Ends
from peers.asking.experience import Experiences
from peers.asking.replacements import Replacements
from peers.asking.session import Beginning, Requester, Session
from peers.discovery.directory import Directory
from peers.receipts.session_evidence import Gatherer
from peers.steps.messaging import RefusedError
from scheduler.routing import Asking, NoRoute, RouteHop, find_route
from scheduler.standing import Standings
from transports.base import Reachability, Transport

FIND_S_MAX = 10.0
"""How long a client waits for a complete chain before it reports which layers are missing."""

FIND_AGAIN_S = 1.0

CALL_S_MAX = 3.0
"""For a peer to answer a call that checks whether it is alive: a live one takes far less."""

REFRESH_S_MAX = 2.0
"""A fifth of ``FIND_S_MAX``: dialling a peer that is gone takes all of it."""

SESSION_ID_BYTES = 16

LOT_BYTES = 4
"""Of the random number that decides among routes that are nearly as good."""


@dataclass(frozen=True)
class Asked:
    """What to ask for, and through which peers to look for it."""

    model: ModelId
    name: str
    """The model's name, for people."""
    bootstrap: Sequence[str]
    find_s_max: float = FIND_S_MAX
    """How long to wait for a complete chain of peers."""


def session_length(positions: int) -> int:
    """Return how long a session is to be that must hold these positions, and goes on growing.

    Usual ones cost nobody anything; each step beyond is twice as long as the one before, since all
    that was said is read again where a session becomes too short.
    """
    length = CONTEXT_DEFAULT
    while length < positions:
        length *= 2
    return length


class SwarmClient:
    """A requester in a swarm, with the ends of one model."""

    def __init__(
        self,
        nursery: trio.Nursery,
        transport: Transport,
        directory: Directory,
        ends: Ends,
        asked: Asked,
        draw: Callable[[int], bytes],
        gatherer: Gatherer | None = None,
        round_trip_s: Callable[[PeerId], float | None] = lambda _: None,
        standings: Standings | None = None,
        relay_to: Callable[[PeerId], PeerId | None] = lambda _: None,
        *,
        drafts: bool = False,
        draft_model: Ends | None = None,
        keeps_state: bool = False,
    ) -> None:
        """Ask for a model.

        Args:
            nursery: for the sessions' tasks; it outlives them.
            transport: reaches the peers.
            directory: of the swarm.
            ends: this machine's part of the model.
            asked: what to ask for.
            draw: returns that many unpredictable bytes.
            gatherer: collects the sessions' evidence, if any is wanted.
            round_trip_s: to a connected peer, if it was measured.
            standings: standings of peers from earlier runs, updated from now on.
            relay_to: returns the relay that carries what is said with a peer, if one does.
            drafts: send rows of likely tokens ahead.
            draft_model: what says so besides the text; as for ``Requester``.
            keeps_state: as for ``Requester``.
        """
        self._directory, self._ends, self._asked, self._draw = directory, ends, asked, draw
        self._transport, self.relay_to = transport, relay_to
        self._failed: dict[PeerId, int] = {}
        """Peers that ended a session, and their advertisement's sequence number at the time."""
        self._busy_until_s: dict[PeerId, float] = {}
        """Peers that were full, and when they should have room."""
        self.joins_conversations = True
        """Whether one session may begin with what another one holds: stages learn that."""
        self._open: list[Replacements] = []
        """One per open session."""
        self.experiences = Experiences(round_trip_s, standings)
        self._requester = Requester(
            nursery,
            transport,
            ends,
            asked.model,
            gatherer,
            drafts=drafts,
            draft_model=draft_model,
            keeps_state=keeps_state,
        )

    def peers(self) -> list[Advertisement]:
        """Return the peers that hold some of the model, including those that are still joining."""
        return self._directory.holding(self._asked.model)

    def serving(self) -> list[Advertisement]:
        """Return the peers that serve layers of the model."""
        return self._directory.serving(self._asked.model)

    def models(self) -> dict[ModelId, str]:
        """Return the names of all models that the swarm is known to serve."""
        return self._directory.models()

    def seen(self, model: ModelId) -> list[Advertisement]:
        """Return some of the peers that serve layers of any model, which is not followed for it."""
        return [a for a in self._directory.peers() if a.model == model and a.first < a.end]

    def failed(self) -> set[PeerId]:
        """Return the peers that ended a session and have not been heard of since."""
        return {a.peer for a in self.serving() if self._failed.get(a.peer) == a.sequence}

    def learn(self, trust: Trust) -> None:
        """Never again use a peer that an audit found to have computed something else."""
        for audit in trust.audits:
            if audit.blamed and audit.verdict is not AuditVerdict.NOT_OPENED:
                self.experiences.cheated(audit.blamed)

    def missing(self) -> str:
        """Return a text that says which layers no peer serves; empty if a complete chain exists."""
        try:
            self._route()
        except NoRoute as error:
            return str(error)
        return ""

    async def trouble(self) -> str:
        """Call peers until a complete chain answers; return why none does, or an empty text.

        A peer that does not answer is avoided where others hold the same layers.
        """
        offers, silent = self.serving(), set[PeerId]()
        asking = evolve(self._asking(), seen=self.experiences.of(offers))
        while True:
            there = [offer for offer in offers if offer.peer not in silent]
            try:
                route = find_route(there, self._ends.first, self._ends.end, asking)
            except NoRoute as error:
                names = " and ".join(map(short, sorted(silent)))
                verb = "does" if len(silent) == 1 else "do"
                return f"{error}; {names} {verb} not answer" if silent else str(error)
            lost = await self._silent({hop.peer for hop in route})
            if not lost:
                return ""
            silent |= lost

    async def _silent(self, called: set[PeerId]) -> set[PeerId]:
        """Call peers, and return those that do not answer."""
        found = set(called)

        async def call(peer: PeerId) -> None:
            with trio.move_on_after(CALL_S_MAX):
                try:
                    await self._directory.exchange(peer)
                except PeerUnavailable:
                    return
                except PeerError:
                    pass  # that is an answer too
                found.remove(peer)

        with lone_errors():
            async with trio.open_nursery() as nursery:
                for peer in sorted(called):
                    nursery.start_soon(call, peer)
        return found

    def context_max(self) -> int:
        """Return how many positions a session can hold now; of what the swarm offers, by halving.

        Where no chain is complete, it is what this machine's own part of the model can hold.
        """
        whole, usual = self._ends.context, min(self._ends.context, CONTEXT_DEFAULT)
        if self._lacks(1):
            return whole
        length = whole
        while length > usual and self._lacks(length):
            length //= 2
        return max(length, usual)

    def _lacks(self, context: int) -> bool:
        """Whether no chain of peers takes sessions of that length."""
        try:
            self._route(context)
        except NoRoute:
            return True
        return False

    async def find_route(
        self, on_wait: Callable[[str], None], positions: int = 1
    ) -> list[RouteHop]:
        """Return a chain of peers that connects our own ends, waiting a while for one to appear.

        Args:
            on_wait: called with what is still missing.
            positions: what a session is to hold, if any chain takes one so long.

        Raises:
            NobodyServes: there is none; the text says which layers are missing.
        """
        asked, missing = self._asked, ""
        with trio.move_on_after(asked.find_s_max):
            if self._failed:  # another peer may serve those layers by now
                await self._refresh()
            while True:
                try:
                    route = self._route_for(positions)
                    busy_s = max((self._busy_s(hop.peer) for hop in route), default=0.0)
                    if busy_s <= 0:
                        return route
                    missing = "all sessions are taken"
                    on_wait(f"{missing}; trying again in {busy_s:.1f} s …")
                    await trio.sleep(busy_s)
                    continue
                except NoRoute as error:
                    if str(error) != missing:
                        missing = str(error)
                        on_wait(f"{missing}; waiting …")
                await trio.sleep(FIND_AGAIN_S)
                await self._refresh()
        models = self._directory.models()
        others = {*map(readable_name, models.values())}
        if asked.model not in models and others:  # else peers that nobody can call serve it
            names = ", ".join(sorted(others))
            raise NobodyServes(f"the peers found serve another model ({names}), not {asked.name}")
        raise NobodyServes(f"no chain of peers for {asked.name}: {missing}")

    async def _refresh(self) -> None:
        """Ask the bootstrap peers for news; one that does not answer must not use up the time."""
        with trio.move_on_after(REFRESH_S_MAX):
            await self._directory.enter(self._asked.bootstrap)

    def _route_for(self, positions: int) -> list[RouteHop]:
        """Return a chain for a session of this length, or else for a shorter one."""
        length = min(session_length(positions), self._ends.context)
        if length > CONTEXT_DEFAULT:
            with suppress(NoRoute):
                return self._route(length)
        return self._route()

    def _route(self, context: int = 1) -> list[RouteHop]:
        """Avoid peers that failed and have not been heard of since, if another route exists."""
        offers = self._directory.serving(self._asked.model)
        failed = self._failed.items() & {(offer.peer, offer.sequence) for offer in offers}
        self._failed = dict(failed)
        lot = int.from_bytes(self._draw(LOT_BYTES)) / (1 << 8 * LOT_BYTES)
        without = {*self._failed, *(a.peer for a in offers if self._busy_s(a.peer) > 0)}
        sessions = Counter(hop.peer for replacements in self._open for hop in replacements.route)
        seen = evolve(self.experiences.of(offers), sessions=sessions)
        asking = evolve(self._asking(context), seen=seen, without=without, chance=lot)
        first, end = self._ends.first, self._ends.end
        with suppress(NoRoute):
            return find_route(offers, first, end, asking)
        return find_route(offers, first, end, evolve(asking, without=()))

    def _asking(self, context: int = 1) -> Asking:
        """Return what every route is wanted for, and whether relays may be needed for it."""
        return Asking(
            context,
            hidden=self._transport.reachability is not Reachability.PUBLIC,
            row_bytes=4 * self._ends.width,
            drafted=self._requester.draft_record.share,
        )

    def _busy_s(self, peer: PeerId) -> float:
        """Return how long a peer is expected to stay full."""
        return self._busy_until_s.get(peer, 0.0) - trio.current_time()

    def open_beside(
        self,
        beginning: Beginning,
        on_wait: Callable[[str], None] = lambda _: None,
        positions: int | None = None,
    ) -> AbstractAsyncContextManager[Session]:
        """Open a session with the peers of another one, which holds what that one began with.

        Raises:
            LookupError: the other session is over.
        """
        for other in self._open:
            if other.session is beginning.session:
                return self.open_session(other.route, on_wait, positions, beginning)
        raise LookupError("the session to begin with is over")

    @asynccontextmanager
    async def open_session(
        self,
        route: Sequence[RouteHop],
        on_wait: Callable[[str], None] = lambda _: None,
        positions: int | None = None,
        beginning: Beginning | None = None,
    ) -> AsyncIterator[Session]:
        """Open a session along a route; raises as ``Requester.open``.

        It holds at least these ``positions`` where its peers have room; None: all that they have.

        Lost peers are replaced; ``on_wait`` is called when there is no replacement. A peer that
        ends the session is not chosen again at once.
        """
        hops = [Hop(a.peer, a.addresses, a.first, a.end) for a in route]
        context = min([self._ends.context, *(a.context for a in route)])
        if positions is not None:
            context = min(context, session_length(positions))
        session = SessionId(self._draw(SESSION_ID_BYTES))
        offers = partial(self._directory.serving, self._asked.model)
        replacements = Replacements(
            route, offers, self._asking(context), self.experiences, on_wait, self._note_failed
        )
        self._open.append(replacements)
        try:
            async with (
                self._ask_as() as requester,
                requester.open(hops, session, context, replacements.repair(), beginning) as opened,
            ):
                replacements.session = opened
                try:
                    yield opened
                finally:
                    replacements.learn()
        except PeerError as error:
            self._note_failed(error)
            raise
        finally:
            self._open.remove(replacements)

    def _ask_as(self) -> AbstractAsyncContextManager[Requester]:
        """Return who is to ask in the next session."""
        return nullcontext(self._requester)

    def _note_failed(self, error: PeerError) -> None:
        """Avoid a peer that failed, until it is heard of again, or for as long as it asked."""
        self.experiences.failed(error)
        if isinstance(error, RefusedError) and error.refused.retry_ms:
            busy = {peer: at for peer, at in self._busy_until_s.items() if self._busy_s(peer) > 0}
            until_s = trio.current_time() + error.refused.retry_ms / 1000
            self._busy_until_s = {**busy, error.peer: until_s}
            return
        self._failed |= {a.peer: a.sequence for a in self.serving() if a.peer == error.peer}
