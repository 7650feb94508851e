"""Peers behind symmetric NATs serve, and one behind a third asks, through one relay."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import trio

from p2pinfer.node.relay_peer import _follow_all
from p2pinfer.node.swarm_connection import open_swarm_connection
from tests.support.natlab.hosts import Host
from tests.support.natlab.internet import Internet
from tests.support.natlab.nats import SYMMETRIC
from tests.support.tiny_models import TINY, write_tiny
from transports.base import Reach, Relaying
from transports.libp2p.muxer import SILENCE_S_MAX
from transports.secret import create_secret

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
QUESTION = "Count from one to forty in words."
GREEDY = ("--temperature", "0", "--max-tokens", "48")
START_S_MAX = 120.0
ROWS_BYTES = 3 * 48 * 576 * 2
"""Of an answer: from the asker to a stage, to the next one, and back, in two bytes a number."""

log = logging.getLogger("natlab")


class Started:
    """A p2pinfer process on a host; ended with the block that opened it."""

    def __init__(self, host: Host, home: Path, name: str, *words: str, level: str = "info") -> None:
        with (home / f"{name}.log").open("wb") as sink:
            self.process: subprocess.Popen[Any] = host.popen(
                [sys.executable, "-m", "p2pinfer", "--log-level", level, *words],
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
        """End it, and wait; close its pipes."""
        self.process.kill()
        with self.process:
            pass


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a process that keeps its things in ``home``."""
    return os.environ | {"P2PINFER_HOME": str(home), "PYTHONPATH": str(ROOT)}


@contextmanager
def counting_relay(host: Host, home: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """Run a relay in this process; yield its address, and what says how many bytes it carried."""
    up: Queue[tuple[str, Callable[[], int], Callable[[], None]]] = Queue()

    async def live() -> None:
        reach = Reach(relaying=Relaying.ALWAYS)
        listen = [f"/ip4/{host.address}/tcp/4001"]
        async with open_swarm_connection((), reach, listen=listen) as swarm:
            swarm.directory.listen()
            swarm.stay_in_touch()
            transport: Any = swarm.transport
            token, over = trio.lowlevel.current_trio_token(), trio.Event()
            up.put(
                (
                    transport.addresses[0],
                    lambda: int(transport._inner.relay.statistics().bytes),
                    lambda: token.run_sync_soon(over.set),
                )
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_follow_all, swarm.directory, transport)
                await over.wait()
                nursery.cancel_scope.cancel()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("P2PINFER_HOME", str(home))
        call = host.call(partial(trio.run, live))
        address, relayed, end = up.get(timeout=START_S_MAX)
        try:
            yield address, relayed
        finally:
            end()
            call.result()


@pytest.mark.long
def test_rows_of_punched_peers_do_not_cross_the_relay(internet: Internet, tmp_path: Path) -> None:
    """Peers behind home NATs answer one behind a third, token for token as on one machine."""
    homes = [internet.nat(f"n{n}", f"5.5.5.1{n}", delay_ms=20) for n in range(3)]
    hosts = [internet.host(f"h{n}", f"10.{n}.0.2", behind=nat) for n, nat in enumerate(homes)]
    relay = internet.host("relay", "5.5.5.5", delay_ms=5)
    with ExitStack() as stack:

        def start(host: Host, name: str, *words: str) -> Started:
            started = Started(host, tmp_path, name, *words)
            stack.callback(started.end)
            return started

        way_in, relayed = stack.enter_context(counting_relay(relay, tmp_path / "relay"))
        join = ("join", "--json", "--model", "default", "--bootstrap", way_in, "--layers")
        peers = [start(hosts[0], "a", *join, "1:15"), start(hosts[1], "b", *join, "15:29")]
        for peer in peers:
            peer.ready()
        before = relayed()
        chat = ("chat", "--model", "default", "--no-sponsor", "--bootstrap", way_in, *GREEDY)
        asker = start(hosts[2], "asker", *chat, "--", QUESTION)
        out, _ = asker.process.communicate(timeout=START_S_MAX)
        assert asker.process.returncode == 0, (tmp_path / "asker.log").read_text()
        carried = relayed() - before
    assert out == local_answer(tmp_path)
    logging.getLogger("natlab").info("the relay carried %d bytes", carried)
    assert carried < ROWS_BYTES / 2


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


@pytest.mark.parametrize(
    "end",
    ["none", *(pytest.param(each, marks=pytest.mark.long) for each in ("killed", "unplugged"))],
)
def test_peers_behind_symmetric_nats_answer(internet: Internet, tmp_path: Path, end: str) -> None:
    """Token for token as a swarm on one machine, though the nearer of two relays ends meanwhile.

    The answer pauses for less than twice the time of the first token, which takes the same steps,
    and for as long as a silence may last where nothing else tells that the relay is gone.
    """
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
        relays, running = [], []
        for number in range(1 if end == "none" else 2):
            name, place = f"relay{number}", f"5.{5 + number}.5.5"
            relays.append(internet.host(name, place, delay_ms=5 + 20 * number))
            known = [word for address in ways_in for word in ("--bootstrap", address)]
            listen = f"/ip4/{place}/tcp/4001"
            running.append(start(relays[-1], name, "relay", "--json", "--listen", listen, *known))
            ways_in += running[-1].ready()["addresses"]
        bootstrap = [word for address in ways_in for word in ("--bootstrap", address)]
        join = ("join", "--json", "--model", "default", *bootstrap, "--layers")
        peers = [start(hosts[0], "a", *join, "1:15"), start(hosts[1], "b", *join, "15:29")]
        for peer in peers:
            peer.ready()
        if end == "killed":  # once more, with its parts and settings there
            peers[0].end()
            began = time.monotonic()
            start(hosts[0], "again", *join, "1:15").ready()
            log.info("from join to serving: %.1f s", time.monotonic() - began)
        chat = ("chat", "--model", "default", "--no-sponsor", *bootstrap, *GREEDY, "--", QUESTION)
        asker = start(hosts[2], "asker", *chat)
        out = asker.process.stdout
        assert out is not None
        said, times = out.read(8), [time.monotonic()]
        if end == "killed":
            running[0].process.kill()
        relays[0].link.is_up = end != "unplugged"
        while more := out.read(1):
            said, times = said + more, [*times, time.monotonic()]
        assert asker.process.wait() == 0, (tmp_path / "asker.log").read_text()
    told = (tmp_path / "asker.log").read_text()
    assert ("is reached another way, with all its rows" in told) is (end != "none"), told
    assert "went away" not in told
    assert said == local_answer(tmp_path)
    assert said.strip()
    first = re.search(r"first after (\d+) ms", told)
    assert first, told
    *gaps, _ = (after - before for before, after in pairwise(times))  # checked before the last line
    log.info("%s: longest pause %.2f s, first token after %s ms", end, max(gaps), first[1])
    silence_s = SILENCE_S_MAX if end == "unplugged" else 0.0
    assert max(gaps) < 2 * int(first[1]) / 1000 + silence_s, told


@pytest.mark.long
def test_a_single_use_invitation_brings_a_guest_through_a_relay(
    internet: Internet, tmp_path: Path
) -> None:
    """Into a private network, from one home to another, neither of which can be dialled."""
    create_secret(key := tmp_path / "home.key")
    write_tiny(TINY["llama"], model := tmp_path / "tiny.gguf")
    hosts = []
    for number in range(2):
        nat = internet.nat(f"n{number}", f"5.5.5.1{number}", delay_ms=20, **SYMMETRIC)
        hosts.append(internet.host(f"h{number}", f"10.{number}.0.2", behind=nat))
    relay = internet.host("relay", "5.5.5.5", delay_ms=5)
    homes = {name: tmp_path / name for name in ("relay", "member", "guest", "late")}
    with ExitStack() as stack:

        def start(host: Host, name: str, *words: str) -> Started:
            homes[name].mkdir(exist_ok=True)
            started = Started(host, homes[name], name, *words)
            stack.callback(started.end)
            return started

        private = ("--json", "--network", "home", "--network-key", str(key))
        running = start(relay, "relay", "relay", *private, "--listen", "/ip4/5.5.5.5/tcp/4001")
        (way_in,) = running.ready()["addresses"]
        layers = f"1:{TINY['llama'].layers - 1}"
        join = ("join", *private, "--model", str(model), "--layers", layers)
        start(hosts[0], "member", *join, "--bootstrap", way_in).ready()
        invited = start(hosts[0], "member", "invite", "--once", "--json").ready()
        assert any("/p2p-circuit/" in address for address in invited["addresses"])
        seen = start(hosts[1], "guest", "peers", invited["link"], "--json").ready()
        assert seen
        late = start(hosts[1], "late", "peers", invited["link"], "--json")
        assert late.process.wait(START_S_MAX) == 2
        assert "was used already" in (homes["late"] / "late.log").read_text()
