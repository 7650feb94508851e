"""Compose a peer that lends space: alone, or beside one that serves layers."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import attrs
import trio

from p2pinfer.core.advertisement import Advertisement, without_layers
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.manifest import Manifest
from p2pinfer.core.stripes import DATA_SHARES, PARITY_SHARES, Layout
from p2pinfer.engine.store.store import Store
from p2pinfer.node.atomic_file import replace_text
from p2pinfer.node.bookkeeping import counting, tell_credit
from p2pinfer.node.bystander import open_bystander
from p2pinfer.node.swarm_connection import SwarmConnection, open_swarm_connection
from p2pinfer.places import data_dir
from peers.discovery.relay_candidates import relay_candidates
from peers.parts.census import Census, RowIndex
from peers.parts.describe import Tell, fetch_manifest, log_blame
from peers.parts.keep_server import KeepServer
from peers.parts.keeper import Keeper, KeptState, Lending
from peers.parts.link import Holder
from peers.parts.protocol import Tally
from peers.parts.server import PartsServer
from peers.parts.survey import find_plans
from scheduler.keeping import may_lose
from transports.base import Reach

_log = logging.getLogger("p2pinfer.node")

LOOK_S = 5.0
"""How long to wait for the first news of a model's peers before asking how it is kept."""


@dataclass(frozen=True)
class KeepOptions:
    """Options of a peer that keeps a model and serves no layers."""

    model: ModelId
    space_bytes: int
    k: int = DATA_SHARES
    m: int = PARITY_SHARES
    listen: tuple[str, ...] = ()
    """Empty: all interfaces, at the port that is kept beside the key."""
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    network: Reach = field(default_factory=Reach)
    identity: Path | None = None


@dataclass(frozen=True)
class KeepHooks:
    """Callbacks to the program that runs a keeper."""

    on_ready: Callable[[PeerId, tuple[str, ...], Manifest], object]
    watch: Callable[[KeptState], object]
    """Called after each round."""
    tell: Tell
    say: Callable[[str], None]


def kept_dir() -> Path:
    """Return where is written what is kept, model by model."""
    return data_dir() / "kept"


def last_report(model: ModelId) -> tuple[KeptState, float] | None:
    """Return what a keeper on this machine last saw of a model, and when it did (Unix time)."""
    path = kept_dir() / f"{model}.json"
    try:
        said = json.loads(path.read_text())
        return KeptState(**said), path.stat().st_mtime
    except (OSError, ValueError, TypeError):
        return None


def _lending(model: ModelId, space_bytes: int, k: int, m: int) -> Lending:
    path = kept_dir() / model

    def load() -> bytes | None:
        try:
            return bytes.fromhex(path.read_text())
        except (OSError, ValueError):
            return None

    def save(data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, data.hex())
        except OSError as error:
            _log.warning("cannot write down what is kept: %s", error)

    return Lending(space_bytes, k, m, load, save)


def _write_report(model: ModelId, kept: KeptState) -> None:
    with suppress(OSError):  # it is only for showing
        kept_dir().mkdir(parents=True, exist_ok=True)
        replace_text(kept_dir() / f"{model}.json", json.dumps(attrs.asdict(kept)))


def make_keeper(
    swarm: SwarmConnection,
    store: Store,
    manifest: Manifest,
    server: KeepServer,
    space_bytes: int,
    *,
    k: int = DATA_SHARES,
    m: int = PARITY_SHARES,
    watch: Callable[[KeptState], object] = lambda _: None,
    say: Callable[[str], object] = lambda _: None,
    tally: Tally | None = None,
) -> Keeper:
    """Return a keeper of a model, which is to be run beside the swarm's connection."""

    def holders() -> Iterable[Holder]:
        return swarm.directory.holding(manifest.id)

    def report(kept: KeptState) -> None:
        _write_report(manifest.id, kept)
        watch(kept)

    return Keeper(
        swarm.transport,
        holders,
        store,
        manifest,
        _lending(manifest.id, space_bytes, k, m),
        server,
        swarm.chance,
        watch=report,
        say=say,
        clock_s=lambda: time.clock_gettime(time.CLOCK_REALTIME),
        tally=tally,
    )


async def run_keeper(options: KeepOptions, store: Store, hooks: KeepHooks) -> None:
    """Keep a model until cancelled.

    Raises:
        UserError: an option cannot be used; the sentence says what to do.
    """
    async with AsyncExitStack() as stack:
        swarm = await stack.enter_async_context(open_bystander(options, hooks.say, "keeper"))
        transport, directory = swarm.transport, swarm.directory
        directory.listen()
        directory.follow(options.model)
        me = transport.peer_id
        find = partial(relay_candidates, directory, me, options.model, transport.round_trip_s)
        transport.seek_relays(find)
        tally = await stack.enter_async_context(counting(swarm.nursery))
        PartsServer(transport, store, on_sent=tally.sent).listen()
        server = KeepServer(transport, store)
        server.listen()
        if not swarm.bootstrap or await directory.enter(swarm.bootstrap):
            await swarm.find_anybody()
        swarm.stay_in_touch()

        def holders() -> Iterable[Holder]:
            return directory.holding(options.model)

        manifest = await fetch_manifest(transport, holders, store, options.model, hooks.tell)
        directory.advertise(advertisement_without_layers(tuple(transport.addresses), me, manifest))
        hooks.on_ready(me, tuple(transport.addresses), manifest)
        keeper = make_keeper(
            swarm,
            store,
            manifest,
            server,
            options.space_bytes,
            k=options.k,
            m=options.m,
            watch=hooks.watch,
            say=hooks.say,
            tally=tally,
        )
        tell_credit(swarm, manifest.id)
        try:
            await keeper.run()
        finally:
            directory.leave()


def advertisement_without_layers(
    addresses: tuple[str, ...], me: PeerId, model: Manifest
) -> Advertisement:
    """Return the advertisement of a peer that keeps or learns: it serves no layer, and will not."""
    return without_layers(addresses, me, model.id, model.name, model.layers, model.context)


@dataclass(frozen=True)
class Safety:
    """How safe a model is in a swarm."""

    may_lose: int
    """How many peers may vanish at once with nothing lost; -1: something is out of reach now."""
    keepers: int
    """Peers that lend space to it."""


async def look_at_safety(
    store: Store, manifest: Manifest, bootstrap: Sequence[str], reach: Reach
) -> Safety:
    """Ask the peers of a swarm what they hold of a model.

    Raises:
        NobodyServes: none of the addresses answers.
        UserError: an address cannot be used.
    """
    async with open_swarm_connection(bootstrap, reach) as swarm:

        def holders() -> Iterable[Holder]:
            return swarm.directory.holding(manifest.id)

        await swarm.enter(manifest.id)
        if not list(holders()):
            await trio.sleep(LOOK_S)
        plan = store.plan(manifest)
        if plan is None:
            found = await find_plans(swarm.transport, holders(), manifest, log_blame)
            plan = found[0][0] if found else None
        layout = Layout(manifest, plan.k if plan else DATA_SHARES, plan.m if plan else 1)
        rows = RowIndex.of(manifest, layout, plan)
        census = Census(swarm.transport, holders, manifest, log_blame, trio.current_time)
        await census.look(rows, 0.0)
        holds: dict[int, dict[PeerId, set[int]]] = {number: {} for number in rows.groups}
        for peer, known in census.known.items():
            for row in known.rows:
                holds[row.group].setdefault(peer, set()).add(row.row)
        losses = may_lose((group, holds[n]) for n, group in rows.groups.items())
        return Safety(losses, sum(bool(each.lent_bytes) for each in census.known.values()))


def parse_code(text: str) -> tuple[int, int]:
    """Return data and parity shares of ``8+8``; raises UserError."""
    data, _, parity = text.partition("+")
    if data.isdecimal() and parity.isdecimal() and 1 <= int(data) <= 64 and 1 <= int(parity) <= 64:
        return int(data), int(parity)
    raise UserError(f"--code {text} is not two numbers from 1 to 64 such as 8+8")
