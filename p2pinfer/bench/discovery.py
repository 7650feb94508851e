"""The cost of peer discovery: real processes with only a transport and a directory.

They find each other through one address, are left alone for a while, are joined by a late one, and
are cut in two halves and reunited. Each counts its costs, and the age of what it knows.
"""

import json
import statistics
import subprocess
from typing import Any

import trio

from p2pinfer.core.errors import P2pinferError, lone_errors
from p2pinfer.core.ids import PeerId
from p2pinfer.core.python_process import python_command, python_environment

AGREE_S_MAX = 300.0
"""Until every peer knows all others; loading libp2p takes half a second of a core per process."""

LOOK_S = 0.25
"""How often views are checked while waiting."""


async def discovery_bench(
    peers: int, seconds: float, cut_s: float, settle_s: float
) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench discovery`` prints.

    Args:
        peers: how many processes, without the late one.
        seconds: how long their costs are counted.
        cut_s: how long they are cut in two halves; 0 means never.
        settle_s: the time between all knowing all and the start of counting.

    Raises:
        P2pinferError: a process did not start, or the views did not come to agree.
    """
    with lone_errors():
        async with trio.open_nursery() as nursery:
            swarm: list[_Worker] = [await nursery.start(_run, ())]
            ways_in = swarm[0].addresses
            begun = trio.current_time()
            async with trio.open_nursery() as starting:
                for _ in range(peers - 1):
                    starting.start_soon(_start_into, nursery, swarm, ways_in)
            await _wait_agreed(swarm)
            found: dict[str, Any] = {
                "peers": peers,
                "all_know_all_s": round(trio.current_time() - begun, 1),
            }
            await trio.sleep(settle_s)
            found |= await _left_alone(swarm, seconds)
            late = await nursery.start(_run, swarm[-1].addresses)
            swarm.append(late)
            await late.ask("expect", peers)
            await _wait_agreed(swarm)
            knew_s: float = (await late.ask("look"))["knew_s"]
            found["late_peer_knows_all_s"] = round(knew_s, 2)
            if cut_s:
                found |= await _cut(swarm, cut_s)
            nursery.cancel_scope.cancel()
    return found


async def _start_into(
    nursery: trio.Nursery, swarm: list["_Worker"], ways_in: tuple[str, ...]
) -> None:
    swarm.append(await nursery.start(_run, ways_in))


async def _left_alone(swarm: list["_Worker"], seconds: float) -> dict[str, Any]:
    """Count each peer's costs while nothing happens."""
    before = [await worker.ask("reset") for worker in swarm]
    await trio.sleep(seconds)
    after = [await worker.ask("look") for worker in swarm]

    def rates(what: str) -> list[float]:
        return [
            (b[what] - a[what]) / (b["at_s"] - a["at_s"])
            for a, b in zip(before, after, strict=True)
        ]

    cpu = [100 * rate for rate in rates("cpu_s")]
    return {
        "seconds": seconds,
        "cpu_percent_median": round(statistics.median(cpu), 2),
        "cpu_percent_max": round(max(cpu), 2),
        "sent_bytes_per_s_median": round(statistics.median(rates("sent"))),
        "sent_bytes_per_s_max": round(max(rates("sent"))),
        "received_bytes_per_s_median": round(statistics.median(rates("received"))),
        "received_bytes_per_s_max": round(max(rates("received"))),
        "connections_median": statistics.median(each["connections"] for each in after),
        "period_s": max(each["period_s"] for each in after),
        "oldest_advertisement_s": round(max(each["oldest_s"] for each in after), 1),
    }


async def _cut(swarm: list["_Worker"], cut_s: float) -> dict[str, Any]:
    """Cut the swarm in two, and time how long it takes to agree once reunited."""
    half = len(swarm) // 2
    sides = swarm[:half], swarm[half:]
    for side, other in (sides, sides[::-1]):
        for worker in side:
            await worker.ask("block", *(each.peer for each in other))
    await trio.sleep(cut_s)
    known = [(await worker.ask("look"))["known"] for worker in swarm]
    for worker in swarm:
        await worker.ask("block")
    mended = trio.current_time()
    await _wait_agreed(swarm)
    return {
        "cut_s": cut_s,
        "known_when_cut_max": max(known),
        "agreed_again_s": round(trio.current_time() - mended, 1),
    }


async def _wait_agreed(swarm: list["_Worker"]) -> None:
    """Wait until each peer knows all the others."""
    with trio.move_on_after(AGREE_S_MAX):
        while True:
            known = [(await worker.ask("look"))["known"] for worker in swarm]
            if min(known) == len(swarm) - 1:
                return
            await trio.sleep(LOOK_S)
    raise P2pinferError(f"after {AGREE_S_MAX:g} s peers know {min(known)} to {max(known)} others")


class _Worker:
    """A peer process, seen from this one."""

    def __init__(self, process: trio.Process, peer: PeerId, addresses: tuple[str, ...]) -> None:
        self.process, self.peer, self.addresses = process, peer, addresses
        self._lock = trio.Lock()

    async def ask(self, *question: object) -> dict[str, Any]:
        """Send an order; return the answer."""
        assert self.process.stdin
        async with self._lock:
            await self.process.stdin.send_all(json.dumps(question).encode() + b"\n")
            return await _read(self.process)


async def _read(process: trio.Process) -> dict[str, Any]:
    assert process.stdout
    line = bytearray()
    while not line.endswith(b"\n"):
        data = await process.stdout.receive_some()
        if not data:
            raise P2pinferError("a peer process ended")
        line += data
    answer: dict[str, Any] = json.loads(line)
    return answer


async def _run(
    ways_in: tuple[str, ...], *, task_status: "trio.TaskStatus[_Worker]" = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a peer process until cancelled; it ends when its standard input does."""
    process = await trio.lowlevel.open_process(
        python_command("p2pinfer.bench.discovery_peer", *ways_in),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=python_environment(),
    )
    try:
        ready = await _read(process)
        task_status.started(_Worker(process, ready["peer"], tuple(ready["addresses"])))
        await process.wait()
        raise P2pinferError(f"a peer process ended with {process.returncode}")
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
