"""Carrying what members say, and the payloads that they name, from one to another.

What is small is gossiped, one topic for each task, and a member asks another now and then for what
it lacks: gossip may lose a message, and members come late. Payloads are fetched by their hash, from
their author or from others that have them already.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Final, Protocol

import trio

from p2pinfer.core.errors import PeerError, PeerUnavailable, RemoteProtocolError, lone_errors
from p2pinfer.core.ids import PeerId
from p2pinfer.core.learning import (
    KNOWN_MAX,
    PIECE_BYTES_MAX,
    SAID_MAX,
    AskPayload,
    AskSaid,
    AskTasks,
    Digest,
    Payload,
    PayloadIs,
    RoundStatement,
    SaidAre,
    SignedBody,
    TaskId,
    digest_of,
)
from p2pinfer.core.wire import BadMessage, decode, encode
from peers.learning.board import HELD_BYTES_MAX, Board, KnownTasks, Reception
from peers.steps.messaging import receive, send
from peers.steps.rate_limit import RateLimits
from transports.base import Accept, Channel, GossipVerdict, Topic, Transport

_log: Final = logging.getLogger("p2pinfer.learning")

LEARNING: Final = "learning"

ASK_S: Final = 2.0
"""Between two times that a member is asked for what is lacking."""

ASKS_MAX: Final = 8
"""Asked at a time: one that never answers delays no other."""

MEMBERS_SHARE: Final = 0.8
"""Of the questions, asked of those that have joined; others may have heard of later rounds."""

ASK_S_MAX: Final = 20.0
"""For an answer: 3 MiB at 1.3 Mbit/s."""

FETCH_S_MAX: Final = 120.0
"""For a piece of a payload: 1 MiB at 70 kbit/s."""

AGAIN_S: Final = 1.0
"""Before a payload that nobody gave is asked for again."""

FETCHES_MAX: Final = 4
"""Payloads fetched at once."""

CHANNELS_MAX, CHANNELS_PER_PEER_MAX = 64, 6
"""Served at once; a member opens one to ask, and one for each of four payloads."""

IDLE_S_MAX: Final = 30.0
"""Between two questions."""

NEWS_MAX, NEWS_PER_S = 1000, 100
"""Gossip taken from one neighbour, at once and in the long run: 1 % of a core for signatures."""

_VERDICTS: Final = {
    Reception.NEW: GossipVerdict.PASS,
    Reception.KNOWN: GossipVerdict.DROP,
    Reception.USELESS: GossipVerdict.DROP,
    Reception.BAD: GossipVerdict.BLAME,
}


class Where(Protocol):
    """A peer, and where it is."""

    @property
    def peer(self) -> PeerId:
        """Its id."""
        ...

    @property
    def addresses(self) -> Sequence[str]:
        """Its multiaddrs."""
        ...


_Question = AskTasks | AskSaid | AskPayload
_QUESTIONS: Final = (AskTasks, AskSaid, AskPayload)

Others = Callable[[], Iterable[Where]]
"""Returns peers that may take part."""

Wants = Callable[[RoundStatement], Sequence[Payload]]
"""Returns the payloads of a statement that this member needs."""


def judging(hear: Callable[[SignedBody], Reception], news: RateLimits) -> Accept:
    """Return the judge of gossip about tasks or one of them."""

    def accept(neighbour: PeerId, message: bytes) -> GossipVerdict:
        if not news.spend(neighbour, trio.current_time()):
            return GossipVerdict.DROP
        try:
            said = decode(message, SignedBody)
        except BadMessage:
            return GossipVerdict.BLAME
        return _VERDICTS[hear(said)]

    return accept


class Courier:
    """Says, hears, asks and fetches for one member.

    Args:
        transport: to others.
        tasks: those that are known.
        others: peers that may take part, besides those who joined.
        chance: picks the members to ask.
    """

    def __init__(
        self, transport: Transport, tasks: KnownTasks, others: Others, chance: Random
    ) -> None:
        self._transport, self._tasks, self._others = transport, tasks, others
        self._chance = chance
        self._board: Board | None = None
        self._wants: Wants = lambda _: ()
        self._topic: Topic | None = None
        self._task_topic: Topic | None = None
        self._channels: Counter[PeerId] = Counter()
        self._fetching: set[Digest] = set()
        self._asking: set[PeerId] = set()
        """Peers that have been asked what is new, and have not answered yet."""
        self._mute: set[PeerId] = set()
        """Peers that do not speak the protocol."""
        self._news = RateLimits(NEWS_MAX, NEWS_PER_S)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Courier"]:
        """Take part in the gossip about tasks, and answer others, while the block lasts."""
        self._transport.handle(LEARNING, self._serve)
        accept = judging(self._tasks.hear, self._news)
        async with self._transport.join_topic(LEARNING, accept) as self._task_topic:
            yield self

    @asynccontextmanager
    async def follow(self, board: Board, wants: Wants) -> AsyncIterator[None]:
        """Follow one task while the block lasts."""
        self._board, self._wants = board, wants
        async with AsyncExitStack() as stack:
            stack.enter_context(lone_errors())
            accept = judging(board.hear, self._news)
            name = f"{LEARNING}-{board.task_id[:32]}"
            self._topic = await stack.enter_async_context(self._transport.join_topic(name, accept))
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(self._ask_for_ever, board, nursery)
            nursery.start_soon(self._fetch_for_ever, board, nursery)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()

    def tell_task(self, said: SignedBody) -> None:
        """Gossip a task."""
        if self._task_topic:
            self._task_topic.publish(encode(said))

    def tell(self, said: SignedBody) -> None:
        """Gossip a statement."""
        if self._topic:
            self._topic.publish(encode(said))

    async def ask_tasks(self) -> None:
        """Ask all known peers once for the tasks that they know."""
        async with trio.open_nursery() as nursery:
            for where in list(self._others())[:CHANNELS_MAX]:
                if where.peer not in self._mute:
                    nursery.start_soon(self._ask, where.peer, where.addresses, AskTasks())

    # --- asking

    def _partners(self, board: Board) -> list[tuple[PeerId, Sequence[str]]]:
        found: dict[PeerId, Sequence[str]] = {each.peer: each.addresses for each in self._others()}
        found |= board.addresses
        found.pop(self._transport.peer_id, None)
        return [(peer, where) for peer, where in found.items() if peer not in self._mute]

    async def _ask_for_ever(self, board: Board, nursery: trio.Nursery) -> None:
        while True:
            partners = [each for each in self._partners(board) if each[0] not in self._asking]
            if partners and len(self._asking) < ASKS_MAX:
                members = [each for each in partners if each[0] in board.addresses]
                is_member = members and self._chance.random() < MEMBERS_SHARE
                peer, addresses = self._chance.choice(members if is_member else partners)
                self._asking.add(peer)
                nursery.start_soon(self._ask_what_is_new, board, peer, addresses)
            await trio.sleep(ASK_S * self._chance.uniform(0.7, 1.0))

    async def _ask_what_is_new(self, board: Board, peer: PeerId, addresses: Sequence[str]) -> None:
        try:
            known = board.known()[-KNOWN_MAX:]
            await self._ask(peer, addresses, AskSaid(board.task_id, known))
        finally:
            self._asking.discard(peer)

    async def _ask(self, peer: PeerId, addresses: Sequence[str], ask: AskSaid | AskTasks) -> None:
        try:
            with trio.move_on_after(ASK_S_MAX):
                channel = await self._open(peer, addresses)
                try:
                    await send(channel, ask)
                    answer = await receive(channel, SaidAre)
                finally:
                    await channel.close()
                for said in answer.said:
                    if self._take(said) is Reception.BAD:
                        raise RemoteProtocolError(peer, f"{peer} told what nobody signed")
        except PeerError as error:
            _log.info("not asked what is new: %s", error)

    def _take(self, said: SignedBody) -> Reception:
        heard = self._board.hear(said, asked=True) if self._board else Reception.BAD
        return self._tasks.hear(said) if heard is Reception.BAD else heard

    async def _open(self, peer: PeerId, addresses: Sequence[str]) -> Channel:
        try:
            return await self._transport.open(peer, LEARNING, addresses)
        except PeerUnavailable as error:
            if "does not speak" in str(error):
                self._mute.add(peer)
            raise

    # --- payloads

    async def _fetch_for_ever(self, board: Board, nursery: trio.Nursery) -> None:
        while True:
            for author, payload in self._lacking(board):
                if len(self._fetching) >= FETCHES_MAX:
                    break
                self._fetching.add(payload.digest)
                nursery.start_soon(self._fetch, board, author, payload)
            await board.wait_news()

    def _lacking(self, board: Board) -> list[tuple[PeerId, Payload]]:
        if board.held_bytes >= HELD_BYTES_MAX:
            return []
        number, busy = board.round + 1, self._fetching
        lacking = {}
        for attempt in sorted(board.attempts(number), reverse=True):
            for _, said in board.statements(number, attempt):
                for payload in self._wants(said):
                    if payload.digest not in board.payloads and payload.digest not in busy:
                        lacking[payload.digest] = said.author, payload
        return list(lacking.values())

    async def fetch_payload(self, board: Board, payload: Payload, first: Sequence[PeerId]) -> None:
        """Fetch a payload from any of those who may have it, until one has given it."""
        while payload.digest not in board.payloads:
            partners = dict(self._partners(board))
            order = [peer for peer in first if peer in partners]
            rest = [peer for peer in partners if peer not in order]
            self._chance.shuffle(rest)
            for peer in (*order, *rest):
                if await self._fetch_from(board, peer, partners[peer], payload):
                    return
            await trio.sleep(AGAIN_S)

    async def _fetch(self, board: Board, author: PeerId, payload: Payload) -> None:
        try:
            with trio.move_on_after(FETCH_S_MAX):
                await self.fetch_payload(board, payload, [author])
        finally:
            self._fetching.discard(payload.digest)
            board.wake()

    async def _fetch_from(
        self, board: Board, peer: PeerId, addresses: Sequence[str], payload: Payload
    ) -> bool:
        got = bytearray()
        try:
            with trio.move_on_after(FETCH_S_MAX):
                channel = await self._open(peer, addresses)
                try:
                    while len(got) < payload.size:
                        await send(channel, AskPayload(payload.digest, len(got)))
                        piece = (await receive(channel, PayloadIs)).data
                        if not piece:
                            return False
                        got += piece
                finally:
                    await channel.close()
        except PeerError as error:
            _log.info("a payload was not fetched: %s", error)
            return False
        if len(got) != payload.size or digest_of(bytes(got)) != payload.digest:
            return False
        board.hold(bytes(got))
        return True

    # --- answering

    async def _serve(self, channel: Channel) -> None:
        peer = channel.remote
        if self._channels.total() >= CHANNELS_MAX or self._channels[peer] >= CHANNELS_PER_PEER_MAX:
            return
        self._channels[peer] += 1
        try:
            while True:
                with trio.move_on_after(IDLE_S_MAX) as idle:
                    question: _Question = await receive(channel, *_QUESTIONS)
                    await send(channel, self._answer(question))
                if idle.cancelled_caught:
                    return
        except PeerUnavailable:
            pass  # it has what it wanted
        except RemoteProtocolError as error:
            _log.info("%s", error)
        finally:
            self._channels[peer] -= 1
            if not self._channels[peer]:
                del self._channels[peer]

    def _answer(self, question: _Question) -> SaidAre | PayloadIs:
        board = self._board
        if isinstance(question, AskTasks):
            return SaidAre(tuple(said for _, said in self._tasks.known.values())[:SAID_MAX])
        if isinstance(question, AskSaid):
            if board is None or question.task != board.task_id:
                return SaidAre(())
            return SaidAre(tuple(board.lacking(question.known, SAID_MAX)))
        data = board.payloads.get(question.digest, b"") if board else b""
        return PayloadIs(data[question.start : question.start + PIECE_BYTES_MAX])


def find_tasks(tasks: KnownTasks, name: str) -> list[tuple[TaskId, SignedBody]]:
    """Return the tasks of a name, or whose id begins so."""
    return [
        (each, said)
        for each, (task, said) in tasks.known.items()
        if task.name == name or each.startswith(name)
    ]
