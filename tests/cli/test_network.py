"""``p2pinfer network``: what people type, send each other, and read when it does not work."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pinfer.cli.options import ReachFlags
from p2pinfer.core.errors import EXIT_USAGE, UserError
from p2pinfer.node.networks import Membership, read_network
from tests.support.command_line import run
from tests.support.directories import identity
from transports.secret import create_secret, read_network_key

Typed = Callable[..., Any]


@pytest.fixture
def at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    """Run a command at some home; gives its JSON."""

    def typed(home: str, *words: str) -> Any:
        monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / home))
        assert run(monkeypatch, "network", *words, "--json") == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return typed


@pytest.fixture
def fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    """Run a command that cannot be done at some home; gives the sentence."""

    def typed(home: str, *words: str) -> str:
        monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / home))
        assert run(monkeypatch, "network", *words) == EXIT_USAGE
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    return typed


def test_a_member_is_invited_and_expelled(at: Typed) -> None:
    """The founder sees who; the member learns that it is one; both files stay secret."""
    founded = at("a", "create", "home")
    asked = at("b", "join")
    assert at("b", "join") == asked  # the same machine, the same key
    invited = at("a", "invite", asked["request"], "--as", "ann")
    joined = at("b", "join", invited["invitation"])
    assert (joined["network"], joined["member"]) == ("home", True)
    for file in map(Path, (founded["file"], joined["file"])):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE((file.parent / "member.key").stat().st_mode) == 0o600
    said = at("b", "members")
    assert (said["is_founder"], said["is_admitted"]) == (False, True)
    (member,) = at("a", "members")["members"].values()
    assert (member["name"], member["is_expelled"]) == ("ann", False)
    assert at("a", "expel", asked["member"][-6:])["member"] == asked["member"]
    assert at("a", "members")["members"][asked["member"]]["is_expelled"]
    again = at("a", "invite", asked["request"])
    assert at("b", "join", again["invitation"])["member"]
    assert not at("a", "members")["members"][asked["member"]]["is_expelled"]


def test_the_file_names_its_network(
    at: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--network need not be given, and may not say another one; files of one key work as before."""
    file = Path(at("a", "create", "home")["file"])
    reach = ReachFlags(network_key=file).of("main")
    assert (reach.network, reach.key) == ("home", read_network(file).founding.key)
    assert isinstance(reach.members, Membership)
    with pytest.raises(UserError, match="omit --network"):
        ReachFlags(network_key=file).of("other")
    create_secret(old := tmp_path / "old.key")
    reach = ReachFlags(network_key=old).of("other")
    assert (reach.network, reach.key, reach.members) == ("other", read_network_key(old), None)


def test_two_of_three_founders_invite(at: Typed) -> None:
    """One's invitation is not enough, and says so; the second one completes it."""
    keys = {home: at(home, "join")["member"] for home in "bc"}
    at("a", "create", "home", "--founder", keys["b"], "--founder", keys["c"], "--threshold", "2")
    for home in "bc":  # a founder's own signature counts as well
        asked = at(home, "join")["request"]
        assert at(home, "join", at("a", "invite", asked)["invitation"])["member"]
    assert not at("a", "members")["is_admitted"]
    assert at("a", "join", at("b", "invite", at("a", "join")["request"])["invitation"])["member"]
    asked = at("d", "join")["request"]
    assert not at("d", "join", at("a", "invite", asked)["invitation"])["member"]
    assert at("d", "join", at("b", "invite", asked)["invitation"])["member"]


def test_faults_are_sentences(at: Typed, fault: Typed, tmp_path: Path) -> None:
    """Each says what to do."""
    assert "in no network of founders" in fault("a", "members")
    at("a", "create", "home")
    assert "already" in fault("a", "create", "home")
    assert "cannot name a network" in fault("a", "create", "no/name")
    assert "a threshold of 1 up to all" in fault("a", "create", "other", "--threshold", "2")
    assert "an epoch has 600 s" in fault("a", "create", "other", "--days", "0.01")
    assert "no member key" in fault("a", "create", "other", "--founder", "me")
    asked = at("b", "join")["request"]
    assert "no such line" in fault("a", "invite", "what?")
    assert "begin with p2pinfer-member:" in fault("a", "invite", "p2pinfer-network:AAAA")
    assert "not whole" in fault("a", "invite", asked[:400])
    changed = asked[:40] + ("A" if asked[40] != "A" else "B") + asked[41:]
    assert "changed on its way" in fault("a", "invite", changed)
    line = at("a", "invite", asked)["invitation"]
    assert "cannot be opened here" in fault("c", "join", line)
    assert "damaged" in fault("b", "join", line[:-1])
    at("b", "join", line)
    assert "no founder of home: only those" in fault("b", "invite", at("c", "join")["request"])
    assert "no founder of home" in fault("b", "expel", "x")
    assert "no member is called" in fault("a", "expel", str(identity(7).peer_id))
    at("d", "create", "home")
    assert "another network with the name" in fault(
        "b", "join", at("d", "invite", asked)["invitation"]
    )
    at("b", "create", "mine")
    assert "choose one of this machine's networks" in fault("b", "members")
    (tmp_path / "a" / "data" / "networks" / "home.network").write_text("{}")
    assert "cannot be used" in fault("a", "members")
