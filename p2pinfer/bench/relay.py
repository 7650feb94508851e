"""What carrying for others costs a relay: a process of its own between two peers of this one.

``python -m p2pinfer.bench.relay`` prints the figures as JSON. CPU is the relay's own, so that they
hold on a busy machine, too.
"""

import json
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from statistics import median
from typing import Any, Final

import psutil
import trio

from p2pinfer.core.errors import PeerError
from p2pinfer.core.python_process import python_command, python_environment
from transports.base import Channel, Reach, Relaying
from transports.libp2p.transport import Libp2pTransport, open_libp2p

NETWORK: Final = Reach("bench", relaying=Relaying.ALWAYS, relay_mbit=100_000)
HERE: Final = ("/ip4/127.0.0.1/tcp/0",)
STEP_BYTES = 2300
"""A decode step of the default model."""
STEPS = 1000
BULK_BYTES = 1024 * 1024
FLOOD_OPENS = 400
"""Circuits asked for at once, where 16 are given."""
READY_S_MAX = 60.0


class _Relay:
    """The other process; it answers each line with its figures."""

    def __init__(self, process: trio.Process, address: str) -> None:
        self._process, self.address = process, address

    async def figures(self) -> dict[str, float]:
        """Return its CPU seconds, memory and statistics."""
        assert self._process.stdin
        await self._process.stdin.send_all(b"how\n")
        found: dict[str, float] = json.loads(await _line(self._process))
        return found


async def relay_bench(mbytes: int = 64, rounds: int = 3) -> dict[str, Any]:
    """Send ``mbytes`` of bulk, and steps one at a time, through a relay, in turns.

    Returns:
        ``mb_per_cpu_second`` and ``messages_per_cpu_second`` of the relay, the best of the rounds,
        and ``round_trip_ratio``, how many times a round trip takes that of a direct way between two
        processes, which is the relay's own to this one, and ``added_ms``, how much longer it takes;
        ``flood_mb``, by how much its memory grew while a caller asked for circuits without end.
    """
    rates: list[tuple[float, float, float, float]] = []
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(_relay_process())
        hidden = await stack.enter_async_context(open_libp2p(None, HERE, NETWORK))
        caller = await stack.enter_async_context(open_libp2p(None, (), NETWORK))
        near = await stack.enter_async_context(open_libp2p(None, (), NETWORK))
        hidden.handle("echo", _echo)
        hidden.handle("sink", _sink)
        await hidden.connect(relay.address)
        hidden.relays.is_needed = lambda: True
        hidden.relays.look()
        while not hidden.relays.addresses:
            await hidden.wait_moved()
        at = tuple(hidden.relays.addresses)
        through = await caller.open(hidden.peer_id, "echo", at)
        sink = await caller.open(hidden.peer_id, "sink", at)
        direct = await near.open(await near.connect(relay.address), "echo")
        for _ in range(rounds):
            before = await relay.figures()
            for _ in range(mbytes):
                await sink.send(bytes(BULK_BYTES))
            await sink.send(b"how much?")
            await sink.receive()
            between = await relay.figures()
            relayed_s = await _steps(through)
            after = await relay.figures()
            direct_s = await _steps(direct)
            bulk_s, steps_s = between["cpu_s"] - before["cpu_s"], after["cpu_s"] - between["cpu_s"]
            rates.append(
                (
                    (between["bytes"] - before["bytes"]) / 1e6 / bulk_s,
                    2 * STEPS / steps_s,
                    relayed_s,
                    direct_s,
                )
            )
        flood_mb = await _flood(relay, caller, hidden)
    relayed_s, direct_s = (min(each[which] for each in rates) for which in (2, 3))
    return {
        "mb_per_cpu_second": round(max(each[0] for each in rates), 1),
        "messages_per_cpu_second": round(max(each[1] for each in rates)),
        "round_trip_ratio": round(relayed_s / direct_s, 2),
        "added_ms": round(1000 * (relayed_s - direct_s), 2),
        "flood_mb": round(flood_mb, 1),
    }


async def _steps(channel: Channel) -> float:
    """Exchange steps; return how long one took, the median in seconds."""
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        await channel.send(bytes(STEP_BYTES))
        await channel.receive()
        times.append(time.perf_counter() - began)
    return median(times)


async def _flood(relay: _Relay, caller: Libp2pTransport, hidden: Libp2pTransport) -> float:
    """Ask for circuits without end; return the relay's growth in MB."""
    before = (await relay.figures())["memory_bytes"]

    async def ask() -> None:
        with suppress(PeerError):
            await caller.circuits.dial(hidden.relays.addresses[0], hidden.peer_id)

    async with trio.open_nursery() as nursery:
        for _ in range(FLOOD_OPENS):
            nursery.start_soon(ask)
    return ((await relay.figures())["memory_bytes"] - before) / 1e6


async def _echo(channel: Channel) -> None:
    while True:
        await channel.send(await channel.receive())


async def _sink(channel: Channel) -> None:
    while True:
        if len(message := await channel.receive()) < BULK_BYTES:
            await channel.send(message)


async def _line(process: trio.Process) -> bytes:
    assert process.stdout
    line = b""
    while not line.endswith(b"\n"):
        line += await process.stdout.receive_some(1)
    return line


@asynccontextmanager
async def _relay_process() -> AsyncGenerator[_Relay, None]:
    """Run a relay in another process."""
    process = await trio.lowlevel.open_process(
        python_command("p2pinfer.bench.relay", "serve"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=python_environment(),
    )
    assert process.stdin
    assert process.stdout
    try:
        with trio.fail_after(READY_S_MAX):
            address = (await _line(process)).decode().strip()
        yield _Relay(process, address)
    finally:
        with trio.move_on_after(READY_S_MAX, shield=True):
            await process.stdin.aclose()
            await process.stdout.aclose()
            await process.wait()


async def _serve() -> None:
    """Run the other process, until its standard input ends."""
    own = psutil.Process()
    async with open_libp2p(None, HERE, NETWORK) as transport:
        transport.handle("echo", _echo)
        sys.stdout.write(transport.addresses[0] + "\n")
        sys.stdout.flush()
        while await trio.to_thread.run_sync(sys.stdin.readline):
            found = transport.relay.statistics()
            figures = {
                "cpu_s": time.process_time(),
                "memory_bytes": own.memory_info().rss,
                "bytes": found.bytes,
                "circuits": found.circuits,
            }
            sys.stdout.write(json.dumps(figures) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        trio.run(_serve)
    else:
        sys.stdout.write(json.dumps(trio.run(relay_bench), indent=2) + "\n")
