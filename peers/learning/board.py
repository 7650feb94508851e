"""What a member knows of its task: what was said, and the payloads that it holds.

Whatever comes in is checked here, once: its signature, its place, and that nobody says two things
in one place. Two such statements, both signed, convict their author before anybody.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from enum import Enum
from typing import Final

import trio

from p2pinfer.core.ids import PeerId
from p2pinfer.core.learning import (
    MEMBERS_MAX,
    PAYLOAD_BYTES_MAX,
    Digest,
    Kind,
    LearningTask,
    RoundStatement,
    SignedBody,
    TaskId,
    digest_of,
    is_signed,
    to_sign,
)
from p2pinfer.core.wire import BadMessage, decode, encode
from peers.discovery.advertiser import Signer
from peers.discovery.view import Verify

TASKS_MAX: Final = 64
"""Known at a time, of others; the oldest is forgotten first."""

STATEMENTS_MAX: Final = 8192
"""Of the rounds that are kept: 64 members say about 11 things each in an attempt."""

JOINS_MAX: Final = 2 * MEMBERS_MAX
"""Heard for one attempt; only those who joined are heard after that."""

AHEAD_MAX: Final = 2
"""Rounds after the last known one that gossip may be about; who asks is told of later ones."""

ROUNDS_KEPT: Final = 2
"""The present round, and the one before for those who are late."""

HELD_BYTES_MAX: Final = 8 * PAYLOAD_BYTES_MAX
"""Of payloads in memory; beyond that no more are fetched until a round is over."""


_LASTING: Final = frozenset({Kind.ACCEPT, Kind.RESULT})
"""What those who come late may still need of a round."""


class Reception(Enum):
    """What to think of something that came in."""

    NEW = "new"
    KNOWN = "known"
    USELESS = "useless"
    """It may be honest: too early, too late, or one too many."""
    BAD = "bad"
    """No correct peer sends it."""


class Board:
    """Statements and payloads of one task.

    Args:
        identity: signs what this member says.
        task: what is learned.
        task_id: its id.
        verify: checks others' signatures.
    """

    def __init__(
        self, identity: Signer, task: LearningTask, task_id: TaskId, verify: Verify
    ) -> None:
        self.identity, self.task, self.task_id = identity, task, task_id
        self._verify = verify
        self.round = 0
        """The last one that is known to be over."""
        self._said: dict[Digest, tuple[RoundStatement, SignedBody]] = {}
        self._slots: dict[tuple[object, ...], Digest] = {}
        self._joins: Counter[tuple[int, int]] = Counter()
        self.payloads: dict[Digest, bytes] = {}
        self.convicted: dict[PeerId, tuple[SignedBody, SignedBody]] = {}
        """Authors of two statements in one place, and these."""
        self.addresses: dict[PeerId, tuple[str, ...]] = {}
        """Where those who joined are."""
        self._news = trio.Event()

    async def wait_news(self) -> None:
        """Wait until something was heard, or a payload has come."""
        await self._news.wait()

    def wake(self) -> None:
        """End all waits for news."""
        self._news.set()
        self._news = trio.Event()

    def say(self, statement: RoundStatement) -> tuple[Digest, SignedBody]:
        """Sign a statement of this member's, and keep it."""
        body = encode(statement)
        said = SignedBody(body, self.identity.sign(to_sign(body)))
        self._keep(said.digest, statement, said)
        return said.digest, said

    def hold(self, payload: bytes) -> Digest:
        """Keep a payload, and return its hash."""
        digest = digest_of(payload)
        self.payloads[digest] = payload
        self.wake()
        return digest

    @property
    def held_bytes(self) -> int:
        """Bytes of all payloads."""
        return sum(map(len, self.payloads.values()))

    def hear(self, said: SignedBody, *, asked: bool = False) -> Reception:
        """Judge a statement that came in, and keep it if it is of use.

        Args:
            said: as it came.
            asked: whether this member has asked for it, so that it may be of a much later round.
        """
        digest = said.digest
        if digest in self._said:
            return Reception.KNOWN
        try:
            statement = decode(said.body, RoundStatement)
        except BadMessage:
            return Reception.BAD
        if statement.task != self.task_id or encode(statement) != said.body:
            return Reception.BAD
        if not self._is_timely(statement, asked=asked):
            return Reception.USELESS
        if not is_signed(said, statement.author, self._verify):
            return Reception.BAD
        other = self._slots.get(statement.slot)
        if other is not None:
            return self._convict(statement.author, self._said[other][1], said)
        self._keep(digest, statement, said)
        return Reception.NEW

    def statements(self, number: int, attempt: int) -> Iterator[tuple[Digest, RoundStatement]]:
        """Yield what was said in an attempt, by all who are not convicted."""
        for digest, (statement, _) in self._said.items():
            is_of_it = (statement.round, statement.attempt) == (number, attempt)
            if is_of_it and statement.author not in self.convicted:
                yield digest, statement

    def attempts(self, number: int) -> set[int]:
        """Return the attempts at a round that anybody has joined."""
        return {
            statement.attempt for statement, _ in self._said.values() if statement.round == number
        }

    def accepters(self, number: int) -> set[PeerId]:
        """Return who has accepted a child of a round."""
        return {
            statement.author
            for statement, _ in self._said.values()
            if statement.round == number and statement.kind is Kind.ACCEPT
        }

    def signatures(
        self, number: int, child: Digest, members: Collection[PeerId]
    ) -> tuple[SignedBody, ...]:
        """Return a round's list of judgements, these, and which members accepted what follows."""
        if child not in self._said:
            return ()
        listing, signed = self._said[child]
        judged = [self._said[each][1] for each in listing.listed if each in self._said]
        accepts = [
            said
            for statement, said in self._said.values()
            if (statement.kind, statement.round, statement.on) == (Kind.ACCEPT, number, child)
            and statement.author in members
        ]
        return signed, *judged, *accepts

    def rounds(self) -> list[int]:
        """Return the rounds of which something is known, the latest first."""
        return sorted({statement.round for statement, _ in self._said.values()}, reverse=True)

    def lacking(self, known: Iterable[Digest], most: int) -> list[SignedBody]:
        """Return some of what another member lacks, in the order in which it makes sense."""
        theirs = set(known)
        mine = [
            (said.round, said.attempt, tuple(Kind).index(said.kind), digest)
            for digest, (said, _) in self._said.items()
            if digest not in theirs
        ]
        proofs = [said for pair in self.convicted.values() for said in pair]
        lacked = [said for said in proofs if said.digest not in theirs]
        lacked += [self._said[digest][1] for *_, digest in sorted(mine)]
        return lacked[:most]

    def known(self) -> tuple[Digest, ...]:
        """Return the hashes of all that is known."""
        proofs = [said.digest for pair in self.convicted.values() for said in pair]
        return tuple(dict.fromkeys([*self._said, *proofs]))

    def begin(self, number: int, attempt: int, keep: Iterable[Digest]) -> None:
        """Forget what earlier attempts at a round gave, but for the last one's.

        Others may still be at that one; and what attempts hold never adds up to more than two's.

        Args:
            number: the round.
            attempt: the one that begins.
            keep: payloads that are needed on.
        """
        needed = {*keep}
        for statement, _ in self._said.values():
            is_recent = (statement.round, statement.attempt + 1) >= (number, attempt)
            if statement.payload and (is_recent or statement.kind in _LASTING):
                needed |= {statement.payload.digest, *statement.listed}
        self.payloads = {each: data for each, data in self.payloads.items() if each in needed}

    def finish(self, number: int, keep: Iterable[Digest]) -> None:
        """Forget rounds that are long over, and payloads that no statement names.

        Args:
            number: the round that is over.
            keep: payloads that are needed on.
        """
        self.round = max(self.round, number)
        least = self.round + 2 - ROUNDS_KEPT
        for digest, (statement, _) in list(self._said.items()):
            if statement.round < least:
                del self._said[digest]
                self._slots.pop(statement.slot, None)
        for place in [place for place in self._joins if place[0] < least]:
            del self._joins[place]
        needed = {*keep}
        for statement, _ in self._said.values():
            if statement.payload and statement.kind in _LASTING:
                needed.add(statement.payload.digest)
        self.payloads = {each: data for each, data in self.payloads.items() if each in needed}
        self.wake()

    def _is_timely(self, statement: RoundStatement, *, asked: bool) -> bool:
        if len(self._said) >= STATEMENTS_MAX or statement.author in self.convicted:
            return False
        if statement.round < self.round + 2 - ROUNDS_KEPT:
            return False
        if statement.round > self.round + AHEAD_MAX and not asked:
            return False
        place = statement.round, statement.attempt
        if statement.kind is Kind.JOIN:
            return self._joins[place] < JOINS_MAX
        return (statement.author, *place, Kind.JOIN, b"") in self._slots

    def _convict(self, author: PeerId, first: SignedBody, second: SignedBody) -> Reception:
        self.convicted[author] = first, second
        self.wake()
        return Reception.NEW

    def _keep(self, digest: Digest, statement: RoundStatement, said: SignedBody) -> None:
        self._said[digest] = statement, said
        self._slots[statement.slot] = digest
        if statement.kind is Kind.JOIN:
            self._joins[statement.round, statement.attempt] += 1
            if statement.addresses:
                self.addresses[statement.author] = statement.addresses
        self.wake()


def signed_task(identity: Signer, task: LearningTask) -> SignedBody:
    """Sign a task as its proposer."""
    body = encode(task)
    return SignedBody(body, identity.sign(to_sign(body)))


def read_task(said: SignedBody, verify: Verify) -> LearningTask | None:
    """Return a task that came in, if its proposer has signed it."""
    try:
        task = decode(said.body, LearningTask)
    except BadMessage:
        return None
    is_good = encode(task) == said.body and is_signed(said, task.proposer, verify)
    return task if is_good else None


def id_of(said: SignedBody) -> TaskId:
    """Return a task's id."""
    return TaskId(said.digest.hex())


class KnownTasks:
    """Tasks that are known, of which this peer follows one at most."""

    def __init__(
        self, verify: Verify, on_new: Callable[[SignedBody], None] = lambda _: None
    ) -> None:
        self._verify, self._on_new = verify, on_new
        self.known: dict[TaskId, tuple[LearningTask, SignedBody]] = {}

    def hear(self, said: SignedBody) -> Reception:
        """Judge a task that came in, and keep it."""
        if (name := id_of(said)) in self.known:
            return Reception.KNOWN
        task = read_task(said, self._verify)
        if task is None:
            return Reception.BAD
        self.known[name] = task, said
        if len(self.known) > TASKS_MAX:
            del self.known[next(iter(self.known))]
        self._on_new(said)
        return Reception.NEW
