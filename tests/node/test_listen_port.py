"""A peer listens on the same port after every restart, unless that is taken."""

import re
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from p2pinfer.node.identity_lock import hold_identity
from p2pinfer.node.listen_port import PORTS, own_listen

CanBind = Callable[[socket.AddressFamily, int], bool]


def never_said(text: str) -> None:
    """Fail."""
    raise AssertionError(text)


def free_but(*taken: int, families: tuple[int, ...] = (socket.AF_INET, socket.AF_INET6)) -> CanBind:
    """Be a machine of these families with other programs on some ports."""
    return lambda family, port: family in families and port not in taken


def port_of(listen: tuple[str, ...]) -> int:
    """Return the one port of some multiaddrs."""
    (port,) = {int(address.rpartition("/")[2]) for address in listen}
    return port


def test_a_port_is_drawn_once(tmp_path: Path) -> None:
    """Whatever chance says later, it stays; both families have the same."""
    key = tmp_path / "identity"
    first = own_listen(key, Random(1), never_said, free_but())
    port = port_of(first)
    assert port in PORTS
    assert first == (f"/ip4/0.0.0.0/tcp/{port}", f"/ip6/::/tcp/{port}")
    assert own_listen(key, Random(2), never_said, free_but()) == first


def test_each_key_has_a_port_of_its_own(tmp_path: Path) -> None:
    """Two peers of one machine keep both their ports, though one draws what the other has."""
    keys = tmp_path / "identity", tmp_path / "identity-2"
    first = port_of(own_listen(keys[0], Random(1), never_said, free_but()))
    second = port_of(own_listen(keys[1], Random(1), never_said, free_but(first)))
    assert first != second
    for key, port in zip(keys, (first, second), strict=True):
        assert port_of(own_listen(key, Random(3), never_said, free_but())) == port


def test_a_taken_port_is_left_for_one_run(tmp_path: Path) -> None:
    """One sentence says so, and the next run has the own port again."""
    key, said = tmp_path / "identity", list[str]()
    own = own_listen(key, Random(1), never_said, free_but())
    other = port_of(own_listen(key, Random(2), said.append, free_but(port_of(own))))
    (sentence,) = said
    assert f"port {port_of(own)}" in sentence
    assert f"listens on {other}" in sentence
    assert own_listen(key, Random(3), never_said, free_but()) == own


@pytest.mark.parametrize("text", ["", "80", "x" * 9, "-20000", "\0"])
def test_a_damaged_port_file_is_replaced(tmp_path: Path, text: str) -> None:
    """As if there were none; a port of the system is not taken from it."""
    key = tmp_path / "identity"
    (tmp_path / "identity.port").write_text(text)
    drawn = own_listen(key, Random(1), never_said, free_but())
    assert own_listen(key, Random(2), never_said, free_but()) == drawn


def test_a_machine_of_one_family_listens_on_that(tmp_path: Path) -> None:
    """And says nothing of the other."""
    for family, begin in ((socket.AF_INET, "/ip4/0.0.0.0/"), (socket.AF_INET6, "/ip6/::/")):
        (one,) = own_listen(
            tmp_path / family.name, Random(1), never_said, free_but(families=(family,))
        )
        assert one.startswith(begin)


def test_a_port_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    """The peer runs all the same; where everything is taken, the system chooses."""
    said: list[str] = []
    port = port_of(own_listen(tmp_path / "no" / "key", Random(1), said.append, free_but()))
    assert port in PORTS
    (sentence,) = said
    assert re.search(r"could not be kept \(.*\).*--listen", sentence)
    assert port_of(own_listen(tmp_path / "key", Random(1), never_said, free_but(*PORTS))) == 0
    assert not (tmp_path / "key.port").exists()


def test_the_system_is_asked(tmp_path: Path) -> None:
    """A port that a program of either family listens on is taken."""
    key = tmp_path / "identity"
    port = port_of(own_listen(key, Random(1), never_said))
    with socket.socket() as other:
        other.bind(("0.0.0.0", port))
        other.listen()
        assert port_of(own_listen(key, Random(2), lambda _: None)) != port
    assert port_of(own_listen(key, Random(2), never_said)) == port


def test_a_held_key_says_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second peer of a machine has another key, and so another port."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))
    with hold_identity(None) as first, hold_identity(None) as second:
        assert (first.path.name, second.path.name) == ("identity", "identity-2")
        assert first.identity.peer_id != second.identity.peer_id
        assert own_listen(first.path, Random(1), never_said) != own_listen(
            second.path, Random(2), never_said
        )
