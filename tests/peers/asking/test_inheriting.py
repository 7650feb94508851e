"""A session that begins with what another one holds: nothing is run again, and all checks hold."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import msgpack
import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.errors import EngineError, RemoteProtocolError
from p2pinfer.core.messages import Open, Opened, Parent, Refusal
from p2pinfer.core.wire import BadMessage, decode, encode
from peers.asking.pause import MISSED_S
from peers.asking.session import Beginning, Session
from peers.serving import stage_session
from peers.steps.history import Budget
from peers.steps.messaging import SESSION, RefusedError, receive, send
from tests.peers.asking.test_recovery import Spares, mended
from tests.peers.asking.test_reopening import WAYS, cut_off, hidden
from tests.support.swarm import (
    CHAINS,
    CONTEXT,
    GREEDY,
    MODEL,
    PROMPT,
    Swarm,
    answer,
    expected,
    peer,
    session_id,
    swarm,
)

SHARED = 96
OTHER = [*PROMPT[:SHARED], 7, 8, 9, 10, 11, 12]
"""Begins like the prompt, and goes on otherwise."""

BOUNDS = CHAINS[3]


@asynccontextmanager
async def beside(
    made: Swarm, parent: Session, spares: Spares | None = None, number: int = 1
) -> AsyncIterator[Session]:
    """Open a session that begins with the part of ``OTHER`` that the parent holds."""
    beginning = Beginning(parent, parent.held_of(OTHER))
    repair = spares.repair() if spares else None
    route, session = parent.route, session_id(number)
    async with made.requester.open(route, session, CONTEXT, repair, beginning) as opened:
        yield opened


async def due() -> list[int]:
    """Return the answer to ``OTHER`` of a session that has read the prompt itself."""
    async with swarm(BOUNDS) as made, made.open() as session:
        await answer(session, PROMPT)
        return await answer(session, OTHER)


def computed(made: Swarm) -> list[int]:
    """Return how many rows each stage has computed."""
    return [stage.rows for stage in made.stages]


@pytest.mark.parametrize("evidence", [False, True])
async def test_only_what_is_new_runs(evidence: bool, autojump_clock: MockClock) -> None:
    """The tokens are those of a session that read all of it; neither session harms the other."""
    async with swarm(BOUNDS, evidence=evidence) as made, made.open() as parent:
        before = await answer(parent, PROMPT)
        rows = computed(made)
        async with beside(made, parent) as session:
            assert session.held_of(OTHER) == SHARED
            assert await answer(session, OTHER) == await due()
            new = len(OTHER) - SHARED + 19
            assert computed(made) == [each + new for each in rows]
            assert await answer(parent, PROMPT) == before
            longer = [*OTHER, *(await answer(session, OTHER))[:5], 30, 31]
            assert session.held_of(longer) == len(longer) - 2
            await answer(session, longer, 2)


async def test_a_copy_of_a_copy_of_a_session_in_use(autojump_clock: MockClock) -> None:
    """Sessions begin with others while these draw tokens, and outlive them."""
    async with swarm(BOUNDS) as made, AsyncExitStack() as later:
        async with made.open() as parent, aclosing(parent.generate(PROMPT, GREEDY, 30)) as tokens:
            drawn = [(await anext(tokens)).id for _ in range(3)]
            first = await later.enter_async_context(beside(made, parent))
            drawn += [token.id async for token in tokens]
            assert drawn == await expected(PROMPT, 30, BOUNDS)
        second = await later.enter_async_context(beside(made, first, number=2))
        said = await due()
        assert [await answer(each, OTHER) for each in (second, first)] == [said, said]


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("is_parent", [False, True])
async def test_a_stage_is_lost(lost: int, is_parent: bool, autojump_clock: MockClock) -> None:
    """Before the copy or after it: a replacement gets the rows from the stage before it."""
    async with mended() as (made, spares):
        await spares.add(BOUNDS[lost], BOUNDS[lost + 1])
        async with spares.open() as parent:
            await answer(parent, PROMPT)
            if is_parent:
                made.leave[lost]()
                await answer(parent, PROMPT, 1)
            rows = computed(made)
            async with beside(made, parent, spares) as session:
                async with aclosing(session.generate(OTHER, GREEDY, 20)) as tokens:
                    found = [(await anext(tokens)).id]
                    if not is_parent:
                        made.leave[lost]()
                    found += [token.id async for token in tokens]
                assert found == await due()
            new = len(OTHER) - SHARED + 19
            others = [n for n in range(3) if n != lost]
            assert [computed(made)[n] for n in others] == [rows[n] + new for n in others]
            assert computed(made)[3] - rows[3] == (
                new if is_parent else len(OTHER) + 19 + len(PROMPT) + 19  # and the parent's
            )


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("evidence", [False, True])
async def test_what_sessions_share_is_read_again_once(
    lost: int, evidence: bool, autojump_clock: MockClock
) -> None:
    """After a loss between two answers: by the session that is asked first."""
    async with mended(evidence=evidence) as (made, spares):
        await spares.add(BOUNDS[lost], BOUNDS[lost + 1])
        async with spares.open() as parent:
            before = await answer(parent, PROMPT)
            async with beside(made, parent, spares) as session:
                said = await answer(session, OTHER)
                made.leave[lost]()
                await trio.sleep(MISSED_S / 2)
                assert computed(made)[3] == 0
                assert (await answer(parent, PROMPT, 1))[0] == before[0]
                read = computed(made)[3]
                assert read <= len(PROMPT) + 20
                longer = [*OTHER, *said, 30]
                await answer(session, longer, 1)
                assert computed(made)[3] <= read + len(longer) - SHARED


async def test_what_nobody_misses_is_replaced_all_the_same(autojump_clock: MockClock) -> None:
    """A while later, and long before the other stages free their cells."""
    async with mended() as (made, spares):
        await spares.add(BOUNDS[1], BOUNDS[2])
        async with spares.open() as session:
            before = await answer(session, PROMPT)
            made.leave[1]()
            await trio.sleep(MISSED_S + 5)
            assert computed(made)[3] >= len(PROMPT)
            assert await answer(session, PROMPT) == before


@pytest.mark.parametrize("behind", [0, 1, 2])
async def test_a_stage_that_knows_no_parents_reads_again(
    behind: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses the field as a peer of before does, and gets the rows from the stage before it."""
    async with swarm(BOUNDS) as made, made.open() as parent:
        await answer(parent, PROMPT)
        stage = made.stages[behind]
        admit = stage._admit

        def refuse(channel: object, opened: Open) -> object:
            if opened.parent:
                raise RefusedError.of(made.route[behind].peer, Refusal.BAD_REQUEST, "12 fields")
            return admit(channel, opened)  # type: ignore[arg-type]

        monkeypatch.setattr(stage, "_admit", refuse)
        rows = computed(made)
        async with beside(made, parent) as session:
            assert await answer(session, OTHER) == await due()
        new = len(OTHER) - SHARED + 19
        again = [SHARED * (n == behind) for n in range(3)]
        assert computed(made) == [a + new + b for a, b in zip(rows, again, strict=True)]


def forgets(made: Swarm) -> None:
    """Have a stage lose the rows that it sent, as when its disk is full."""
    (parent,) = made.stages[1]._sessions.values()
    parent._outbox.history._forget_oldest()


def dies(made: Swarm) -> None:
    """Have a stage's engine start again: the cells of the parent are gone."""
    made.engines[1].machine.die()


@pytest.mark.parametrize("harm", [forgets, dies])
async def test_a_stage_that_holds_it_no_more_reads_again(
    harm: Callable[[Swarm], None], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the stage lacks, the answer is the same."""
    monkeypatch.setattr("peers.steps.history.KEPT_STEPS_MIN", 1)
    async with swarm(BOUNDS) as made, made.open() as parent:
        await answer(parent, PROMPT)
        harm(made)
        rows = computed(made)
        async with beside(made, parent) as session:
            assert await answer(session, OTHER) == await due()
        new = len(OTHER) - SHARED + 19
        assert computed(made) == [rows[0] + new, rows[1] + new + SHARED, rows[2] + new]


async def test_parent_goes_back_only_when_it_was_copied(autojump_clock: MockClock) -> None:
    """Another prompt in the parent waits for the copy, and then overwrites what was copied."""
    async with swarm(BOUNDS) as made, made.open() as parent:
        await answer(parent, PROMPT)
        made.network.latency_s = lambda a, b: 0.05
        found = {}

        async def ask_parent() -> None:
            await trio.sleep(0.01)  # the copy is under way
            found["parent"] = await answer(parent, PROMPT[50:])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_parent)
            async with beside(made, parent) as session:
                found["other"] = await answer(session, OTHER)
        assert found == {
            "parent": await expected(PROMPT[50:], 20, BOUNDS),
            "other": await due(),
        }


async def test_rows_on_disk_are_copied(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replacement gets them from the copy's own file, when the parent is over."""
    monkeypatch.setattr("peers.steps.history.HISTORY_MEMORY_BYTES_MAX", 0)
    monkeypatch.setattr("peers.steps.history.KEPT_STEPS_MIN", 0)
    monkeypatch.setattr("peers.steps.history.SPILL_BYTES", 64)
    monkeypatch.setattr("peers.serving.stage.Budget", lambda: Budget(0))
    async with mended() as (made, spares):
        await spares.add(BOUNDS[1], BOUNDS[2])
        async with AsyncExitStack() as later:
            async with spares.open() as parent:
                await answer(parent, PROMPT)
                session = await later.enter_async_context(beside(made, parent, spares))
            made.leave[1]()
            assert await answer(session, OTHER) == await due()


def named(made: Swarm, parent: Parent, number: int = 99) -> Open:
    """Return what opens a session at the first stage with a parent."""
    hop, me = made.route[0], made.me.peer_id
    opened = Open(session_id(number), MODEL, me, me, hop.first, hop.end, CONTEXT)
    return evolve(opened, blocks=True, parent=parent)


async def test_hostile_parents(autojump_clock: MockClock) -> None:
    """Another's session is refused; what was never computed is not taken over."""
    async with swarm(BOUNDS) as made, made.open() as parent:
        await answer(parent, PROMPT)
        (held,) = made.stages[0]._sessions.values()
        number = held._received

        async def ask(opened: Open, who: object = made.me) -> bool:
            control = await who.open(made.route[0].peer, SESSION)  # type: ignore[attr-defined]
            try:
                await send(control, opened)
                return (await receive(control, Opened)).inherited
            finally:
                await control.close()
                await trio.sleep(1)

        mine = parent._chain.as_parent(SHARED)
        assert await ask(named(made, mine))
        assert not await ask(named(made, evolve(mine, rows=CONTEXT)))
        assert not await ask(named(made, evolve(mine, session=session_id(50))))
        assert not await ask(named(made, evolve(mine, number=0)))
        assert not await ask(evolve(named(made, mine), blocks=False))
        assert not await ask(evolve(named(made, mine), end=made.route[0].end - 1))
        with pytest.raises(RefusedError, match="do not fit"):
            await ask(evolve(named(made, evolve(mine, rows=CONTEXT)), context=CONTEXT - 1))
        with pytest.raises(RefusedError, match="as another one"):
            await ask(named(made, mine, 0))
        thief = peer("thief")
        async with made.network.join(thief) as other:
            stolen = evolve(named(made, mine), requester=thief, previous=thief)
            with pytest.raises(RefusedError, match="another requester's") as refused:
                await ask(stolen, other)
            assert refused.value.refused.code is Refusal.BAD_REQUEST
        assert number == held._received
        assert await answer(parent, PROMPT) == await expected(PROMPT, 20, BOUNDS)


async def test_stage_that_takes_over_what_was_not_named(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is blamed, and no session is opened."""
    monkeypatch.setattr(stage_session, "Opened", lambda *_: Opened(inherited=True))
    async with swarm(BOUNDS) as made:
        with pytest.raises(RemoteProtocolError, match="not named") as blamed:
            async with made.open():
                pass
        assert blamed.value.peer in {hop.peer for hop in made.route}


async def test_rows_that_change_while_they_are_copied(autojump_clock: MockClock) -> None:
    """A requester that goes back meanwhile gets nothing: no stage signs for a mixture."""
    async with swarm(BOUNDS) as made, made.open() as parent:
        await answer(parent, PROMPT)

        async def slowly(parent: object, length: int) -> None:
            await trio.sleep(1)

        opened = named(made, parent._chain.as_parent(SHARED))
        engine = made.engines[0]
        open_cells = engine.open

        def opening(*how: Any) -> object:
            cells = open_cells(*how)
            cells.inherit = slowly  # type: ignore[method-assign]
            return cells

        engine.open = opening  # type: ignore[assignment,method-assign]
        control = await made.me.open(made.route[0].peer, SESSION)
        await send(control, opened)
        await trio.sleep(0.5)
        await answer(parent, PROMPT[:50], 1)
        assert not (await receive(control, Opened)).inherited
        await control.close()


def test_older_peers_are_sent_no_new_field() -> None:
    """Messages without a parent are as they were; with one they come back whole."""
    me = peer("me")
    opened = Open(session_id(1), MODEL, me, me, 1, 9, CONTEXT)
    parent = Parent(session_id(2), 9, 4)
    assert [len(msgpack.unpackb(encode(each))) for each in (opened, Opened())] == [11, 1]
    for each in (opened, evolve(opened, blocks=True), evolve(opened, parent=parent)):
        assert decode(encode(each), Open) == each
    for said in (Opened(), Opened(inherited=True)):
        assert decode(encode(said), Opened) == said
    with pytest.raises(BadMessage):
        decode(msgpack.packb(["Opened", 1]), Opened)
    with pytest.raises(ValueError, match="rows"):
        Parent(session_id(2), 0, 4)


async def test_parent_that_is_over(autojump_clock: MockClock) -> None:
    """Nothing is opened, and nothing stays behind."""
    async with swarm(BOUNDS) as made:
        async with made.open() as parent:
            await answer(parent, PROMPT)
        beginning = Beginning(parent, SHARED)
        with pytest.raises(EngineError, match="over"):
            async with made.requester.open(made.route, session_id(1), CONTEXT, None, beginning):
                pass


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("at_once", [False, True])
async def test_a_relay_is_lost(ways: str, at_once: bool, autojump_clock: MockClock) -> None:
    """Before the copy's first step or later: the stages keep what they took over."""
    async with hidden() as made:
        spares = Spares(made)
        async with spares.open() as parent:
            await answer(parent, PROMPT)
            rows = computed(made)
            async with beside(made, parent, spares) as session:
                if at_once:
                    cut_off(made, *WAYS[ways])()
                    await trio.sleep(5)
                async with aclosing(session.generate(OTHER, GREEDY, 20)) as tokens:
                    found = [(await anext(tokens)).id]
                    if not at_once:
                        cut_off(made, *WAYS[ways])()
                    found += [token.id async for token in tokens]
                assert found == await due()
            new = len(OTHER) - SHARED + 19
            assert computed(made) == [each + new for each in rows]
