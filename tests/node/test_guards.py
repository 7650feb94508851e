"""The first relays that a machine keeps."""

import json
from pathlib import Path
from random import Random

import pytest

from p2pinfer.core.ids import PeerId
from p2pinfer.node.guards import DAY_S, GUARDS_MAX, KEPT_S, Guards
from p2pinfer.node.hidden_way import SECONDS_MAX, SPARE_MAX, share_out
from peers.discovery.path_relays import Relay
from transports.identity import Identity

PLACE = ("/ip4/192.0.2.1/tcp/4001",)
A, B, C, D = ((Identity(bytes([n]) * 32).peer_id, PLACE) for n in range(4))


class Clock:
    """Unix time."""

    s = 1_800_000_000.0

    def __call__(self) -> float:
        """Return it."""
        return self.s


def guards(path: Path, clock: Clock, network: str = "main", seed: int = 1) -> Guards:
    """Open the file as another run does."""
    return Guards(network, Random(seed), path, clock)


def test_they_stay_for_weeks_and_keep_their_order(tmp_path: Path) -> None:
    """Those that come later stand behind, and there are few."""
    clock, path = Clock(), tmp_path / "guards.json"
    guards(path, clock).keep([A])
    clock.s += 20 * DAY_S
    guards(path, clock).keep([B, A, C, D])
    assert guards(path, clock).load() == [A, B, C]
    assert len([A, B, C]) == GUARDS_MAX
    assert path.stat().st_mode & 0o077 == 0
    clock.s += KEPT_S[0] - 20 * DAY_S - 1
    assert guards(path, clock).load()[0] == A
    clock.s += KEPT_S[1] - KEPT_S[0]
    assert A not in guards(path, clock).load()  # it was kept with others since, all the same
    clock.s += KEPT_S[1]
    assert guards(path, clock).load() == []


def test_when_one_goes_is_drawn(tmp_path: Path) -> None:
    """So nobody knows when the next is chosen."""
    clock, ends = Clock(), set()
    for seed in range(20):
        path = tmp_path / f"{seed}.json"
        guards(path, clock, seed=seed).keep([A])
        ends.add(json.loads(path.read_text())["main"][0][2] - clock.s)
    assert len(ends) == 20
    assert all(KEPT_S[0] <= each <= KEPT_S[1] for each in ends)


def test_networks_are_apart(tmp_path: Path) -> None:
    """A relay of one network is of no use in another."""
    clock, path = Clock(), tmp_path / "guards.json"
    guards(path, clock, "main").keep([A])
    guards(path, clock, "other").keep([B])
    assert guards(path, clock, "main").load() == [A]
    assert guards(path, clock, "other").load() == [B]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"main": 7}',
        '{"main": [["x"]]}',
        '{"main": [["x", [], 1e12]]}',
        '{"main": [["x", "/ip4/192.0.2.1", 1e12]]}',
        '{"main": [["x", [7], 1e12]]}',
        '{"main": [["x", ["/ip4/192.0.2.1"], "soon"]]}',
    ],
)
def test_a_damaged_file_has_none(tmp_path: Path, text: str) -> None:
    """Others are drawn then, and written."""
    clock, path = Clock(), tmp_path / "guards.json"
    path.write_text(text)
    assert guards(path, clock).load() == []
    guards(path, clock).keep([A])
    assert guards(path, clock).load() == [A]


def test_a_clock_that_was_wrong_keeps_none_for_ever(tmp_path: Path) -> None:
    """What was written in the year 2100 ends as soon as what is written now."""
    clock, path = Clock(), tmp_path / "guards.json"
    clock.s += 80 * 365 * DAY_S
    guards(path, clock).keep([A])
    clock.s -= 80 * 365 * DAY_S
    assert guards(path, clock).load() == [A]
    guards(path, clock).keep([B])
    clock.s += KEPT_S[1]
    assert guards(path, clock).load() == []


def test_a_folder_that_cannot_be_written_is_a_pity(tmp_path: Path) -> None:
    """The path works all the same."""
    nowhere = tmp_path / "no" / "guards.json"
    guards(nowhere, Clock()).keep([(PeerId("x"), PLACE)])
    assert guards(nowhere, Clock()).load() == []


@pytest.mark.parametrize(
    ("drawn", "kept", "seconds", "spare"),
    [
        ([], [], [], []),
        ([A], [], [A], []),
        ([A, B], [], [A], [B]),
        ([A, B, C], [], [A, B], [C]),
        ([A, B, C], [A, B], [C, A], [B]),
        ([A, B, C, D], [A, C], [B, D], [A, C]),
    ],
)
def test_some_stand_by_for_the_first(
    drawn: list[Relay], kept: list[Relay], seconds: list[Relay], spare: list[Relay]
) -> None:
    """Of few relays not all are second ones: a path outlives the first, too."""
    assert share_out(drawn, kept) == (seconds, spare)


def test_a_large_swarm_has_enough_of_both() -> None:
    """And no more than that."""
    drawn = [(Identity(bytes([n]) * 32).peer_id, PLACE) for n in range(SECONDS_MAX + SPARE_MAX)]
    seconds, spare = share_out(drawn, drawn[:1])
    assert (len(seconds), len(spare)) == (SECONDS_MAX, SPARE_MAX)
    assert drawn[0] in spare
