"""``p2pinfer join``: lend this machine to a swarm."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from p2pinfer.cli.machine_options import MACHINE, SESSIONS_MAX, MachineFlags
from p2pinfer.cli.options import (
    REACH,
    RELAY,
    USE,
    Announce,
    AsJson,
    Bootstrap,
    Identity,
    Listen,
    Memory,
    Network,
    Quota,
    ReachFlags,
    RelayFlags,
    option,
)
from p2pinfer.cli.running import cancel_at_end_of_input, run_task
from p2pinfer.cli.sizes import check_range, parse_bytes
from p2pinfer.cli.space import parse_space
from p2pinfer.core import errors
from p2pinfer.core.errors import UserError
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.limits import SESSIONS_PER_REQUESTER_DEFAULT

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer.cli.announcement import JoinAnnouncer
    from p2pinfer.engine.store.store import Store
    from p2pinfer.node.peer import PeerOptions, Serving


def _one_a_line(_: Any, value: str, **__: Any) -> list[str]:
    """Split a variable where paths with spaces may be named."""
    return value.splitlines()


SwarmModels = Annotated[
    tuple[str, ...],
    option(
        "model",
        "GGUF file, hf:owner/repo[:QUANT], model id, or 'default'; several times for several"
        " models, which share the memory (one a line in the variable). If omitted: the model that"
        " the swarm serves, or else 'default'.",
        env_var_split=_one_a_line,
    ),
]
Layers = Annotated[
    str | None,
    option(
        "layers",
        "Serve exactly layers FIRST:END, counted from 0, END exclusive (1:10 is layers 1 to 9). If"
        " omitted: chosen automatically.",
    ),
]
KeepLayers = Annotated[
    int,
    option(
        "keep-layers",
        "Layers at each end of the model that requesters in this swarm run themselves; the peers"
        " serve the rest. It must be the same for all peers of a swarm.",
    ),
]
KeepSpace = Annotated[
    str | None,
    option(
        "keep-space",
        "Also lend this much disk to the model, such as 20GiB, so that it outlives its holders;"
        " see: p2pinfer keep --help.",
        group=USE,
    ),
]
OnlyIdle = Annotated[
    bool,
    option(
        "only-idle", "Rest while this machine is on battery or busy with other work.", group=USE
    ),
]
SessionsPerRequester = Annotated[
    int,
    option(
        "sessions-per-requester",
        "Sessions that one requester may have here at once, so that others find room.",
        group=USE,
    ),
]


def join(
    *,
    layers: Layers = None,
    keep_layers: KeepLayers = 1,
    memory: Memory = None,
    model: SwarmModels = (),
    listen: Listen = (),
    announce: Announce = (),
    bootstrap: Bootstrap = (),
    network: Network = "main",
    quota: Quota = None,
    identity: Identity = None,
    only_idle: OnlyIdle = False,
    keep_space: KeepSpace = None,
    as_json: AsJson = False,
    until_stdin_closes: Annotated[bool, Parameter(show=False, negative="")] = False,
    transport: Annotated[str, Parameter(show=False)] = "libp2p",
    reach: ReachFlags = REACH,
    sessions_per_requester: SessionsPerRequester = SESSIONS_PER_REQUESTER_DEFAULT,
    relay: RelayFlags = RELAY,
    machine: MachineFlags = MACHINE,
) -> None:
    """Run a peer until it is told to leave."""
    from p2pinfer.cli.announcement import JoinAnnouncer
    from p2pinfer.cli.model_argument import name_model
    from p2pinfer.node.model_supply import open_store
    from p2pinfer.node.peer import PeerOptions

    limits = machine.machine()
    check_range("keep-layers", keep_layers, 0)
    check_range("sessions-per-requester", sessions_per_requester, 1, SESSIONS_MAX)
    names: list[str | None] = [*dict.fromkeys(model)] or [reach.model(None)]
    if len(names) > 1:
        _check_several(layers, identity, listen, announce)
    fixed = None if layers is None else _parse_layers(layers)
    memory_bytes = parse_bytes("memory", memory)
    store = open_store(parse_bytes("quota", quota))
    ways_in = reach.ways_in(bootstrap)
    way = relay.of(reach.of(network, (*listen, *ways_in)))
    options = PeerOptions(
        model=None,
        layers=fixed,
        keep=keep_layers,
        listen=listen,
        announce=announce,
        bootstrap=ways_in,
        network=way,
        identity=identity,
        machine=limits,
        memory_bytes=memory_bytes,
        transport=transport,
        only_idle=only_idle,
        keep_bytes=parse_space("keep-space", keep_space) if keep_space else 0,
        sessions_per_requester=sessions_per_requester,
    )
    models = dict.fromkeys(name_model(name, store) if name else None for name in names)
    announcer = JoinAnnouncer(
        how_to_reach(network, reach),
        as_json=as_json,
        fixed=fixed is not None,
        keep=keep_layers,
        mdns=way.mdns and not announce,  # an announced address is for machines elsewhere
        models=len(models),
    )
    each = [replace(options, model=model) for model in models]
    _lend(each, store, announcer, until_stdin_closes=until_stdin_closes, as_json=as_json)


def _check_several(
    layers: str | None, identity: Path | None, listen: Sequence[str], announce: Sequence[str]
) -> None:
    """Raise UserError for options that can only be meant for one of several models."""
    ports = [each for each in listen if not each.endswith("/tcp/0")]
    named = {"layers": layers, "identity": identity, "listen": ports, "announce": announce}
    for name, value in named.items():
        if value:
            raise UserError(
                f"--{name} is for one model, and several are named: omit it, or type p2pinfer join"
                " once for each model"
            )


def how_to_reach(network: str, reach: ReachFlags) -> str:
    """Return the options that others need to reach the same swarm."""
    network, key = reach.of(network).network, reach.network_key
    if reach.invitation:
        if not (got := reach.got_key_file()):
            return f" {reach.invitation.strip()}"
        key = got  # the invitation is used up
    found = "" if network == "main" else f" --network {quote(network)}"
    return found + (f" --network-key {quote(str(key))}" if key else "")


def _lend(
    options: Sequence["PeerOptions"],
    store: "Store",
    announcer: "JoinAnnouncer",
    *,
    until_stdin_closes: bool,
    as_json: bool,
) -> None:
    """Run a peer until it has left."""
    import trio

    from p2pinfer.cli.model_argument import default_model
    from p2pinfer.cli.terminal import doing, say
    from p2pinfer.node.peer import Hooks, serve_peers

    leaving = trio.Event()

    async def run() -> None:
        async with doing("Joining the swarm …", at_once=as_json) as done:

            def ready(serving: "Serving") -> None:
                if announcer.tell(serving):
                    done()

            hooks = Hooks(ready, done.tell, done.step, say, leaving, default_model(store))
            async with trio.open_nursery() as nursery:
                if until_stdin_closes:
                    nursery.start_soon(cancel_at_end_of_input, nursery.cancel_scope)
                await serve_peers(options, store, hooks)
                nursery.cancel_scope.cancel()

    run_task(run, interrupted=errors.EXIT_DONE, leave=leaving.set)


def _parse_layers(text: str) -> LayerRange:
    first, _, end = text.partition(":")
    if first.isdecimal() and end.isdecimal() and int(first) < int(end):
        return LayerRange(int(first), int(end))
    raise UserError(f"--layers {text} is not a range such as 10:20")
