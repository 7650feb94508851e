"""Peers behind symmetric NATs serve, and one behind a third asks, through one relay."""

import json
import logging
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.natlab.hosts import Host
from tests.support.natlab.internet import Internet
from tests.support.natlab.nats import SYMMETRIC

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
QUESTION = "Count from one to forty in words."
GREEDY = ("--temperature", "0", "--max-tokens", "48")
START_S_MAX = 120.0

log = logging.getLogger("natlab")


class Started:
    """A p2pinfer process on a host; ended with the block that opened it."""

    def __init__(self, host: Host, home: Path, name: str, *words: str) -> None:
        with (home / f"{name}.log").open("wb") as sink:
            self.process: subprocess.Popen[Any] = host.popen(
                [sys.executable, "-m", "p2pinfer", "--log-level", "info", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env=environment(home),
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


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a process that keeps its things in ``home``."""
    return os.environ | {"P2PINFER_HOME": str(home), "PYTHONPATH": str(ROOT)}


def local_answer(home: Path) -> str:
    """Return what a swarm on one machine answers."""
    words = [sys.executable, "-m", "p2pinfer", "demo", *GREEDY, "--", QUESTION]
    run = subprocess.run(
        words,
        check=False,
        env=environment(home),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=START_S_MAX,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("relays", [1, pytest.param(2, marks=pytest.mark.long)])
def test_peers_behind_symmetric_nats_answer(
    internet: Internet, tmp_path: Path, relays: int
) -> None:
    """Token for token as a swarm on one machine; of two relays, the nearer is killed meanwhile."""
    hosts = []
    for number in range(3):
        nat = internet.nat(f"n{number}", f"5.5.5.1{number}", delay_ms=20, **SYMMETRIC)
        hosts.append(internet.host(f"h{number}", f"10.{number}.0.2", behind=nat))
    with ExitStack() as stack:

        def start(host: Host, name: str, *words: str) -> Started:
            started = Started(host, tmp_path, name, *words)
            stack.callback(started.end)
            return started

        ways_in: list[str] = []
        running = []
        for number in range(relays):
            name, place = f"relay{number}", f"5.{5 + number}.5.5"
            host = internet.host(name, place, delay_ms=5 + 20 * number)
            known = [word for address in ways_in for word in ("--bootstrap", address)]
            listen = f"/ip4/{place}/tcp/4001"
            running.append(start(host, name, "relay", "--json", "--listen", listen, *known))
            ways_in += running[-1].ready()["addresses"]
        bootstrap = [word for address in ways_in for word in ("--bootstrap", address)]
        join = ("join", "--json", "--model", "default", *bootstrap, "--layers")
        peers = [start(hosts[0], "a", *join, "1:15"), start(hosts[1], "b", *join, "15:29")]
        for peer in peers:
            peer.ready()
        if relays > 1:  # once more, with its parts and settings there
            peers[0].end()
            began = time.monotonic()
            start(hosts[0], "again", *join, "1:15").ready()
            log.info("from join to serving: %.1f s", time.monotonic() - began)
        chat = ("chat", "--model", "default", "--no-sponsor", *bootstrap, *GREEDY, "--", QUESTION)
        asker = start(hosts[2], "asker", *chat)
        out = asker.process.stdout
        assert out is not None
        said, longest_s, at = out.read(8), 0.0, time.monotonic()
        if relays > 1:
            running[0].process.kill()
        while more := out.read(1):
            now = time.monotonic()
            said, longest_s, at = said + more, max(longest_s, now - at), now
        assert asker.process.wait() == 0, (tmp_path / "asker.log").read_text()
    told = (tmp_path / "asker.log").read_text()
    assert ("is reached another way" in told) is (relays > 1), told
    log.info("longest pause: %.2f s", longest_s)
    assert said == local_answer(tmp_path)
    assert said.strip()
