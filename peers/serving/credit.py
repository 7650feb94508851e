"""Statements among peers: each tells those that worked for it, and shows what others told it.

Nothing of this delays an answer. Every minute the books are read, a statement is signed for each
peer that did more since the last one, and sent to those that are there, which sign it, too; and
some of the peers that serve are shown what others owe, for they may be asked next.

A user that signs two sums under one number has given the proof of that away: it is passed on.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Protocol, TypeVar

import trio

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.double_statement import DoubleStatement
from p2pinfer.core.errors import (
    ChannelClosed,
    P2pinferError,
    RemoteProtocolError,
    UserError,
)
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Message
from p2pinfer.core.statement import (
    STATEMENTS_MAX,
    Contradiction,
    Owe,
    Owed,
    Statement,
    Vouch,
    double,
)
from peers.parts.protocol import Run, in_thread
from peers.steps.messaging import receive, send
from scheduler.credit import Debts, Passed
from transports.base import Channel, Transport
from transports.identity import verify

_log = logging.getLogger("p2pinfer.credit")

CREDIT = "credit"

CYCLE_S = 60.0
"""How often statements are made and sent: many answers share one signature."""

TOLD_MAX = 8
"""Peers called in a cycle; where more are due, the others follow in later ones."""

EXCHANGE_S_MAX = 10.0
"""For 10 kB at a slow modem's rate."""

EXCHANGES_MAX = 4
"""Answered at once; a peer that calls beyond that gets no answer, and calls again."""

VOUCHED_PEERS_MAX = 1024
"""Peers whose claims are remembered; the oldest are forgotten first."""

DEBTORS_MAX = 2 * STATEMENTS_MAX
"""Of each: the largest. What a debtor signed holds for ever, so a peer cannot withdraw it."""

HEARD_EVERY_S = 10.0
"""A peer's vouchers are read no more often: checking 32 signatures takes 4 ms."""


V = TypeVar("V")


class Books(Protocol):
    """What a peer keeps on disk; every call may wait for the disk, and raise UserError."""

    def debts(self, me: PeerId) -> Debts:
        """Return the work done by and for this machine, and what was stated of it."""
        ...

    def state(self, me: PeerId, sign: Callable[[bytes], bytes]) -> list[Statement]:
        """Sign for what is not stated yet; returns the newest statements not countersigned."""
        ...

    def agree(self, statement: Statement, countersignature: bytes) -> bool:
        """Keep a server's word for one's statement; whether it is the newest."""
        ...

    def pass_on(self, charges: Passed) -> None:
        """Add what askers had on the account of peers that owe them."""
        ...

    def in_favour(self, me: PeerId) -> list[Statement]:
        """Return the newest statement of each peer in this one's favour, the largest first."""
        ...

    def note(self, statement: Statement) -> Statement:
        """Keep a statement in this peer's favour; return the newest of its pair.

        Raises:
            Contradiction: it and an earlier one cannot both be true.
        """
        ...


class Credit:
    """What a peer owes and is owed, told to others, and counted when they ask.

    Args:
        transport: to the others.
        sign: as this peer.
        books: on disk.
        others: returns the advertisements of the peers that serve the same model.
        chance: picks the peers that are shown what others owe.
        run: runs slow work, so that nothing else waits for it.
    """

    def __init__(
        self,
        transport: Transport,
        sign: Callable[[bytes], bytes],
        books: Books,
        others: Callable[[], Sequence[Advertisement]],
        chance: Random,
        run: Run = in_thread,
    ) -> None:
        self._transport, self._sign, self._books = transport, sign, books
        self._others, self._chance, self._run = others, chance, run
        self._debts = Debts()
        self._vouched: dict[PeerId, Mapping[PeerId, int]] = {}
        self._heard_at: dict[PeerId, float] = {}
        self._told: dict[PeerId, int] = {}
        """The number of the statement that each peer has had."""
        self._false: dict[PeerId, bool] = {}
        """Peers whose statements contradict each other, and whether that is a proof."""
        self._answering = 0
        self.on_double: Callable[[DoubleStatement], object] = lambda _: None
        """Called with the proof that a peer signed two sums under one number."""

    def places(self, peer: PeerId) -> int:
        """Return the credit of a peer, as ``Debts.places`` counts it; none where it lied."""
        if peer in self._false:
            return 0
        return self._debts.places(peer, self._vouched.get(peer, {}))

    def listen(self) -> None:
        """Hear other peers' statements from now on."""
        self._transport.handle(CREDIT, self._answer)

    async def run(self) -> None:
        """Read the books and tell others, for ever."""
        while True:
            try:
                await self.tell()
            except UserError as error:  # such as a full disk: serving goes on without books
                _log.warning("%s", error)
            await trio.sleep(CYCLE_S * self._chance.uniform(0.8, 1.0))

    async def tell(self) -> None:
        """State what is new, to those that are there; show some others what is owed.

        Raises:
            UserError: the books cannot be used.
        """
        me = self._transport.peer_id
        owed: list[Statement] = await self._run(self._books.state, me, self._sign)
        await self._look()
        claims: list[Statement] = await self._run(self._books.in_favour, me)
        there = {offer.peer: offer for offer in self._others() if offer.addresses}
        due = [each for each in owed if each.count > self._told.get(each.server, 0)]
        due = [each for each in due if each.server in there][:TOLD_MAX]
        async with trio.open_nursery() as nursery:
            for statement in due:
                nursery.start_soon(self._call, there[statement.server], Owe(statement))
            if claims:
                shown = self._chance.sample(sorted(there), min(len(there), TOLD_MAX))
                for peer in shown:
                    kept = (each for each in claims if each.user != peer)
                    message = Vouch(tuple(kept)[:STATEMENTS_MAX])
                    nursery.start_soon(self._call, there[peer], message)

    async def _look(self) -> None:
        """Read what is owed, and write down what askers had on others' accounts."""
        debts: Debts = await self._run(self._books.debts, self._transport.peer_id)
        charged = debts
        for asker, vouched in self._vouched.items():
            charged = charged.charged(charged.charges(asker, vouched))
        new = {
            pair: work - debts.passed.get(pair, 0)
            for pair, work in charged.passed.items()
            if work != debts.passed.get(pair, 0)
        }
        if new:
            await self._run(self._books.pass_on, new)
        self._debts = charged

    async def _call(self, offer: Advertisement, message: Message) -> None:
        try:
            with trio.move_on_after(EXCHANGE_S_MAX):
                channel = await self._transport.open(offer.peer, CREDIT, offer.addresses)
                try:
                    await send(channel, message)
                    if isinstance(message, Owe):
                        await self._take(channel)
                        self._told[offer.peer] = message.statement.count
                finally:
                    await channel.close()
        except P2pinferError as error:  # the peer's, or of the books
            _log.debug("a statement was not told: %s", error)

    async def _take(self, channel: Channel) -> None:
        """Take a server's answer to a statement.

        Raises:
            RemoteProtocolError: it is another's, or not signed by both.
            UserError: the books cannot be used.
        """
        try:
            owed = await receive(channel, Owed)
        except ChannelClosed:
            return  # of an earlier release, which does not countersign
        said, remote = owed.statement, channel.remote
        if (said.user, said.server) != (self._transport.peer_id, remote):
            raise RemoteProtocolError(remote, "it countersigned another peer's statement")
        if not said.is_agreed(verify, owed.signature):
            raise RemoteProtocolError(remote, "its statement is not signed by both")
        await self._run(self._books.agree, said, owed.signature)

    async def _answer(self, channel: Channel) -> None:
        if self._answering >= EXCHANGES_MAX:
            return
        self._answering += 1
        try:
            with trio.move_on_after(EXCHANGE_S_MAX):
                message = await receive(channel, Owe, Vouch)
                if isinstance(message, Owe):
                    await self._note(channel, message.statement)
                else:
                    await self._hear(channel.remote, message.statements)
        except P2pinferError as error:  # the peer's, or of the books
            _log.info("a statement was not taken: %s", error)
        finally:
            self._answering -= 1

    async def _note(self, channel: Channel, statement: Statement) -> None:
        """Keep a peer's own statement and countersign it; raises RemoteProtocolError."""
        sender = channel.remote
        if (statement.user, statement.server) != (sender, self._transport.peer_id):
            raise RemoteProtocolError(sender, "its statement is about other peers")
        if not statement.is_signed(verify):
            raise RemoteProtocolError(sender, "its statement is not signed by it")
        fault = ""
        try:
            newest: Statement = await self._run(self._books.note, statement)
            if not self._false.get(sender):
                self._false.pop(sender, None)
        except Contradiction as error:
            newest, fault = error.before, str(error)
            is_proof = double(newest, statement)
            _renew(self._false, sender, is_proof or self._false.get(sender, False))
            if is_proof:
                self.on_double(DoubleStatement(newest, statement))
        with suppress(ChannelClosed):  # of an earlier release, which does not wait for the answer
            await send(channel, Owed(newest, self._sign(newest.to_countersign())))
        if fault:
            raise RemoteProtocolError(sender, f"it contradicts itself: {fault}")

    async def _hear(self, sender: PeerId, statements: Iterable[Statement]) -> None:
        """Remember what others owe a peer, as far as this one owes them; else it counts nothing."""
        now = trio.current_time()
        if now < self._heard_at.get(sender, -HEARD_EVERY_S) + HEARD_EVERY_S:
            return
        _renew(self._heard_at, sender, now)
        known = [
            each for each in statements if each.user != sender and self._debts.had.get(each.user)
        ]
        if any(each.server != sender for each in known):
            raise RemoteProtocolError(sender, "it shows statements in another peer's favour")
        if not await self._run(_all_signed, known):
            raise RemoteProtocolError(sender, "it shows statements that were not signed")
        said = Counter(self._vouched.get(sender, {})) | Counter(
            {each.user: each.amounts.worth for each in known}
        )
        _renew(self._vouched, sender, dict(said.most_common(DEBTORS_MAX)))


def _all_signed(statements: Iterable[Statement]) -> bool:
    return all(each.is_signed(verify) for each in statements)


def _renew(kept: dict[PeerId, V], peer: PeerId, value: V) -> None:
    """Put a value last, and forget the oldest where there are too many."""
    kept.pop(peer, None)
    kept[peer] = value
    if len(kept) > VOUCHED_PEERS_MAX:
        del kept[next(iter(kept))]
