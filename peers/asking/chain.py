"""The stages of one session, as the requester sees them: steps go in, steps come out.

The requester controls each stage, and so learns at once when one is gone. It then replaces only the
lost ones: their replacements open the session, the stage after expects them, the one before resends
them everything it ever sent, and the tokens that come out are the same as without the failure.
"""

import logging
from collections.abc import Sequence
from itertools import pairwise

import trio
from attrs import evolve

from p2pinfer.core.errors import PeerError, PeerUnavailable, RemoteProtocolError, lone_errors
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import (
    Attach,
    Attached,
    Hop,
    Leaving,
    Link,
    Linked,
    Lost,
    Open,
    Parent,
    Refusal,
    Step,
)
from p2pinfer.core.regimes import Regime
from p2pinfer.core.text import printable
from peers.asking.pause import Pause
from peers.asking.repair import LOOK_AGAIN_S, Repair, at_once, find_others, is_ending, noted
from peers.asking.stage_handle import (
    ANSWER_S_MAX,
    LOOK_STEPS,
    REOPEN_S,
    StageHandle,
    check_step,
    lost_places,
    open_stages,
    reach,
    wait_still,
)
from peers.receipts.session_evidence import Evidence
from peers.steps.history import History
from peers.steps.limits import OPEN_S_MAX
from peers.steps.messaging import RefusedError, receive
from peers.steps.outbox import Outbox
from transports.base import Channel, Transport

_log = logging.getLogger("p2pinfer.chain")


class Chain:
    """A session's stages; ``opening.open_chain`` makes one, and keeps it whole."""

    def __init__(
        self,
        transport: Transport,
        opened: Open,
        history: History,
        evidence: Evidence | None = None,
        repair: Repair | None = None,
    ) -> None:
        self._transport, self._opened, self._repair = transport, opened, repair
        self.evidence = evidence
        self._outbox = Outbox(history)
        self._stages: list[StageHandle] = []
        self._entry: StageHandle | None = None  # the stage that our own steps go to
        self._exit: Channel | None = None
        number = opened.parent.number if opened.parent else 0
        self._number = self._received = self._forgotten = number
        self._look_at, self._pause, self._is_waiting = number + LOOK_STEPS, Pause(evidence), False
        self._failure: PeerError | None = None
        self._trouble, self._mended, self._rerouted = trio.Event(), trio.Event(), trio.Event()
        self._failed: list[PeerId] = []  # most recent last
        self._reopened: dict[PeerId, float] = {}  # when the session was opened there again
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery

    @property
    def route(self) -> list[Hop]:
        """The peers that make up the chain now."""
        return [stage.hop for stage in self._stages]

    @property
    def blocks(self) -> bool:
        """Whether its steps may hold blocks, which not every peer can run."""
        return self._opened.blocks

    def as_parent(self, rows: int) -> Parent:
        """Return how another session asks to begin with the first positions of this one."""
        return Parent(self._opened.session, rows, self._number)

    async def inherit(self, parent: "Chain", rows: int) -> None:
        """Take over what a parent sent and got first, before ``open``; raises LookupError."""
        await self._outbox.history.inherit(parent._outbox.history, rows, self._number)
        if self.evidence and parent.evidence:
            self.evidence.witness = parent.evidence.witness.fork(rows)

    # Steps

    def send(self, position: int, rows: bytes, count: int, *, regime: Regime) -> None:
        """Send rows down the chain; never waits."""
        self._number += 1
        self._pause.end()
        self._outbox.put(Step(self._number, position, count, regime, rows))
        if self.evidence:
            self.evidence.goes_in(self._number, count, rows)

    async def receive(self, position: int, count: int, size: int) -> Step:
        """Return the answer to the next step sent: the ``size`` bytes that came out for it.

        Raises:
            RefusedError, PeerUnavailable, RemoteProtocolError: the session is over.
        """
        while True:
            channel = self._exit
            if self._failure:
                raise self._failure
            if channel is None:
                await self._mended.wait()
                continue
            try:
                self._is_waiting = True
                step = await receive(channel, Step)
                if step.number <= self._received:
                    continue
                if is_awaited := step.number > self._forgotten:
                    due = position, count, size
                    check_step(channel.remote, step, self._number, due)
                self._received = step.number
                if self.evidence:
                    self.evidence.comes_out(step, is_awaited=is_awaited)
                if step.number >= self._look_at:
                    self._look_at = step.number + LOOK_STEPS
                    self._trouble.set()
                if is_awaited:
                    return step
            except PeerError as error:
                self._lose_exit(channel, error)
            finally:
                self._is_waiting = False

    def forget(self) -> None:
        """Ignore answers still on their way: they are no longer wanted."""
        self._forgotten = self._number

    def rest(self) -> None:
        """Tell the stages that the session is idle until another step is sent."""
        self._pause.begin()
        for stage in self._stages:
            stage.say_idle(self._number)

    # Trouble

    def _lose_exit(self, channel: Channel, error: PeerError) -> None:
        """Record that nothing more comes out of the last stage."""
        if channel is self._exit:
            self._drop_exit(channel)
            self._lose(self._stages[-1], error)

    def _drop_exit(self, channel: Channel) -> None:
        channel.abort()
        self._exit, self._mended = None, trio.Event()

    def _lose(self, stage: StageHandle, error: PeerError) -> None:
        stage.lose(error)
        self._trouble.set()

    def _heard(self, stage: StageHandle, word: Lost | Leaving | PeerError) -> None:
        """Act on a stage's message that it is leaving, or has lost a neighbour."""
        if isinstance(word, Leaving):
            stage.wants_to_leave = True
        elif isinstance(word, Lost) and stage in self._stages:
            at = self._stages.index(stage)
            for place in {max(0, at - 1), min(at + 1, len(self._stages) - 1)} - {at}:
                other = self._stages[place]
                if other.hop.peer != word.peer:
                    continue
                if place > at:
                    stage.sends_to, stage.lost_next = None, True
                    if self._was_reopened(stage, other):
                        continue  # a relay took the way between them along
                other.lose(PeerUnavailable(word.peer, printable(word.text)))
        self._trouble.set()

    def _fail(self, error: PeerError) -> None:
        """End the session: a waiting ``receive`` raises the error, the stages free their cells."""
        self._failure = self._failure or error
        self._let_go(error)
        self._mended.set()
        self._rerouted.set()

    def _let_go(self, why: PeerError) -> None:
        for stage in self._stages:
            stage.lose(why)
        if self._exit:
            self._exit.abort()
            self._exit = None
        if self.evidence:
            self.evidence.close()

    # Opening and repairing

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Send queued steps, and keep the chain whole, until it is closed."""
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._outbox.run)
                task_status.started()
                await trio.sleep_forever()

    async def open(self, route: Sequence[Hop]) -> None:
        """Open the session at all stages, and link them; raises as ``opening.open_chain``."""
        me = self._transport.peer_id
        self._stages = await self._open_stages(route, me, OPEN_S_MAX, self._opened)
        blocks = all(stage.blocks for stage in self._stages)
        self._opened = evolve(self._opened, blocks=blocks)
        await self._link(self._loose_ends(), OPEN_S_MAX)
        for stage in self._stages:
            if stage.lost:
                raise stage.lost
        self._tell_route()
        self._nursery.start_soon(self._keep)
        self._nursery.start_soon(self._end_when_still)

    async def wait_without(self, peer: PeerId) -> None:
        """Wait until another peer has taken the place of this one, or the session is over."""
        self._pause.miss()
        while not self._failure and any(hop.peer == peer for hop in self.route):
            await self._rerouted.wait()

    def _tell_route(self) -> None:
        """Report the chain's current peers to the evidence, the repair and those who wait."""
        self._rerouted.set()
        self._rerouted = trio.Event()
        if self.evidence:
            self.evidence.follow(self.route)
        if self._repair:
            self._repair.on_route(self.route)

    def close(self) -> None:
        """End the session, and release what it held."""
        self._scope.cancel()
        self._let_go(PeerUnavailable(self._transport.peer_id, "the session was closed"))
        self._outbox.unlink()
        self._outbox.history.close()

    async def _open_stages(
        self, route: Sequence[Hop], previous: PeerId, timeout_s: float, opened: Open
    ) -> list[StageHandle]:
        """Open the session at consecutive stages; at all of them or at none."""
        found = await open_stages(
            self._transport, opened, route, previous, timeout_s, self.evidence, not self._stages
        )
        for stage in found:
            self._nursery.start_soon(stage.listen, self._heard)
        return found

    async def _keep(self) -> None:
        """Repair the chain whenever part of it is lost, until that fails."""
        while True:
            await self._trouble.wait()
            await self._pause.wait_missed(self._repair, self._stages, self._failed)
            self._trouble = trio.Event()
            try:
                await self._mend()
            except PeerError as error:
                self._fail(error)
                return

    async def _end_when_still(self) -> None:
        """End the session once nothing comes out of it; which stage is to blame is unknown."""
        await wait_still(lambda: (self._received, self._number if self._is_waiting else 0))
        self._fail(PeerUnavailable(self.route[-1].peer, "no stage sent anything for too long"))

    async def _mend(self) -> None:
        """Replace lost stages, and link loose ends.

        Raises:
            PeerError: it cannot be repaired; the session is over.
        """
        give_up_at = trio.current_time() + (self._repair.wait_s_max if self._repair else 0)
        while True:
            if places := lost_places(self._stages):
                await self._replace(places, give_up_at)
            elif ends := self._loose_ends():
                await self._link(ends, ANSWER_S_MAX)
            elif not await self._improve():
                if self._pause.is_on:
                    self.rest()  # replacements do not know yet
                return

    async def _improve(self) -> bool:
        """Replace one stage that wants to leave, or is slow, if another peer serves better."""
        repair, stages = self._repair, self._stages
        if repair is None:
            return False
        for index, stage in enumerate(stages):
            if stage.wants_to_leave:
                stage.wants_to_leave = False  # tried once; failing that, it finishes its work
                hops = at_once(repair, stages, index, self._failed)
                break
        else:
            index, hops = repair.better()
        if not hops or not await self._take_places(slice(index, index + 1), hops):
            return False
        _log.info("%s is replaced", self.route[index].peer)
        return True

    def _loose_ends(self) -> list[int]:
        """Return the stages whose steps go to the wrong place; -1 is the requester."""
        stages = self._stages
        ends = [] if self._entry is stages[0] else [-1]
        for index, (before, behind) in enumerate(pairwise(stages)):
            if before.sends_to is not behind:
                ends.append(index)
        if self._exit is None:
            ends.append(len(stages) - 1)
        return ends

    async def _replace(self, places: slice, give_up_at: float) -> None:
        """Open the session at replacements for lost stages, if they accept it."""
        lost = self._stages[places]
        error = lost[0].lost
        assert error
        if self._repair is None or is_ending(error):
            raise error
        _log.info("%s is lost: %s", lost[0].hop.peer, error)
        if await self._reopen(places):
            return
        for stage in lost:
            self._failed = noted(self._failed, stage.hop.peer)
            if stage.lost:
                self._repair.on_lost(stage.lost)
        places, hops, is_last_resort = await find_others(
            self._repair, self._stages, places, self._failed, give_up_at
        )
        if not await self._take_places(places, hops) and is_last_resort:
            await trio.sleep(LOOK_AGAIN_S)

    async def _reopen(self, places: slice) -> bool:
        """Open the session again at stages lost through relays; False if that does not help.

        What is gone may be the relay, and not the peer, which another one leads to.
        """
        replaced, now = self._stages[places], trio.current_time()
        hops = [stage.hop for stage in replaced]
        if not all(s.may_return for s in replaced) or self._was_reopened(*replaced):
            return False
        self._reopened |= {hop.peer: now for hop in hops}
        if not await self._take_places(places, hops):
            return False
        kept = await self._keep_links(replaced, places)
        how = "with all its rows" if kept else "and computes its rows again"
        _log.info("%s is reached another way, %s", hops[0].peer, how)
        return True

    def _was_reopened(self, *stages: StageHandle) -> bool:
        """Whether the session was opened again at one of some stages a moment ago."""
        now = trio.current_time()
        return any(now - self._reopened.get(s.hop.peer, -REOPEN_S) < REOPEN_S for s in stages)

    async def _keep_links(self, replaced: Sequence[StageHandle], places: slice) -> bool:
        """Find which reopened stages still hold their steps, and leave the links between those.

        Return whether all of them do.
        """
        found, kept = self._stages[places], dict[StageHandle, StageHandle]()
        peers = [self._transport.peer_id, *(stage.hop.peer for stage in self._stages)]

        async def ask(at: int) -> None:
            try:
                if await found[at].count(peers[places.start + at], ANSWER_S_MAX):
                    kept[replaced[at]] = found[at]
            except PeerError as error:
                self._lose(found[at], error)

        async with trio.open_nursery() as asking:
            for at in range(len(found)):
                asking.start_soon(ask, at)
        for old, new in kept.items():
            new.known = old.known
            if old.sends_to is not old and not new.lost_next:
                new.sends_to = old.sends_to
        for stage in self._stages:
            if stage.sends_to in kept:
                stage.sends_to = kept[stage.sends_to]
        return len(kept) == len(found)

    async def _take_places(self, places: slice, hops: Sequence[Hop]) -> bool:
        """Open the session at replacements for some stages; False if one of them refuses."""
        me, replaced = self._transport.peer_id, self._stages[places]
        before = self._stages[places.start - 1].hop.peer if places.start else me
        is_again = any(stage.hop.peer == hop.peer for stage in replaced for hop in hops)
        opened = evolve(self._opened, parent=None) if is_again else self._opened
        try:
            self._stages[places] = await self._open_stages(hops, before, ANSWER_S_MAX, opened)
        except PeerError as refusal:
            _log.info("%s does not take the place: %s", refusal.peer, refusal)
            self._failed = noted(self._failed, refusal.peer)
            return False
        for stage in replaced:
            stage.lose(PeerUnavailable(stage.hop.peer, "it was replaced"))
            if self._exit and self._exit.remote == stage.hop.peer:
                self._drop_exit(self._exit)
        self._tell_route()
        return True

    async def _link(self, ends: Sequence[int], timeout_s: float) -> None:
        """Have stages, or the requester for -1, send those after them the steps they lack.

        All at once: each may be several round trips through relays. Where that fails, the stage to
        blame is marked lost.
        """
        last, received = len(self._stages) - 1, dict[int, int]()
        inner = [index for index in ends if index < last]
        async with trio.open_nursery() as asking:
            for index in inner:
                asking.start_soon(self._ask_received, index, received, timeout_s)
        if last in ends:
            self._stages[last].known = self._received
        for index in sorted(received, reverse=True):  # each is told what those behind it have
            if index >= 0:
                behind = self._stages[index + 1]
                self._stages[index].known = max(received[index], behind.known)
        with lone_errors():
            async with trio.open_nursery() as linking:
                for index, count in received.items():
                    linking.start_soon(self._join, index, count, timeout_s)
                if last in ends:
                    linking.start_soon(self._collect, self._stages[last], timeout_s)

    async def _ask_received(self, index: int, received: dict[int, int], timeout_s: float) -> None:
        """Have a stage take steps from the one before it, and note how many it has."""
        before = self._stages[index].hop.peer if index >= 0 else self._transport.peer_id
        behind = self._stages[index + 1]
        try:
            count = await behind.expect(before, timeout_s)
            if count > self._number:  # then it would never be sent anything
                raise RemoteProtocolError(behind.hop.peer, "it has steps that were never sent")
        except PeerError as error:
            self._lose(behind, error)
        else:
            received[index] = count

    async def _join(self, index: int, received: int, timeout_s: float) -> None:
        """Have a stage, or the requester for -1, send to the one after it what that lacks."""
        behind = self._stages[index + 1]
        if index < 0:
            await self._enter(behind, received, timeout_s)
            return
        before = self._stages[index]
        try:
            await before.connect(behind, received, timeout_s)
        except RefusedError as error:
            if error.refused.code is Refusal.NOT_HELD:
                self._lose(before, error)
            else:
                text = f"{before.hop.peer} cannot reach it"
                self._lose(behind, PeerUnavailable(behind.hop.peer, text))
        except PeerError as error:
            self._lose(before, error)

    async def _enter(self, first: StageHandle, received: int, timeout_s: float) -> None:
        """Send the requester's steps to the first stage."""
        if not self._outbox.can_begin(received):
            raise PeerUnavailable(first.hop.peer, "the steps it lacks are no longer kept")
        try:
            channel, _ = await reach(
                self._transport, first.hop, Link(self._opened.session), Linked, timeout_s
            )
        except PeerError as error:
            self._lose(first, error)
            return
        self._outbox.link(channel, received, max(received, first.known))
        self._entry = first
        self._nursery.start_soon(self._watch_entry, channel, first)

    async def _watch_entry(self, channel: Channel, first: StageHandle) -> None:
        """Notice when the first stage takes no more steps; it sends nothing on this channel."""
        try:
            await receive(channel)
        except PeerError as error:
            if first is self._entry:
                self._lose(first, error)

    async def _collect(self, last: StageHandle, timeout_s: float) -> None:
        """Have the last stage send here the rows that have not arrived yet."""
        attach = Attach(self._opened.session, last.known)
        try:
            self._exit, _ = await reach(self._transport, last.hop, attach, Attached, timeout_s)
        except PeerError as error:
            self._lose(last, error)
        else:
            last.sends_to = last
            self._mended.set()
