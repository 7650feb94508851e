"""Peers that know only one address: they share the layers, and repair losses."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from p2pinfer.engine.llama.memory import WORKER_BYTES
from p2pinfer.node.capacity import layer_bytes
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import Machine
from tests.support.processes import COMMAND, CONTEXT, SESSIONS, environment, join, stop, wait_ready
from transports.identity import load_identity

pytestmark = pytest.mark.real

LAYERS_MAX = (20, 12, 8, 8)
"""Of 28 layers: if the second peer leaves, the others can hold its layers."""

COVER_S_MAX = 120.0
"""Three missed renewals, a decision and loading, on a busy machine."""

LOOK_S = 0.5


def test_peers_share_the_layers_and_repair_the_swarm(home: Path, default_model: Path) -> None:
    """Four start at once and cover all layers; one leaves, the first one dies, one joins.

    No peer is assigned layers, and a chat works after each of these events.
    """
    network = "unled"
    with ExitStack() as stack:
        key = home / "first-key"
        address = f"/ip4/127.0.0.1/tcp/{free_port()}"
        way_in = f"{address}/p2p/{load_identity(key).peer_id}"

        def start(layers_max: int, ways_in: Sequence[str], **more: Any) -> subprocess.Popen[bytes]:
            memory = WORKER_BYTES + layers_max * bytes_of_a_layer(default_model)
            process = join(home, ["--memory", str(memory)], network, ways_in, **more)
            stack.callback(end, process)
            return process

        processes = [start(LAYERS_MAX[0], (), listen=address, key=key)]
        processes += [start(layers_max, [way_in]) for layers_max in LAYERS_MAX[1:]]
        first, *others = map(wait_ready, processes)
        wait_until(lambda: covered(rows(home, network, way_in), 4), "all layers are served")
        assert answer(home, network, way_in)["tokens"] == 3

        leaving = others[0]
        leaving.process.send_signal(signal.SIGINT)
        assert leaving.process.wait(COVER_S_MAX) == 0
        assert covered(rows(home, network, way_in), 3), "it left a hole"
        assert answer(home, network, way_in)["tokens"] == 3

        first.process.kill()  # the peer through which all joined
        late = wait_ready(start(LAYERS_MAX[0], [others[1].address]))
        wait_until(lambda: covered(rows(home, network, late.address), 3), "the hole is filled")
        assert answer(home, network, late.address)["tokens"] == 3


def bytes_of_a_layer(file: Path) -> int:
    """Return the bytes of a layer, as a peer on this machine counts them."""
    store = open_store()
    model = open_whole(name_model(str(file), store, lambda *_: None), store)
    return layer_bytes(model, Machine(SESSIONS, CONTEXT))


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def end(process: subprocess.Popen[bytes]) -> None:
    """End a peer, if it still runs."""
    if process.poll() is None:
        stop(process)
    for pipe in (process.stdin, process.stdout):
        assert pipe
        pipe.close()


def rows(home: Path, network: str, address: str) -> list[dict[str, Any]]:
    """Return what ``p2pinfer peers`` shows of the peers that serve and can be dialled."""
    result = command(home, "peers", "--json", "--bootstrap", address, "--network", network)
    found: list[dict[str, Any]] = json.loads(result) if result else []
    return [row for row in found if row["reached"] and row["state"] == "serving"]


def covered(found: list[dict[str, Any]], peers: int) -> bool:
    """Whether ``peers`` peers serve every layer except those at the ends."""
    ranges = [tuple(map(int, row["layers"].split(":"))) for row in found]
    served = {layer for first, end in ranges for layer in range(first, end)}
    return len(found) == peers and served >= set(range(1, 29))


def answer(home: Path, network: str, address: str) -> dict[str, Any]:
    """Chat through the swarm, without naming a model."""
    words = ("chat", "Name a colour.", "--json", "--temperature", "0", "--max-tokens", "3")
    result = command(home, *words, "--bootstrap", address, "--network", network)
    assert result
    found: dict[str, Any] = json.loads(result)
    return found


def command(home: Path, *words: str) -> str:
    """Run a command; return what it printed, empty if it failed."""
    done = subprocess.run(
        [*COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=COVER_S_MAX,
        env=environment(home),
        check=False,
    )
    return done.stdout if done.returncode == 0 else ""


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds; AssertionError if it does not in time."""
    deadline = time.monotonic() + COVER_S_MAX
    while not holds():
        assert time.monotonic() < deadline, f"it is not so that {what}"
        time.sleep(LOOK_S)  # not our child processes: there is no event to wait for
