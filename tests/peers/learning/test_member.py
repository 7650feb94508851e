"""Members of a task go through rounds together, and end with the same model."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import trio
from attrs import evolve
from numpy.typing import NDArray
from trio.testing import MockClock

from p2pinfer.core.learning import Kind, RoundStatement
from peers.learning.member import Member
from peers.learning.work import Broken
from scheduler.round_table import Phase
from scheduler.rounds import Round
from tests.support.learners import (
    KEYS,
    Learner,
    Learners,
    PlainSum,
    ToyWork,
    learners,
    plain_sums,
    real_sums,
    task,
    toy_work,
)

SHORT_S = 3000

PHASES = [each for each in Phase if each not in (Phase.WATCH, Phase.RESULTS)]


async def test_three_members_agree(autojump_clock: MockClock) -> None:
    """Two rounds: the same children, nearer to what each wants."""
    with trio.fail_after(SHORT_S):
        async with learners() as them:
            for number in range(3):
                await them.add(number)
            heads = await them.finish()
    assert len({each.child for each in heads}) == 1
    for learner in them.members.values():
        assert [each.number for each in learner.reports] == [1, 2]
        assert all(each.took_part and each.taken == 1 for each in learner.reports)
        first, second = learner.reports
        assert (second.loss_before or 0) < (first.loss_before or 0)
        assert not learner.voids


class _TooMuch(PlainSum):
    """Opens a sum that its updates cannot have."""

    def open(self, shares: Mapping[int, bytes]) -> NDArray[np.int64]:
        found = super().open(shares)
        found[0] = 1 << 20
        return found


@pytest.mark.parametrize("is_said", [False, True])
async def test_a_sum_that_its_updates_cannot_have_is_left_out(
    is_said: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its group, and by all where the group says it; where no other is left, all begin again."""
    opened = Member._open

    async def tell(self: Member, round_: Round) -> bytes:
        return b"\x00\x00\x10\x00" + (await opened(self, round_))[4:]

    if is_said:
        monkeypatch.setattr(Member, "_open", tell)
    scheme = plain_sums() if is_said else evolve(plain_sums(), make=_TooMuch)
    with trio.fail_after(100 * SHORT_S):
        async with learners(task(rounds=1), scheme) as them:
            for number in range(3):
                await them.add(number)
            with pytest.raises(Broken, match="came to nothing"):
                await them.finish()
            for learner in them.members.values():
                await learner.done.wait()
                assert isinstance(learner.failed, Broken)


async def test_updates_are_encrypted(autojump_clock: MockClock) -> None:
    """The same with the sums that only a majority of a group can open."""
    with trio.fail_after(SHORT_S):
        async with learners(task(rounds=1), real_sums()) as them:
            for number in range(3):
                await them.add(number)
            heads = await them.finish()
    assert len({each.child for each in heads}) == 1


async def test_the_child_depends_on_what_was_learned_alone(autojump_clock: MockClock) -> None:
    """Not on nonces, keys, or who was the first to speak."""
    children = []
    for order in ((0, 1, 2), (2, 0, 1)):
        async with learners(task(group=3, least=3)) as them:
            for number in order:
                await them.add(number)
                await trio.sleep(0.3)
            heads = await them.finish()
        children.append({each.child for each in heads})
    assert children[0] == children[1]
    assert len(children[0]) == 1


def killing(victim: int, at: Phase, number: int = 1) -> Callable[[Learner, int, Phase], None]:
    """Give what kills one member as it comes to a phase."""

    def on_phase(learner: Learner, now: int, phase: Phase) -> None:
        if learner.peer == KEYS[victim].peer_id and (now, phase) == (number, at):
            learner.kill()

    return on_phase


@pytest.mark.parametrize("victim", range(3))
@pytest.mark.parametrize("phase", PHASES)
async def test_a_member_dies(phase: Phase, victim: int, autojump_clock: MockClock) -> None:
    """In any phase, without a word: the others end the task, and agree."""
    with trio.fail_after(SHORT_S):
        async with learners() as them:
            for number in range(3):
                await them.add(number, on_phase=killing(victim, phase))
            heads = await them.finish()
    assert len(heads) == 2
    assert len({each.child for each in heads}) == 1
    assert all(each.round == 2 for each in heads)


@pytest.mark.parametrize("phase", [Phase.KEYS, Phase.TRAIN, Phase.ADD, Phase.SHARE, Phase.RESULTS])
async def test_a_group_loses_its_sum(phase: Phase, autojump_clock: MockClock) -> None:
    """Two groups of two, and one of four members dies: the other group's sum counts."""
    with trio.fail_after(SHORT_S):
        async with learners(task(members=4, rounds=1)) as them:
            for number in range(4):
                await them.add(number, on_phase=killing(1, phase))
            heads = await them.finish()
    assert len(heads) == 3
    assert len({each.child for each in heads}) == 1


async def test_a_slow_member_is_not_waited_for(autojump_clock: MockClock) -> None:
    """It learns for longer than there is time; the others' updates count, and it hears of it."""
    with trio.fail_after(SHORT_S):
        async with learners(task(rounds=2, members=4, group=3, least=3)) as them:
            for number in range(3):
                await them.add(number)
            slow = await them.add(3, toy_work(3, train_s=90.0))
            heads = await them.finish()
    assert len({each.child for each in heads}) == 1
    assert [each.number for each in slow.reports] == [1, 2]


async def test_a_member_comes_late(autojump_clock: MockClock) -> None:
    """In the middle of a task: it takes over what was learned, and takes part from then on."""
    with trio.fail_after(SHORT_S):
        async with learners(task(rounds=5, members=2)) as them:
            late_one = trio.Event()

            def on_phase(_: Learner, number: int, phase: Phase) -> None:
                if (number, phase) == (3, Phase.TRAIN):
                    late_one.set()

            for number in range(2):
                await them.add(number, toy_work(number, train_s=5.0), on_phase=on_phase)
            await late_one.wait()
            late = await them.add(2)
            heads = await them.finish()
    assert len({each.child for each in heads}) == 1
    assert late.reports[-1].took_part
    assert late.reports[0].number >= 2


async def test_all_but_one_vanish(autojump_clock: MockClock) -> None:
    """One alone makes no round, and says so in the end."""
    with trio.fail_after(10 * SHORT_S):
        async with learners() as them:
            alone = await them.add(0)
            await alone.done.wait()
    assert "came to nothing" in str(alone.failed)


class Flipper(ToyWork):
    """Teaches the opposite, in all strength, and says that it is pleased."""

    async def train(self, head: np.ndarray, number: int) -> np.ndarray:
        """Go away from the point."""
        return -20 * await super().train(head, number)


async def test_a_poisoned_sum_is_refused(autojump_clock: MockClock) -> None:
    """One of six members turns its update around: the others come to their point."""

    async def run(them: Learners, *, poisoned: bool) -> float:
        for number in range(6):
            bad = poisoned and number == 5
            point = toy_work(number).point
            await them.add(number, Flipper(point) if bad else ToyWork(point))
        await them.finish()
        last = [each.reports[-1].loss_before or 0.0 for each in them.members.values()]
        return sum(last[:5])

    what = task(members=6, rounds=6)
    losses = []
    for poisoned in (False, True):
        async with learners(what) as them:
            losses.append(await run(them, poisoned=poisoned))
    assert losses[1] < 1.5 * losses[0]


async def test_two_words_in_one_place_convict(autojump_clock: MockClock) -> None:
    """A member that says two things at once is left out by all, who have both as a proof."""
    with trio.fail_after(SHORT_S):
        async with learners(task(rounds=2, members=4)) as them:

            def on_phase(learner: Learner, number: int, phase: Phase) -> None:
                if (number, phase) == (1, Phase.KEYS):
                    first = next(
                        said
                        for _, said in learner.board.statements(1, 0)
                        if said.author == learner.peer and said.kind is Kind.JOIN
                    )
                    tell_again(learner, evolve(first, data=bytes(32)))

            def tell_again(learner: Learner, other: RoundStatement) -> None:
                _, said = learner.board.say(other)
                learner.member._courier.tell(said)

            liar = await them.add(3, on_phase=on_phase)
            for number in range(3):
                await them.add(number)
            honest = [each for each in them.members.values() if each is not liar]
            for each in honest:
                await each.done.wait()
    assert [each.convicted for each in honest] == [[liar.peer]] * 3
    assert len({each.head.child for each in honest if each.head}) == 1
    assert all(liar.peer not in each.reports[1].members for each in honest)
