"""A machine that serves behind a home router serves again by itself after all that happens to it.

It is shut and opened, its router restarts, its provider gives another address.
"""

import logging
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.natlab.test_hidden_swarm import ROOT, START_S_MAX, Started, environment
from tests.support.natlab.hosts import Host
from tests.support.natlab.internet import Internet
from tests.support.natlab.routers import wait_until

pytestmark = [pytest.mark.real, pytest.mark.long]

ROUTER = "10.1.0.1"
ASLEEP_S = 15.0
AGAIN_S_MAX = 30.0
"""For others to be able to dial it once its network is back."""

SERVED_S_MAX = 120.0
"""For an answer to arrive, on a busy machine that starts a process for each try."""

CHAT = ("chat", "--model", "default", "--no-sponsor", "--temperature", "0", "--max-tokens", "12")

log = logging.getLogger("natlab")


def answers(host: Host, home: Path, way_in: str) -> str:
    """Ask once, from a new process; return the answer, or nothing."""
    words = [sys.executable, "-m", "p2pinfer", *CHAT, "--bootstrap", way_in, "--", "Count to ten."]
    run = host.run(
        words,
        env=environment(home),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=START_S_MAX,
    )
    log.info("chat: %d %s", run.returncode, run.stderr[-300:])
    return str(run.stdout) if run.returncode == 0 else ""


def test_it_serves_again_after_sleep_and_a_new_address(internet: Internet, tmp_path: Path) -> None:
    """Without a relay: it says by itself where others dial it now, with the same identity."""
    home = internet.nat("home", "5.9.5.11", inner=ROUTER, speaks_nat_pmp=True, delay_ms=10)
    laptop = internet.host("laptop", "10.1.0.2", behind=home)
    public, asker = internet.host("public", "5.5.5.5"), internet.host("asker", "5.6.5.5")
    with ExitStack() as stack:

        def start(host: Host, name: str, *words: str) -> Started:
            started = Started(host, tmp_path, name, *words)
            stack.callback(started.end)
            return started

        listen = ("--listen", f"/ip4/{public.address}/tcp/4001", "--relay-mbit", "0.1")
        relay = start(public, "public", "relay", "--json", *listen)
        way_in = relay.ready()["addresses"][0]
        join = ("join", "--json", "--model", "default", "--layers", "1:29", "--no-mdns", "--map")
        peer = start(laptop, "laptop", *join, "--bootstrap", way_in)
        first = peer.ready()
        expected = wait_until(lambda: answers(asker, tmp_path, way_in), SERVED_S_MAX)
        assert expected

        os.kill(peer.process.pid, signal.SIGSTOP)
        laptop.sleep()
        home.forget(forwards=True)
        internet.renumber(home, "5.9.6.12")
        time.sleep(ASLEEP_S)
        laptop.wake()
        os.kill(peer.process.pid, signal.SIGCONT)
        began = time.monotonic()
        assert wait_until(lambda: home.forwards, AGAIN_S_MAX)
        log.info("the port is open again after %.1f s", time.monotonic() - began)
        assert wait_until(lambda: answers(asker, tmp_path, way_in), SERVED_S_MAX) == expected
        log.info("it has answered after %.1f s", time.monotonic() - began)
        place = f"is public /ip4/5.9.6.12/tcp/{next(iter(home.forwards))}"
        assert wait_until(lambda: place in (tmp_path / "laptop.log").read_text(), AGAIN_S_MAX)
        assert (
            first["peer"]
            in laptop.run(
                [sys.executable, "-m", "p2pinfer", "status"],
                env=environment(tmp_path),
                cwd=ROOT,
                capture_output=True,
                text=True,
            ).stdout
        )
