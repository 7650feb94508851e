"""One member of a learning task: it does what `scheduler.rounds` says is to be done.

What it learns leaves it encrypted only, as one of at least half a group's updates, of which the sum
alone can be decrypted, by more than half of the group together. See `p2pinfer.core.sums`.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import trio
from attrs import evolve
from numpy.typing import NDArray

from p2pinfer.core.ids import PeerId
from p2pinfer.core.learning import (
    ATTEMPTS_MAX,
    LOSS_MAX,
    Digest,
    Kind,
    Payload,
    RoundStatement,
    digest_of,
)
from p2pinfer.core.sums import SumRefused
from peers.learning.attempt import Attempt
from peers.learning.board import Board
from peers.learning.courier import FETCH_S_MAX, Courier
from peers.learning.group_sums import GroupSums, SumScheme
from peers.learning.work import Broken, Events, Head, RoundReport, Work
from peers.parts.protocol import Run, in_thread
from scheduler.judging import (
    NUMBER_MAX,
    UPDATE_MAX,
    GroupSum,
    Numbers,
    accepted,
    is_possible,
    moved,
    shortened,
)
from scheduler.round_table import Phase, RoundOutcome, Say, Void, Wait, threshold
from scheduler.rounds import Round
from transports.base import Transport

_log: Final = logging.getLogger("p2pinfer.learning")

NUMBER_BYTES: Final = 4
LINGER_S: Final = 20.0
"""After the last round, for members that have not heard all."""

RETRY_S: Final = 1.0
"""Before looking again for what a statement needs."""

LOSS_UNIT: Final = 1e-6


class Member:
    """Takes part in a task.

    Args:
        transport: to others.
        board: what was said.
        courier: says and fetches.
        work: what this member computes.
        scheme: how updates are added.
        draw: returns unpredictable bytes.
        events: called with what happens.
        run: runs slow functions.
    """

    def __init__(
        self,
        transport: Transport,
        board: Board,
        courier: Courier,
        work: Work,
        scheme: SumScheme,
        draw: Callable[[int], bytes],
        events: Events | None = None,
        run: Run = in_thread,
    ) -> None:
        self._transport, self._board, self._courier = transport, board, courier
        self._work, self._scheme, self._draw, self._run = work, scheme, draw, run
        self._events = events or Events()
        self._task, self._me = board.task, transport.peer_id
        self._round: Round | None = None
        self._mine = Attempt(b"")
        self._told_convicted: set[PeerId] = set()

    async def run(self, head: Head) -> Head:
        """Take part from a round's end on until the last one is over; return where it ends.

        Raises:
            Broken: too many attempts came to nothing, or most members say what does not follow.
        """
        board = self._board
        board.finish(head.round, [board.hold(head.payload)])
        async with self._courier.follow(board, self.wants):
            while head.round < self._task.rounds:
                head = await self._take_part(head)
            await self._linger(head)
        return head

    def wants(self, said: RoundStatement) -> list[Payload]:
        """Return the payloads of a statement that this member needs to come on."""
        round_ = self._round
        if round_ is None or (said.round, said.attempt) != (round_.number, round_.attempt):
            return []
        if said.author == self._me or not said.payload or not self._has_size(said):
            return []
        if said.kind is Kind.RESULT:
            return [said.payload] if round_.speaks_for_its_group(said) else []
        if said.group != round_.group or said.author not in round_.own_group:
            return []
        if said.kind is Kind.KEYS:
            sealed = self._sealed_for_me(said)
            return [said.payload, sealed] if sealed else []
        return [said.payload] if said.kind in (Kind.UPDATE, Kind.SHARE) else []

    def limited(self, change: NDArray[np.float32]) -> Numbers:
        """Return what was learned as it is sent: no longer than the task allows."""
        return shortened(change, self._task.clip)

    # --- a round

    async def _take_part(self, head: Head) -> Head:
        number, attempt = head.round + 1, 0
        while attempt < ATTEMPTS_MAX:
            attempt = max([attempt, *self._board.attempts(number)])
            found = await self._attempt(head, number, attempt)
            if isinstance(found, Head):
                return found
            self._events.on_void(number, found)
            attempt += 1
        raise Broken(f"round {number} of {self._task.name} came to nothing: {found}")

    async def _attempt(self, head: Head, number: int, attempt: int) -> Head | str:
        """Take part in an attempt; return where the model is then, or why nothing came of it."""
        board, now_s = self._board, trio.current_time
        round_ = self._round = Round(
            self._task,
            self._me,
            number,
            attempt,
            head.digest,
            head.members,
            now_s(),
            head.drawn,
            head.waited,
        )
        self._mine = Attempt(self._draw(32))
        board.begin(number, attempt, [head.digest])
        phase = None
        while True:
            if await self._feed(round_):
                continue
            outcome = round_.outcome() or self._outcome_elsewhere(round_)
            if outcome:
                return await self._adopt(head, outcome)
            later = max(board.attempts(number), default=0) > attempt
            if later and round_.phase in (Phase.WATCH, Phase.JOIN):
                return "others have begun again"
            move = round_.next(now_s())
            if round_.phase is not phase:
                phase = round_.phase
                self._events.on_phase(number, phase)
                board.wake()  # other payloads may be wanted now
            match move:
                case Void():
                    return move.why
                case Wait():
                    with trio.move_on_at(move.until_s):
                        await board.wait_news()
                case Say():
                    await self._say(round_, move)

    async def _feed(self, round_: Round) -> bool:
        """Give the round what has come; return whether this waited meanwhile."""
        mine, waited = self._mine, False
        for author in self._board.convicted.keys() - self._told_convicted:
            self._told_convicted.add(author)
            self._events.on_convicted(author)
        for digest, said in list(self._board.statements(round_.number, round_.attempt)):
            if digest in mine.fed or digest in mine.bad:
                continue
            if said.author != self._me and not self._has_size(said):
                mine.bad.add(digest)
                continue
            if any(each.digest not in self._board.payloads for each in self.wants(said)):
                continue
            if said.kind is Kind.RESULT and not round_.speaks_for_its_group(said):
                continue  # or the groups are not drawn here yet
            if said.kind is Kind.KEYS and said.author != self._me:
                if not mine.met or said.on != round_.chosen.get(Kind.MEET):
                    continue
                waited = True
                if not await self._take_keys(round_, said):
                    mine.bad.add(digest)
                    continue
            mine.fed.add(digest)
            round_.take(digest, said)
        return waited

    async def _take_keys(self, round_: Round, said: RoundStatement) -> bool:
        """Take another's keys; return whether they are good."""
        sums, sealed = self._mine.sums, self._sealed_for_me(said)
        if sums is None or sealed is None or said.payload is None:
            return False
        held = self._board.payloads
        public, share = held[said.payload.digest], held[sealed.digest]
        try:
            await self._run(sums.take, round_.own_group.index(said.author), public, share)
        except ValueError as error:
            _log.warning("%s gave bad keys: %s", said.author, error)
            return False
        return True

    def _sealed_for_me(self, said: RoundStatement) -> Payload | None:
        """Return what a member has sealed to this one."""
        round_ = self._round
        if round_ is None or said.on != round_.chosen.get(Kind.MEET):
            return None
        others = [each for each in round_.authors(Kind.MEET) if each != said.author]
        if self._me not in others or len(others) != len(said.listed):
            return None
        return Payload(said.listed[others.index(self._me)], self._scheme.sealed_bytes)

    def _has_size(self, said: RoundStatement) -> bool:
        """Whether what a member gives is as long as it must be."""
        if said.kind is Kind.HELLO:
            return len(said.data) == self._scheme.hello_bytes
        if said.payload is None:
            return True
        count, scheme = self._work.size, self._scheme
        due = {
            Kind.KEYS: scheme.public_bytes,
            Kind.UPDATE: scheme.encrypted_bytes(count),
            Kind.SHARE: scheme.share_bytes(count),
        }
        return said.payload.size == due.get(said.kind, NUMBER_BYTES * count)

    # --- what is said

    async def _say(self, round_: Round, move: Say) -> None:
        draft = RoundStatement(
            self._me,
            self._board.task_id,
            round_.number,
            round_.attempt,
            Kind.REVEAL,
            move.on,
            move.group,
            data=bytes(32),
        )
        try:
            more = await self._content(round_, move)
        except (ValueError, SumRefused) as error:  # whose fault it is cannot be told
            _log.warning("this group has no sum: %s", error)
            round_.give_up_group(trio.current_time())
            return
        if more is None:  # something is not here yet
            with trio.move_on_after(RETRY_S):
                await self._board.wait_news()
            return
        said = evolve(draft, **({"data": b"", "kind": move.kind, "listed": move.listed} | more))
        digest, signed = self._board.say(said)
        self._mine.fed.add(digest)
        round_.take(digest, said)
        self._courier.tell(signed)

    async def _content(self, round_: Round, move: Say) -> dict[str, Any] | None:
        """Return the fields of what is to be said; None if it cannot be said yet."""
        match move.kind:
            case Kind.JOIN:
                addresses = tuple(self._transport.addresses)
                return {"data": digest_of(self._mine.nonce), "addresses": addresses}
            case Kind.REVEAL:
                return {"data": self._mine.nonce}
            case Kind.HELLO:
                return {"data": await self._hello(round_)}
            case Kind.KEYS:
                return await self._keys(round_)
            case Kind.UPDATE:
                update = await self._update(round_)
                return {"payload": self._hold(update)} if update else None
            case Kind.ADDED:
                return {"data": await self._add(round_)}
            case Kind.SHARE:
                who = [round_.own_group.index(each) for each in round_.authors(Kind.SHARERS)]
                return {"payload": self._hold(await self._run(self._sums.share, who))}
            case Kind.RESULT:
                return {"payload": self._hold(await self._open(round_))}
            case Kind.JUDGEMENT:
                return await self._judgement(round_)
            case Kind.ACCEPT:
                return await self._acceptance(round_)
        return {}

    @property
    def _sums(self) -> GroupSums:
        assert self._mine.sums
        return self._mine.sums

    def _hold(self, data: bytes) -> Payload:
        return Payload(self._board.hold(data), len(data))

    async def _hello(self, round_: Round) -> bytes:
        group = round_.own_group
        named = [round_.chosen[Kind.DRAW], *(each.encode() for each in group)]
        context = digest_of(b"\0".join([*named, f"{round_.attempt} {round_.group}".encode()]))
        make, size = self._scheme.make, self._work.size
        me = group.index(self._me)
        self._mine.sums = await self._run(
            make, context, len(group), threshold(len(group)), me, size
        )
        return self._sums.hello

    async def _keys(self, round_: Round) -> dict[str, Any]:
        group, sums = round_.own_group, self._sums
        hellos = {group.index(each.author): each.data for each in round_.listed(Kind.MEET)}
        await self._run(sums.meet, hellos)
        self._mine.met = True
        others = [each for each in round_.authors(Kind.MEET) if each != self._me]
        sealed = [await self._run(sums.sealed_for, group.index(each)) for each in others]
        listed = tuple(map(self._board.hold, sealed))
        return {"payload": self._hold(sums.public), "listed": listed}

    async def _update(self, round_: Round) -> bytes | None:
        """Learn, and encrypt what was learned; None if there was no time for it."""
        if not self._mine.closed:
            givers = [round_.own_group.index(each) for each in round_.authors(Kind.KEY_SET)]
            await self._run(self._sums.close, givers)
            self._mine.closed = True
        change = None
        with trio.move_on_at(round_.late_s):
            change = await self._work.train(self._numbers(round_.head), round_.number)
        if change is None:
            round_.pass_over()
            return None
        update = self.limited(change)
        return await self._run(self._sums.encrypt, update.astype(np.int64))

    async def _add(self, round_: Round) -> bytes:
        group, held = round_.own_group, self._board.payloads
        if not self._mine.closed:  # the others were faster than this member learns
            givers = [group.index(each) for each in round_.authors(Kind.KEY_SET)]
            await self._run(self._sums.close, givers)
            self._mine.closed = True
        updates = {
            group.index(each.author): held[each.payload.digest]
            for each in round_.listed(Kind.SUM)
            if each.payload
        }
        return await self._run(self._sums.add, updates)

    async def _open(self, round_: Round) -> bytes:
        group, held = round_.own_group, self._board.payloads
        shares = {group.index(who): held[each.digest] for who, each in round_.shares().items()}
        found = await self._run(self._sums.open, shares)
        most = UPDATE_MAX * len(round_.listed(Kind.SUM))
        if np.abs(found).max(initial=0) > most:
            raise ValueError("the sum is larger than its updates can be")
        return found.astype("<i4").tobytes()

    async def _judgement(self, round_: Round) -> dict[str, Any] | None:
        head, sums = self._numbers(round_.head), self._group_sums(round_)
        if not sums:
            round_.abandon("no group's sum can be one of its updates")
            return None
        task = self._task
        heads = [moved(head, sums, [each], task.clip, task.outer_percent) for each in sums]
        found = await self._work.losses([head, *heads])
        losses = tuple(
            int(min(max(each, 0.0) / LOSS_UNIT, LOSS_MAX)) if np.isfinite(each) else LOSS_MAX
            for each in found
        )
        self._mine.losses = losses
        return {"listed": tuple(sums), "losses": losses}

    async def _acceptance(self, round_: Round) -> dict[str, Any] | None:
        sums = self._group_sums(round_)
        take = accepted(round_.listed(Kind.CHILD))
        if any(each not in sums for each in take):
            return None
        task, head = self._task, self._numbers(round_.head)
        numbers = moved(head, sums, take, task.clip, task.outer_percent)
        child = await self._work.child(numbers, round_.number)
        payload = self._hold(Head(round_.number, numbers).payload)
        data = bytes.fromhex(child)
        self._mine.accepted = payload, data, round_.chosen[Kind.CHILD]
        return {"payload": payload, "data": data}

    def _group_sums(self, round_: Round) -> dict[Digest, GroupSum]:
        """Return the groups' sums that are here, by their hashes."""
        found: dict[Digest, GroupSum] = {}
        for _, (payload, updates) in sorted(round_.results().items()):
            total = GroupSum(self._numbers(payload.digest), updates)
            if is_possible(total, self._task.clip):
                found[payload.digest] = total
        return found

    def _numbers(self, digest: Digest) -> Numbers:
        return np.frombuffer(self._board.payloads[digest], "<i4").astype(np.int32)

    # --- how it ends

    def _outcome_elsewhere(self, round_: Round) -> RoundOutcome | None:
        """Return what came of another attempt, or of a later round, where this member was not."""
        board = self._board
        for number in board.rounds():
            for attempt in board.attempts(number) if number >= round_.number else ():
                if (number, attempt) == (round_.number, round_.attempt):
                    continue
                said = dict(board.statements(number, attempt))
                if all(each.kind is not Kind.ACCEPT for each in said.values()):
                    continue
                other = Round(self._task, self._me, number, attempt, Digest(b""), (), 0.0)
                for digest, each in said.items():
                    other.take(digest, each)
                if outcome := other.outcome():
                    return outcome
        return None

    async def _adopt(self, head: Head, outcome: RoundOutcome) -> Head:
        """Take over what more than half of the members accept, once it is seen to follow."""
        own, board = self._mine.accepted, self._board
        if own and own[2] == outcome.on and own[0] != outcome.numbers:
            raise Broken(
                f"most members of {self._task.name} took over numbers in round {outcome.round}"
                " that do not follow from the judgements: this task is not to be trusted"
            )
        if outcome.numbers.size != NUMBER_BYTES * self._work.size:
            raise Broken(f"the numbers of {self._task.name} are of another size")
        with trio.move_on_after(FETCH_S_MAX):
            await self._courier.fetch_payload(board, outcome.numbers, outcome.members)
        if outcome.numbers.digest not in board.payloads:
            raise Broken(
                f"round {outcome.round} of {self._task.name} is over, and nobody who was there can"
                " be reached any more: ask its members for the model"
            )
        numbers = self._numbers(outcome.numbers.digest)
        if np.abs(numbers).max(initial=0) > NUMBER_MAX:
            raise Broken(f"the numbers of {self._task.name} are too large")
        child = await self._work.child(numbers, outcome.round)
        if child != outcome.child:
            raise Broken(
                f"most members of {self._task.name} name the child {outcome.child[:12]}…, and"
                f" what they taught makes {child[:12]}… here: is the base model the same?"
            )
        report = self._report(head, outcome)
        waited = self._round.waiting(outcome.on) if self._round else {}
        new = Head(outcome.round, numbers, child, report.members, outcome.members, waited)
        if self._events.on_round:
            await self._events.on_round(report, new)
        board.finish(outcome.round, [outcome.numbers.digest])
        return new

    def _report(self, head: Head, outcome: RoundOutcome) -> RoundReport:
        round_, mine = self._round, self._mine
        assert round_
        said = [
            each
            for attempt in self._board.attempts(outcome.round)
            for _, each in self._board.statements(outcome.round, attempt)
        ]
        # Not judgements alone: the slowest are still at theirs, and are waited for next time, too.
        present = {
            each.author for each in said if each.kind in (Kind.UPDATE, Kind.JUDGEMENT, Kind.ACCEPT)
        }
        # The others may be done before this member has judged what it helped to learn.
        took_part = any(
            each.author == self._me and each.kind in (Kind.UPDATE, Kind.JUDGEMENT) for each in said
        )
        is_known = round_.chosen.get(Kind.CHILD) == outcome.on
        taken = len(accepted(round_.listed(Kind.CHILD))) if is_known else 0
        losses = [each * LOSS_UNIT for each in mine.losses]
        return RoundReport(
            outcome.round,
            head.child,
            outcome.child,
            tuple(each for each in outcome.members if each in present),
            took_part,
            len(round_.results()) if took_part else 0,
            taken,
            losses[0] if losses else None,
            losses[1] if len(losses) == 1 + 1 and taken else None,
            self._board.signatures(outcome.round, outcome.on, outcome.members),
        )

    async def _linger(self, head: Head) -> None:
        """Answer others until all who were there have heard how it ended."""
        with trio.move_on_after(LINGER_S):
            while not self._board.accepters(head.round) >= {*head.members}:
                await self._board.wait_news()
