"""One attempt at a round, as one member sees it; see `scheduler.round_table`."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.learning import Digest, Kind, LearningTask, Payload, RoundStatement, digest_of
from p2pinfer.core.sums import least_summed
from scheduler.judging import accepted
from scheduler.round_table import (
    OF_A_GROUP,
    TABLE,
    Move,
    Phase,
    PhaseRow,
    RoundOutcome,
    Say,
    Void,
    Wait,
    groups_of,
    threshold,
)

TURN_SHARE: Final = 8
"""Turns at writing a list that fit into the time of a phase."""

NEWCOMER_SHARE: Final = 0.25
"""Of the time of a phase: for which a later round waits for members that were not in the one
before, once all who were are there; they hear with those that it is over."""

WAITED_MAX: Final = 2
"""Rounds on end that count; one that missed this many knows the same as the others again."""

SHARER_SETS_MAX: Final = 3
"""As many as are safe, and more than are needed unless members go one after another."""


class Round:
    """One attempt at a round, as one member sees it.

    Args:
        task: what is learned.
        me: this member.
        number: of the round, from 1.
        attempt: at it, from 0.
        head: the hash of the numbers that it begins with.
        expected: who took part in the round before: once they are there nobody waits for more.
        now_s: the time, in seconds of any clock that only goes forward.
        drawn: who was drawn in the round before. More than half of them must join, so that where a
            network falls apart at most one part goes on.
        waited: as ``waiting`` gave it in the round before. A first attempt alone heeds it: members
            that know different things of that round do not meet in one group.
    """

    def __init__(
        self,
        task: LearningTask,
        me: PeerId,
        number: int,
        attempt: int,
        head: Digest,
        expected: Collection[PeerId],
        now_s: float,
        drawn: Collection[PeerId] = (),
        waited: Mapping[PeerId, int] | None = None,
    ) -> None:
        self.task, self.me, self.number, self.attempt = task, me, number, attempt
        self.head, self._expected, self._drawn_before = head, {*expected}, {*drawn}
        self._waited = waited or {}
        self.phase, self._since_s = Phase.JOIN, now_s
        self._base = head
        """What the present phase builds on."""
        self.chosen: dict[Kind, Digest] = {}
        self.groups: list[list[PeerId]] = []
        self.group = 0
        self._said: dict[Digest, RoundStatement] = {}
        self._index: dict[tuple[Kind, Digest, int], dict[PeerId, Digest]] = {}
        self._complete_s: float | None = None
        self._silent: set[PeerId] = set()
        """Sharers that gave no share in time."""
        self._sets = 0
        self._passed, self._abandoned = False, ""
        self._drawn_s = now_s

    def take(self, digest: Digest, said: RoundStatement) -> None:
        """Hear a statement of this attempt; the first one counts where there are two."""
        if (said.round, said.attempt) != (self.number, self.attempt):
            return
        self._said[digest] = said
        self._index.setdefault((said.kind, said.on, said.group), {}).setdefault(said.author, digest)

    def next(self, now_s: float) -> Move:
        """Return what is to be done now."""
        while True:
            move = self._move(now_s)
            if move is not None:
                return move

    def give_up_group(self, now_s: float) -> None:
        """Wait for the other groups: this one's sum cannot be had."""
        self._go(Phase.RESULTS, self._base, now_s)

    def pass_over(self) -> None:
        """Send no update: learning took longer than there was time."""
        self._passed = True

    def abandon(self, why: str) -> None:
        """Make nothing of this attempt: what most say cannot be true."""
        self._abandoned = why

    @property
    def late_s(self) -> float:
        """When what is said in the present phase is too late."""
        return self._since_s + self._limit_s(self.phase)

    def said(self, digest: Digest) -> RoundStatement:
        """Return a statement that was heard."""
        return self._said[digest]

    def listed(self, kind: Kind) -> list[RoundStatement]:
        """Return what the list of a kind that this member follows names, in its order."""
        return [self._said[each] for each in self._said[self.chosen[kind]].listed]

    def authors(self, kind: Kind) -> list[PeerId]:
        """Return the authors of what a list names."""
        return [each.author for each in self.listed(kind)]

    def shares(self) -> dict[PeerId, Payload]:
        """Return the shares of the sharers that this member follows."""
        heard = self._index.get((Kind.SHARE, self.chosen[Kind.SHARERS], self.group), {})
        found = {each: self._said[heard[each]].payload for each in self.authors(Kind.SHARERS)}
        return {author: payload for author, payload in found.items() if payload}

    @property
    def own_group(self) -> list[PeerId]:
        """This member's group, in the order of its numbering; empty if it is in none."""
        return self.groups[self.group] if self.groups else []

    def speaks_for_its_group(self, said: RoundStatement) -> bool:
        """Whether a statement's author was drawn into the group that it names."""
        return said.group < len(self.groups) and said.author in self.groups[said.group]

    def results(self) -> dict[int, tuple[Payload, int]]:
        """Return each group's sum, as enough of its members say it, and of how many updates."""
        found = {}
        for number, group in enumerate(self.groups):
            votes: Counter[tuple[Digest, Payload]] = Counter()
            for (kind, on, of), heard in self._index.items():
                if kind is Kind.RESULT and of == number:
                    for author in heard.keys() & set(group):
                        payload = self._said[heard[author]].payload
                        assert payload
                        votes[on, payload] += 1
            for (on, payload), count in votes.items():
                summed = self._said.get(on)
                is_sum = summed and summed.kind is Kind.SUM and summed.group == number
                if count >= threshold(len(group)) and summed and is_sum:
                    found[number] = payload, len(summed.listed)
        return found

    def waiting(self, child: Digest) -> dict[PeerId, int]:
        """Return for how many rounds on end the sums of some members were not taken over.

        Args:
            child: the list of judgements that counts; nobody waits if this member follows none.
        """
        if self.chosen.get(Kind.CHILD) != child:
            return {}
        take = accepted(self.listed(Kind.CHILD))
        taken = {number for number, (sum_, _) in self.results().items() if sum_.digest in take}
        return {
            each: min(self._waited.get(each, 0) + 1, WAITED_MAX)
            for number, group in enumerate(self.groups)
            for each in group
            if number not in taken
        }

    def outcome(self) -> RoundOutcome | None:
        """Return what more than half of those drawn accept, if they do."""
        votes: dict[tuple[Digest, Payload, bytes], set[PeerId]] = {}
        for (kind, on, _), heard in self._index.items():
            for author, digest in heard.items() if kind is Kind.ACCEPT else ():
                said = self._said[digest]
                assert said.payload
                votes.setdefault((on, said.payload, said.data), set()).add(author)
        for (on, payload, child), authors in votes.items():
            drawn = self._drawn_under(on)
            if drawn and 2 * len(authors & set(drawn)) > len(drawn):
                return RoundOutcome(self.number, payload, ModelId(child.hex()), on, tuple(drawn))
        return None

    def _drawn_under(self, child: Digest) -> list[PeerId]:
        """Return the members of the draw that a list of judgements builds on; none if unknown."""
        listing = self._said.get(child)
        draw = self._said.get(listing.on) if listing and listing.kind is Kind.CHILD else None
        if draw is None or draw.kind is not Kind.DRAW:
            return []
        return [self._said[each].author for each in draw.listed if each in self._said]

    # --- what is to be done

    def _move(self, now_s: float) -> Move | None:
        if self._abandoned:
            return Void(self._abandoned)
        match self.phase:
            case Phase.WATCH:
                return self._wait_or_void(self._since_s + self._all_s(), now_s, "left out")
            case Phase.SHARE:
                return self._share(now_s)
            case Phase.RESULTS:
                return self._await_results(now_s)
            case Phase.ACCEPT:
                until_s = self.late_s
                if self.me not in self._heard(Kind.ACCEPT) and now_s < until_s:
                    return Say(Kind.ACCEPT, self._base)
                return self._wait_or_void(until_s, now_s, "too few accepted a child")
        return self._speak_or_list(now_s)

    def _speak_or_list(self, now_s: float) -> Move | None:
        row, group = TABLE[self.phase], self._group_field()
        chosen = self._valid_list(row.lists, group)
        if chosen is not None:
            self._follow(row, chosen, now_s)
            return None
        heard = self._heard(row.says)
        if row.says is not Kind.JOIN and self.me not in self._speakers(row.says):
            if self.phase in OF_A_GROUP:
                self.give_up_group(now_s)
            else:
                self._go(Phase.WATCH, self._base, now_s)
            return None
        if self.me not in heard and not (row.says is Kind.UPDATE and self._passed):
            on = self._sum() if row.says is Kind.ADDED else self._base
            return Say(row.says, on, group)
        if self._is_retry():
            heard = {author: each for author, each in heard.items() if author not in self._silent}
        return self._list(row, heard, now_s)

    def _list(self, row: PhaseRow, heard: Mapping[PeerId, Digest], now_s: float) -> Move | None:
        """List what was heard if it is this member's turn."""
        listable = self._listable(row, heard)
        least = self._least(row.lists)
        is_complete = len(listable) >= max(self._enough(row), least)
        if row.says is Kind.JOIN and self._expected:
            is_complete = len(listable) >= least and self._expected <= heard.keys()
            is_complete = is_complete and self._is_same_task(heard)
        if self._complete_s is None and is_complete:
            is_next = row.says is Kind.JOIN and self._expected
            self._complete_s = now_s + (NEWCOMER_SHARE * self.task.talk_ms / 1e3 if is_next else 0)
        late_s = self.late_s
        start_s = late_s if self._complete_s is None else min(self._complete_s, late_s)
        if now_s < start_s:
            return Wait(start_s)
        if len(listable) < least:
            return self._fail(f"only {len(listable)} of {least} came to {row.says}", now_s)
        if row.says is Kind.JOIN and not self._is_same_task(heard):
            return self._fail("most members of the round before are gone", now_s)
        order = sorted(heard, key=self._rank)
        turn_s = start_s + order.index(self.me) * self._turn_s() if self.me in order else late_s
        already = self._heard_lists(row.lists)
        if now_s >= turn_s and self.me not in already:
            return Say(row.lists, self._base, self._group_field(), listable)
        over_s = start_s + (len(order) + TURN_SHARE) * self._turn_s()
        if now_s >= over_s:
            return self._fail(f"no list of {row.says} was followed", now_s)
        return Wait(over_s if self.me in already else min(turn_s, over_s))

    def _listable(self, row: PhaseRow, heard: Mapping[PeerId, Digest]) -> tuple[Digest, ...]:
        """Return what a list may name, in an order that does not tell who came first."""
        found = sorted(heard.values())
        if row.lists is Kind.ROSTER:
            return tuple(found[: 2 * self.task.members])
        if row.lists is not Kind.SHARERS:
            return tuple(found)
        sums = Counter(self._said[each].data for each in found)
        if not sums:
            return ()
        most = max(sums.values())
        data = min(each for each, count in sums.items() if count == most)
        agreeing = [each for each in found if self._said[each].data == data]
        return tuple(agreeing[: self._threshold()])

    def _enough(self, row: PhaseRow) -> int:
        """Return with how many nobody waits for more."""
        if row.says is Kind.JOIN:
            return self.task.members
        if row.says is Kind.ADDED:
            return self._threshold()
        return len(self._speakers(row.says))

    def _least(self, kind: Kind) -> int:
        """Return how many a list must name at least."""
        match kind:
            case Kind.ROSTER:
                return self.task.least
            case Kind.DRAW:
                return max(self.task.least, len(self.authors(Kind.ROSTER)) // 2 + 1)
            case Kind.CHILD:
                return len(self.authors(Kind.DRAW)) // 2 + 1
            case Kind.MEET | Kind.KEY_SET | Kind.SUM:
                return least_summed(len(self.own_group))
        return self._threshold()

    def _fail(self, why: str, now_s: float) -> Void | None:
        if self.phase in OF_A_GROUP:
            self.give_up_group(now_s)
            return None
        return Void(why)

    def _follow(self, row: PhaseRow, chosen: Digest, now_s: float) -> None:
        self.chosen[row.lists] = chosen
        if row.lists is Kind.DRAW:
            self._draw(now_s)
            if self.phase is Phase.WATCH:
                return
        self._go(row.follows, chosen, now_s)

    def _draw(self, now_s: float) -> None:
        members = self.authors(Kind.DRAW)
        nonces = b"".join(sorted(each.data for each in self.listed(Kind.DRAW)))
        waited = {} if self.attempt else self._waited
        self.groups = groups_of(members, nonces, self.task.group, waited)
        self._drawn_s = now_s
        mine = [number for number, each in enumerate(self.groups) if self.me in each]
        if mine:
            self.group = mine[0]
        else:
            self._go(Phase.WATCH, self._base, now_s)

    def _share(self, now_s: float) -> Move | None:
        """Give a share, or say the sum that all shares give."""
        if self.group in self.results() or self.me in self._heard_on(Kind.RESULT, self._sum()):
            self._go(Phase.RESULTS, self._sum(), now_s)
            return None
        if self.me not in self._heard_on(Kind.ADDED, self._sum()):
            self._go(Phase.RESULTS, self._sum(), now_s)  # it was late, and leaves it to the others
            return None
        sharers, heard = self.authors(Kind.SHARERS), self._heard(Kind.SHARE)
        if self.me in sharers and self.me not in heard:
            return Say(Kind.SHARE, self._base, self.group)
        if all(each in heard for each in sharers):
            return Say(Kind.RESULT, self._sum(), self.group)
        late_s = self.late_s
        if now_s < late_s:
            return Wait(late_s)
        if self._sets >= SHARER_SETS_MAX:
            return self._fail("too few gave their shares", now_s)
        self._silent |= {each for each in sharers if each not in heard}
        self._go(Phase.ADD, self._base, now_s)
        return None

    def _await_results(self, now_s: float) -> Move | None:
        results = self.results()
        lacking = [number for number in range(len(self.groups)) if number not in results]
        late_s = max(map(self._group_late_s, lacking), default=now_s)
        if now_s < late_s:
            return Wait(late_s)
        if not results:
            return Void("no group came to a sum")
        self._go(Phase.JUDGE, self.chosen[Kind.DRAW], now_s)
        return None

    def _wait_or_void(self, until_s: float, now_s: float, why: str) -> Move:
        return Wait(until_s) if now_s < until_s else Void(why)

    def _go(self, phase: Phase, base: Digest, now_s: float) -> None:
        if phase is Phase.SHARE:
            self._sets += 1
        self.phase, self._base, self._since_s, self._complete_s = phase, base, now_s, None

    # --- who has said what

    def _group_field(self) -> int:
        return self.group if self.phase in OF_A_GROUP else 0

    def _sum(self) -> Digest:
        return self.chosen[Kind.SUM]

    def _is_retry(self) -> bool:
        return self.phase is Phase.ADD and bool(self._sets)

    def _threshold(self) -> int:
        return threshold(len(self.own_group))

    def _speakers(self, kind: Kind) -> Collection[PeerId]:
        """Return who may say something of a kind."""
        match kind:
            case Kind.JOIN:
                return self._index.get((kind, self.head, 0), {}).keys()
            case Kind.REVEAL:
                return self.authors(Kind.ROSTER)
            case Kind.HELLO:
                return self.own_group
            case Kind.KEYS:
                return self.authors(Kind.MEET)
            case Kind.SHARE:
                return self.authors(Kind.SHARERS)
            case Kind.JUDGEMENT | Kind.ACCEPT:
                return self.authors(Kind.DRAW)
        return self.authors(Kind.KEY_SET)

    def _heard(self, kind: Kind) -> dict[PeerId, Digest]:
        """Return who has said something of a kind in the present phase."""
        return self._heard_on(kind, self._sum() if kind is Kind.ADDED else self._base)

    def _heard_on(self, kind: Kind, on: Digest) -> dict[PeerId, Digest]:
        speakers = set(self._speakers(kind))
        heard = self._index.get((kind, on, self._group_field()), {})
        return {
            author: digest
            for author, digest in heard.items()
            if author in speakers and self._is_true(self._said[digest])
        }

    def _is_true(self, said: RoundStatement) -> bool:
        """Whether a nonce is the one that its author was bound to."""
        if said.kind is not Kind.REVEAL:
            return True
        joins = {each.author: each for each in self.listed(Kind.ROSTER)}
        return digest_of(said.data) == joins[said.author].data

    def _heard_lists(self, kind: Kind) -> dict[PeerId, Digest]:
        return self._index.get((kind, self._base, self._group_field()), {})

    def _valid_list(self, kind: Kind, group: int) -> Digest | None:
        """Return the list that this member is to follow: of those that hold, the first in turn."""
        found = self._index.get((kind, self._base, group), {})
        valid = [author for author, digest in found.items() if self._holds(kind, author, digest)]
        return found[min(valid, key=self._rank)] if valid else None

    def _holds(self, kind: Kind, author: PeerId, digest: Digest) -> bool:
        row = TABLE[self.phase]
        heard = self._heard(row.says)
        by_digest = {each: who for who, each in heard.items()}
        listed = self._said[digest].listed
        if author not in heard or any(each not in by_digest for each in listed):
            return False
        if kind is Kind.ROSTER and not self._is_same_task({by_digest[each] for each in listed}):
            return False
        if kind is Kind.SHARERS:
            sums = {self._said[each].data for each in listed}
            return len(sums) == 1 and len(listed) == self._threshold()
        return self._least(kind) <= len(listed)

    def _is_same_task(self, joined: Collection[PeerId]) -> bool:
        """Whether more than half of the round before go on, so that no other part of them can."""
        before = self._drawn_before
        return not before or 2 * len(before.intersection(joined)) > len(before)

    def _rank(self, author: PeerId) -> bytes:
        salt = f"{self.number} {self.attempt} {self.phase} {author}".encode()
        return digest_of(self._base + salt)

    # --- how long

    def _limit_s(self, phase: Phase) -> float:
        task = self.task
        is_first = phase is Phase.JOIN and self.number == 1
        ms = {
            Phase.JOIN: task.join_ms if is_first else task.talk_ms,
            Phase.TRAIN: task.train_ms,
            Phase.JUDGE: task.judge_ms,
        }
        return ms.get(phase, task.talk_ms) / 1000

    def _turn_s(self) -> float:
        return self.task.talk_ms / 1000 / TURN_SHARE

    def _group_late_s(self, number: int) -> float:
        """Return when a group is too late that has come as far as the last list heard of it."""
        found_s = self._drawn_s + self.task.talk_ms / 1000
        lists = {kind for kind, _, of in self._index if of == number}
        for phase in (Phase.HELLO, Phase.KEYS, Phase.TRAIN, Phase.ADD):
            found_s += self._limit_s(phase)
            if TABLE[phase].lists not in lists:
                return found_s
        return self._drawn_s + self._group_s()

    def _group_s(self) -> float:
        """Return how long a group may take, from the draw to its sum."""
        phases: Sequence[Phase] = (Phase.HELLO, Phase.KEYS, Phase.TRAIN, Phase.ADD, Phase.SHARE)
        spare_s = (SHARER_SETS_MAX - 1) * self._limit_s(Phase.SHARE)
        return sum(map(self._limit_s, phases)) + spare_s + self.task.talk_ms / 1000

    def _all_s(self) -> float:
        """Return how long a whole attempt may take."""
        phases = (Phase.JOIN, Phase.REVEAL, Phase.JUDGE, Phase.ACCEPT)
        return self._group_s() + sum(map(self._limit_s, phases)) + self.task.talk_ms / 1000
