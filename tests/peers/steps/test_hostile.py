"""Strangers do their worst to a node over real libp2p while an honest requester is served.

The engine is a fake, everything else is what a real node runs.
"""

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random

import trio

from p2pinfer.core.advertisement import ADVERTISEMENTS_MAX
from p2pinfer.core.errors import PeerError
from p2pinfer.core.ids import PeerId
from p2pinfer.engine.store.store import Store
from peers.asking.session import Requester
from peers.audits.frauds import CHECK_EVERY_S, Frauds
from peers.discovery.directory import Directory
from peers.parts.server import PartsServer
from peers.receipts.signer import ReceiptSigner
from peers.serving.dispatcher import Dispatcher
from peers.serving.door import Door
from peers.serving.stage import Stage
from tests.support.directories import advertisement
from tests.support.fake_engines import FakeEnds, FakeStage
from tests.support.parts_swarm import make_model
from tests.support.strangers import HARMS, Harm, Target
from tests.support.swarm import CONTEXT, MODEL, PROMPT, answer, expected, session_id
from transports.identity import Identity, ephemeral_identity
from transports.libp2p.transport import Libp2pTransport, open_libp2p

TEST_S_MAX = 300.0
"""It takes 20 s if nothing else runs."""

SESSIONS = 8
ANSWERS_MIN = 5
GROWTH_KIB_MAX = 256 * 1024


def peer(identity: Identity | None = None) -> AbstractAsyncContextManager[Libp2pTransport]:
    """Run a node."""
    identity = identity or ephemeral_identity()
    return open_libp2p(identity, ["/ip4/127.0.0.1/tcp/0"], "hostile")


@asynccontextmanager
async def node(folder: Path) -> AsyncIterator[Target]:
    """Run everything that a peer runs to serve layers, parts, evidence and its directory."""
    me = ephemeral_identity()
    async with peer(me) as transport, trio.open_nursery() as nursery:
        signer = ReceiptSigner(transport, me.sign)
        signer.listen()
        engine = FakeStage(1, 29, sessions=SESSIONS, context=CONTEXT)
        stages = Dispatcher(transport)
        stages.add(Stage(transport, engine, MODEL, signer), Door(SESSIONS, SESSIONS * CONTEXT))
        stages.listen()
        PartsServer(transport, make_model().fill(Store(folder))).listen()
        directory = Directory(transport, me, Random(1))
        directory.listen()
        directory.advertise(advertisement(me, layers=(1, 29)))
        nursery.start_soon(directory.run, ())
        false: list[PeerId] = []
        is_judged = trio.Event()

        def note_false(sender: PeerId) -> None:
            false.append(sender)
            is_judged.set()

        others = partial(directory.holding, MODEL)
        frauds = Frauds(
            transport,
            MODEL,
            me.sign,
            others,
            lambda _: (),
            Random(1),
            lambda *_: None,
            note_false,
        )
        frauds.listen()
        nursery.start_soon(frauds.run)
        yield Target(transport)
        with trio.move_on_after(6 * CHECK_EVERY_S):
            await is_judged.wait()
        assert not frauds.proven
        assert len(set(false)) == 1
        assert len(directory.peers()) <= ADVERTISEMENTS_MAX
        nursery.cancel_scope.cancel()


def resident_kib() -> int:
    """Return this process's resident memory."""
    found = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, check=True
    )
    return int(found.stdout)


async def test_a_node_withstands_strangers_that_do_their_worst(tmp_path: Path) -> None:
    """All at once: an honest requester is answered throughout, and memory is bounded."""
    wanted, answers = await expected(PROMPT, 20, (1, 29)), 0
    over = trio.Event()
    with trio.fail_after(TEST_S_MAX):
        async with node(tmp_path) as target, peer() as me, trio.open_nursery() as nursery:
            requester = Requester(nursery, me, FakeEnds(context=CONTEXT), MODEL)
            before = resident_kib()
            async with requester.open([target.hop], session_id(0), CONTEXT) as session:
                nursery.start_soon(do_all, target, over)
                while not over.is_set():
                    assert await answer(session, PROMPT) == wanted
                    answers += 1
            assert answers > ANSWERS_MIN
            assert resident_kib() - before < GROWTH_KIB_MAX
            await assert_welcomes(target)
            nursery.cancel_scope.cancel()


async def assert_welcomes(target: Target) -> None:
    """Check that a newcomer learns the node's own advertisement from it."""
    me = ephemeral_identity()
    async with peer(me) as transport:
        directory = Directory(transport, me, Random(1))
        directory.follow(MODEL)
        assert not await directory.enter(target.hop.addresses[:1])
        (said,) = [a for a in directory.serving(MODEL) if a.peer == target.hop.peer]
        assert (said.first, said.end, said.sequence >> 60) == (1, 29, 0)


async def do_all(target: Target, over: trio.Event) -> None:
    """Have all strangers do harm at once, each from a node of its own."""
    async with trio.open_nursery() as strangers:
        for harm in HARMS:
            strangers.start_soon(do_harm, target, harm)
    over.set()


async def do_harm(target: Target, harm: Harm) -> None:
    """Run one stranger; it must expect to be cut off."""
    with suppress(PeerError):
        async with peer() as stranger:
            await harm(target, stranger)
