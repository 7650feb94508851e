"""What a person may ask of a task, and what is refused."""

import pytest

from p2pinfer.cli.rounds import RoundFlags
from p2pinfer.core.errors import UserError
from tests.support.learners import task


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (RoundFlags(propose="A", together="B"), "take one"),
        (RoundFlags(propose=" "), "--propose is a name"),
        (RoundFlags(propose="A", group=1), "--group"),
        (RoundFlags(propose="A", group=4), "--members-min"),
        (RoundFlags(propose="A", least=4), "--members"),
        (RoundFlags(propose="A", talk_s=0.0), "--talk-s"),
    ],
)
def test_what_is_no_task_is_refused(flags: RoundFlags, said: str) -> None:
    """In a sentence that names the option."""
    with pytest.raises(UserError, match=said):
        flags.check()


def test_smaller_groups_than_one_takes_part_in_are_refused() -> None:
    """Of two, as each sees what the other learned; a person may say that this is fine."""
    flags = RoundFlags(together="Toy")
    flags.check()
    flags.check_group(task(members=4, least=3, group=3))
    flags.check_group(task(members=9, least=5, group=5))
    with pytest.raises(UserError, match=r"so that each sees .* say --group 2 to take part"):
        flags.check_group(task(group=2))
    RoundFlags(together="Toy", group=2).check_group(task(group=2))
    careful = RoundFlags(together="Toy", group=5)
    careful.check()
    with pytest.raises(UserError, match="adds up what 3 members learned: say --group 3"):
        careful.check_group(task(members=4, least=3, group=3))
