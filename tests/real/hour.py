"""Leave the page open on a swarm in which peers come and go: ``python -m tests.real.hour``.

Two ranges of layers, two holders each. Every half minute a peer is killed, a question is asked on
the page before its death is noticed, and a new peer replaces it; every tenth minute the gateway
itself is killed and restarted. The page is never reloaded. A line of JSON a minute reports what the
page and the gateway hold; the last line sums up.
"""

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect, sync_playwright

from tests.support.browsers import ANSWER_MS_MAX, launch
from tests.support.gateways import running_gateway
from tests.support.processes import NETWORK, Peer, join, start_peers, stop, wait_ready

RANGES = ("1:15", "15:29")
TURN_S = 30.0
GATEWAY_S = 600.0
"""Between two deaths of the gateway."""

DOWN_S = 5.0
"""How long there is no gateway."""

QUESTIONS = ("Name three colours.", "Say yes.", "Count from one to ten.")
QUESTIONS_PER_CONVERSATION = 12
"""About 600 tokens: a session holds 1,024."""

BACK_MS_MAX = 60_000
"""For the page to find the new gateway: it waits longer after each attempt."""


class Hour:
    """The swarm, the page, and their results so far."""

    def __init__(self, home: Path, stack: ExitStack, browser: Browser) -> None:
        self._home, self._stack = home, stack
        self.chance = random.Random(1)
        options = ("--model", "default")
        self.peers = start_peers(home, RANGES * 2, *options)
        for peer in self.peers:
            stack.callback(stop, peer.process)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._gateway = stack.enter_context(ExitStack())
        self._serve()
        self.page = browser.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"http://127.0.0.1:{self._port}")
        self._tools = self.page.context.new_cdp_session(self.page)
        self.asked = self.answered = self.killed = self.restarts = 0

    def _serve(self) -> None:
        way_in = self.peers[0].address
        options = ["--model", "default", "--bootstrap", way_in, "--network", NETWORK]
        self._running = self._gateway.enter_context(
            running_gateway(self._home, *options, "--max-tokens", "48", port=self._port)
        )

    def kill_peer(self) -> Peer:
        """Kill a peer other than the first, through which the others joined."""
        peer = self.chance.choice(self.peers[1:])
        peer.process.send_signal(signal.SIGKILL)
        self.peers.remove(peer)
        self.killed += 1
        return peer

    def replace(self, dead: Peer) -> None:
        """Start a peer for the same layers."""
        first = self.peers[0].address
        process = join(
            self._home, ["--layers", dead.layers, "--model", "default"], bootstrap=[first]
        )
        self._stack.callback(stop, process)
        self.peers.append(wait_ready(process))

    def restart_gateway(self) -> None:
        """Kill the gateway and start another, which the page must find by itself."""
        self._running.process.send_signal(signal.SIGKILL)
        self._running.process.wait()
        expect(self.page.locator("#status")).not_to_have_attribute("data-state", "ready")
        self.page.wait_for_timeout(1000 * DOWN_S)
        self._gateway.close()
        self._serve()
        self.restarts += 1
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the page says that it is ready."""
        ready = expect(self.page.locator("#status"))
        ready.to_have_attribute("data-state", "ready", timeout=BACK_MS_MAX)

    def ask(self) -> None:
        """Ask on the page, and wait for the report under the answer."""
        if self.asked % QUESTIONS_PER_CONVERSATION == 0:
            self.page.get_by_role("button", name="New conversation").first.click()
        self.asked += 1
        before = self.page.locator(".account").count()
        question = self.page.get_by_label("Your question")
        question.fill(self.chance.choice(QUESTIONS))
        question.press("Enter")
        try:
            expect(self.page.locator(".account")).to_have_count(before + 1, timeout=ANSWER_MS_MAX)
            self.answered += 1
        except AssertionError:
            self.errors.append(self.page.locator("main").inner_text()[-300:])
            say(error=self.errors[-1])

    def kept(self) -> dict[str, Any]:
        """Return what the page holds after a garbage collection, and the gateway's memory."""
        self._tools.send("HeapProfiler.collectGarbage")
        heap = self._tools.send("Runtime.getHeapUsage")["usedSize"]
        counters = self._tools.send("Memory.getDOMCounters")
        pid = str(self._running.process.pid)
        said = subprocess.run(["ps", "-o", "rss=", "-p", pid], capture_output=True, check=True)
        return {
            "heap_mb": round(heap / 1e6, 2),
            "nodes": counters["nodes"],
            "listeners": counters["jsEventListeners"],
            "gateway_mb": round(int(said.stdout) / 1000),
            "peers_shown": self.page.locator("#peers li:not([data-state=own])").count(),
            "asked": self.asked,
            "answered": self.answered,
            "killed": self.killed,
            "restarts": self.restarts,
            "errors": len(self.errors),
        }


def leave_open(hour: Hour, seconds: float) -> None:
    """Let peers come and go for ``seconds`` while the page is open."""
    start = time.monotonic()
    told, restarted = start, start
    hour.wait_ready()
    while (now := time.monotonic()) < start + seconds:
        dead = hour.kill_peer()
        hour.ask()
        hour.replace(dead)
        if now - restarted >= GATEWAY_S:
            restarted = now
            hour.restart_gateway()
        if now - told >= 60:
            told = now
            say(minute=round((now - start) / 60, 1), **hour.kept())
        hour.page.wait_for_timeout(1000 * max(0.0, now + TURN_S - time.monotonic()))


def say(**values: Any) -> None:
    """Print a line of JSON."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run it, and fail if an answer was lost or the page logged an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser = launch(playwright)
        if browser is None:
            raise SystemExit("no browser: install Chromium")
        with ExitStack() as stack:
            hour = Hour(Path(home), stack, browser)
            first = hour.kept()
            leave_open(hour, 60 * arguments.minutes)
            say(first=first, last=hour.kept(), errors=hour.errors)
        browser.close()
    if hour.errors or hour.answered < hour.asked:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
