"""Members that hear things late, in any order or never still agree, or come to nothing."""

import heapq
from itertools import count
from random import Random
from typing import Any

import pytest
from attrs import evolve, frozen

from p2pinfer.core.ids import PeerId
from p2pinfer.core.learning import Kind, Payload, RoundStatement, TaskId, digest_of
from p2pinfer.core.wire import encode
from scheduler.round_table import RoundOutcome, Say, Void, groups_of, threshold
from scheduler.rounds import WAITED_MAX, Round
from tests.support.learners import task

TASK_ID = TaskId("a" * 64)
HEAD = digest_of(b"head")
LONG_S = 2000.0
MANY = [*range(12), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(12, 400))]


def name(number: int) -> PeerId:
    """Name a member."""
    return PeerId(f"{number:052}")


@frozen
class Trouble:
    """What happens to messages and members."""

    members: int
    group: int
    delay_s: float
    lost: float
    """Share of deliveries that never come."""
    deaths: int
    seed: int
    before: int = 0
    """Members that were drawn in the round before; those there are now, and more."""


class World:
    """Rounds of several members, and messages on their way."""

    def __init__(self, trouble: Trouble) -> None:
        self.trouble, self.chance = trouble, Random(trouble.seed)
        what = task(members=trouble.members, least=trouble.group, group=trouble.group)
        peers = [name(number) for number in range(trouble.members)]
        before = [name(number) for number in range(trouble.before)]
        self.rounds = {each: Round(what, each, 1, 0, HEAD, (), 0.0, before) for each in peers}
        victims = self.chance.sample(peers, trouble.deaths)
        self.dies_s = {each: self.chance.uniform(0, 100) for each in victims}
        self.dies_at: dict[PeerId, Kind] = {}
        """What a victim would have said next."""
        self.ended: dict[PeerId, RoundOutcome | Void] = {}
        self.now_s = 0.0
        self._order = count()
        self._events: list[tuple[float, int, PeerId, RoundStatement | None]] = []
        for each in peers:
            self._push(0.0, each, None)

    def _push(self, at_s: float, peer: PeerId, said: RoundStatement | None) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), peer, said))

    def run(self) -> None:
        """Let everything happen."""
        while self._events:
            now_s, _, peer, said = heapq.heappop(self._events)
            if peer in self.ended or now_s > min(LONG_S, self.dies_s.get(peer, LONG_S)):
                continue
            round_, self.now_s = self.rounds[peer], now_s
            if said is not None:
                round_.take(digest_of(encode(said)), said)
            self._act(round_, now_s)

    def _act(self, round_: Round, now_s: float) -> None:
        while True:
            if outcome := round_.outcome():
                self.ended[round_.me] = outcome
                return
            move = round_.next(now_s)
            if isinstance(move, Void):
                self.ended[round_.me] = move
                return
            if not isinstance(move, Say):
                self._push(move.until_s, round_.me, None)
                return
            if self.dies_at.get(round_.me) is move.kind:
                self.dies_s[round_.me] = now_s
                return
            said = self._said(round_, move)
            round_.take(digest_of(encode(said)), said)
            for other in self.rounds:
                if other != round_.me and self.chance.random() >= self.trouble.lost:
                    later_s = self.chance.expovariate(1 / self.trouble.delay_s)
                    self._push(now_s + later_s, other, said)

    def _said(self, round_: Round, move: Say) -> RoundStatement:
        me, nonce = round_.me, digest_of(round_.me.encode())
        if move.listed:
            return RoundStatement(me, TASK_ID, 1, 0, move.kind, move.on, move.group, move.listed)
        draft = RoundStatement(me, TASK_ID, 1, 0, Kind.REVEAL, move.on, move.group, data=bytes(32))
        more: dict[str, Any]
        match move.kind:
            case Kind.JOIN:
                more = {"data": digest_of(nonce)}
            case Kind.REVEAL | Kind.HELLO:
                more = {"data": nonce}
            case Kind.ADDED:
                more = {"data": digest_of(move.on)}
            case Kind.KEYS:
                more = {"data": b"", "listed": (nonce,), "payload": Payload(nonce, 1)}
            case Kind.UPDATE | Kind.SHARE:
                more = {"data": b"", "payload": Payload(nonce, 1)}
            case Kind.RESULT:
                more = {"data": b"", "payload": Payload(digest_of(move.on), 1)}
            case Kind.JUDGEMENT:
                listed = tuple(each.digest for each, _ in round_.results().values())
                more = {"data": b"", "listed": listed, "losses": (1,) * (1 + len(listed))}
            case Kind.ACCEPT:
                more = {"data": digest_of(move.on), "payload": Payload(digest_of(move.on), 1)}
            case _:
                raise AssertionError(move)
        return evolve(draft, kind=move.kind, **more)


@pytest.mark.parametrize("seed", MANY)
def test_nobody_accepts_another_child(seed: int) -> None:
    """Whatever is lost, late or dead: all that end an attempt with a child have the same one."""
    chance = Random(seed)
    trouble = Trouble(
        members=chance.randint(2, 9),
        group=chance.randint(2, 3),
        delay_s=chance.choice([0.01, 0.5, 4.0]),
        lost=chance.choice([0.0, 0.0, 0.05, 0.3]),
        deaths=chance.randint(0, 2),
        seed=seed,
    )
    trouble = evolve(trouble, members=max(trouble.members, trouble.group))
    world = World(evolve(trouble, deaths=min(trouble.deaths, trouble.members - 1)))
    world.run()
    children = {each for each in world.ended.values() if isinstance(each, RoundOutcome)}
    assert len({(each.numbers, each.child, each.on) for each in children}) <= 1
    dead = {peer for peer, at_s in world.dies_s.items() if at_s < LONG_S}
    assert {*world.ended} >= {*world.rounds} - dead  # nobody waits for ever


@pytest.mark.parametrize("seed", range(3))
def test_without_trouble_all_accept(seed: int) -> None:
    """At once: no deadline is waited for."""
    world = World(Trouble(members=6, group=2, delay_s=0.01, lost=0.0, deaths=0, seed=seed))
    world.run()
    assert all(isinstance(each, RoundOutcome) for each in world.ended.values())
    assert len(world.ended) == 6


def world_where_one_dies(members: int, group: int, at: Kind) -> World:
    """Run a world without any other trouble."""
    world = World(Trouble(members=members, group=group, delay_s=0.01, lost=0.0, deaths=0, seed=1))
    world.dies_at[name(0)] = at
    world.run()
    return world


@pytest.mark.parametrize("at", [Kind.HELLO, Kind.KEYS, Kind.UPDATE])
def test_no_two_members_add_up_what_they_learned(at: Kind) -> None:
    """Of a group of three one goes: each of the others would see what the other learned."""
    world = world_where_one_dies(3, 3, at)
    assert len(world.ended) == 2
    assert all(isinstance(each, Void) for each in world.ended.values())
    assert Kind.SUM not in world.rounds[name(1)].chosen
    assert world.dies_s[name(0)] < world.now_s


@pytest.mark.parametrize("at", [Kind.HELLO, Kind.KEYS, Kind.UPDATE])
def test_a_group_of_four_bears_a_death(at: Kind) -> None:
    """Three are left, and add up."""
    world = world_where_one_dies(4, 4, at)
    assert len(world.ended) == 3
    assert all(isinstance(each, RoundOutcome) for each in world.ended.values())


def test_a_lost_group_is_not_waited_for_as_one_that_learns() -> None:
    """Once it has not even met in time, it has no sum, and the other group's is judged."""
    world = world_where_one_dies(6, 3, Kind.HELLO)
    assert len(world.ended) == 5
    assert all(isinstance(each, RoundOutcome) for each in world.ended.values())
    what = world.rounds[name(1)].task
    assert world.now_s < (3 * what.talk_ms + what.judge_ms) / 1000 < what.train_ms / 1000


@pytest.mark.parametrize(("before", "go_on"), [(5, True), (6, False), (9, False)])
def test_only_more_than_half_of_a_round_go_on(before: int, *, go_on: bool) -> None:
    """Three of five do; three of six may be one of two halves that a network fell into."""
    trouble = Trouble(3, 3, delay_s=0.01, lost=0.0, deaths=0, seed=1, before=before)
    world = World(trouble)
    world.run()
    assert [isinstance(each, RoundOutcome) for each in world.ended.values()] == [go_on] * 3
    if not go_on:
        assert {each.why for each in world.ended.values() if isinstance(each, Void)} == {
            "most members of the round before are gone"
        }


def test_groups_are_drawn_by_all_nonces() -> None:
    """Everybody is in one, of the least size or more; another nonce draws others."""
    members = [name(number) for number in range(11)]
    drawn = groups_of(members, b"nonces", 3)
    assert sorted(each for group in drawn for each in group) == members
    assert {len(group) for group in drawn} <= {3, 4, 5}
    assert drawn != groups_of(members, b"others", 3)
    assert drawn == groups_of(members[::-1], b"nonces", 3)
    assert groups_of(members[:2], b"nonces", 3) != []


@pytest.mark.parametrize(("size", "on_end"), [(6, WAITED_MAX), (9, 1)])
def test_those_left_out_are_not_left_out_together_again(size: int, on_end: int) -> None:
    """One poisoner has its whole group refused: of two groups at most twice on end."""
    members, longest = [name(number) for number in range(size)], 0
    waited: dict[PeerId, int] = {}
    refused = dict.fromkeys(members, 0)
    for number in range(300):
        groups = groups_of(members, b"%d" % number, 3, waited)
        assert sorted(each for group in groups for each in group) == members
        assert {len(group) for group in groups} == {3}
        bad = next(group for group in groups if members[0] in group)
        refused = {each: refused[each] + 1 if each in bad else 0 for each in members}
        waited = {each: min(refused[each], WAITED_MAX) for each in bad}
        longest = max(longest, *(refused[each] for each in members[1:]))
    assert longest == on_end


def test_more_than_half_decrypt_together() -> None:
    """So no group has two sums."""
    assert [threshold(size) for size in (2, 3, 4, 5, 8)] == [2, 2, 3, 3, 5]
