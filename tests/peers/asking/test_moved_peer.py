"""A peer changes its network: sessions of others go on, and how long those pause that used it."""

import math
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Hop
from peers.asking.session import Session
from tests.peers.asking.test_recovery import Spares
from tests.support.fake_engines import FakeStage
from tests.support.swarm import (
    CHAINS,
    CONTEXT,
    GREEDY,
    PEERS,
    PROMPT,
    Swarm,
    expected,
    peer,
    session_id,
    swarm,
)

MOVER = PEERS[1]
LINK_S = 0.01
USUAL_S = 0.2
"""More than any two tokens are apart while nothing happens."""

REPLACED_S_MAX = 3.0
"""For a session that used the peer, where another one serves the same layers."""

BACK_S_MAX = 10.0
"""The same where none does, once the peer's network is back: it may be tried just before that."""


@dataclass
class Heard:
    """An answer as it comes."""

    tokens: list[int] = field(default_factory=list)
    longest_s: float = 0.0
    """Between two tokens."""


async def listen(session: Session, heard: Heard, begun: trio.Event | None = None) -> None:
    """Take an answer; say when it has begun."""
    at = math.nan
    async with aclosing(session.generate(PROMPT, GREEDY, 60)) as tokens:
        async for token in tokens:
            now = trio.current_time()
            heard.longest_s, at = max(heard.longest_s, 0.0 if math.isnan(at) else now - at), now
            heard.tokens.append(token.id)
            if begun is not None and len(heard.tokens) == 5:
                begun.set()


@asynccontextmanager
async def two_sessions(*, spare: bool) -> AsyncIterator[tuple[Swarm, Heard, Heard, Spares]]:
    """Have two sessions answer, of which the first uses the peer that moves, and wait for both."""
    async with swarm(CHAINS[3]) as made:
        made.network.latency_s = lambda a, b: LINK_S
        calm = peer("calm")
        await made.nursery.start(made.add, calm, FakeStage(10, 20, context=CONTEXT), None)
        beside = made.route.pop()
        spares, mine, theirs, begun = Spares(made), Heard(), Heard(), trio.Event()
        if spare:
            await spares.add(10, 20)
        else:
            spares.hops.append(made.route[1])
        other: list[Hop] = [made.route[0], beside, made.route[2]]
        async with (
            spares.open() as session,
            made.requester.open(other, session_id(1), CONTEXT, spares.repair()) as second,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(listen, session, mine, begun)
            nursery.start_soon(listen, second, theirs)
            await begun.wait()
            yield made, mine, theirs, spares


def move_away(made: Swarm) -> None:
    """Break all connections of the peer, and let nothing reach it."""
    made.network.latency_s = lambda a, b: math.inf if MOVER in (a, b) else LINK_S
    made.network.sever(lambda one, other: MOVER in (one, other))


def come_back(made: Swarm) -> None:
    """Let it be reached again, at another address."""
    made.network.latency_s = lambda a, b: LINK_S
    made.network.peers[MOVER].move()


async def test_a_session_goes_on_elsewhere_and_others_notice_nothing(
    autojump_clock: MockClock,
) -> None:
    """Another peer serves the same layers: a pause of a moment, and of none beside it."""
    async with two_sessions(spare=True) as (made, mine, theirs, _):
        move_away(made)
    assert mine.tokens == theirs.tokens == await expected(PROMPT, 60, CHAINS[3])
    assert theirs.longest_s < USUAL_S
    assert mine.longest_s < REPLACED_S_MAX


@pytest.mark.parametrize("away_s", [2.0, 20.0])
async def test_the_only_peer_of_some_layers_is_waited_for(
    away_s: float, autojump_clock: MockClock
) -> None:
    """Nobody else serves them: the answer goes on once its network is back, beside one that ran."""
    async with two_sessions(spare=False) as (made, mine, theirs, spares):
        before: list[PeerId] = [hop.peer for hop in made.route]
        move_away(made)
        await trio.sleep(away_s)
        come_back(made)
        spares.hops[:] = [made.route[1]]
    assert mine.tokens == theirs.tokens == await expected(PROMPT, 60, CHAINS[3])
    assert theirs.longest_s < USUAL_S
    assert mine.longest_s < away_s + BACK_S_MAX
    assert spares.routes[-1] == before
