"""Which account a session counts against, and which requester goes first at a full stage."""

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.errors import RemoteProtocolError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Open, Opened, Refusal
from p2pinfer.core.sponsor import SPONSORED_MS_MAX, Sponsor, to_sign
from peers.serving.accounts import CLOCKS_APART_MS_MAX, Account, Accounts
from peers.serving.dispatcher import Dispatcher
from peers.serving.door import Door
from peers.serving.stage import Stage
from peers.steps.messaging import SESSION, RefusedError, receive, send
from tests.support.fake_engines import FakeStage
from tests.support.swarm import CONTEXT, KEYS, MODEL, session_id
from transports.base import Channel
from transports.identity import Identity
from transports.memory.network import MemoryNetwork

STAGE, SERVER, WORKER, FORMER, ASKER, OTHER = KEYS[:6]
NOW_MS = 1_000_000_000


def word(
    by: Identity, network: str = "main", left_ms: int = SPONSORED_MS_MAX, to: Identity = ASKER
) -> Sponsor:
    """Sign for a requester."""
    expires_ms = NOW_MS + left_ms
    return Sponsor(by.peer_id, expires_ms, by.sign(to_sign(to.peer_id, network, expires_ms)))


def opening(sponsor: Sponsor | None, by: PeerId = ASKER.peer_id, number: int = 0) -> Open:
    """Ask for a session in the requester's own name."""
    return Open(session_id(number), MODEL, by, by, 1, 29, CONTEXT, sponsor=sponsor)


SERVING = {SERVER.peer_id, WORKER.peer_id}
ACCOUNTS = Accounts(
    "main",
    lambda: NOW_MS,
    SERVING.__contains__,
    [WORKER.peer_id, FORMER.peer_id].count,
)


async def test_serving_peers_have_credit_and_known_workers_more() -> None:
    """In their own name too; a peer that no longer serves has none, nor does a stranger."""
    for key, credit in ((SERVER, 1), (WORKER, 2), (FORMER, 0), (OTHER, 0)):
        assert await ACCOUNTS.of(opening(word(key)), ASKER.peer_id) == Account(key.peer_id, credit)
        own = opening(None, key.peer_id)
        assert await ACCOUNTS.of(own, key.peer_id) == Account(key.peer_id, credit)


@pytest.mark.parametrize(
    "left_ms", [0, -1, -NOW_MS, SPONSORED_MS_MAX + CLOCKS_APART_MS_MAX + 1, 1 << 60]
)
async def test_an_expired_sponsorship_is_ignored(left_ms: int) -> None:
    """So is one that is valid for too long; clocks differ, so no peer is blamed."""
    found = await ACCOUNTS.of(opening(word(WORKER, left_ms=left_ms)), ASKER.peer_id)
    assert found == Account(ASKER.peer_id)


@pytest.mark.parametrize(
    "sponsor",
    [
        evolve(word(SERVER), peer=WORKER.peer_id),
        evolve(word(WORKER), expires_ms=NOW_MS + 1),
        evolve(word(WORKER), signature=bytes(64)),
        evolve(word(WORKER), peer=PeerId("x" * 46)),
        word(WORKER, network="another"),
        word(WORKER, to=OTHER),
    ],
)
async def test_a_forged_sponsorship_is_its_senders_fault(sponsor: Sponsor) -> None:
    """By another key, for another time, network or requester, or unsigned."""
    with pytest.raises(RemoteProtocolError, match="did not sign") as blame:
        await ACCOUNTS.of(opening(sponsor), ASKER.peer_id)
    assert blame.value.peer == ASKER.peer_id


async def test_at_a_full_stage_sponsored_requesters_go_first(autojump_clock: MockClock) -> None:
    """A later one goes before one that does not serve; a forged sponsor is refused at once."""
    network, order = MemoryNetwork(), list[str]()
    async with network.join(STAGE.peer_id) as node, trio.open_nursery() as nursery:
        stages = Dispatcher(node, ACCOUNTS.of)
        stages.add(Stage(node, FakeStage(1, 29, sessions=1, context=CONTEXT), MODEL), Door(1, 256))
        stages.listen()

        async def ask(name: str, key: Identity, sponsor: Sponsor | None, number: int) -> Channel:
            asker = await nursery.start(_joined, network, key)
            channel: Channel = await asker.open(node.peer_id, SESSION)
            await send(channel, opening(sponsor, key.peer_id, number))
            await receive(channel, Opened)
            order.append(name)
            return channel

        async def hold(name: str, key: Identity, sponsor: Sponsor | None, number: int) -> None:
            channel = await ask(name, key, sponsor, number)
            await trio.sleep(0.5)
            channel.abort()

        nursery.start_soon(hold, "holder", KEYS[6], None, 0)
        await trio.sleep(0.1)
        nursery.start_soon(hold, "stranger", OTHER, None, 1)
        await trio.sleep(0.1)
        nursery.start_soon(hold, "sponsored", ASKER, word(WORKER), 2)
        await trio.sleep(0.1)
        with pytest.raises(RefusedError) as refusal:
            await ask("forger", KEYS[7], word(WORKER), 3)
        assert refusal.value.refused.code is Refusal.BAD_REQUEST
        await trio.sleep(2.0)
        assert order == ["holder", "sponsored", "stranger"]
        nursery.cancel_scope.cancel()


async def _joined(
    network: MemoryNetwork, key: Identity, *, task_status: trio.TaskStatus[object]
) -> None:
    async with network.join(key.peer_id) as transport:
        task_status.started(transport)
        await trio.sleep_forever()
