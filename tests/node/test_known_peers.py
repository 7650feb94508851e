"""Who answered is known at the next start, and only in the network where it was."""

import json
import time
from pathlib import Path

import pytest

from p2pinfer.core.ids import PeerId
from p2pinfer.node.known_peers import NETWORKS_MAX, STALE_S, KnownPeers
from peers.discovery.bootstrap import ANSWERED_MAX
from tests.support.swarm import peer
from transports.base import Reach

A, B, C = peer("a"), peer("b"), peer("c")
LAN, WAN, LOOP = "/ip4/192.168.1.7/tcp/1", "/dns4/box.example.org/tcp/1", "/ip4/127.0.0.1/tcp/1"


Known = dict[PeerId, tuple[tuple[str, ...], float]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Say where the file is."""
    return tmp_path / "peers.json"


def answered(*peers: PeerId, at_s: float = 0.0, address: str = LAN) -> Known:
    """Have peers answered at this time."""
    return dict.fromkeys(peers, ((address,), at_s))


def test_who_answered_is_known_at_the_next_start(path: Path) -> None:
    """The latest first; another process adds to that, and renews where a peer is."""
    now = time.time()
    KnownPeers("main", path).put(answered(A, at_s=-9) | answered(B, at_s=-5), now)
    assert KnownPeers("main", path).load() == {B: (LAN,), A: (LAN,)}
    KnownPeers("main", path).put(answered(C, at_s=-7) | answered(A, at_s=-1, address=WAN), now)
    assert list(KnownPeers("main", path).load().items()) == [(A, (WAN,)), (B, (LAN,)), (C, (LAN,))]
    KnownPeers("main", path).put(answered(A, at_s=-8), now)
    assert KnownPeers("main", path).load()[A] == (WAN,)
    assert path.stat().st_mode & 0o077 == 0


def test_networks_do_not_mix(path: Path) -> None:
    """Least of all a private one with an open one of the same name, or of another key."""
    private, other = Reach("main", b"k" * 32), Reach("main", b"o" * 32)
    KnownPeers(private, path).put(answered(A), time.time())
    for network in ("main", "other", Reach("main", mdns=True), other):
        assert KnownPeers(network, path).load() == {}
    assert set(KnownPeers(private, path).load()) == {A}
    KnownPeers("main", path).put(answered(B), time.time())
    assert set(KnownPeers(private, path).load()) == {A}
    assert set(KnownPeers(Reach("main", dht=True), path).load()) == {B}
    assert "6b6b6b" not in path.read_text()
    assert "kkk" not in path.read_text()


def test_few_are_known(path: Path) -> None:
    """So few that all can be called at once; of few networks, the latest."""
    now = time.time()
    for number in range(2 * ANSWERED_MAX):
        KnownPeers("main", path).put(answered(peer(str(number)), at_s=number - 99), now)
    latest = [peer(str(n)) for n in reversed(range(ANSWERED_MAX, 2 * ANSWERED_MAX))]
    assert list(KnownPeers("main", path).load()) == latest
    for number in range(NETWORKS_MAX):
        KnownPeers(f"n{number}", path).put(answered(A, at_s=number), now)
    assert KnownPeers("main", path).load() == {}
    assert set(KnownPeers("n0", path).load()) == {A}


def test_who_is_gone_is_forgotten(path: Path) -> None:
    """At once where others answered, and else after a while."""
    now, known = time.time(), KnownPeers("main", path)
    known.put(answered(A, B), now)
    known.put(answered(C, at_s=-STALE_S - 60), now)
    assert set(known.load()) == {A, B}
    known.drop([A])
    assert set(known.load()) == {B}
    known.drop([B])
    assert "main" not in json.loads(path.read_text())


def test_a_clock_that_was_set_back_harms_nothing(path: Path) -> None:
    """Nobody has answered in the future, so it counts as now."""
    KnownPeers("main", path).put(answered(A, at_s=9e9), time.time())
    assert set(KnownPeers("main", path).load()) == {A}
    KnownPeers("main", path).put(answered(B), time.time())
    (_, at_s) = json.loads(path.read_text())["main"][A]
    assert at_s <= time.time()


def test_peers_of_this_machine_are_not_remembered(path: Path) -> None:
    """A demo's, for example: by the next start another one may have the port."""
    known = KnownPeers("main", path)
    both: Known = {B: ((LOOP, LAN), 0.0)}
    known.put(answered(A, address=LOOP) | both, time.time())
    assert known.load() == {B: (LAN,)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nonsense",
        '{"main": []}',
        '{"main": {"a": 1}}',
        '{"main": {"a": [["x"], "soon"]}}',
        '{"main": {"a": ["x", 1]}}',
        '{"main": {"a": [[1], 1]}}',
        json.dumps({"main": {"a": [["x" * 300], 9e9]}}),
        json.dumps({"main": {"a": [["x"] * 9, 9e9]}}),
    ],
)
def test_a_damaged_file_counts_as_none(path: Path, text: str) -> None:
    """And is replaced."""
    path.write_text(text)
    known = KnownPeers("main", path)
    assert known.load() == {}
    known.put(answered(A), time.time())
    assert set(known.load()) == {A}


def test_a_file_that_cannot_be_written_ends_nobody(tmp_path: Path) -> None:
    """It is a pity."""
    known = KnownPeers("main", tmp_path / "no" / "peers.json")
    known.put(answered(A), time.time())
    assert known.load() == {}
