"""Sessions over paths of real hosts: stages with fake engines, relays that die in an answer."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from itertools import pairwise

import pytest
import trio

from p2pinfer.core.messages import Hop
from peers.asking.repair import Repair
from peers.asking.session import Requester
from peers.receipts.session_evidence import Gatherer
from peers.receipts.signer import ReceiptSigner
from peers.serving.stage import Stage
from tests.support.fake_engines import FakeEnds, FakeStage
from tests.support.swarm import CHAINS, CONTEXT, GREEDY, MODEL, PROMPT, expected, session_id
from transports.base import Reach, Relaying
from transports.identity import ephemeral_identity
from transports.libp2p.path import Extension
from transports.libp2p.transport import Libp2pTransport, open_libp2p

HERE = ["/ip4/127.0.0.1/tcp/0"]
RELAYING = Reach("test", relaying=Relaying.ALWAYS, relay_mbit=10_000)
TEST_S_MAX = 120.0
BOUNDS = CHAINS[3]
COUNT = 20
DIES_AT = 4


def nobody(*_: object) -> list[Hop]:
    """Find no replacement: the stages live, and must be reached again."""
    raise LookupError("nobody else holds these layers")


NOBODY_ELSE = Repair(nobody, lambda _: None)


class World:
    """Three stages, and two relays for each place on a path."""

    def __init__(self) -> None:
        self.route: list[Hop] = []
        self.stages: list[Libp2pTransport] = []
        self.relays: list[tuple[Libp2pTransport, trio.CancelScope]] = []
        self.hosts: list[Libp2pTransport] = []
        """The requester's, from the one that calls the first relay to the one on top."""


@asynccontextmanager
async def world(via: int) -> AsyncGenerator[World]:
    """Run all of it, and the requester's hosts."""
    made = World()

    async def relay(*, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as scope:
            async with open_libp2p(None, HERE, RELAYING) as host:
                made.relays.append((host, scope))
                task_status.started()
                await trio.sleep_forever()

    with trio.fail_after(TEST_S_MAX):
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            for first, end in pairwise(BOUNDS):
                identity = ephemeral_identity()
                host = await stack.enter_async_context(open_libp2p(identity, HERE, "test"))
                signer = ReceiptSigner(host, identity.sign, lambda _: None)
                Stage(
                    host, FakeStage(first, end, sessions=4, context=CONTEXT), MODEL, signer
                ).listen()
                signer.listen()
                made.stages.append(host)
                made.route.append(Hop(host.peer_id, tuple(host.addresses), first, end))
            for _ in range(2 * via):
                await nursery.start(relay)
            known = {each.peer_id: tuple(each.own_addresses) for each in made.stages}
            known |= {each.peer_id: tuple(each.own_addresses) for each, _ in made.relays}
            for each, _ in made.relays:
                each.punches.addresses_of = lambda peer: known.get(peer, ())
            below = await stack.enter_async_context(open_libp2p(None, [], "test"))
            made.hosts.append(below)
            for place in range(via):
                pair = [each for each, _ in made.relays[2 * place : 2 * place + 2]]
                over = Extension(below, "test", [(e.peer_id, known[e.peer_id]) for e in pair])
                below = await stack.enter_async_context(open_libp2p(None, [], "test", via=over))
                made.hosts.append(below)
            yield made
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("via", "dies"), [(1, 0), (2, 0), (2, 1)])
async def test_an_answer_goes_on_over_another_relay(via: int, dies: int) -> None:
    """With the same tokens, and with receipts that join up, under the same id."""
    async with world(via) as made, trio.open_nursery() as nursery:
        top = made.hosts[-1]
        gatherer = Gatherer(nursery, top, lambda size: bytes(size))
        requester = Requester(nursery, top, FakeEnds(context=CONTEXT), MODEL, gatherer)
        found: list[int] = []
        async with (
            requester.open(made.route, session_id(), CONTEXT, NOBODY_ELSE) as session,
            aclosing(session.generate(PROMPT, GREEDY, COUNT)) as tokens,
        ):
            async for token in tokens:
                found.append(token.id)
                if len(found) == DIES_AT:
                    assert top.via
                    before = top.via.path
                    (scope,) = (s for each, s in made.relays if each.peer_id == before[dies])
                    scope.cancel()
            assert session.evidence
            assert await session.evidence.settle(len(session.tokens)) is None
        assert found == await expected(PROMPT, COUNT, BOUNDS)
        assert top.via
        assert top.via.path[dies] != before[dies]
        nursery.cancel_scope.cancel()
