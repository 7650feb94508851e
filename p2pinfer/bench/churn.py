"""Peers come and go at random while requesters ask: what is lost, and what leaks.

Each range of layers has two holders. Two hands do harm, each to ranges of its own and to one peer
at a time: it is killed, told to leave, frozen for a while, or loses its engine. A peer that ended
is replaced by a new one, and the next harm waits until every requester knows of it. So at any
moment there is a route of unharmed peers, and no answer need be lost. Requesters are nodes of their
own in this process; they ask the same questions over and over, greedily, and must get the same
answers as before. The first peer, through which all joined, is never ended: it shows what a peer
that lives through all of it retains.
"""

import math
import os
import random
import signal
import statistics
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from enum import StrEnum
from pathlib import Path
from typing import Any

import trio

from p2pinfer.bench.victims import NETWORK, Victims
from p2pinfer.client.answer import ChatOptions
from p2pinfer.client.conversation import Conversation, open_conversation
from p2pinfer.core.errors import P2pinferError, lone_errors
from p2pinfer.core.ids import PeerId
from p2pinfer.core.sampling import Sampling
from p2pinfer.node.local_swarm import share_layers
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import Client, ClientOptions, Machine, open_client

HOLDERS = 2
QUESTIONS = (
    "Why do leaves turn red in autumn?",
    "Count from one to ten.",
    "Name three birds, and say where each of them lives.",
    "What is a peer?",
)
OPTIONS = ChatOptions(Sampling(temperature=0.0), max_tokens=24)
NEW_SESSION_SHARE = 0.2
"""Share of answers after which a requester closes its session and opens another."""

PAUSE_S = 6.0
"""Between two harms by one hand, on average."""

FREEZE_S = 3.0
"""Longer than a peer may be silent."""

CALM_S = 5.0
"""After a freeze, or the death of an engine, until a peer counts as unharmed again."""

KNOWN_S_MAX = 60.0
"""For a new peer's advertisement to spread."""

FREE_S_MAX = 60.0
"""At the end, for the peers to report that all their sessions are free."""

LOOK_S = 0.2


class Harm(StrEnum):
    """What is done to a peer."""

    FREEZE = "freeze"
    ENGINE = "kill the engine"
    KILL = "kill"
    LEAVE = "leave"


SPARED = (Harm.FREEZE, Harm.ENGINE)
"""Harms done to the first peer."""


async def churn_bench(
    file: Path,
    *,
    minutes: float,
    peers: int,
    requesters: int,
    seed: int,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench churn`` prints; ``tell`` gets a line each minute."""
    store = open_store()
    model = open_whole(name_model(str(file), store, lambda *_: None), store)
    machine = Machine(sessions=2 * requesters, context=512)
    ranges = share_layers(model, peers // HOLDERS, 1, machine) * HOLDERS
    with tempfile.TemporaryDirectory(prefix="p2pinfer-") as home, lone_errors():
        async with trio.open_nursery() as nursery:
            victims = Victims(nursery, model, machine, ranges, Path(home))
            await victims.start()
            ways_in = victims.ways_in()[:1]
            options = ClientOptions(model.id, ways_in, NETWORK, machine=machine)
            async with AsyncExitStack() as stack:
                clients = [
                    await stack.enter_async_context(open_client(options, store, lambda _: None))
                    for _ in range(requesters)
                ]
                report = await _Churn(victims, clients, seed).run(60 * minutes, tell)
            nursery.cancel_scope.cancel()
    return {"peers": peers, "requesters": requesters, "minutes": minutes, "seed": seed, **report}


class _Churn:
    """One run and its results."""

    def __init__(self, victims: Victims, clients: Sequence[Client], seed: int) -> None:
        self._victims, self._clients, self._seed = victims, clients, seed
        self._first, *_ = victims.serving
        self._stages = len(victims.ranges) // HOLDERS
        self._expected: dict[str, str] = {}
        self._harms: Counter[Harm] = Counter()
        self._answers_s: list[float] = []
        self._different = self._distrusted = 0
        self._lost: list[str] = []
        self._over = False

    async def run(self, seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
        """Let peers come and go for ``seconds``, and check what is left."""
        await self._known()
        async with open_conversation(self._clients[0], OPTIONS, lambda _: None) as talk:
            for question in QUESTIONS:
                self._expected[question] = (await self._ask(talk, question)).text
        before = self._kept()
        async with trio.open_nursery() as asking:
            for number, client in enumerate(self._clients):
                asking.start_soon(self._keep_asking, client, self._chance(f"asker {number}"))
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as harming:
                    for hand in range(2):
                        ranges = range(hand, self._stages, 2)
                        harming.start_soon(self._keep_harming, ranges, self._chance(f"hand {hand}"))
                    for minute in range(1, math.ceil(seconds / 60) + 1):
                        await trio.sleep(60)
                        tell(f"minute {minute} of {seconds / 60:g}: {self._sum()}")
            self._over = True
        left = await self._wait_free()
        return self._report(left) | {"before": before, "after": self._kept()}

    def _chance(self, whose: str) -> random.Random:
        return random.Random(f"{self._seed} {whose}")  # noqa: S311 -- picks peers, harms and times

    # Asking

    async def _keep_asking(self, client: Client, chance: random.Random) -> None:
        async with open_conversation(client, OPTIONS, lambda _: None) as talk:
            while not self._over:
                question = chance.choice(QUESTIONS)
                since = trio.current_time()
                try:
                    answer = await self._ask(talk, question)
                except P2pinferError as error:
                    self._lost.append(str(error))
                    continue
                self._answers_s.append(trio.current_time() - since)
                self._different += answer.text != self._expected[question]
                self._distrusted += answer.trust is None or not answer.trust.held
                if chance.random() < NEW_SESSION_SHARE:
                    await talk.close()

    @staticmethod
    async def _ask(talk: Conversation, question: str) -> Any:
        talk.reset()
        return await talk.ask(question, lambda _: None)

    # Harming

    async def _keep_harming(self, ranges: Sequence[int], chance: random.Random) -> None:
        """Harm one holder after another, of one of some ranges."""
        serving = self._victims.serving
        while True:
            await trio.sleep(PAUSE_S * chance.uniform(0.5, 1.5))
            held = chance.choice(ranges)
            holders = [p for p, each in serving.items() if each.place % self._stages == held]
            peer = chance.choice(sorted(holders))
            harm = chance.choice(SPARED if peer == self._first else tuple(Harm))
            self._harms[harm] += 1
            await self._harm(harm, peer, chance)

    async def _harm(self, harm: Harm, peer: PeerId, chance: random.Random) -> None:
        """Do harm, and wait until it is repaired."""
        process = self._victims.serving[peer].local.process
        match harm:
            case Harm.FREEZE:
                process.send_signal(signal.SIGSTOP)
                try:
                    await trio.sleep(FREEZE_S)
                finally:
                    process.send_signal(signal.SIGCONT)
                await trio.sleep(CALM_S)
            case Harm.ENGINE:
                for engine in _children(process.pid):
                    os.kill(engine, signal.SIGKILL)
                await trio.sleep(CALM_S)
            case _:
                number = signal.SIGKILL if harm is Harm.KILL else signal.SIGINT
                victim = self._victims.lose(peer, number)
                await process.wait()
                await trio.sleep(chance.uniform(0, PAUSE_S / 2))
                await self._victims.fill(victim.place)
                await self._known()

    async def _known(self) -> None:
        """Wait until each requester knows all serving peers."""
        with trio.fail_after(KNOWN_S_MAX):
            for client in self._clients:
                while not set(self._victims.serving) <= {a.peer for a in client.serving()}:  # noqa: ASYNC110 -- gossip comes without an event
                    await trio.sleep(LOOK_S)

    # Checking

    async def _wait_free(self) -> int:
        """Wait until the peers report no sessions; return how many they still report."""
        taken = 0
        with trio.move_on_after(FREE_S_MAX):
            while True:
                said = [a for a in self._clients[0].serving() if a.peer in self._victims.serving]
                taken = sum(a.sessions_max - a.sessions_free for a in said)
                if not taken:
                    break
                await trio.sleep(LOOK_S)
        return taken

    def _kept(self) -> dict[str, Any]:
        """Return what the requesters and the first peer hold while there are no questions."""
        local = self._victims.serving[self._first].local.process.pid
        return {
            "channels": sum(client.transport.channels for client in self._clients),
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "open_files": len(list(Path("/dev/fd").iterdir())),
            "requesters_mb": _resident_mb(os.getpid()),
            "first_peer_mb": _resident_mb(local),
        }

    def _sum(self) -> str:
        return (
            f"{len(self._answers_s)} answers, {len(self._lost)} lost, {self._different} different,"
            f" {self._harms.total()} peers harmed"
        )

    def _report(self, left: int) -> dict[str, Any]:
        answers_s = sorted(self._answers_s) or [0.0]
        return {
            "answers": len(self._answers_s),
            "lost": len(self._lost),
            "errors": self._lost[:10],
            "different": self._different,
            "distrusted": self._distrusted,
            "harms": {str(harm): self._harms[harm] for harm in Harm},
            "answer_s": {
                "p50": round(statistics.median(answers_s), 2),
                "p99": round(answers_s[min(len(answers_s) - 1, int(0.99 * len(answers_s)))], 2),
                "max": round(answers_s[-1], 2),
            },
            "sessions_left": left,
        }


def _children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, check=True)  # noqa: S607 -- wherever the system keeps it
    rows = (line.split() for line in listed.stdout.splitlines())
    return [int(child) for child, parent in rows if int(parent) == pid]


def _resident_mb(pid: int) -> int:
    """Return a process's resident memory in MB."""
    said = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=True)  # noqa: S607
    return round(int(said.stdout) / 1000)
