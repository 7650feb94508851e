"""A swarm of real peers on this machine: each in its own process, ended with the block."""

import json
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import trio

from p2pinfer.core.errors import P2pinferError, UserError, lone_errors
from p2pinfer.core.ids import ModelId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.limits import CONTEXT_MIN
from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.engine.gguf.slicing import plan_stage
from p2pinfer.engine.gpu import AUTO, OFF, Gpu
from p2pinfer.engine.llama import libraries
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.engine.store.store import Store
from p2pinfer.node.loading_steps import Step, are_probed, ignore, loading_ends
from p2pinfer.node.requester import (
    Machine,
    check_keep,
    check_memory,
    check_weights,
    open_own_ends,
)
from peers.parts.protocol import in_thread

READY_S_MAX = 300.0
"""The first start makes slices and probes them, which takes long on a slow machine."""

LEAVE_S_MAX = 5.0
"""How long a peer may take to leave before it is killed."""

RELAY_S = 0.25
"""How often a starting peer's log is read: files have no events."""

PEERS_MAX = 16


@dataclass(frozen=True)
class LocalPeer:
    """A process of a serving peer."""

    process: trio.Process
    peer: str
    addresses: tuple[str, ...]
    layers: str


def split_layers(first: int, end: int, peers: int) -> list[LayerRange]:
    """Split a range of layers as evenly as possible between peers; raises UserError."""
    count = end - first
    if not 1 <= peers <= min(count, PEERS_MAX):
        raise UserError(f"--peers must be from 1 to {min(count, PEERS_MAX)} for {count} layers")
    bounds = [first + count * i // peers for i in range(peers + 1)]
    return [LayerRange(*each) for each in pairwise(bounds)]


def share_layers(model: PartsModel, peers: int, keep: int, machine: Machine) -> list[LayerRange]:
    """Return the range of each peer of a local swarm, and check that it can run.

    Raises:
        UserError: there are too many peers, or the swarm does not fit into this machine.
        UnsupportedModel: the model cannot be cut.
    """
    check_keep(model.manifest, keep)
    ranges = split_layers(keep, model.info.layers - keep, peers)
    for layers in ranges:
        plan_stage(model.header, layers.first, layers.end)
    check_weights(model, (part.name for part in model.manifest.parts), machine, peers)
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
    """Start peers on loopback that share a model's layers; end them all with the block.

    They also leave if this process ends in any way, since their standard input closes.

    Args:
        model: the model whose layers they serve.
        ranges: as ``share_layers`` gives them.
        machine: how much of this machine each of them may use.
        transport: as for a peer.
        homes: where every peer but the first keeps parts, which it fetches; None: in one store.
        on_ready: called with each peer once it serves.
        on_step: called with the steps of peers that do not serve yet.

    Raises:
        P2pinferError: a peer did not start; the text is its own error.
    """
    found: dict[int, LocalPeer] = {}
    keep = min(1, ranges[0].first)
    steps: dict[int, str] = {}  # of who is not ready yet
    seeded = trio.Event()  # set once the first peer, whose store is whole, serves
    with tempfile.TemporaryDirectory(prefix="p2pinfer-") as home, lone_errors():
        async with trio.open_nursery() as nursery:

            async def start(index: int, layers: LayerRange) -> None:
                own = homes / str(index) if homes and index else None
                if own and not _holds(own, model, layers):
                    await seeded.wait()
                ways_in = [way for peer in found.values() for way in peer.addresses]
                command = [
                    *_join_command(machine, transport, model.id, keep),
                    *["--layers", f"{layers}", "--identity", f"{home}/identity-{index}"],
                    *(["--bootstrap", *ways_in] if ways_in else []),
                ]
                log = Path(home) / f"log-{index}"
                process = await nursery.start(run_peer, command, log, own)

                def tell(text: str) -> None:
                    steps[index] = f"peer {index + 1}: {text}"
                    on_step(steps[index])

                with relayed(nursery, log, tell):
                    found[index] = await wait_ready(process, log)
                steps.pop(index, None)
                if steps or len(found) < len(ranges):  # its step is over, but others are not
                    on_step(next(iter(steps.values()), "waiting for the other peers …"))
                if index == 0:
                    seeded.set()
                on_ready(found[index])

            try:
                with trio.move_on_after(READY_S_MAX):
                    async with trio.open_nursery() as starting:
                        for index, layers in enumerate(ranges):
                            starting.start_soon(start, index, layers)
                        starting.start_soon(_probe_ends, model, ranges[0].first, machine, steps)
                if len(found) < len(ranges):
                    raise _late(steps[each] for each in steps if each in range(len(ranges)))
                yield [found[index] for index in range(len(ranges))]
            finally:
                nursery.cancel_scope.cancel()


def _late(steps: Iterable[str]) -> P2pinferError:
    """Return what is said of peers that do not serve in time."""
    why = next(iter(steps), "some have not said why")
    return P2pinferError(f"not all peers serve after {READY_S_MAX:.0f} s: {why}")


async def _probe_ends(
    model: PartsModel, keep: int, machine: Machine, steps: dict[int, str]
) -> None:
    """Have the ends probed of who will ask; what is wrong shows again when they are opened."""
    if are_probed(model.end_paths(keep), machine.threads, machine.gpu):
        return
    steps[-1] = loading_ends(model, keep, keep, machine.threads, machine.gpu)
    with suppress(P2pinferError, OSError):
        first, last = await in_thread(model.ends, keep)
        few = replace(machine, sessions=1, context=CONTEXT_MIN, long_context=0, long_sessions=0)
        async with open_own_ends(model, first, last, few):
            pass
    del steps[-1]


def _join_command(machine: Machine, transport: str, model: ModelId, keep: int) -> list[str]:
    """Return what starts a peer, with the options that all of a local swarm share."""
    return [
        *python_command("p2pinfer", "join", "--json", "--until-stdin-closes"),
        *["--model", model, "--keep-layers", str(keep)],
        *["--listen", "/ip4/127.0.0.1/tcp/0", "--network", "local", "--transport", transport],
        *["--no-mdns", "--no-dht"],
        *["--sessions", str(machine.sessions)],
        # They are for this process alone.
        *["--sessions-per-requester", str(machine.sessions)],
        # Without it, each of them finds out how long its sessions may be, as this process does.
        *([] if machine.long_context else ["--context", str(machine.context)]),
        *(["--threads", str(machine.threads)] if machine.threads else []),
        *["--gpu", _gpu(machine.gpu)],
    ]


def _gpu(gpu: Gpu | None) -> str:
    if gpu is None:
        return OFF
    return gpu.name if gpu.is_named else AUTO


@contextmanager
def relayed(nursery: trio.Nursery, log: Path, on_step: Step) -> Iterator[None]:
    """Call ``on_step`` with every line that a peer logs while the block lasts."""
    scope = trio.CancelScope()

    async def relay() -> None:
        relayed_count = 0
        with scope:
            while True:
                *lines, _ = _read(log).split("\n")
                for line in lines[relayed_count:]:
                    on_step(line)
                relayed_count = len(lines)
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
    """Run a peer until cancelled; then ask it to leave, and kill it if it does not."""
    with log.open("wb") as stderr:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environment(home),
            process_group=0,  # a terminal's Ctrl-C is for this process
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
    """Return the environment without this process's own options, such as --bootstrap."""
    kept = ("P2PINFER_HOME", libraries.FOLDER_VARIABLE)
    found = {
        k: v for k, v in python_environment().items() if k in kept or not k.startswith("P2PINFER_")
    }
    found["P2PINFER_CONFIG"] = ""  # the settings file is not for it either
    return found | {"P2PINFER_HOME": str(home)} if home else found


def store_of(home: Path) -> Store:
    """Return the store of a peer with this home."""
    return Store(home / "data" / "store")


def _holds(home: Path, model: PartsModel, layers: LayerRange) -> bool:
    """Whether a peer with this home already has all that it needs.

    Parts alone are not enough: a model with an adapter shares most of them with its base.
    """
    store = store_of(home)
    if store.manifest(model.id) is None:
        return False
    needed = model.manifest.needed(layers.first, layers.end)
    return all(store.held(model.manifest.part(name)) for name in needed)


async def wait_ready(process: trio.Process, log: Path) -> LocalPeer:
    """Wait for the line that a peer prints once it serves; raises P2pinferError."""
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
    """Return why a peer ended: the last line of its log, if there is one."""
    if code == -signal.SIGKILL:
        return "the system killed it, as it does when memory runs out"
    lines = _read(log).strip().splitlines()
    return lines[-1].removeprefix("p2pinfer: ") if lines else "it gave no reason"
