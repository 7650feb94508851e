"""Errors from nurseries, and what errors carry."""

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.errors import ChannelClosed, EngineDied, EngineError, PeerError, lone_errors
from p2pinfer.core.ids import PeerId

ENGINE, DIED = EngineError("no"), EngineDied("gone")


def raise_through(*errors: Exception) -> None:
    """Raise a group of errors, one of them in a group of its own, inside ``lone_errors``."""
    with lone_errors():
        raise ExceptionGroup("outer", [ExceptionGroup("inner", errors[:1]), *errors[1:]])


def test_a_lone_error_leaves_its_groups() -> None:
    """One error, however deep in groups, is raised itself with its cause."""
    error = ValueError("why")
    error.__cause__ = KeyError("because")
    with pytest.raises(ValueError, match="why") as caught:
        raise_through(error)
    assert caught.value is error
    assert isinstance(error.__cause__, KeyError)


def test_the_first_of_our_errors_stands_for_all() -> None:
    """Several errors of ours come from the same event."""
    with pytest.raises(EngineError) as caught:
        raise_through(ENGINE, DIED)
    assert caught.value is ENGINE


def test_a_foreign_error_is_not_hidden_behind_ours() -> None:
    """If one of several errors is not ours, the group stays whole."""
    with pytest.raises(ExceptionGroup) as caught:
        raise_through(ENGINE, ValueError("a mistake"))
    assert caught.group_contains(ValueError, match="a mistake")
    assert caught.group_contains(EngineError)


def test_errors_without_a_group_pass() -> None:
    """An error raised outside a group, or no error at all, passes unchanged."""
    with lone_errors():
        pass
    with pytest.raises(KeyError), lone_errors():
        raise KeyError


def test_a_peers_error_names_the_peer() -> None:
    """A handler can tell which peer the error is about."""
    error = ChannelClosed(PeerId("somebody"), "it left")
    assert isinstance(error, PeerError)
    assert (error.peer, str(error)) == ("somebody", "it left")


async def test_a_cancellation_takes_precedence(autojump_clock: MockClock) -> None:
    """A task that fails while all are cancelled does not replace the cancellation."""

    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ENGINE

    with trio.move_on_after(1) as scope, lone_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled)
            nursery.start_soon(trio.sleep_forever)
    assert scope.cancelled_caught
