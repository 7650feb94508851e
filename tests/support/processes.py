"""Peers and commands as real processes, started and ended by pid."""

import json
import os
import select
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.engine.llama.libraries import FOLDER_VARIABLE
from p2pinfer.node import requester
from p2pinfer.node.model_supply import name_model, open_store
from p2pinfer.node.requester import Client, ClientOptions, Machine
from tests.support.surroundings import NOT_LOOKING

NETWORK = "real"
CONTEXT = 1280
SESSIONS = 8

READY_S_MAX = 120.0
"""For a peer to cut, probe and load its slice on a busy machine."""

GONE_S_MAX = 20.0
"""For a process to end; far more than any should take."""

POLL_S = 0.05

COMMAND = tuple(python_command("p2pinfer"))


@dataclass
class Peer:
    """A serving peer in a process of its own."""

    process: subprocess.Popen[bytes]
    id: str
    address: str
    layers: str

    def stop(self) -> int:
        """Close its standard input, and return its exit code once it has ended."""
        return stop(self.process)


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process that keeps its things in ``home``.

    It looks for nobody: another run of these tests may be on the same machine, or network.
    """
    clean = {
        k: v
        for k, v in python_environment().items()
        if k == FOLDER_VARIABLE or not k.startswith("P2PINFER_")
    }
    return {**clean, **NOT_LOOKING, "P2PINFER_HOME": str(home), **more}


def start_peers(
    home: Path,
    ranges: Sequence[str],
    *options: str,
    bootstrap: Sequence[str] = (),
    network: str = NETWORK,
) -> list[Peer]:
    """Start peers that serve these ranges, each knowing the first one; wait until all do."""
    processes = [join(home, ["--layers", ranges[0], *options], network, bootstrap)]
    peers: list[Peer] = []
    try:
        peers.append(wait_ready(processes[0]))
        processes += [
            join(home, ["--layers", layers, *options], network, [peers[0].address])
            for layers in ranges[1:]
        ]
        peers += [wait_ready(process) for process in processes[1:]]
    except BaseException:
        for process in processes:
            stop(process)
        raise
    return peers


def join(
    home: Path,
    options: Sequence[str],
    network: str = NETWORK,
    bootstrap: Sequence[str] = (),
    *,
    listen: str | None = "/ip4/127.0.0.1/tcp/0",
    key: Path | None = None,
    command: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Start a peer; ``options`` name its layers or its memory.

    ``listen`` None leaves it to the peer.
    """
    ways_in = ["--bootstrap", *bootstrap] if bootstrap else []
    where = ["--listen", listen] if listen else []
    key = key or home / f"key-{time.monotonic_ns()}"
    return subprocess.Popen(
        [
            *[*(command or COMMAND), "join", "--json", "--until-stdin-closes"],
            *[*where, "--network", network, "--identity", str(key)],
            *["--context", str(CONTEXT), "--sessions", str(SESSIONS), *ways_in, *options],
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(home),
        process_group=0,
    )


def wait_ready(process: subprocess.Popen[bytes], seconds: float = READY_S_MAX) -> Peer:
    """Wait until a peer serves; return its description."""
    ready = json.loads(read_until(process.stdout, b"\n", seconds).splitlines()[-1])
    return Peer(process, ready["peer"], ready["addresses"][0], ready["layers"])


def read_until(stream: object, end: bytes, seconds: float = READY_S_MAX) -> bytes:
    """Read a pipe until ``end`` has come; AssertionError if it does not come in time."""
    descriptor = stream.fileno()  # type: ignore[attr-defined] # a pipe
    found = b""
    deadline = time.monotonic() + seconds
    while end not in found:
        left = deadline - time.monotonic()
        assert left > 0, f"only {found!r} came"
        if select.select([descriptor], [], [], left)[0]:
            data = os.read(descriptor, 65_536)
            assert data, f"only {found!r} came before the end"
            found += data
    return found


def stop(process: subprocess.Popen[bytes]) -> int:
    """Close a process's pipes, and return its exit code once it is gone."""
    with process:
        if process.stdin:
            with suppress(BrokenPipeError):
                process.stdin.close()
        try:
            return process.wait(GONE_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def children(pid: int) -> list[int]:
    """Return all processes that descend from one."""
    rows = [line.split() for line in _ps("pid=,ppid=")]
    found = [pid]
    for parent in found:
        found += [int(child) for child, of in rows if int(of) == parent]
    return found[1:]


def alive(pids: Iterable[int]) -> list[int]:
    """Return those of the processes that still run, zombies excluded."""
    rows = [line.split() for line in _ps("pid=,stat=")]
    running = {int(pid) for pid, state in rows if state[0] != "Z"}
    return [pid for pid in pids if pid in running]


def _ps(columns: str) -> list[str]:
    result = subprocess.run(["ps", "-A", "-o", columns], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


def wait_gone(pids: Iterable[int]) -> None:
    """Wait until all of these processes are gone; AssertionError if one stays."""
    left = list(pids)
    deadline = time.monotonic() + GONE_S_MAX
    while left := alive(left):
        assert time.monotonic() < deadline, f"processes {left} stayed behind"
        time.sleep(POLL_S)  # not our child processes: there is no event to wait for


def client_options(model: Path, *peers: Peer, sessions: int = SESSIONS) -> ClientOptions:
    """Return the options of a client that enters at these peers."""
    machine = Machine(sessions=sessions, context=CONTEXT)
    named = name_model(str(model), open_store(), lambda *_: None)
    return ClientOptions(named, [peer.address for peer in peers], NETWORK, machine=machine)


def open_client(options: ClientOptions) -> AbstractAsyncContextManager[Client]:
    """Join a swarm with the parts of this process's store."""
    return requester.open_client(options, open_store(), lambda _: None)
