"""What follows from other peers' attempts to dial this one."""

import pytest

from p2pinfer.core.ids import PeerId
from transports.base import Reachability
from transports.libp2p.reach_inquiry import (
    HIDDEN_AGAIN_S,
    LAPSE_S,
    DialOutcome,
    DialServer,
    FamilyReach,
    ReachStage,
    can_prove,
    is_global,
    overall,
)

HOME = "/ip4/5.9.0.1/tcp/4100"
SERVERS = [DialServer(PeerId(f"s{i}"), f"5.{i}.0.5") for i in range(1, 7)]
YES, NO, NONE = DialOutcome.PROVED, DialOutcome.FAILED, DialOutcome.NO_ANSWER


def run(outcomes: list[DialOutcome], servers: list[DialServer]) -> FamilyReach:
    """Ask about one address until the inquiry is over; one outcome for each question."""
    reach, left = FamilyReach(), list(outcomes)
    while questions := reach.look(0.0, [HOME], servers):
        assert reach.stage is ReachStage.ASKING
        for question in questions:
            reach.answered(0.0, question, left.pop(0), servers)
        if reach.inquiry is None:
            break
    return reach


@pytest.mark.parametrize(
    ("servers", "outcomes", "verdict"),
    [
        (1, [YES], Reachability.PUBLIC),
        (3, [YES, YES, NO], Reachability.PUBLIC),
        (6, [NO, NO, YES, YES], Reachability.PUBLIC),
        (3, [NO, NO, NO], Reachability.HIDDEN),
        (1, [NO, NO], Reachability.HIDDEN),
        (2, [NO, NO, NO], Reachability.HIDDEN),
        (1, [NONE], Reachability.UNKNOWN),
        (1, [NO, NONE], Reachability.UNKNOWN),
        (3, [NONE, NONE, NONE], Reachability.UNKNOWN),
    ],
)
def test_the_verdict_follows_from_the_answers(
    servers: int, outcomes: list[DialOutcome], verdict: Reachability
) -> None:
    """Two networks prove an address, three failures refute it; silence does neither."""
    reach = run(outcomes, SERVERS[:servers])
    assert reach.verdict is verdict
    assert reach.proved == ((HOME,) if verdict is Reachability.PUBLIC else ())
    assert reach.stage.value == verdict.value


def test_a_verdict_lapses_where_nobody_can_be_asked_any_more() -> None:
    """On a network of its own a peer says what its interfaces are."""
    reach = run([NO, NO, NO], SERVERS[:3])
    reach.look(HIDDEN_AGAIN_S + LAPSE_S - 1, [HOME], [])
    assert reach.verdict is Reachability.HIDDEN
    reach.look(HIDDEN_AGAIN_S + LAPSE_S, [HOME], [])
    assert reach.stage is ReachStage.UNKNOWN


def test_a_move_ends_what_was_proved_and_asks_again() -> None:
    """Others cannot dial an address that this machine has left."""
    reach = run([YES, YES, NO], SERVERS[:3])
    reach.move(1.0)
    assert (reach.verdict, reach.proved) == (Reachability.UNKNOWN, ())
    assert reach.look(1.0, [HOME], SERVERS)


def test_late_answers_say_nothing_about_where_this_machine_is_now() -> None:
    """Also where its address, and who was asked, are the same as before."""
    reach = FamilyReach()
    before = reach.look(0.0, [HOME], SERVERS[:2])
    reach.move(1.0)
    now = reach.look(1.0, [HOME], SERVERS[:2])
    assert now == before
    for question in before:
        reach.answered(2.0, question, NO, SERVERS[:2])
    for question in now:
        reach.answered(3.0, question, YES, SERVERS[:2])
    assert reach.verdict is Reachability.PUBLIC


def test_a_port_opened_in_the_middle_of_an_inquiry_is_asked_about_at_once() -> None:
    """What was asked before it was open neither hides the peer, nor has it wait to ask again."""
    reach = FamilyReach()
    before = reach.look(0.0, [HOME], SERVERS[:3])
    reach.doubt(1.0)
    for question in before:
        reach.answered(2.0, question, NO, SERVERS[:3])
    assert reach.verdict is Reachability.UNKNOWN
    assert len(reach.look(2.0, [HOME], SERVERS[:3])) == 3


def test_neighbours_prove_nothing() -> None:
    """They reach an address without passing the router; and so does what is no public address."""
    assert not can_prove(DialServer(PeerId("n"), "5.9.0.77"), HOME)
    assert not can_prove(DialServer(PeerId("n"), "2a01:1::1"), HOME)
    assert can_prove(SERVERS[0], HOME)
    private = ["10.0.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", "::1", "fe80::1"]
    assert not any(map(is_global, [*private, "64:ff9b::c0a8:101", "::ffff:5.9.0.1", "name"]))


def test_one_open_family_is_enough() -> None:
    """A peer that is dialled by IPv6 alone is public."""
    assert overall([Reachability.HIDDEN, Reachability.PUBLIC]) is Reachability.PUBLIC
    assert overall([Reachability.HIDDEN, Reachability.UNKNOWN]) is Reachability.HIDDEN
    assert overall([]) is Reachability.UNKNOWN
