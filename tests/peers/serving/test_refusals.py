"""Impossible requests are refused, and a peer that breaks the protocol is blamed, no other."""

from collections.abc import Callable

import numpy as np
import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.checks import POSITIONS_MAX
from p2pinfer.core.errors import PeerError, PeerUnavailable, RemoteProtocolError, UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.core.limits import STEPS_IN_FLIGHT_MAX
from p2pinfer.core.messages import (
    ROUTE_HOPS_MAX,
    Attach,
    Attached,
    Hop,
    Link,
    Linked,
    Message,
    Open,
    Opened,
    Refusal,
    Step,
)
from p2pinfer.core.regimes import Regime
from p2pinfer.core.wire import encode
from p2pinfer.engine.base import Decoded, Done, EngineBusy
from peers.asking.session import Requester
from peers.steps.messaging import SESSION, RefusedError, receive, send
from tests.support import fake_engines
from tests.support.fake_engines import WIDTH, FakeEnds
from tests.support.swarm import (
    CHAINS,
    CONTEXT,
    GOOD_ROW,
    ME,
    MODEL,
    PEERS,
    PROMPT,
    Talk,
    answer,
    expected,
    open_by_hand,
    peer,
    session_id,
    swarm,
)
from transports.base import Channel


@pytest.mark.parametrize("length", [0, 50, 51])
async def test_a_prompt_must_leave_room(length: int, autojump_clock: MockClock) -> None:
    """A prompt that fills the context, or is empty, is the user's error and harms no session."""
    async with swarm() as made, made.open(context=50) as session:
        with pytest.raises(UserError, match=f"prompt has {length} tokens, .* holds 50"):
            await answer(session, PROMPT[:length])
        assert await answer(session, PROMPT[:49], 1)


async def test_a_busy_stage_refuses(autojump_clock: MockClock) -> None:
    """One session more than the last stage has is refused in its name; the others continue."""
    async with swarm() as made:
        made.engines[2].machine.sessions = 1
        async with made.open(1) as session:
            with pytest.raises(RefusedError, match="busy: all 1 sessions") as caught:
                await made.open(2).__aenter__()
            assert caught.value.refused.peer == PEERS[2]
            await trio.sleep(1)
            assert [stage.sessions for stage in made.stages] == [1, 1, 1]
            assert await answer(session, PROMPT, 3) == await expected(PROMPT, 3, CHAINS[3])
        async with made.open(3):
            pass


async def test_a_busy_requester_asks_no_peer(autojump_clock: MockClock) -> None:
    """The requester's own engine may have no session left."""
    async with swarm(ends=FakeEnds(sessions=1, context=CONTEXT)) as made, made.open(1):
        with pytest.raises(EngineBusy):
            await made.open(2).__aenter__()
        assert made.stages[0].sessions == 1


@pytest.mark.parametrize(
    ("change", "code", "sayer"),
    [
        pytest.param(lambda r: [evolve(r[0], end=11), *r[1:]], Refusal.WRONG_RANGE, 0, id="range"),
        pytest.param(
            lambda r: [r[0], r[1], evolve(r[2], first=19)], Refusal.WRONG_RANGE, 2, id="overlap"
        ),
        pytest.param(
            lambda r: [r[0], evolve(r[1], end=19), evolve(r[2], first=19)],
            Refusal.WRONG_RANGE,
            2,
            id="another's range",
        ),
    ],
)
async def test_a_bad_route_is_refused(
    change: Callable[[list[Hop]], list[Hop]],
    code: Refusal,
    sayer: int,
    autojump_clock: MockClock,
) -> None:
    """Each stage checks its own range."""
    async with swarm() as made:
        route = change(made.route)
        with pytest.raises(RefusedError) as caught:
            await made.requester.open(route, session_id(), CONTEXT).__aenter__()
        refused = caught.value.refused
        assert (refused.code, refused.peer) == (code, PEERS[sayer])


async def test_an_unreachable_peer_in_a_route_is_named(autojump_clock: MockClock) -> None:
    """No other stage holds cells."""
    async with swarm() as made:
        route = [made.route[0], evolve(made.route[1], peer=peer("nobody")), made.route[2]]
        with pytest.raises(PeerUnavailable) as caught:
            await made.requester.open(route, session_id(), CONTEXT).__aenter__()
        assert caught.value.peer == peer("nobody")
        await trio.sleep(1)
        assert [stage.sessions for stage in made.stages] == [0, 0, 0]


async def test_another_model_is_refused(autojump_clock: MockClock) -> None:
    """A stage serves its own model only."""
    async with swarm() as made:
        requester = Requester(made.nursery, made.me, made.ends, ModelId("cd" * 32))
        with pytest.raises(RefusedError, match="wrong-model: this peer serves model abababab"):
            await requester.open(made.route, session_id(), CONTEXT).__aenter__()


async def test_a_long_context_is_refused(autojump_clock: MockClock) -> None:
    """A session may not ask for more positions than a stage keeps."""
    async with swarm(ends=FakeEnds(context=POSITIONS_MAX)) as made:
        with pytest.raises(RefusedError, match="context-full: sessions here hold 256"):
            await made.open(context=CONTEXT + 1).__aenter__()


def spoilt(value: float) -> bytes:
    """Make a row with one bad number in it."""
    rows = np.ones(WIDTH, "<f4")
    rows[WIDTH // 2] = value
    return rows.tobytes()


HOSTILE: dict[str, bytes | Message] = {
    "NaN": Step(1, 0, 1, False, spoilt(np.nan)),
    "infinity": Step(1, 0, 1, False, spoilt(-np.inf)),
    "too narrow a row": Step(1, 0, 1, False, GOOD_ROW[:-4]),
    "too wide a row": Step(1, 0, 1, False, GOOD_ROW + GOOD_ROW),
    "no row": Step(1, 0, 1, False, b""),
    "part of a number": Step(1, 0, 1, False, GOOD_ROW + b"x"),
    "a gap": Step(1, 1, 1, False, GOOD_ROW),
    "a wide count of narrow rows": Step(1, 0, 8, False, 8 * GOOD_ROW),
    "more times than hops": Step(1, 0, 1, False, GOOD_ROW, (0,) * ROUTE_HOPS_MAX),
    "another kind": Attached(),
    "a second opening": Open(session_id(7), MODEL, ME, ME, 1, 10, 10),
    "garbage": b"\xc1garbage",
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_step_ends_its_own_session(name: str, autojump_clock: MockClock) -> None:
    """Its sender is told that it is to blame; other sessions, and the stage, continue."""
    async with swarm() as made, made.open() as session:
        talk = await Talk.open(made)
        message = HOSTILE[name]
        await talk.entry.send(message if isinstance(message, bytes) else encode(message))
        with pytest.raises(RefusedError) as caught:
            await receive(talk.entry)
        assert caught.value.refused.code is Refusal.BAD_REQUEST
        assert caught.value.refused.peer == PEERS[0]
        with pytest.raises(RefusedError, match="bad-request"):
            await receive(talk.controls[0])
        await talk.close()
        with pytest.raises(PeerError):
            await receive(talk.exit)
        assert await answer(session, PROMPT, 5) == await expected(PROMPT, 5, CHAINS[3])
        await trio.sleep(1)
        assert [stage.sessions for stage in made.stages] == [1, 1, 1]


@pytest.mark.parametrize("name", ["another kind", "garbage", "nothing"])
async def test_a_hostile_beginning_is_refused(name: str, autojump_clock: MockClock) -> None:
    """A first message that opens neither a session nor a collection is refused with blame."""
    async with swarm() as made:
        channel = await made.me.open(PEERS[0], SESSION)
        message = HOSTILE[name]
        await channel.send(message if isinstance(message, bytes) else encode(message))
        with pytest.raises(RefusedError, match="bad-request"):
            await receive(channel)


async def test_the_same_session_twice_is_refused(autojump_clock: MockClock) -> None:
    """A session's id belongs to the requester that opened it first."""
    async with swarm() as made, made.open() as session:
        with pytest.raises(RefusedError, match="bad-request: this session is open already"):
            await made.open().__aenter__()
        assert await answer(session, PROMPT, 3) == await expected(PROMPT, 3, CHAINS[3])


async def test_steps_past_the_context_are_refused(autojump_clock: MockClock) -> None:
    """A session has only the positions that it was opened with."""
    async with swarm() as made:
        talk = await Talk.open(made)
        await talk.send_step(0, 48 * GOOD_ROW, 48)
        await receive(talk.exit, Step)
        await talk.send_step(CONTEXT - 1, 2 * GOOD_ROW, 2)
        with pytest.raises(RefusedError, match="context-full: the session's 256 positions"):
            await receive(talk.entry)
        await talk.close()


async def test_a_flood_of_steps_waits_outside(autojump_clock: MockClock) -> None:
    """A stage gives its engine a few steps of a session at a time, however many are sent."""
    async with swarm((1, 29)) as made:
        (engine,) = made.engines
        engine.machine.decode_s = 1.0
        talk = await Talk.open(made)
        for at in range(30):
            await talk.send_step(at, GOOD_ROW, 1, regime=Regime.NARROW)
        await trio.sleep(0.5)
        assert engine.machine.rows == STEPS_IN_FLIGHT_MAX
        await trio.sleep(30)
        assert engine.machine.rows == 30
        for _ in range(30):  # each in place of the one before
            await talk.send_step(0, GOOD_ROW, 1, regime=Regime.NARROW)
        await trio.sleep(30)
        assert engine.machine.rows == 32
        await talk.close()


async def test_a_stranger_cannot_collect_before_the_requester(autojump_clock: MockClock) -> None:
    """It is refused, and the requester is not."""
    async with swarm((1, 29)) as made, made.network.join(peer("thief")) as thief:
        (control,) = await open_by_hand(made, 0)
        stolen = await thief.open(PEERS[0], SESSION)
        await send(stolen, Attach(session_id()))
        with pytest.raises(RefusedError, match="unknown-session"):
            await receive(stolen, Attached)
        own = await made.me.open(PEERS[0], SESSION)
        await send(own, Attach(session_id()))
        await receive(own, Attached)
        await control.close()


async def test_only_the_requester_collects(autojump_clock: MockClock) -> None:
    """A stranger, and a session that does not exist, get the same refusal."""
    async with swarm() as made, made.network.join(peer("thief")) as thief, made.open() as session:
        for who, where, number in [
            (thief, PEERS[2], 0),
            (thief, PEERS[1], 0),
            (made.me, PEERS[2], 5),
        ]:
            channel = await who.open(where, SESSION)
            await send(channel, Attach(session_id(number)))
            with pytest.raises(RefusedError, match="unknown-session"):
                await receive(channel, Attached)
        assert await answer(session, PROMPT, 3) == await expected(PROMPT, 3, CHAINS[3])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda step: evolve(step, rows=spoilt(np.nan)), "NaN"),
        (lambda step: evolve(step, rows=GOOD_ROW * 2), "width"),
        (lambda step: evolve(step, position=step.position + 1), "another step"),
        (lambda step: evolve(step, count=2), "another step"),
        (lambda _: Opened(), "not due"),
    ],
)
async def test_a_lying_last_stage_is_blamed(
    change: Callable[[Step], Message], text: str, autojump_clock: MockClock
) -> None:
    """What comes out of the chain is checked, and its sender is named."""
    steps: list[Step] = []
    has_step = trio.Event()

    async def lie(channel: Channel) -> None:
        first: Open | Link | Attach = await receive(channel, Open, Link, Attach)
        if isinstance(first, Open):
            await send(channel, Opened())
            await receive(channel)
        if isinstance(first, Link):
            await send(channel, Linked())
            steps.append(await receive(channel, Step))
            has_step.set()
            await receive(channel)
        await send(channel, Attached())
        await has_step.wait()
        await send(channel, change(steps[0]))

    async with swarm((1, 29)) as made:
        liar = made.network.peers[PEERS[0]]
        liar.handle(SESSION, lie)
        async with made.open() as session:
            with pytest.raises(RemoteProtocolError, match=text) as caught:
                await answer(session, PROMPT[:1], 3)
            assert caught.value.peer == PEERS[0]


async def test_an_engine_may_be_done_before_it_returns(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Nothing says that rows come out only later: a stage that copies them has them at once."""

    def at_once(_: object, position: int, rows: bytes, done: Done, *, regime: Regime) -> None:
        done(Decoded(rows, 1))

    monkeypatch.setattr(fake_engines._FakeStageSession, "submit", at_once)
    async with swarm(CHAINS[3]) as made, made.open() as session:
        assert await answer(session, PROMPT[:100], 5)
