"""Peers behind symmetric NATs serve, and one behind a third asks, through one relay."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.natlab.hosts import Host
from tests.support.natlab.internet import Internet
from tests.support.natlab.nats import SYMMETRIC

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
RELAY = "5.5.5.5"
QUESTION = "Name three colours."
TOKENS = 24
START_S_MAX = 120.0


class Started:
    """A p2pinfer process on a host; ended with the block that opened it."""

    def __init__(self, host: Host, home: Path, *words: str) -> None:
        with (home.parent / f"{home.name}.log").open("wb") as log:
            self.process: subprocess.Popen[Any] = host.popen(
                [sys.executable, "-m", "p2pinfer", "--log-level", "info", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"P2PINFER_HOME": str(home), "PYTHONPATH": str(ROOT)},
                cwd=ROOT,
                text=True,
            )

    def ready(self) -> dict[str, Any]:
        """Return what it prints once it is there."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """End it, and wait."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def swarm(internet: Internet, tmp_path: Path) -> Iterator[tuple[str, Host, ExitStack]]:
    """Provide a relay's address, and a host behind the third NAT; two peers serve."""
    hosts = [internet.host("relay", RELAY, delay_ms=5)]
    for number in (1, 2, 3):
        nat = internet.nat(f"n{number}", f"5.5.5.1{number}", delay_ms=20, **SYMMETRIC)
        hosts.append(internet.host(f"h{number}", f"10.{number}.0.2", behind=nat))
    with ExitStack() as stack:

        def start(host: Host, name: str, *words: str) -> Started:
            (tmp_path / name).mkdir()
            started = Started(host, tmp_path / name, *words)
            stack.callback(started.end)
            return started

        relay = start(hosts[0], "relay", "relay", "--json", "--listen", f"/ip4/{RELAY}/tcp/4001")
        (address,) = relay.ready()["addresses"]
        join = ("join", "--json", "--model", "default", "--bootstrap", address, "--layers")
        peers = [
            start(hosts[1], "a", *join, "1:15"),
            start(hosts[2], "b", *join, "15:29"),
        ]
        for peer in peers:
            peer.ready()
        yield address, hosts[3], stack


def test_peers_behind_symmetric_nats_answer(
    swarm: tuple[str, Host, ExitStack], tmp_path: Path
) -> None:
    """The answer is that of a swarm on one machine, token for token."""
    address, asker, _ = swarm
    (tmp_path / "asker").mkdir()
    environment = os.environ | {"P2PINFER_HOME": str(tmp_path / "asker"), "PYTHONPATH": str(ROOT)}
    chat = [
        *(sys.executable, "-m", "p2pinfer", "chat", "--model", "default", "--bootstrap", address),
        *("--temperature", "0", "--max-tokens", str(TOKENS), "--", QUESTION),
    ]
    hidden = asker.run(
        chat, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=START_S_MAX
    )
    demo = [sys.executable, "-m", "p2pinfer", "demo", "--temperature", "0"]
    demo += ["--max-tokens", str(TOKENS), "--", QUESTION]
    local = subprocess.run(
        demo, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=START_S_MAX
    )
    assert hidden.returncode == local.returncode == 0, hidden.stderr + local.stderr
    assert hidden.stdout == local.stdout
    assert hidden.stdout.strip()
