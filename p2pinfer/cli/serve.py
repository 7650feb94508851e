"""``p2pinfer serve``: an OpenAI-compatible API and the web page on this machine."""

import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from p2pinfer.cli.answer_options import ANSWER, AnswerFlags
from p2pinfer.cli.machine_options import MachineFlags
from p2pinfer.cli.options import (
    REACH,
    USE,
    AsJson,
    Network,
    Pace,
    ReachFlags,
    SwarmModel,
    Via,
    WaysIn,
    option,
)
from p2pinfer.cli.running import cancel_at_end_of_input, run_task
from p2pinfer.cli.sizes import check_range
from p2pinfer.core import errors
from p2pinfer.core.errors import UserError

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    import trio

    from p2pinfer.api.gateway import Access, Gateway
    from p2pinfer.api.loading import Loading
    from p2pinfer.client.library import Swarm
    from p2pinfer.core.ids import ModelId
    from p2pinfer.engine.store.store import Store
    from p2pinfer.node.requester import Machine
    from peers.parts.progress import Progress
    from transports.base import Reach

SESSIONS_DEFAULT = 24
"""Concurrent answers: a gateway has many clients, and a session in its own ends is small."""

PORT_DEFAULT = 11550
"""No similar tool uses this port."""

PORT_MAX = 65_535

ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s]+")
"""A scheme and a host, perhaps with a port; app://obsidian.md is one, too."""

LOCAL_MAX = 16
"""The same limit as ``--peers`` of demo."""

Local = Annotated[int, option("local", "Start N local peers first (try it on one machine).")]
Host = Annotated[str, option("host", "Address to listen on; a public one needs an API key.")]
Port = Annotated[int, option("port", "Port to listen on; 0 picks a free one.")]
ApiKey = Annotated[
    str | None, option("api-key", "Key that clients must send; safer as an environment variable.")
]
Origins = Annotated[
    tuple[str, ...],
    option(
        "cors-origin",
        "Other web sites whose pages may call this gateway, or '*' for all.",
        consume_multiple=True,
    ),
]
Hosts = Annotated[
    tuple[str, ...],
    option(
        "allow-host",
        "Other host names by which a proxy or tunnel calls this gateway, such as box.example.org.",
        consume_multiple=True,
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class GatewayMachineFlags(MachineFlags):
    """How much of this machine a gateway, and each peer of ``--local``, may use."""

    sessions: Annotated[int, option("sessions", "Maximum concurrent answers.", group=USE)] = (
        SESSIONS_DEFAULT
    )


MACHINE = GatewayMachineFlags()


def serve(
    *,
    bootstrap: WaysIn = (),
    local: Local = 0,
    host: Host = "127.0.0.1",
    port: Port = PORT_DEFAULT,
    api_key: ApiKey = None,
    cors_origin: Origins = (),
    allow_host: Hosts = (),
    model: SwarmModel = None,
    network: Network = "main",
    via: Via = 0,
    pace: Pace = 0,
    as_json: AsJson = False,
    until_stdin_closes: Annotated[bool, Parameter(show=False, negative="")] = False,
    reach: ReachFlags = REACH,
    answer: AnswerFlags = ANSWER,
    machine: GatewayMachineFlags = MACHINE,
) -> None:
    """Run a gateway until it is told to end."""
    import trio

    from p2pinfer.node.hidden_way import check_hops
    from p2pinfer.node.model_supply import check_named

    check_range("port", port, 0, PORT_MAX)
    named = reach.ways_in(bootstrap)
    way, model = reach.of(network, named), reach.model(model)
    is_elsewhere = bool(named) or network != "main" or reach.says_where
    check_hops(via, way, pace)
    bootstrap = _ways_in(local, named, way, via, is_elsewhere=is_elsewhere)
    if answer.certificate:
        raise UserError("a gateway serves its certificates at /api/receipts: omit --certificate")
    access = _access(host, api_key, cors_origin, allow_host)
    limits = machine.machine()
    answer.options()  # raises before anything starts
    answer.template()
    check_named(model)
    wanted = _Wanted(
        local, bootstrap, way, model, answer, limits, access, (host, port), as_json, via, pace
    )

    async def run() -> None:
        with errors.lone_errors():
            async with trio.open_nursery() as nursery:
                if until_stdin_closes:
                    nursery.start_soon(cancel_at_end_of_input, nursery.cancel_scope)
                await _serve(wanted)

    run_task(run, interrupted=errors.EXIT_DONE)


@dataclass(frozen=True)
class _Wanted:
    """The parsed command line."""

    local: int
    bootstrap: tuple[str, ...]
    way: "Reach"
    model: str | None
    answer: AnswerFlags
    machine: "Machine"
    access: "Access"
    listen: tuple[str, int]
    as_json: bool
    via: int = 0
    pace_ms: int = 0


async def _serve(wanted: _Wanted) -> None:
    """Open the port first, then the swarm behind it; serve until cancelled."""
    import trio

    from p2pinfer.api.app import make_app, make_loading_app
    from p2pinfer.api.gateway import Gateway
    from p2pinfer.api.loading import Loading
    from p2pinfer.api.models import Models
    from p2pinfer.api.server import Front, open_server
    from p2pinfer.api.telemetry import open_telemetry
    from p2pinfer.cli.model_argument import name_model
    from p2pinfer.cli.terminal import say
    from p2pinfer.node.model_supply import open_store
    from p2pinfer.node.status_socket import open_status

    store, answer = open_store(), wanted.answer
    loading = Loading(wanted.local + 2)
    front = Front(make_loading_app(loading, wanted.access))
    async with AsyncExitStack() as stack:
        telemetry = await stack.enter_async_context(open_telemetry(os.environ))
        url = await stack.enter_async_context(open_server(front, *wanted.listen))
        if not wanted.as_json:
            print(
                f"web page    {url}/  (open it now: it shows the progress of loading)", flush=True
            )
        named = None
        if wanted.model or wanted.local:  # a new file is hashed, which takes a while
            find = partial(name_model, wanted.model or "default", store, loading.progress)
            named = await trio.to_thread.run_sync(find)
        loading.next()
        swarm = await stack.enter_async_context(_swarm(wanted, named, store, loading))
        how = answer.options(swarm.client.model.advice)
        gateway = Gateway(swarm, how, wanted.access, seed=answer.seed, telemetry=telemetry)
        nursery = await stack.enter_async_context(_nursery())
        opening = None if wanted.local else partial(_other, wanted, gateway, store, loading)
        front.app, loading.is_over = make_app(gateway, Models(gateway, nursery, opening)), True
        ways_in = swarm.client.ways_in_told
        await stack.enter_async_context(open_status(lambda: _describe(swarm, url), ways_in))
        if remark := swarm.remark():
            say(remark)
        if wanted.as_json:
            print(json.dumps({"url": url, "model": swarm.client.model.id}), flush=True)
        else:
            print(f"model       {swarm.model_name}")
            print(f"OpenAI API  {url}/v1")
            print("ready; Ctrl-C to end", flush=True)
        await trio.sleep_forever()


@asynccontextmanager
async def _nursery() -> AsyncIterator["trio.Nursery"]:
    """Open a nursery whose tasks end with the block."""
    import trio

    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _other(
    wanted: _Wanted, own: "Gateway", store: "Store", loading: "Loading", model: "ModelId"
) -> AsyncIterator["Gateway"]:
    """Open a gateway to another model of the swarm while the block lasts."""
    # Both are the own model's.
    answer = replace(wanted.answer, chat_template=None, draft_model=None)
    async with _swarm(replace(wanted, answer=answer), model, store, loading) as swarm:
        how = answer.options(swarm.client.model.advice)
        yield replace(own, swarm=swarm, defaults=how, running={}, is_own=False)


def _ways_in(
    local: int, bootstrap: tuple[str, ...], way: "Reach", via: int = 0, *, is_elsewhere: bool
) -> tuple[str, ...]:
    """Return the addresses through which to enter the swarm; raises UserError."""
    from p2pinfer.node import local_peers
    from p2pinfer.node.swarm_connection import looks_around

    check_range("local", local, 0, LOCAL_MAX)
    if local and via:
        raise UserError("--local asks peers on this machine, where --via hides nothing: omit one")
    if via:
        return bootstrap
    if local and is_elsewhere:
        raise UserError(
            "--local starts its own swarm on this machine: omit it, or omit --bootstrap, --network,"
            " --network-key, --mdns, --dht and the invitation"
        )
    if not local:
        bootstrap = local_peers.ways_in(bootstrap, way.network)
    if not (local or bootstrap or looks_around(way)):
        raise UserError(
            "no swarm is known here. To try it on this machine alone: p2pinfer serve --local 3."
            " To reach other machines: an invitation (p2pinfer invite prints one there), or"
            " --bootstrap ADDRESS; --no-mdns keeps this one from looking on the local network"
        )
    return bootstrap


def _access(
    host: str, api_key: str | None, origins: tuple[str, ...], hosts: tuple[str, ...] = ()
) -> "Access":
    """Return who may use the gateway; raises UserError if everyone on a network could."""
    from p2pinfer.api.gateway import Access
    from p2pinfer.api.guard import is_loopback, name_of
    from p2pinfer.logs import note

    if not is_loopback(host) and not api_key:
        raise UserError(
            f"anyone who can reach {host} could use this gateway: set P2PINFER_API_KEY to a secret"
            " that clients must send, or omit --host"
        )
    if api_key and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key):
        raise UserError(
            "no client could send this --api-key: use ASCII letters, digits and signs, without a"
            " space or line end around them"
        )
    for name in hosts:
        if len(name.split()) != 1 or name_of(f"//{name}") != name.lower():
            raise UserError(f"--allow-host {name!r} is not a bare name such as box.example.org")
    for origin in origins:
        if origin not in ("*", "null") and not ORIGIN.fullmatch(origin):
            raise UserError(
                f"--cors-origin {origin!r} is not how a browser names a site: write"
                " https://chat.example.org, without a path, or '*' for all"
            )
    if hosts and not api_key:
        note(
            f"anyone who can reach {', '.join(hosts)} can use this gateway, unless the proxy checks"
            " who they are: P2PINFER_API_KEY sets a key that clients must send"
        )
    names = tuple(name.lower() for name in hosts)
    return Access(api_key, origins, only_local_names=is_loopback(host), hosts=names)


@asynccontextmanager
async def _swarm(
    wanted: _Wanted, named: "ModelId | None", store: "Store", loading: "Loading"
) -> AsyncIterator["Swarm"]:
    """Join the wanted swarm while the block lasts; start it first if it is local."""
    import trio

    from p2pinfer.cli.model_argument import default_model, draft_model
    from p2pinfer.cli.terminal import doing
    from p2pinfer.client.library import open_swarm
    from p2pinfer.node.requester import ClientOptions, open_client

    answer, machine = wanted.answer, wanted.machine
    async with AsyncExitStack() as stack:
        options = ClientOptions(
            named,
            wanted.bootstrap,
            wanted.way,
            answer.keep_layers,
            machine,
            shows_tokens=answer.show_tokens,
            audit_rate=answer.audit_rate,
            proof_rate=answer.proof_rate,
            drafts=answer.draft and not wanted.pace_ms,
            draft_model=await trio.to_thread.run_sync(draft_model, answer.draft_model, store),
            sponsored=answer.sponsor,
            anonymous=answer.anonymous,
            default_model=default_model(store),
            via=wanted.via,
            pace_ms=wanted.pace_ms,
        )
        if named and wanted.local:
            local = _local_swarm(named, store, wanted, loading)
            ways_in = await stack.enter_async_context(local)
            options = replace(options, bootstrap=ways_in, network="local")
        done = await stack.enter_async_context(doing("Joining the swarm …"))

        def tell(transfer: "Progress") -> None:
            done.tell(transfer)
            loading.tell(transfer)

        def step(text: str) -> None:
            done.step(text)
            loading.step(text)

        client = await stack.enter_async_context(open_client(options, store, tell, step))
        swarm = await stack.enter_async_context(
            open_swarm(client, machine.sessions, chat_template=answer.template())
        )
        done()
        yield swarm


@asynccontextmanager
async def _local_swarm(
    model: "ModelId", store: "Store", wanted: _Wanted, loading: "Loading"
) -> AsyncIterator[tuple[str, ...]]:
    """Start peers on this machine; yields the addresses of their swarm."""
    from p2pinfer.cli.starting import starting
    from p2pinfer.node.local_swarm import share_layers
    from p2pinfer.node.model_supply import open_whole

    opened = open_whole(model, store)
    ranges = share_layers(opened, wanted.local, wanted.answer.keep_layers, wanted.machine)
    async with starting(
        opened, ranges, wanted.machine, on_step=loading.step, on_ready=loading.next
    ) as running:
        yield tuple(peer.addresses[0] for peer in running)


def _describe(swarm: "Swarm", url: str) -> dict[str, Any]:
    """Return a gateway's status, for other processes on this machine."""
    pool = swarm.pool
    return {
        "role": "gateway",
        "url": url,
        "state": "waiting for peers" if swarm.client.missing() else "serving",
        "model": swarm.client.model.id,
        "model_name": swarm.model_name,
        "answers_running": pool.running,
        "answers_waiting": pool.waiting,
        "sessions_max": pool.sessions_max,
        "punching": dict(swarm.client.transport.punching),
        "sessions": pool.describe(),
    }
