"""Members of a task go through rounds together, and end with the same model."""

import trio
from trio.testing import MockClock

from tests.support.learners import learners, real_sums, task


async def test_three_members_agree(autojump_clock: MockClock) -> None:
    """Two rounds: the same children, nearer to what each wants."""
    with trio.fail_after(2000):
        async with learners() as them:
            for number in range(3):
                await them.add(number)
            heads = await them.finish()
    assert len({each.child for each in heads}) == 1
    for learner in them.members.values():
        assert [each.number for each in learner.reports] == [1, 2]
        assert all(each.took_part and each.taken == 1 for each in learner.reports)
        assert learner.reports[1].loss_before < learner.reports[0].loss_before
        assert not learner.voids


async def test_updates_are_encrypted(autojump_clock: MockClock) -> None:
    """The same with the sums that only a majority of a group can open."""
    with trio.fail_after(2000):
        async with learners(task(rounds=1), real_sums()) as them:
            for number in range(3):
                await them.add(number)
            heads = await them.finish()
    assert len({each.child for each in heads}) == 1
