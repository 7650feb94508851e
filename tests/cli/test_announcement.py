"""What ``join`` prints for the next machine."""

from types import SimpleNamespace
from typing import Any

import pytest

from p2pinfer.cli.announcement import ONLY_HERE, JoinAnnouncer
from p2pinfer.core.ids import PeerId
from p2pinfer.node.peer import Serving
from transports.interfaces import is_loopback

MODEL = "ab" * 32
LAN = "/ip4/192.168.1.7/tcp/4001/p2p/12D3KooW"
LOOP = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooW"


def printed(
    capsys: pytest.CaptureFixture[str],
    *addresses: str,
    first: int = 1,
    end: int = 29,
    fixed: bool = False,
    keep: int = 1,
    mdns: bool = False,
    reach: str = " --network n",
) -> list[str]:
    """Return the lines that follow the facts about a serving peer."""
    model: Any = SimpleNamespace(
        id=MODEL,
        info=SimpleNamespace(name="Toy", layers=30),
        manifest=SimpleNamespace(license="mit"),
    )
    announcer = JoinAnnouncer(reach, as_json=False, fixed=fixed, keep=keep, mdns=mdns)
    announcer.tell(Serving(PeerId("12D3KooW"), addresses, model, first, end, 28))
    lines = capsys.readouterr().out.splitlines()
    (facts,) = [n for n, line in enumerate(lines) if line.startswith("layers ")]
    assert lines[-1] == "ready; Ctrl-C to leave"
    return lines[facts + 1 : -1]


def test_the_next_machine_is_given_the_best_address(capsys: pytest.CaptureFixture[str]) -> None:
    """The first one, with the options that lead to the same swarm and model."""
    way_in = f"--bootstrap {LAN} --model {MODEL} --network n"
    assert printed(capsys, LAN, "/ip4/10.8.0.2/tcp/4001/p2p/12D3KooW") == [
        "on the next machine, run:",
        f"  p2pinfer join {way_in}",
        "to chat, on any machine, run:",
        f"  p2pinfer chat {way_in}",
    ]


def test_where_requesters_keep_no_layers_all_lines_say_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The other machines are told which layers are missing, and how to ask."""
    way_in = f"--bootstrap {LAN} --model {MODEL} --network n --keep-layers 0"
    assert printed(capsys, LAN, first=10, end=20, fixed=True, keep=0) == [
        "on the next machine, run:",
        f"  p2pinfer join --layers 0:10 {way_in}",
        "on another one, run:",
        f"  p2pinfer join --layers 20:30 {way_in}",
        "to chat, on any machine, run:",
        f"  p2pinfer chat {way_in}",
    ]


def test_a_missing_network_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """The commands are useless on another machine, but work in another terminal."""
    lines = printed(capsys, LOOP, "/ip6/::1/tcp/4001/p2p/12D3KooW")
    assert lines[0] == ONLY_HERE
    assert "only this machine can reach it: there is no network" in ONLY_HERE
    assert lines[1] == "for another peer here, run:"
    assert LOOP in lines[2]


def test_on_the_local_network_no_address_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    """With mDNS, peers announce themselves."""
    assert printed(capsys, LAN, mdns=True) == [
        "on the next machine of this local network, run:",
        "  p2pinfer join --network n",
        "to chat, on any machine of this local network, run:",
        "  p2pinfer chat --network n",
        "for machines elsewhere, one line that says all:",
        "  p2pinfer invite",
    ]
    assert LOOP in printed(capsys, LOOP, mdns=True)[2]


def test_whoever_was_invited_passes_the_invitation_on(capsys: pytest.CaptureFixture[str]) -> None:
    """It names the network, the key and the model, too."""
    for mdns in (False, True):
        assert printed(capsys, LAN, mdns=mdns, reach=" P2PINFER:AB") == [
            "on the next machine, run:",
            "  p2pinfer join P2PINFER:AB",
            "to chat, on any machine, run:",
            "  p2pinfer chat P2PINFER:AB",
        ]


def test_fixed_layers_leave_the_rest_to_other_machines(capsys: pytest.CaptureFixture[str]) -> None:
    """No further machine is asked for if one peer has all layers."""
    lines = printed(capsys, LAN, first=10, end=19, fixed=True)
    assert lines[0::2] == [
        "on the next machine, run:",
        "on another one, run:",
        "to chat, on any machine, run:",
    ]
    assert "join --layers 1:10 " in lines[1]
    assert "join --layers 19:29 " in lines[3]
    lines = printed(capsys, LAN, fixed=True)
    assert lines[0] == "to chat, on any machine, run:"
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("address", "only_here"),
    [(LOOP, True), ("/ip6/::1/tcp/1", True), (LAN, False), ("/dns4/me/tcp/1", False), ("", False)],
)
def test_loopback_addresses_are_recognised(address: str, only_here: bool) -> None:
    """In either family; a name is assumed to be elsewhere."""
    assert is_loopback(address) is only_here


def test_each_of_several_models_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line says whether others are to come; a later move names its model."""
    announcer = JoinAnnouncer("", as_json=False, fixed=False, models=2)
    found = []
    for peer, name in (("12D3KooWa", "A"), ("12D3KooWb", "B"), ("12D3KooWa", "A")):
        model: Any = SimpleNamespace(
            id=MODEL,
            info=SimpleNamespace(name=name, layers=30),
            manifest=SimpleNamespace(license="mit"),
        )
        is_all = announcer.tell(Serving(PeerId(peer), (LAN,), model, 1, 9, 8))
        lines = capsys.readouterr()
        found.append((is_all, (lines.out or lines.err).splitlines()[-1]))
    assert found == [
        (False, "ready; 1 more to come; Ctrl-C to leave"),
        (True, "ready; Ctrl-C to leave"),
        (True, "now serving layers 1:9 of A"),
    ]
