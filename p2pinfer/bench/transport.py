"""The cost of a hop: two processes on this machine, our muxer against libp2p's own.

Both are measured in turns in one run, on connections that stay open, so that a slow moment of the
machine hits both; read the ratios before the absolute figures.
``python -m p2pinfer.bench.transport`` prints them as JSON.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import trio

from p2pinfer.core.ids import PeerId
from p2pinfer.core.python_process import python_command, python_environment
from transports.base import Channel
from transports.libp2p.host import Muxer
from transports.libp2p.transport import Libp2pTransport, open_libp2p

HERE: Final = ("/ip4/127.0.0.1/tcp/0",)
MUXERS: Final[tuple[Muxer, ...]] = ("own", "library")

STEP_BYTES = 2300
"""A decode step on the wire: 576 values in float32, the residual stream of the default model."""

PROBE_BYTES = 2048
PAUSE_S = 0.005
"""Silence between tokens, in which the processor goes to sleep."""

BULK_BYTES = 1024 * 1024
BULK_S = 0.4
"""Length of one bulk measurement."""

BUSY_STEPS_MIN = 10
"""During bulk, however long each takes."""

ROUNDS = 5
STEPS = 300
"""Consecutive round trips, per round."""

PAUSED_STEPS = 40
BULK: Final = "bulk_mb_per_s"

CHILD_S_MAX = 30.0
"""For the other process to start, and to end."""


async def transport_bench(rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Measure both muxers in ``rounds`` turns each; about two seconds a round.

    Returns:
        For ``own`` and ``library``: round trips in ms, CPU of this side per round trip in ms, bulk
        in MB/s, each the median over the rounds; then ``ratio``, how many times better ours is.
    """
    async with AsyncExitStack() as stack:
        channels: dict[Muxer, tuple[Channel, Channel]] = {}
        for muxer in MUXERS:
            transport, remote = await stack.enter_async_context(_two_processes(muxer))
            channels[muxer] = (
                await transport.open(remote, "echo"),
                await transport.open(remote, "sink"),
            )
        samples: dict[Muxer, list[dict[str, float]]] = {muxer: [] for muxer in MUXERS}
        for _ in range(rounds):
            for muxer in MUXERS:
                samples[muxer].append(await _round(*channels[muxer]))
    own, library = (_medians(samples[muxer]) for muxer in MUXERS)
    ratio = {
        name: round(
            own[name] / library[name] if "mb_per_s" in name else library[name] / own[name], 2
        )
        for name in own
    }
    return {"own": own, "library": library, "ratio": ratio}


def _medians(samples: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: round(statistics.median(sample[name] for sample in samples), 4) for name in samples[0]
    }


async def _round(echo: Channel, sink: Channel) -> dict[str, float]:
    """Take every measurement once."""
    cpu_start = time.process_time()
    steps = await _round_trips(echo, STEP_BYTES, STEPS, 0.0)
    cpu_s = (time.process_time() - cpu_start) / STEPS
    paused = await _round_trips(echo, STEP_BYTES, PAUSED_STEPS, PAUSE_S)
    mb_per_s = await _bulk(sink)
    busy = await _round_trips_during_bulk(echo, sink)
    return {
        "round_trip_p50_ms": statistics.median(steps) * 1e3,
        "round_trip_after_pause_p50_ms": statistics.median(paused) * 1e3,
        "cpu_per_round_trip_ms": cpu_s * 1e3,
        BULK: mb_per_s,
        "round_trip_during_bulk_p50_ms": statistics.median(busy) * 1e3,
        "round_trip_during_bulk_p99_ms": statistics.quantiles(busy, n=100)[98] * 1e3,
    }


async def _round_trips(channel: Channel, size: int, count: int, pause_s: float) -> list[float]:
    message = bytes(size)
    seconds = []
    for _ in range(count):
        if pause_s:
            await trio.sleep(pause_s)
        start = time.perf_counter()
        await channel.send(message)
        await channel.receive()
        seconds.append(time.perf_counter() - start)
    return seconds


async def _bulk(sink: Channel) -> float:
    """Send for ``BULK_S``; return MB/s as the receiver confirms them."""
    message, count = bytes(BULK_BYTES), 0
    start = time.perf_counter()
    while time.perf_counter() - start < BULK_S:
        await sink.send(message)
        count += 1
    await sink.send(b"how much?")
    await sink.receive()
    return count * BULK_BYTES / 1e6 / (time.perf_counter() - start)


async def _round_trips_during_bulk(echo: Channel, sink: Channel) -> list[float]:
    """Exchange small messages while another channel of the connection is saturated."""
    seconds: list[float] = []
    done = trio.Event()

    async def push() -> None:
        message = bytes(BULK_BYTES)
        while not done.is_set():
            await sink.send(message)
        await sink.send(b"how much?")
        await sink.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(push)
        end = time.perf_counter() + BULK_S
        while time.perf_counter() < end or len(seconds) < BUSY_STEPS_MIN:
            seconds += await _round_trips(echo, PROBE_BYTES, 1, 0.0)
        done.set()
    return seconds


@asynccontextmanager
async def _two_processes(muxer: Muxer) -> AsyncGenerator[tuple[Libp2pTransport, PeerId], None]:
    """Run a peer in this process, connected to one in another."""
    command = python_command("p2pinfer.bench.transport", "serve", muxer)
    child = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=python_environment()
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        line = b""
        with trio.fail_after(CHILD_S_MAX):
            while not line.endswith(b"\n"):
                line += await child.stdout.receive_some(1)
        async with open_libp2p(None, (), "bench", muxer=muxer) as transport:
            yield transport, await transport.connect(line.decode().strip())
    finally:
        with trio.move_on_after(CHILD_S_MAX, shield=True):
            await child.stdin.aclose()
            await child.stdout.aclose()
            await child.wait()


async def _serve(muxer: Muxer) -> None:
    """Run the other process, until its standard input ends."""

    async def echo(channel: Channel) -> None:
        while True:
            await channel.send(await channel.receive())

    async def sink(channel: Channel) -> None:
        while True:
            if len(message := await channel.receive()) < BULK_BYTES:
                await channel.send(message)

    async with open_libp2p(None, HERE, "bench", muxer=muxer) as transport:
        transport.handle("echo", echo)
        transport.handle("sink", sink)
        sys.stdout.write(transport.addresses[0] + "\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", ("own" | "library") as served]:
            trio.run(_serve, served)
        case _:
            sys.stdout.write(json.dumps(trio.run(transport_bench), indent=2) + "\n")
