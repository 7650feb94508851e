"""How long a swarm takes to form, from the first start to the first token.

The peers start at once, knowing one address. They are processes with different memory limits,
and no assigned layers. All but the first begin with an empty store, and fetch what they
choose to serve from those before them.
"""

import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from p2pinfer.client.answer import ChatOptions
from p2pinfer.client.conversation import open_conversation
from p2pinfer.core.errors import NobodyServes, lone_errors
from p2pinfer.core.python_process import python_command
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.llama.memory import WORKER_BYTES
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.node.local_swarm import LocalPeer, run_peer, wait_ready
from p2pinfer.node.memory_plan import layer_bytes
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import ClientOptions, Machine, open_client
from transports.identity import load_identity

NETWORK = "bench"

HOLDERS = 2
"""All peers together have room for each layer this many times."""

START_S_MAX = 600.0
"""From the first start to the first token."""

AGAIN_S = 0.2
"""Between two attempts to reach the first peer."""

TOKENS = 8


@dataclass
class _Start:
    """Times of events, in seconds after the first start."""

    started_s: float
    ready_s: dict[int, float] = field(default_factory=dict)
    served: dict[int, str] = field(default_factory=dict)

    def elapsed_s(self) -> float:
        return round(trio.current_time() - self.started_s, 2)


async def swarm_bench(file: Path, peers: int) -> dict[str, Any]:
    """Measure and return what ``p2pinfer bench swarm`` prints.

    Raises:
        NobodyServes: the peers did not come to serve the whole model.
    """
    store = open_store()
    model = open_whole(name_model(str(file), store, lambda *_: None), store)
    machine = Machine(sessions=4, context=1024)
    rooms = share_room(model.manifest.layers - 2, peers)
    with tempfile.TemporaryDirectory(prefix="p2pinfer-") as folder, lone_errors():
        home = Path(folder)
        way_in = f"/ip4/127.0.0.1/tcp/{_free_port()}"
        full = f"{way_in}/p2p/{load_identity(home / 'identity-0').peer_id}"
        async with trio.open_nursery() as nursery:
            start = _Start(trio.current_time())

            async def run(number: int, room: int) -> None:
                command = _command(model, machine, home, number, room)
                command += ["--listen", way_in if number == 0 else "/ip4/127.0.0.1/tcp/0"]
                command += ["--bootstrap", full] if number else []
                log = home / f"log-{number}"
                own = home / f"home-{number}" if number else None
                process = await nursery.start(run_peer, command, log, own)
                ready: LocalPeer = await wait_ready(process, log)
                start.ready_s[number] = start.elapsed_s()
                start.served[number] = ready.layers

            for number, room in enumerate(rooms):
                nursery.start_soon(run, number, room)
            options = ClientOptions(
                model.id, (full,), NETWORK, machine=machine, find_s_max=START_S_MAX
            )
            with trio.fail_after(START_S_MAX):
                report = await _first_answer(options, start)
            nursery.cancel_scope.cancel()
    return {"peers": peers, "room_for_layers": rooms, **report}


def share_room(layers: int, peers: int) -> list[int]:
    """Return how many layers each peer has room for: some few, some many, enough in total."""
    steps = peers * (peers + 1) // 2
    return [max(1, min(layers, -(-HOLDERS * layers * n // steps))) for n in range(1, peers + 1)]


def _command(model: PartsModel, machine: Machine, home: Path, number: int, room: int) -> list[str]:
    memory = WORKER_BYTES + room * layer_bytes(model, machine)
    return [
        *python_command("p2pinfer", "join", "--json", "--until-stdin-closes"),
        *["--no-mdns", "--no-dht", "--gpu", "off"],
        *["--model", model.id, "--network", NETWORK],
        *["--identity", str(home / f"identity-{number}"), "--memory", str(memory)],
        *["--sessions", str(machine.sessions), "--context", str(machine.context)],
    ]


async def _first_answer(options: ClientOptions, start: _Start) -> dict[str, Any]:
    """Join as soon as the first peer answers, and ask as soon as all layers are served."""
    shown: list[float] = []

    def show(_: str) -> None:
        shown.append(start.elapsed_s())

    how = ChatOptions(Sampling(temperature=0.0), TOKENS)
    while True:
        try:
            async with (
                open_client(options, open_store(), lambda _: None) as client,
                open_conversation(client, how, lambda _: None) as conversation,
            ):
                await client.find_route(lambda _: None)
                route_s = start.elapsed_s()
                answer = await conversation.ask("Name a colour.", show)
                break
        except NobodyServes:
            await trio.sleep(AGAIN_S)  # the first peer does not listen yet
    return {
        "first_ready_s": min(start.ready_s.values()),
        "first_route_s": route_s,
        "first_token_s": shown[0],
        "ready_s": [start.ready_s.get(number) for number in sorted(start.ready_s)],
        "served": [start.served[number] for number in sorted(start.served)],
        "tokens": answer.tokens,
        "route": answer.route,
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
