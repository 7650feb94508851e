"""A peer that chooses its layers: among others, over the memory network, under a mock clock."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pinfer.core.advertisement import RoundTrip, State
from p2pinfer.core.errors import EngineDied, P2pinferError, PeerUnavailable, UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.messages import Attach, Hop, Open, Opened, Refusal
from peers.asking.session import Requester, Session
from peers.serving.server import (
    DRAIN_S_MAX,
    HIDDEN_LOOK_S,
    LINKS_S,
    SPARE_MAX,
    STALE_S,
    TAKE_OVER_S_MAX,
)
from peers.serving.stage_session import QUIET_S
from peers.steps.messaging import SESSION, RefusedError, receive, send
from scheduler.offer_table import Experience
from scheduler.placement import CHECK_S, Choice, choose
from tests.support.fake_engines import FakeEnds
from tests.support.servers import BOUNDS, LOAD_S, SETTLE_S, Machine, World, decide, hops
from tests.support.swarm import CONTEXT, GREEDY, ME, MODEL, PROMPT, answer, peer, session_id


async def test_peers_that_join_at_once_cover_every_layer(
    world: World, autojump_clock: MockClock
) -> None:
    """They choose by themselves; each advertises what it means to take before it loads."""
    for layers_max in (8, 8, 8, 8):
        await world.join(layers_max)
    with trio.fail_after(SETTLE_S):
        while not world.board.covered():  # noqa: ASYNC110 -- on a mock clock
            await trio.sleep(0.1)
    by_peer = {a.peer: a for a in world.board.serving()}
    assert len(by_peer) == 4
    for found in by_peer.values():
        assert found.end - found.first <= 8
        assert (found.row_us, found.sessions_max, found.sessions_free) != (0, 0, 0)
    first = [states for states in world.board.states if states[0] == peer("server0")]
    assert [state for _, state, _ in first[:2]] == [State.JOINING, State.JOINING]
    assert first[0][2] == LayerRange(0, 0)


async def test_one_layer_fits_a_small_peer_and_all_a_large_one(
    world: World, autojump_clock: MockClock
) -> None:
    """Each takes what its memory can hold, and no more layers than exist."""
    large = await world.join(64)
    await trio.sleep(SETTLE_S / 4)
    small = await world.join(1)
    await trio.sleep(SETTLE_S / 4)
    assert large.served == [BOUNDS]
    (layers,) = small.served
    assert len(layers) == 1


async def test_sessions_are_counted_in_what_is_advertised(
    world: World, autojump_clock: MockClock
) -> None:
    """A peer that serves a session has one place less, and advertises that within seconds."""
    await world.join(64)
    await trio.sleep(SETTLE_S / 4)
    (offer,) = world.board.serving()
    assert offer.sessions_free == 4
    requester = Requester(world.nursery, world.me, FakeEnds(context=CONTEXT), MODEL)
    async with requester.open(hops([offer]), session_id(), CONTEXT) as session:
        assert len(await answer(session, PROMPT, 3)) == 3
        await trio.sleep(SETTLE_S / 4)
        assert world.board.serving()[0].sessions_free == 3
    await trio.sleep(SETTLE_S / 4)
    assert world.board.serving()[0].sessions_free == 4
    assert world.board.serving()[0].queued_rows == 0


async def test_an_idle_peer_still_advertises_round_trips(
    world: World, autojump_clock: MockClock
) -> None:
    """The first peer has met no other when it begins to serve; it advertises later measurements."""
    first = await world.join(64)
    await trio.sleep(SETTLE_S / 4)
    second = await world.join(64)
    mine, theirs = first.transport.peer_id, second.transport.peer_id
    assert world.board.said[mine].links == ()
    for seconds in (0.02, 0.0002):  # the next time comes later
        first.trips[theirs] = seconds
        await trio.sleep(2.1 * LINKS_S)
        assert world.board.said[mine].links == (RoundTrip(theirs, round(1e6 * seconds)),)
    said = len(world.board.states)
    await trio.sleep(LINKS_S)
    assert len(world.board.states) == said


async def test_peers_with_many_spare_holders_check_less_often(
    world: World, autojump_clock: MockClock
) -> None:
    """With one spare holder there is a check a second; with N, one every N seconds."""
    looks = []
    for count in (2, SPARE_MAX):
        for _ in range(count):
            await world.join(64)
        await trio.sleep(SETTLE_S)
        before = world.board.counts
        await trio.sleep(CHECK_S)
        looks.append((world.board.counts - before) / len(world.board.said) / CHECK_S)
    assert looks[0] == pytest.approx(1, rel=0.3)
    assert looks[1] == pytest.approx(1 / SPARE_MAX, rel=0.5)


async def test_a_peer_with_a_full_view_chooses_as_from_a_sample(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then an uneven distribution may be chance."""
    told: set[bool] = set()

    def note(*args: Any, seen: Experience, **more: Any) -> Choice:
        told.add(seen.is_sample)
        return choose(*args, seen=seen, **more)

    monkeypatch.setattr("peers.serving.server.choose", note)
    machine = await world.join(64)
    await trio.sleep(SETTLE_S)
    assert told == {False}
    machine.directory.is_sample = True
    told.clear()
    await trio.sleep(2 * CHECK_S)
    assert told == {True}


async def move(machine: Machine, world: World, layers: LayerRange) -> None:
    """Have a peer move at its next check."""
    await trio.sleep(SETTLE_S / 4)
    decide(machine, layers)
    with trio.fail_after(2 * CHECK_S):
        while machine.served[-1] != layers:  # noqa: ASYNC110 -- on a mock clock
            await trio.sleep(0.1)


async def test_an_undialable_peer_does_not_move(world: World, autojump_clock: MockClock) -> None:
    """Its new layers would help no requester; once it can be dialled, it moves."""
    machine = await world.join(64)
    await trio.sleep(SETTLE_S)
    machine.directory.is_hidden = True
    decide(machine, LayerRange(1, 11))
    await trio.sleep(5 * CHECK_S)
    assert machine.served == [BOUNDS]
    machine.directory.is_hidden = False
    await trio.sleep(2 * HIDDEN_LOOK_S)
    assert machine.served == [BOUNDS, LayerRange(1, 11)]


async def test_a_load_change_without_an_engine_is_harmless(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If memory is short, the old engine goes first, and the end of its sessions is a change."""
    monkeypatch.setattr("peers.serving.server.REPORT_S", LOAD_S / 4)
    machine = await world.join(10)
    await trio.sleep(SETTLE_S / 4)
    decide(machine, LayerRange(12, 22))
    with trio.fail_after(2 * CHECK_S):
        while machine.server.held:  # noqa: ASYNC110 -- on a mock clock
            await trio.sleep(0.1)
    machine.server._note_load()
    await trio.sleep(2 * LOAD_S)
    said = world.board.said[machine.transport.peer_id]
    assert (said.state, said.first, said.end) == (State.SERVING, 12, 22)


async def test_a_move_hands_over(world: World, autojump_clock: MockClock) -> None:
    """The new layers are served before the old engine ends, and a session continues meanwhile."""
    machine = await world.join(64)
    decide(machine, LayerRange(1, 11))
    other = await world.join(64)
    decide(other, LayerRange(11, 29))
    await trio.sleep(SETTLE_S / 4)
    route = sorted(world.board.serving(), key=lambda offer: offer.first)
    requester = Requester(world.nursery, world.me, FakeEnds(context=CONTEXT), MODEL)
    async with requester.open(hops(route), session_id(), CONTEXT) as session:
        whole = await answer(session, PROMPT, 4)
        tokens = session.generate(PROMPT, GREEDY, 4)
        found = [(await anext(tokens)).id]
        await move(machine, world, LayerRange(5, 15))
        assert len(machine.engines) == 2
        now = {a.peer: (a.state, a.first, a.end) for a in world.board.said.values()}
        assert now[machine.transport.peer_id] == (State.SERVING, 5, 15)
        for _ in range(3):
            await trio.sleep(QUIET_S / 2)
            found.append((await anext(tokens)).id)
        assert found == whole
        await tokens.aclose()
    await trio.sleep(STALE_S + 2 * QUIET_S)
    assert [(engine.first, engine.end) for engine in machine.engines] == [(5, 15)]
    states = [state for who, state, _ in world.board.states if who == machine.transport.peer_id]
    assert State.DRAINING not in states


async def test_if_memory_is_short_the_old_layers_go_first(
    world: World, autojump_clock: MockClock
) -> None:
    """That is advertised beforehand, so that no peer relies on them."""
    machine = await world.join(10)
    await move(machine, world, LayerRange(5, 15))
    assert [(engine.first, engine.end) for engine in machine.engines] == [(5, 15)]
    states = [state for who, state, _ in world.board.states if who == machine.transport.peer_id]
    assert states[-3:] == [State.DRAINING, State.JOINING, State.SERVING]


@pytest.mark.parametrize("error", [EngineDied("too large"), UserError("too large")])
async def test_a_failed_load_leaves_the_old_layers_served(
    error: P2pinferError, world: World, autojump_clock: MockClock
) -> None:
    """With room for both, and without; the engine may fail, and so may the disk."""
    for layers_max in (64, 10):
        machine = await world.join(layers_max)
        await trio.sleep(SETTLE_S / 4)
        machine.fails[LayerRange(5, 15)] = error
        served = machine.served[-1]
        decide(machine, LayerRange(5, 15))
        with trio.fail_after(4 * CHECK_S):
            while not any("too large" in text for text in machine.told):  # noqa: ASYNC110 -- mocked
                await trio.sleep(0.1)
        decide(machine, served)
        await trio.sleep(2 * LOAD_S)
        assert machine.served[-1] == served
        assert [LayerRange(e.first, e.end) for e in machine.engines] == [served]
        assert world.board.said[machine.transport.peer_id].state is State.SERVING


async def test_the_only_peer_leaves_at_once(world: World, autojump_clock: MockClock) -> None:
    """There is no peer to take its layers over."""
    machine = await world.join(28)
    await trio.sleep(SETTLE_S / 4)
    machine.leaving.set()
    await wait_all_tasks_blocked()
    assert not world.board.said
    assert not machine.engines


async def test_a_peer_that_does_not_serve_yet_leaves_at_once(
    world: World, autojump_clock: MockClock
) -> None:
    """That harms no session."""
    machine = await world.join(28)
    await trio.sleep(LOAD_S / 2)
    machine.leaving.set()
    await wait_all_tasks_blocked()
    assert not world.board.said


async def test_a_leaving_peer_waits_for_its_sessions_and_a_successor(
    world: World, autojump_clock: MockClock
) -> None:
    """New sessions are refused; a session finishes; then another peer serves the layers."""
    machine = await world.join(28)
    await trio.sleep(SETTLE_S / 4)
    (offer,) = world.board.serving()
    requester = Requester(world.nursery, world.me, FakeEnds(context=CONTEXT), MODEL)
    async with requester.open(hops([offer]), session_id(), CONTEXT) as session:
        tokens = session.generate(PROMPT, GREEDY, 5)
        await anext(tokens)
        other = await world.join(28)
        await trio.sleep(0.1)
        machine.leaving.set()
        for _ in range(4):
            await trio.sleep(QUIET_S / 2)
            assert machine.engines
            await anext(tokens)
        assert world.board.said[machine.transport.peer_id].state is State.DRAINING
        with pytest.raises(RefusedError, match="leaving") as refused:
            async with requester.open(hops([offer]), session_id(1), CONTEXT):
                pass
        assert refused.value.refused.code is Refusal.BUSY
        await tokens.aclose()
    await trio.sleep(SETTLE_S / 4)
    assert list(world.board.said) == [other.transport.peer_id]
    assert world.board.covered()
    assert not machine.engines


async def ask_for_ever(session: Session) -> None:
    """Ask again and again: a session that never ends."""
    while True:
        await answer(session, PROMPT, 2)
        await trio.sleep(QUIET_S / 2)


async def test_leaving_has_an_end(world: World, autojump_clock: MockClock) -> None:
    """Neither an endless session nor a layer that no peer takes over keeps a peer for ever."""
    machine = await world.join(28)
    other = await world.join(1)
    await trio.sleep(SETTLE_S / 4)
    (offer,) = [a for a in world.board.serving() if a.peer == machine.transport.peer_id]
    requester = Requester(world.nursery, world.me, FakeEnds(context=CONTEXT), MODEL)
    async with requester.open(hops([offer]), session_id(), CONTEXT) as session:
        machine.leaving.set()
        leaving_s = trio.current_time()
        with pytest.raises(PeerUnavailable):
            await ask_for_ever(session)
        left_s = trio.current_time() - leaving_s
    assert DRAIN_S_MAX < left_s < DRAIN_S_MAX + TAKE_OVER_S_MAX + 2 * QUIET_S
    assert any("no other peer serves layers" in text for text in machine.told)
    assert other.engines


async def test_channels_for_no_stage_are_refused(world: World, autojump_clock: MockClock) -> None:
    """Before anything is served, for unknown sessions, and for invalid messages."""
    machine = await world.join(28)
    await wait_all_tasks_blocked()
    there = machine.transport.peer_id
    hop = Hop(there, (), 1, 29)
    cases: list[tuple[bytes | Open | Attach, Refusal]] = [
        (Open(session_id(), MODEL, ME, ME, hop.first, hop.end, CONTEXT), Refusal.WRONG_RANGE),
        (Attach(session_id()), Refusal.UNKNOWN_SESSION),
        (b"\xc1", Refusal.BAD_REQUEST),
    ]
    for said, code in cases:
        channel = await world.me.open(there, SESSION)
        if isinstance(said, bytes):
            await channel.send(said)
        else:
            await send(channel, said)
        with pytest.raises(RefusedError) as refused:
            await receive(channel, Opened)
        assert refused.value.refused.code is code
    channel = await world.me.open(there, SESSION)
    with pytest.raises(RefusedError, match="too-slow"):
        await receive(channel, Opened)


async def test_a_server_calls_those_that_rows_may_pass(
    world: World, autojump_clock: MockClock
) -> None:
    """So it knows how far they are, and says so: requesters take peers that are near each other."""
    halves = await world.join(14), await world.join(14)
    await trio.sleep(SETTLE_S)
    whole, called = await world.join(64), list[str]()

    async def call(address: str) -> PeerId:
        called.append(address)
        return peer("it answered")

    whole.transport.connect = call  # type: ignore[method-assign]
    await trio.sleep(SETTLE_S)
    assert whole.served == [BOUNDS]
    first, last = (
        each.transport.peer_id for each in sorted(halves, key=lambda half: half.served[-1].first)
    )
    assert [address.split("/")[-1] for address in called] == [last]  # no rows come from the first
    whole.trips.update({first: 0.001, last: 0.02})
    await trio.sleep(16 * LINKS_S)
    links = world.board.said[whole.transport.peer_id].links
    assert [link.peer for link in links] == [last, first]
