"""Who may see tokens, where a requester keeps no layers."""

import pytest

from p2pinfer.core.errors import UserError
from p2pinfer.node.requester import check_shown
from transports.base import Reach

OPEN, PRIVATE = Reach("main"), Reach("main", bytes(32))


@pytest.mark.parametrize(
    ("keep", "network", "shown"), [(1, OPEN, False), (1, PRIVATE, False), (0, "local", False)]
)
def test_nothing_is_said_where_strangers_see_no_tokens(
    keep: int, network: str | Reach, shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a layer kept, or in a swarm of this machine alone."""
    check_shown(keep, network, shown=shown)
    assert capsys.readouterr().err == ""


def test_a_private_network_is_told_to_read_along(capsys: pytest.CaptureFixture[str]) -> None:
    """Its members were chosen, and a person is told."""
    check_shown(0, PRIVATE, shown=False)
    assert "of this private network can read all" in capsys.readouterr().err


def test_an_open_network_must_be_asked_for_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """The second flag says what the first one does."""
    with pytest.raises(UserError, match=r"--network-key.*say --show-tokens as well"):
        check_shown(0, OPEN, shown=False)
    check_shown(0, OPEN, shown=True)
    assert "the stages of this open network can read all" in capsys.readouterr().err
