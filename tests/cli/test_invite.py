"""Invitations on the command line: printed by one machine, typed on another."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from p2pinfer.cli import chat, invite, main
from p2pinfer.cli.invite import show_code
from p2pinfer.cli.join import how_to_reach
from p2pinfer.cli.options import INVITED, ReachFlags
from p2pinfer.core.errors import EXIT_USAGE, UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.node import inviting
from p2pinfer.node.guest_tokens import GuestTokens, key_file
from p2pinfer.node.invitation import SCHEME, Invitation, link_of
from p2pinfer.node.known_peers import KnownPeers
from tests.support.command_line import run
from tests.support.directories import identity
from transports.base import Reach
from transports.secret import create_secret, read_network_key, write_secret

A = identity(1).peer_id
WAY = f"/ip4/203.0.113.7/tcp/1/p2p/{A}"
LOOP = f"/ip4/127.0.0.1/tcp/1/p2p/{A}"
OPEN = Invitation("home", None, ModelId("5e" * 32), (WAY,))
LINK = link_of(OPEN)


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "home"))


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_the_program_knows_how_one_begins() -> None:
    """Without loading what reads it."""
    assert INVITED == SCHEME


@pytest.mark.parametrize(
    ("typed", "spread"),
    [
        (["join", LINK], ["join", "--invitation", LINK]),
        (["join", "--invitation", LINK], ["join", "--invitation", LINK]),
        (["chat", LINK.lower(), "Why?"], ["chat", "--invitation", LINK.lower(), "Why?"]),
        (
            ["chat", "--bootstrap", WAY, LINK, "/Why?"],
            ["chat", "--bootstrap", WAY, "--invitation", LINK, "/Why?"],
        ),
        (["chat", "P2PINFER: what is it?"], ["chat", "P2PINFER: what is it?"]),
        (["chat", "What is P2PINFER:?"], ["chat", "What is P2PINFER:?"]),
    ],
)
def test_an_invitation_is_no_prompt(typed: list[str], spread: list[str]) -> None:
    """Wherever it stands; a question about the program is one."""
    assert main.spread(typed) == spread
    main.parse(typed)


@pytest.mark.parametrize("verb", ["join", "chat", "serve", "relay", "peers"])
def test_verbs_that_enter_a_swarm_take_one(verb: str) -> None:
    """And what it says counts."""
    main.parse([verb, LINK])
    flags = ReachFlags(invitation=LINK)
    assert (flags.of("main").network, flags.of("home").key) == ("home", None)
    assert flags.ways_in([LOOP]) == (LOOP, WAY)
    assert flags.model(None) == OPEN.model
    assert flags.model("mine") == "mine"
    assert ReachFlags().model(None) is None
    assert ReachFlags().ways_in([LOOP]) == (LOOP,)


@pytest.mark.parametrize(
    ("flags", "named", "looks"),
    [
        (ReachFlags(), (), (True, True)),
        (ReachFlags(), (LOOP, "/ip6/::1/tcp/0"), (False, False)),
        (ReachFlags(), (LOOP, WAY), (True, True)),
        (ReachFlags(mdns=False), (), (False, True)),
        (ReachFlags(dht=False), (WAY,), (True, False)),
        (ReachFlags(mdns=True), (LOOP,), (True, False)),
    ],
)
def test_peers_are_looked_for_unless_switched_off(
    flags: ReachFlags, named: tuple[str, ...], looks: tuple[bool, bool]
) -> None:
    """In a private network, too; not where all that is named is of this machine alone."""
    reach = flags.of("main", named)
    assert (reach.mdns, reach.dht) == looks


def test_what_contradicts_an_invitation_is_refused(tmp_path: Path) -> None:
    """Another network's name, or another key than it has."""
    file = tmp_path / "key"
    create_secret(file)
    with pytest.raises(UserError, match="into the network home, and --network says work"):
        ReachFlags(invitation=LINK).of("work")
    with pytest.raises(UserError, match="another key than --network-key"):
        ReachFlags(file, invitation=LINK).of("home")
    private = link_of(Invitation("home", read_network_key(file)))
    assert ReachFlags(file, invitation=private).of("home").key == read_network_key(file)


@pytest.mark.parametrize("verb", ["join", "chat", "serve", "peers"])
def test_a_mistyped_one_ends_with_a_sentence(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the exit code of unusable input."""
    assert run(monkeypatch, verb, LINK[:-3]) == EXIT_USAGE
    assert "cut short, 3 are missing" in capsys.readouterr().err


def test_chat_enters_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the network, the way in and the model of the invitation."""
    entered: list[Any] = []

    async def talk(options: Any, *_: Any, **__: Any) -> None:
        entered.append((options.network.network, options.bootstrap, options.model))

    monkeypatch.setattr(chat, "_talk", talk)
    assert run(monkeypatch, "chat", LINK, "Why?") == 0
    assert entered == [("home", (WAY,), OPEN.model)]


def test_invite_prints_the_line_and_what_it_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The line on standard output, advice on standard error; a key is warned of."""
    monkeypatch.setattr(invite, "show_code", lambda _: pytest.fail("this is no terminal"))
    monkeypatch.setattr(inviting, "invitation_here", lambda *_, **__: OPEN)
    assert run(monkeypatch, "invite") == 0
    said = capsys.readouterr()
    assert said.out == f"{LINK}\n"
    assert "into the network home" in said.err
    assert "nobody else" not in said.err
    assert run(monkeypatch, "invite", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "link": LINK,
        "network": "home",
        "private": False,
        "once": False,
        "model": OPEN.model,
        "addresses": [WAY],
    }
    private = Invitation("home", b"k" * 32, None, (LOOP,))
    monkeypatch.setattr(inviting, "invitation_here", lambda *_, **__: private)
    assert run(monkeypatch, "invite") == 0
    said = capsys.readouterr()
    assert "send it to nobody else" in said.err
    assert "only this machine can use it" in said.err


def test_what_was_given_away_can_be_taken_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One, or all; what others know for good cannot."""
    tokens = GuestTokens(Reach("home", b"k" * 32))
    links = [link_of(Invitation("home", token=tokens.issue())) for _ in range(3)]
    assert run(monkeypatch, "invite", "--revoke", links[0].lower()) == 0
    assert run(monkeypatch, "invite", "--revoke", links[0]) == EXIT_USAGE
    assert "no such invitation open: it was used, revoked" in capsys.readouterr().err
    assert run(monkeypatch, "invite", "--revoke", LINK) == EXIT_USAGE
    assert "only single-use invitations can be taken back" in capsys.readouterr().err
    assert run(monkeypatch, "invite", "--revoke", "all", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"revoked": 2}


def test_a_guest_passes_on_what_it_has_got(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key's file, since its own invitation is used up; who has the key passes its link on."""
    token = b"t" * 32
    link = link_of(Invitation("home", None, None, (WAY,), token))
    write_secret(key_file(token), b"k" * 32)
    flags = ReachFlags(invitation=link)
    assert flags.of("main").key == b"k" * 32
    assert how_to_reach("main", flags) == f" --network home --network-key {key_file(token)}"
    assert how_to_reach("main", ReachFlags(invitation=LINK)) == f" {LINK}"


def test_a_terminal_gets_a_code_if_it_is_wide_enough(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that breaks its lines can be scanned by nobody."""
    for columns, is_shown in (("80", True), ("40", False)):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("COLUMNS", columns)
        show_code(LINK)
        lines = terminal.getvalue().splitlines()
        assert (len(lines) > 20) is is_shown
        assert all(len(line) <= 80 for line in lines)
    assert "too narrow" in capsys.readouterr().err


def test_invite_where_nothing_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Says what to do, unless a peer has answered here before."""
    assert run(monkeypatch, "invite") == EXIT_USAGE
    assert "start one with p2pinfer join" in capsys.readouterr().err
    KnownPeers("main").put({A: ((WAY,), 0.0)}, 2e9)
    assert run(monkeypatch, "invite", "--json") == 0
    assert json.loads(capsys.readouterr().out)["addresses"] == [WAY]
