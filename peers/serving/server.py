"""A serving peer that chooses its layers itself, and keeps reconsidering the choice.

It advertises that it is joining and which layers it means to take, so that peers that join at the
same moment take others; opens an engine, measures it, and serves. From then on it reconsiders. A
move hands over: the new layers are served and advertised before the old engine drains. A leaving
peer advertises that, lets sessions finish, and waits until others hold the layers it alone had.
"""

import heapq
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from random import Random

import trio
from attrs import evolve

from p2pinfer.core.advertisement import (
    LINKS_MAX,
    QUEUED_ROWS_MAX,
    ROUND_TRIP_US_MAX,
    Advertisement,
    RoundTrip,
    State,
)
from p2pinfer.core.errors import EngineError, UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.limits import SESSIONS_PER_REQUESTER_DEFAULT
from p2pinfer.core.messages import Open
from p2pinfer.core.ways import relays_in
from p2pinfer.engine.base import Room, StageEngine
from peers.discovery.calling import call_around, neighbours
from peers.discovery.directory import Directory
from peers.receipts.signer import ReceiptSigner
from peers.serving.accounts import Account, own_account
from peers.serving.dispatcher import Dispatcher
from peers.serving.door import Door
from peers.serving.measure import EngineSpeed, measure
from peers.serving.metered_engine import MeteredEngine
from peers.serving.stage import SessionStatistics, Stage
from scheduler.offer_table import Experience
from scheduler.placement import Choice, choose
from transports.base import Transport

_log = logging.getLogger("p2pinfer.server")

WATCH_S = 1.0
"""How often a peer checks whether layers have lost their holders."""

SPARE_MAX = 16
"""With N spare holders of the rarest layer it checks N times less often, up to this."""

REPORT_S = 5.0
"""How often a change of load is advertised; requesters meet the true load when they connect."""

LINKS_S, LINKS_S_MAX = 15.0, 960.0
"""When to advertise round trips again if the load does not change before: soon at first, since a
newcomer has met no peers yet and measures while it loads; then after twice as long each time."""

DRAIN_S_MAX = 120.0
"""How long sessions may take to finish their answers: 1,000 tokens at 8 a second."""

STALE_S = 5.0
"""How long after a move requesters may still come for the layers advertised before."""

TAKE_OVER_S_MAX = 120.0
"""How long to wait for others to take layers that no other peer holds: fetch, load, measure."""

HIDDEN_LOOK_S = 60.0
"""How often an undialable peer checks whether it can be dialled by now, before it moves."""

LOOK_S = 0.25
"""How often to check whether a wait is over."""


OpenEngine = Callable[[int, int], AbstractAsyncContextManager[StageEngine]]
"""Fetches the missing parts of a range of layers, loads it, and runs it while the block lasts."""


@dataclass(frozen=True)
class ServingPlan:
    """What a server may do."""

    me: Advertisement
    """Its identity and abilities, without layers yet."""
    bounds: LayerRange
    """The layers that the swarm as a whole must serve; requesters run the rest themselves."""
    fixed: LayerRange | None = None
    """Served whatever other peers do; with None the server chooses."""
    sessions_per_requester: int = SESSIONS_PER_REQUESTER_DEFAULT


@dataclass(frozen=True)
class ServerStatistics:
    """The state of a server."""

    said: Advertisement
    """Its latest advertisement."""
    resting: str
    """Why it accepts no sessions for now; empty if it does."""
    rows: int
    """Computed so far by the running engines."""
    queued_rows: int
    sessions: tuple[SessionStatistics, ...]


def _door(places: int, room: Room) -> Door:
    """Return the door of sessions that hold as much as usual each, and share what is beyond."""
    if room.shared:
        return Door(places, room.shared, room.usual)
    return Door(places, places * room.usual)


@dataclass(eq=False)
class HeldLayers:
    """A range of layers that is being served."""

    engine: MeteredEngine
    stage: Stage
    speed: EngineSpeed
    over: trio.Event = field(default_factory=trio.Event)
    given_up: bool = False
    """It drains to make room for other layers, and other peers must not rely on it any more."""

    @property
    def layers(self) -> LayerRange:
        """The layers being served."""
        return LayerRange(self.engine.first, self.engine.end)


class Server:
    """A peer that serves the layers where it helps most."""

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        open_engine: OpenEngine,
        plan: ServingPlan,
        chance: Random,
        clock_ms: Callable[[], int],
        leaving: trio.Event,
        *,
        round_trip_s: Callable[[PeerId], float | None] = lambda _: None,
        on_serving: Callable[[HeldLayers], None] = lambda _: None,
        tell: Callable[[str], None] = _log.info,
        signer: ReceiptSigner | None = None,
        account_of: Callable[[Open, PeerId], Awaitable[Account]] = own_account,
    ) -> None:
        """Prepare to serve.

        Args:
            transport: to requesters and other stages.
            directory: of the swarm, which it has entered.
            open_engine: raises EngineError, or UserError if this machine cannot run the layers.
            plan: what it may do.
            chance: spreads its checks, so that peers do not all move at once.
            clock_ms: the wall-clock time, in milliseconds.
            leaving: set once it should leave: ``run`` returns when its leaving harms no session.
            round_trip_s: to a connected peer, if it was measured.
            on_serving: called with every newly served range.
            tell: called with texts for a person who watches.
            signer: signs receipts; None serves without evidence.
            account_of: returns the account that a session counts against, and its credit.
        """
        self.dispatcher = Dispatcher(transport, account_of)
        self.held: HeldLayers | None = None
        """The layers that new sessions get."""
        self._transport, self._directory, self._open_engine = transport, directory, open_engine
        self._plan, self._chance, self._clock_ms = plan, chance, clock_ms
        self._round_trip_s, self._on_serving, self._tell = round_trip_s, on_serving, tell
        self._signer = signer
        self._running: list[HeldLayers] = []
        self._joining_since: dict[PeerId, float] = {}
        self._leaving = leaving
        self._meeting = trio.CancelScope()
        self._said = plan.me
        self._resting = ""
        self._busier = trio.Event()
        """Set when the load may differ from the advertised one."""
        self._awake = trio.Event()
        self._awake.set()

    def statistics(self) -> ServerStatistics:
        """Return its present state."""
        return ServerStatistics(
            self._said,
            self._resting,
            sum(each.engine.rows for each in self._running),
            sum(each.engine.queued_rows for each in self._running),
            tuple(found for each in self._running for found in each.stage.statistics()),
        )

    def rest(self, why: str) -> None:
        """Accept no sessions while there is a reason, and hand over those that can go elsewhere.

        The engine stays loaded: without sessions it only takes memory. An empty reason ends this.
        """
        if why == self._resting or self._leaving.is_set():
            return
        was_resting, self._resting = self._resting, why
        self.dispatcher.closed = f"this peer rests: {why}" if why else ""
        self._tell(f"resting: {why}" if why else "serving again")
        if not why:
            self._awake.set()
        elif not was_resting:
            self._awake = trio.Event()
            for each in self._running:
                each.stage.hand_over()
        if self.held and not self.held.given_up:
            self._say_served()

    async def run(self) -> None:
        """Choose, serve and reconsider, for ever or until ``leaving`` is set.

        Raises:
            EngineError, UserError: its first layers cannot be served here.
        """
        self.dispatcher.listen()
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as choosing:
                nursery.start_soon(self._cancel_when_leaving, choosing)
                await self._awake.wait()
                layers = self._plan.fixed or await self._agree()
                self._say(State.JOINING, layers)
                await self._serve(nursery, layers)
                nursery.start_soon(self._report)
                if self._plan.fixed:
                    await trio.sleep_forever()
                await self._reconsider(nursery)
            await self._finish()
            nursery.cancel_scope.cancel()

    async def _cancel_when_leaving(self, scope: trio.CancelScope) -> None:
        await self._leaving.wait()
        scope.cancel()

    async def _agree(self) -> LayerRange:
        """Choose layers, and repeat until others' advertisements no longer change the choice."""
        self._say(State.JOINING, LayerRange(0, 0))
        while True:
            choice = self._choose()
            if choice.moves:
                self._say(State.JOINING, choice.layers)
            if not choice.moves or not self._others():
                return choice.layers
            await trio.sleep(choice.check_again_s * self._chance.uniform(0.5, 1.0))

    async def _reconsider(self, nursery: trio.Nursery) -> None:
        """Move whenever other layers clearly need this peer more."""
        while True:
            await self._awake.wait()
            if self._directory.is_hidden:  # a move would help no requester
                await trio.sleep(HIDDEN_LOOK_S)
                continue
            choice = self._choose()
            if choice.moves:
                assert self.held
                self._tell(f"moving to layers {choice.layers}: {choice.reason}")
                await self._move(nursery, self.held, choice)
            await self._until_needed(choice.check_again_s)

    async def _until_needed(self, seconds: float) -> None:
        """Wait for ``seconds``, or until layers are missing that were not."""
        before = set(self._missing())
        with trio.move_on_after(seconds):
            await self._pause()
            while before.issuperset(self._missing()):  # others' advertisements may expire too
                await self._pause()

    async def _pause(self) -> None:
        """Wait until the next check for missing layers is due."""
        spare = self._directory.fewest_holders(self._plan.me.model, self._plan.bounds) - 1
        share = self._chance.uniform(0.5, 1.5)
        await trio.sleep(WATCH_S * min(max(spare, 1), SPARE_MAX) * share)

    def _choose(self) -> Choice:
        others, now_s = self._others(), trio.current_time()
        joining = State.JOINING
        since = {a.peer: now_s for a in others if a.state is joining}
        self._joining_since = since | {p: self._joining_since.get(p, s) for p, s in since.items()}
        joining_s = {peer: now_s - at for peer, at in self._joining_since.items()}
        return choose(
            others,
            evolve(self._said, addresses=tuple(self._transport.addresses)),
            self._plan.bounds,
            now_s=self._clock_ms() / 1000,
            chance=self._chance.random(),
            seen=Experience(joining_s=joining_s, is_sample=self._directory.is_sample),
        )

    def _others(self) -> list[Advertisement]:
        return self._directory.holding(self._plan.me.model)

    def _missing(self) -> list[int]:
        """Return the layers that the swarm should serve but no peer does."""
        return self._directory.missing(self._plan.me.model, self._plan.bounds)

    async def _move(self, nursery: trio.Nursery, old: HeldLayers, choice: Choice) -> None:
        """Serve other layers, and drain the old ones, first if memory cannot hold both."""
        layers = choice.layers
        if len(old.layers) + len(layers) > self._plan.me.layers_max:
            old.given_up = True
            self._say(State.DRAINING, old.layers)
            if choice.urgent:  # layers are missing, so no session can make progress
                old.over.set()
            else:
                await self._drain(old)
            self.held = None
            self._say(State.JOINING, layers)
        try:
            await self._serve(nursery, layers)
        except (EngineError, UserError) as error:
            self._tell(f"cannot serve layers {layers}: {error}")
            if self.held is None:
                await self._serve(nursery, old.layers)
        else:
            if not old.over.is_set():
                nursery.start_soon(self._drain, old)

    async def _serve(self, nursery: trio.Nursery, layers: LayerRange) -> None:
        """Open an engine, and send new sessions to it."""
        self.held = await nursery.start(self._hold, layers)
        self._say_served()
        self._on_serving(self.held)
        self._meeting.cancel()
        self._meeting = trio.CancelScope()
        nursery.start_soon(self._meet, self._meeting, layers)

    async def _meet(self, scope: trio.CancelScope, layers: LayerRange) -> None:
        """Call some of those that rows may come from or go to: requesters choose the near ones.

        A hidden one is so reached directly before it matters, or its relay is known to be needed.
        """
        with scope:
            await call_around(
                self._transport,
                lambda: neighbours(self._others(), layers),
                self._chance,
                self._round_trip_s,
            )

    async def _hold(self, layers: LayerRange, *, task_status: trio.TaskStatus[HeldLayers]) -> None:
        """Run an engine until it is drained."""
        async with self._open_engine(layers.first, layers.end) as opened:
            speed = await measure(opened)
            engine = MeteredEngine(opened, self._plan.me.sessions_max, self._note_load)
            stage = Stage(
                self._transport,
                engine,
                self._plan.me.model,
                self._signer,
                self._plan.sessions_per_requester,
            )
            held = HeldLayers(engine, stage, speed)
            places = self._plan.me.sessions_max
            self.dispatcher.add(stage, _door(places, engine.room))
            self._running.append(held)
            try:
                task_status.started(held)
                await held.over.wait()
            finally:
                self._running.remove(held)
                self.dispatcher.remove(stage)

    async def _drain(self, held: HeldLayers) -> None:
        """Let sessions finish their answers, up to ``DRAIN_S_MAX``, and end the engine."""
        await trio.sleep(STALE_S)
        await self._quiet(held)
        held.over.set()

    async def _quiet(self, held: HeldLayers) -> None:
        """Wait until no session needs an engine any more, up to ``DRAIN_S_MAX``."""
        held.stage.hand_over()
        with trio.move_on_after(DRAIN_S_MAX):
            while not held.stage.is_quiet:  # noqa: ASYNC110 -- only time makes it quiet
                await trio.sleep(LOOK_S)

    async def _finish(self) -> None:
        """Advertise that this peer is leaving, and wait until that harms no session."""
        self.dispatcher.closed = "this peer is leaving"
        held = self.held
        if held is None:
            return
        self._say(State.DRAINING, held.layers)
        if sessions := sum(each.stage.sessions for each in self._running):
            self._tell(f"leaving: letting sessions finish ({sessions} open)")
        async with trio.open_nursery() as nursery:
            for each in self._running:
                nursery.start_soon(self._quiet, each)
        with trio.move_on_after(TAKE_OVER_S_MAX):
            said: Sequence[LayerRange] = ()
            while missing := self._unique(held.layers):
                if missing != said:
                    named = ", ".join(map(str, missing))
                    self._tell(f"leaving: no other peer serves layers {named} yet; waiting")
                    said = missing
                await trio.sleep(LOOK_S)

    def _unique(self, layers: LayerRange) -> list[LayerRange]:
        """Return the ranges that only this peer serves; empty if no other peer could take over."""
        others = [
            other
            for other in self._directory.holding(self._plan.me.model)
            if other.state is not State.DRAINING
        ]
        if not others:
            return []
        serving = [LayerRange(a.first, a.end) for a in others if a.state is State.SERVING]
        return LayerRange.joined(layers.within(self._plan.bounds).lacking(serving))

    async def _report(self) -> None:
        """Advertise this peer's load whenever it has changed, and round trips to other peers."""
        patience_s = LINKS_S
        while True:
            with trio.move_on_after(patience_s) as waiting:
                await self._busier.wait()
            if was_calm := waiting.cancelled_caught:
                patience_s = min(2 * patience_s, LINKS_S_MAX)
            else:
                await trio.sleep(REPORT_S)
                self._busier = trio.Event()
            if self._said.state is not State.SERVING:
                continue
            if was_calm or self._load() != self._load_said():
                self._say_served()

    def _note_load(self) -> None:
        self._busier.set()

    def _load(self) -> tuple[int, int]:
        assert self.held
        engine = self.held.engine
        free = max(0, engine.sessions_max - engine.sessions)
        return free, min(engine.queued_rows, QUEUED_ROWS_MAX)

    def _load_said(self) -> tuple[int, int]:
        return self._said.sessions_free, self._said.queued_rows

    def _say_served(self) -> None:
        """Advertise the served layers, their speed, and the load."""
        assert self.held
        engine, speed = self.held.engine, self.held.speed
        free, queued = self._load()
        self._said = evolve(
            self._said,
            context=engine.context,
            numerics_class=engine.numerics_class,
            row_us=speed.row_us,
            chunk_us=speed.chunk_us,
            sessions_free=free,
            queued_rows=queued,
        )
        self._say(State.DRAINING if self._resting else State.SERVING, self.held.layers)

    def _say(self, state: State, layers: LayerRange) -> None:
        """Advertise at once."""
        self._said = evolve(
            self._said,
            addresses=tuple(self._transport.addresses),
            state=state,
            first=layers.first,
            end=layers.end,
            sessions_free=self._said.sessions_free if state is State.SERVING else 0,
            links=self._links(),
        )
        self._directory.advertise(self._said)

    def _links(self) -> tuple[RoundTrip, ...]:
        """Return the round trips to the nearest relay of this peer, and to its nearest peers.

        Those come first that rows may come from or go to: no route uses another.
        """
        others = self._others()
        layers = self.held.layers if self.held else LayerRange(0, 0)
        beside = {other.peer for other in neighbours(others, layers)}
        trips = {other.peer: self._round_trip_s(other.peer) for other in others}
        relays = {
            relay: self._round_trip_s(relay) for relay in relays_in(self._transport.addresses)
        }
        relayed = [(s, peer) for peer, s in relays.items() if s is not None]
        nearest = [peer for _, peer in sorted(relayed)[:1]]
        found = [(peer not in beside, s, peer) for peer, s in trips.items() if s is not None]
        known = [*nearest, *(peer for *_, peer in heapq.nsmallest(LINKS_MAX, found))]
        seconds = {**relays, **trips}
        return tuple(
            RoundTrip(peer, min(max(1, round(1e6 * s)), ROUND_TRIP_US_MAX))
            for peer in list(dict.fromkeys(known))[:LINKS_MAX]
            if (s := seconds[peer]) is not None
        )
