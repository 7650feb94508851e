"""A swarm of real peers on this machine: each a process of its own, gone when the block ends."""

import json
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import trio

from p2pinfer.core.errors import P2pinferError, UserError, lone_errors
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.engine.gguf.slicing import plan_stage
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.engine.store.store import Store
from p2pinfer.node.loading_steps import Step, ignore
from p2pinfer.node.requester import Machine, check_keep, check_memory, check_weights

READY_S_MAX = 300.0
"""A first start cuts slices and probes them; on a slow machine that takes a while."""

LEAVE_S_MAX = 5.0
"""How long a peer may take to go once it was asked to."""

RELAY_S = 0.25
"""How often a peer's log is read while it is not ready: files have no events."""

PEERS_MAX = 16


@dataclass(frozen=True)
class LocalPeer:
    """A peer process that serves."""

    process: trio.Process
    peer: str
    addresses: tuple[str, ...]
    layers: str


def split_layers(first: int, end: int, peers: int) -> list[LayerRange]:
    """Cut a range of layers into as equal parts as there are peers."""
    count = end - first
    if not 1 <= peers <= min(count, PEERS_MAX):
        raise UserError(f"--peers must be from 1 to {min(count, PEERS_MAX)} for {count} layers")
    bounds = [first + count * i // peers for i in range(peers + 1)]
    return [LayerRange(*each) for each in pairwise(bounds)]


def share_layers(model: PartsModel, peers: int, keep: int, machine: Machine) -> list[LayerRange]:
    """Return the range of each peer of a local swarm, and check whatever could stop one.

    Raises:
        UserError: the layers cannot be shared so, or not all of it fits into this machine.
        UnsupportedModel: the model cannot be cut.
    """
    check_keep(model.manifest, keep)
    ranges = split_layers(keep, model.info.layers - keep, peers)
    for layers in ranges:
        plan_stage(model.header, layers.first, layers.end)
    check_weights(model, (part.name for part in model.manifest.parts), peers)
    check_memory(model, model.info.layers, machine)
    return ranges


@asynccontextmanager
async def local_swarm(
    model: PartsModel,
    ranges: Sequence[LayerRange],
    *,
    machine: Machine,
    transport: str = "libp2p",
    homes: Path | None = None,
    on_ready: Callable[[LocalPeer], None] = lambda _: None,
    on_step: Step = ignore,
) -> AsyncIterator[list[LocalPeer]]:
    """Start peers on loopback that share a model's layers, and end them all, whatever happens.

    They leave by themselves when this process does, however it ends: their standard input closes.

    Args:
        model: whose layers they serve.
        ranges: as ``share_layers`` gives them.
        machine: what each of them may use.
        transport: as of a peer.
        homes: where every peer but the first keeps parts of its own, which it fetches from those
            before it; None lets all of them use this process's store.
        on_ready: is told of each that serves.
        on_step: is told what those that do not serve yet are doing.

    Raises:
        P2pinferError: a peer did not come up; the text is what it said.
    """
    found: dict[int, LocalPeer] = {}
    steps: dict[int, str] = {}  # of those that do not serve yet
    seeded = trio.Event()  # the first peer, whose store is whole, can be asked
    with tempfile.TemporaryDirectory(prefix="p2pinfer-") as home, lone_errors():
        async with trio.open_nursery() as nursery:

            async def start(index: int, layers: LayerRange) -> None:
                own = homes / str(index) if homes and index else None
                if own and not _holds(own, model, layers):
                    await seeded.wait()
                ways_in = [address for peer in found.values() for address in peer.addresses]
                command = [
                    *python_command("p2pinfer", "join", "--json", "--until-stdin-closes"),
                    *["--model", model.id, "--layers", str(layers)],
                    *(["--bootstrap", *ways_in] if ways_in else []),
                    *["--identity", str(Path(home) / f"identity-{index}")],
                    *_alike(machine, transport),
                ]
                log = Path(home) / f"log-{index}"
                process = await nursery.start(run_peer, command, log, own)

                def tell(text: str) -> None:
                    steps[index] = f"peer {index + 1}: {text}"
                    on_step(steps[index])

                with relayed(nursery, log, tell):
                    found[index] = await wait_ready(process, log)
                steps.pop(index, None)
                if len(found) < len(ranges):  # what it did is no longer what is waited for
                    on_step(next(iter(steps.values()), "waiting for the other peers …"))
                if index == 0:
                    seeded.set()
                on_ready(found[index])

            try:
                with trio.fail_after(READY_S_MAX):
                    async with trio.open_nursery() as starting:
                        for index, layers in enumerate(ranges):
                            starting.start_soon(start, index, layers)
                yield [found[index] for index in range(len(ranges))]
            finally:
                nursery.cancel_scope.cancel()


def _alike(machine: Machine, transport: str) -> list[str]:
    """Return the options that all peers of a local swarm have."""
    return [
        *["--listen", "/ip4/127.0.0.1/tcp/0", "--network", "local", "--transport", transport],
        *["--sessions", str(machine.sessions), "--context", str(machine.context)],
        *["--threads", str(machine.threads)],
    ]


@contextmanager
def relayed(nursery: trio.Nursery, log: Path, on_step: Step) -> Iterator[None]:
    """Tell every line that a peer writes into its log while the block lasts."""
    scope = trio.CancelScope()

    async def relay() -> None:
        told = 0
        with scope:
            while True:
                *lines, _ = _read(log).split("\n")
                for line in lines[told:]:
                    on_step(line)
                told = len(lines)
                await trio.sleep(RELAY_S)

    nursery.start_soon(relay)
    try:
        yield
    finally:
        scope.cancel()


async def run_peer(
    command: list[str],
    log: Path,
    home: Path | None,
    *,
    task_status: "trio.TaskStatus[trio.Process]",
) -> None:
    """Run a peer until cancelled; then ask it to leave, and end it if it does not."""
    with log.open("wb") as stderr:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environment(home),
            process_group=0,  # a terminal's Ctrl-C is for whoever talks to the swarm
        )
    assert process.stdin
    try:
        task_status.started(process)
        await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            with trio.move_on_after(LEAVE_S_MAX):
                await process.wait()
            if process.poll() is None:
                process.kill()
                await process.wait()


def _environment(home: Path | None) -> dict[str, str]:
    """Leave out options that are meant for this process, such as where another swarm is."""
    kept = ("P2PINFER_HOME",)
    found = {
        k: v for k, v in python_environment().items() if k in kept or not k.startswith("P2PINFER_")
    }
    found["P2PINFER_CONFIG"] = ""  # nor is the file meant for it
    return found | {"P2PINFER_HOME": str(home)} if home else found


def store_of(home: Path) -> Store:
    """Return the store of a peer that keeps its things there."""
    return Store(home / "data" / "store")


def _holds(home: Path, model: PartsModel, layers: LayerRange) -> bool:
    """Whether a peer that keeps its things there needs to fetch nothing."""
    store = store_of(home)
    needed = model.manifest.needed(layers.first, layers.end)
    return all(store.held(model.manifest.part(name)) for name in needed)


async def wait_ready(process: trio.Process, log: Path) -> LocalPeer:
    """Wait for the one line that a peer prints when it serves."""
    assert process.stdout
    line = bytearray()
    while not line.endswith(b"\n"):
        data = await process.stdout.receive_some()
        if not data:
            code = await process.wait()
            raise P2pinferError(f"a local peer did not start: {_reason(log, code)}")
        line += data
    ready = json.loads(line)
    return LocalPeer(process, ready["peer"], tuple(ready["addresses"]), ready["layers"])


def _read(log: Path) -> str:
    return log.read_text(errors="replace")


def _reason(log: Path, code: int) -> str:
    """Say why a peer ended: its own last words, if it had the time for any."""
    if code == -signal.SIGKILL:
        return "the system ended it, as it does where memory runs out"
    lines = _read(log).strip().splitlines()
    return lines[-1].removeprefix("p2pinfer: ") if lines else "it gave no reason"
