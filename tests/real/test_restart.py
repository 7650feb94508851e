"""Two machines are switched off and on again: they are where they were, and find each other."""

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.commands import report_of
from tests.support.processes import Peer, join, stop, wait_ready
from transports.interfaces import is_loopback, machine_addresses

pytestmark = pytest.mark.real

NETWORK = "restarted"

QUESTION = ("chat", "Name a colour.", "--temperature", "0", "--max-tokens", "3")


@pytest.mark.skipif(
    all(is_loopback(f"/{each.family}/{each.host}") for each in machine_addresses()),
    reason="this machine has no address but loopback's, where peers are not remembered",
)
def test_a_swarm_comes_back_after_a_restart(default_model: Path, tmp_path: Path) -> None:
    """At the same addresses, and with no other than those that each knew: a third one chats, too.

    Each has a home of its own, as on machines of their own.
    """
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    for home in (one, two):
        home.mkdir()
    model = ["--model", str(default_model)]

    def start(home: Path, layers: str, *options: str) -> Peer:
        key = home / "key"
        process = join(home, ["--layers", layers, *options], NETWORK, listen=None, key=key)
        stack.callback(end, process)
        return wait_ready(process)

    with ExitStack() as stack:
        first = start(one, "1:15", *model)
        second = start(two, "15:29", "--bootstrap", first.address)
        way_in = ("--bootstrap", first.address)
        asked = report_of(three, *QUESTION, *way_in, "--network", NETWORK)
        before = first.address, second.address
        assert [peer.stop() for peer in (first, second)] == [0, 0]

        first, second = start(one, "1:15", *model), start(two, "15:29")
        assert (first.address, second.address) == before
        again = report_of(three, *QUESTION, "--network", NETWORK)
        assert again["text"] == asked["text"]


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a process that may be gone already."""
    if process.poll() is None:
        stop(process)
