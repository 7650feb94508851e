"""Statements among peers: told, kept, shown to others, and worth what the debts behind them are."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pinfer.core.double_statement import DoubleStatement, parse
from p2pinfer.core.ids import PeerId
from p2pinfer.core.ledger import LedgerEntry
from p2pinfer.core.statement import Owe, Owed, Statement, Vouch
from p2pinfer.node.ledger_db import LedgerDb, Side
from peers.parts.protocol import in_place
from peers.serving.credit import (
    CREDIT,
    CYCLE_S,
    EXCHANGE_S_MAX,
    EXCHANGES_MAX,
    HEARD_EVERY_S,
    TOLD_MAX,
    Credit,
)
from peers.steps.messaging import receive, send
from scheduler.credit import ANSWER_WORK
from tests.support.directories import advertisement
from tests.support.swarm import KEYS
from transports.base import Channel, Transport
from transports.identity import Identity, verify
from transports.memory.network import MemoryNetwork

ME, FRIEND, NEWCOMER, SYBIL = KEYS[:4]
MIB = 1_000_000
CYCLES = 30


@dataclass
class Node:
    """A peer with its books."""

    key: Identity
    transport: Transport
    books: LedgerDb
    credit: Credit

    def had(self, server: Identity, work: int, session: int = 1) -> None:
        """Enter work that another peer did for this one."""
        terms = bytes([session]) * 32
        self.books.keep(
            Side.USED, [LedgerEntry(server.peer_id, self.key.peer_id, terms, 1, 2, work, MIB)]
        )

    def gave(self, user: Identity, work: int) -> None:
        """Enter work that this peer did for another one."""
        entry = LedgerEntry(self.key.peer_id, user.peer_id, bytes(32), 1, 2, work, MIB)
        self.books.keep(Side.SERVED, [entry])


@asynccontextmanager
async def swarm(folder: Path, *keys: Identity) -> AsyncIterator[list[Node]]:
    """Provide peers that know each other; nobody tells by itself."""
    network, nodes = MemoryNetwork(), list[Node]()
    async with AsyncExitStack() as stack:
        for key in keys:
            transport = await stack.enter_async_context(network.join(key.peer_id))
            books = LedgerDb(folder / key.peer_id)
            offers = [advertisement(other, layers=(1, 29)) for other in keys if other != key]
            credit = Credit(transport, key.sign, books, lambda o=offers: o, Random(1), in_place)  # type: ignore[misc]
            credit.listen()
            nodes.append(Node(key, transport, books, credit))
        yield nodes


async def tell(*nodes: Node) -> None:
    """Have peers tell, and others hear it."""
    for node in nodes:
        await node.credit.tell()
    await wait_all_tasks_blocked()


async def test_work_is_stated_kept_and_counts_at_others(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """I had from a friend, and the friend from a newcomer: so the newcomer has credit with me."""
    async with swarm(tmp_path, ME, FRIEND, NEWCOMER) as (me, friend, newcomer):
        me.had(FRIEND, 20 * ANSWER_WORK)
        friend.had(NEWCOMER, 300 * ANSWER_WORK)
        assert me.credit.places(NEWCOMER.peer_id) == 0
        await tell(me, friend)
        (stated,) = newcomer.books.in_favour(NEWCOMER.peer_id)
        assert (stated.user, stated.work) == (FRIEND.peer_id, 300 * ANSWER_WORK)
        (stated,) = friend.books.in_favour(FRIEND.peer_id)
        assert (stated.user, stated.work) == (ME.peer_id, 20 * ANSWER_WORK)
        await tell(newcomer)
        assert me.credit.places(NEWCOMER.peer_id) == me.credit.places(FRIEND.peer_id) == 2
        me.gave(NEWCOMER, 15 * ANSWER_WORK)
        await tell(me)
        assert me.credit.places(NEWCOMER.peer_id) == 0  # it has not said what it had
        newcomer.had(ME, 15 * ANSWER_WORK)
        await tell(newcomer, me)
        assert me.credit.places(NEWCOMER.peer_id) == 1


async def test_sybils_that_vouch_for_each_other_have_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What a peer is owed by strangers counts nothing where nobody owes those."""
    async with swarm(tmp_path, ME, SYBIL, NEWCOMER) as (me, sybil, newcomer):
        sybil.had(NEWCOMER, 10**9)
        newcomer.had(SYBIL, 10**9)
        await tell(me, sybil, newcomer, sybil)
        assert me.credit.places(SYBIL.peer_id) == me.credit.places(NEWCOMER.peer_id) == 0


def signed(by: Identity, to: PeerId, count: int = 1, work: int = 5) -> Statement:
    """Return a peer's statement to another one."""
    made = Statement(by.peer_id, to, count, work)
    return evolve(made, signature=by.sign(made.to_sign()))


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        (evolve(signed(SYBIL, ME.peer_id), work=6), "not signed by it"),
        (signed(FRIEND, ME.peer_id), "about other peers"),
        (signed(SYBIL, FRIEND.peer_id), "about other peers"),
    ],
)
async def test_false_statements_are_their_senders_fault(
    tmp_path: Path,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    statement: Statement,
    why: str,
) -> None:
    """Not signed, by another peer, or to another one: nothing is kept."""
    caplog.set_level("INFO", "p2pinfer.credit")
    async with swarm(tmp_path, ME, SYBIL) as (me, sybil):
        channel = await sybil.transport.open(ME.peer_id, CREDIT)
        await send(channel, Owe(statement))
        await wait_all_tasks_blocked()
        assert me.books.in_favour(ME.peer_id) == []
    assert why in caplog.text


async def test_who_contradicts_itself_has_no_credit(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Whatever it did before."""
    async with swarm(tmp_path, ME, FRIEND) as (me, friend):
        me.had(FRIEND, 1000 * ANSWER_WORK)
        await tell(me)
        assert me.credit.places(FRIEND.peer_id) == 3
        for work in (5, 6):
            channel = await friend.transport.open(ME.peer_id, CREDIT)
            await send(channel, Owe(signed(FRIEND, ME.peer_id, work=work)))
            await wait_all_tasks_blocked()
        assert me.credit.places(FRIEND.peer_id) == 0


async def test_both_sign_a_statement(tmp_path: Path, autojump_clock: MockClock) -> None:
    """What I had from a friend: it countersigns, and I need not tell it again."""
    async with swarm(tmp_path, ME, FRIEND) as (me, friend):
        me.had(FRIEND, 20 * ANSWER_WORK)
        await tell(me)
        (shown,) = me.books.report()["statements"]
        said = Statement(ME.peer_id, FRIEND.peer_id, shown["count"], 20 * ANSWER_WORK)
        said = evolve(said, signature=bytes.fromhex(shown["signature"]))
        assert said.is_agreed(verify, bytes.fromhex(shown["countersignature"]))
        assert not said.is_agreed(verify, said.signature)
        assert friend.books.in_favour(FRIEND.peer_id) == [said]
        assert me.books.state(ME.peer_id, ME.sign) == []


async def test_a_peer_of_an_earlier_release_is_told_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It takes the statement and closes the channel; a silent one is told again."""
    async with swarm(tmp_path, ME, FRIEND) as (me, friend):
        heard: list[Owe] = []
        is_silent = True

        async def take(channel: Channel) -> None:
            heard.append(await receive(channel, Owe))
            await trio.sleep(2 * EXCHANGE_S_MAX if is_silent else 0)

        friend.transport.handle(CREDIT, take)
        me.had(FRIEND, 20 * ANSWER_WORK)
        await tell(me)
        assert len(heard) == 1
        is_silent = False
        await tell(me, me, me)
        assert [each.statement.work for each in heard] == [20 * ANSWER_WORK] * 2


@pytest.mark.parametrize("case", ["stranger's", "unsigned", "not countersigned"])
async def test_false_countersignatures_are_not_kept(
    tmp_path: Path, autojump_clock: MockClock, case: str
) -> None:
    """A server can neither invent a debt, nor take one over."""
    async with swarm(tmp_path, ME, FRIEND) as (me, friend):
        owed = signed(ME, FRIEND.peer_id, count=1 << 60, work=10**9)
        answer = {
            "stranger's": signed(ME, SYBIL.peer_id, count=1 << 60, work=10**9),
            "unsigned": evolve(owed, work=10**10),
            "not countersigned": owed,
        }[case]
        made = FRIEND.sign(answer.to_countersign())

        async def take(channel: Channel) -> None:
            await receive(channel, Owe)
            by = bytes(64) if case == "not countersigned" else made
            await send(channel, Owed(answer, by))

        friend.transport.handle(CREDIT, take)
        me.had(FRIEND, 20 * ANSWER_WORK)
        await tell(me)
        (kept,) = me.books.state(ME.peer_id, ME.sign)
        assert kept.work == 20 * ANSWER_WORK


async def test_two_sums_under_one_number_are_a_proof(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It is given away with both signatures; credit stays lost, whatever the peer says later."""
    async with swarm(tmp_path, ME, FRIEND) as (me, friend):
        proofs: list[DoubleStatement] = []
        me.credit.on_double = proofs.append
        me.had(FRIEND, 1000 * ANSWER_WORK)
        await tell(me)
        for count, work in ((1, 5), (1, 6), (2, 7)):
            channel = await friend.transport.open(ME.peer_id, CREDIT)
            await send(channel, Owe(signed(FRIEND, ME.peer_id, count, work)))
            await wait_all_tasks_blocked()
        (proof,) = proofs
        assert parse(proof.encode(), verify).accused == FRIEND.peer_id
        assert me.credit.places(FRIEND.peer_id) == 0


async def test_a_user_that_lost_its_books_catches_up(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It signs less under a later number, hears what it signed before, and goes on from there."""
    async with swarm(tmp_path, ME, FRIEND) as (me, friend):
        friend.had(ME, 50 * ANSWER_WORK)
        me.had(FRIEND, 1000 * ANSWER_WORK)
        await tell(friend)
        (tmp_path / FRIEND.peer_id).unlink()
        friend.had(ME, 2 * ANSWER_WORK)
        await tell(friend, me)
        assert me.credit.places(FRIEND.peer_id) == 0
        friend.had(ME, 60 * ANSWER_WORK)
        await tell(friend, me)
        (held,) = me.books.in_favour(ME.peer_id)
        assert held.work == 60 * ANSWER_WORK
        assert me.credit.places(FRIEND.peer_id) == 3


async def test_sybils_draw_a_debt_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    """I owe one of them; it vouches for the others, and withdraws its word: I pay once."""
    async with swarm(tmp_path, ME, FRIEND, NEWCOMER, SYBIL) as (me, friend, newcomer, sybil):
        me.had(FRIEND, 20 * ANSWER_WORK)
        await tell(me)
        for node in (newcomer, sybil):
            friend.had(node.key, 10**9)
        await tell(friend, newcomer, sybil)
        assert me.credit.places(NEWCOMER.peer_id) == me.credit.places(SYBIL.peer_id) == 2
        me.gave(NEWCOMER, 20 * ANSWER_WORK)
        newcomer.had(ME, 20 * ANSWER_WORK)
        autojump_clock.jump(HEARD_EVERY_S)
        channel = await newcomer.transport.open(ME.peer_id, CREDIT)
        await send(channel, Vouch(()))
        await wait_all_tasks_blocked()
        await tell(newcomer, me)
        for peer in (FRIEND, NEWCOMER, SYBIL):
            assert me.credit.places(peer.peer_id) == 0


async def test_a_peer_does_not_vouch_for_itself(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Its own word for its own work adds nothing to what it is owed."""
    async with swarm(tmp_path, ME, FRIEND) as (me, friend):
        me.had(FRIEND, 6 * ANSWER_WORK)
        await tell(me)
        channel = await friend.transport.open(ME.peer_id, CREDIT)
        await send(channel, Vouch((signed(FRIEND, FRIEND.peer_id, work=10**9),)))
        await wait_all_tasks_blocked()
        assert me.credit.places(FRIEND.peer_id) == 1


async def test_forged_vouchers_are_refused_and_floods_are_not_read(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """For another peer, or with an amount that the debtor did not sign; one in ten seconds."""
    caplog.set_level("INFO", "p2pinfer.credit")
    async with swarm(tmp_path, ME, FRIEND, SYBIL) as (me, _, sybil):
        me.had(FRIEND, 1000 * ANSWER_WORK)
        await tell(me)
        good = signed(FRIEND, SYBIL.peer_id, work=50 * ANSWER_WORK)

        async def vouched(*statements: Statement) -> int:
            channel = await sybil.transport.open(ME.peer_id, CREDIT)
            await send(channel, Vouch(statements))
            await wait_all_tasks_blocked()
            return me.credit.places(SYBIL.peer_id)

        assert await vouched(evolve(good, work=10**12)) == 0
        assert await vouched(good) == 0  # too soon
        assert "not signed" in caplog.text
        autojump_clock.jump(HEARD_EVERY_S)
        assert await vouched(good, signed(FRIEND, ME.peer_id)) == 0
        assert "another peer's favour" in caplog.text
        autojump_clock.jump(HEARD_EVERY_S)
        assert await vouched(good) == 2


async def test_a_peer_that_says_nothing_holds_few_places(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Channels that stay silent are let go, and others are heard again."""
    async with swarm(tmp_path, ME, FRIEND, SYBIL) as (me, friend, sybil):
        for _ in range(3 * EXCHANGES_MAX):
            await sybil.transport.open(ME.peer_id, CREDIT)
        await wait_all_tasks_blocked()
        friend.had(ME, ANSWER_WORK)
        await tell(friend)
        assert me.books.in_favour(ME.peer_id) == []
        autojump_clock.jump(60.0)
        await wait_all_tasks_blocked()
        assert me.credit._answering == 0


@pytest.mark.long
async def test_statements_cost_a_thousandth_of_the_tokens(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """In processor time of all who take part, where one peer asks eight others all the time.

    It makes as many statements as it may in a cycle; signing, disk and messages count.
    """
    keys = [Identity(bytes([number]) * 32) for number in range(1, TOLD_MAX + 2)]
    spent_s = list[float]()
    async with swarm(tmp_path, *keys) as (me, *servers):
        for cycle in range(CYCLES):
            for server in servers:
                me.had(server.key, 1000 * MIB, cycle)
            began = time.thread_time()
            await tell(me)
            spent_s.append(time.thread_time() - began)
            stated = [server.books.in_favour(server.key.peer_id) for server in servers]
            assert [each.amounts.work for (each,) in stated] == [
                1000 * MIB * (cycle + 1)
            ] * TOLD_MAX
    assert median(spent_s) <= 0.001 * CYCLE_S
