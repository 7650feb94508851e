"""Compose a real peer: it finds the swarm, chooses layers, fetches their parts, and serves them."""

import logging
import platform
import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio
from attrs import evolve

from p2pinfer.core.advertisement import SESSIONS_MAX, Advertisement, State
from p2pinfer.core.errors import UserError, lone_errors
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.limits import SESSIONS_PER_REQUESTER_DEFAULT
from p2pinfer.core.manifest import METADATA, Manifest
from p2pinfer.engine.base import StageEngine
from p2pinfer.engine.llama.engine import open_stage
from p2pinfer.engine.llama.memory import budget_bytes
from p2pinfer.engine.store.assemble import PartsModel
from p2pinfer.engine.store.store import Store
from p2pinfer.node.bookkeeping import counting, keep_accounts, serving_peers
from p2pinfer.node.fraud_files import open_frauds, sharing
from p2pinfer.node.identity_lock import hold_identity
from p2pinfer.node.idle_monitor import ActivityMeter, heed_owner
from p2pinfer.node.inviting import ways_in_told
from p2pinfer.node.keeping import make_keeper
from p2pinfer.node.ledger_db import LedgerKeeper, open_books
from p2pinfer.node.listen_port import own_listen
from p2pinfer.node.loading_steps import Step, loading
from p2pinfer.node.memory_plan import appetite, for_stage, inner_layers, layers_max, too_small
from p2pinfer.node.model_supply import Choose, obtain
from p2pinfer.node.owner_notices import SELF, notify_owner
from p2pinfer.node.proof_keys import judge_of
from p2pinfer.node.requester import (
    Machine,
    check_keep,
    check_layers,
    check_memory,
    check_weights,
    for_model,
    freeze_gc,
)
from p2pinfer.node.shared_memory import SharedMemory
from p2pinfer.node.sponsors import clock_ms, sponsor
from p2pinfer.node.status_report import describe_peer
from p2pinfer.node.status_socket import Status, open_status
from p2pinfer.node.swarm_connection import (
    SwarmConnection,
    name_of,
    open_swarm_connection,
)
from p2pinfer.node.vouching import VouchingPeer
from peers.audits.frauds import Frauds, judges_beside
from peers.audits.replay import PeerReplays
from peers.discovery.directory import Directory
from peers.discovery.relay_candidates import relay_candidates
from peers.parts.describe import Tell
from peers.parts.keep_server import KeepServer
from peers.parts.protocol import Tally, in_thread
from peers.parts.server import PartsServer
from peers.receipts.prover import Prover
from peers.receipts.session_evidence import Gatherer
from peers.receipts.signer import ReceiptSigner
from peers.serving.accounts import Accounts
from peers.serving.credit import Credit
from peers.serving.server import HeldLayers, Server, ServingPlan
from transports.base import Reach, Transport
from transports.identity import Identity

T = TypeVar("T")

_log = logging.getLogger("p2pinfer.node")

ANSWER_S_MAX = 15.0
"""How long to wait for a bootstrap peer to answer: peers that start together find each other."""

ANSWER_AGAIN_S = 0.5


@dataclass(frozen=True)
class PeerOptions:
    """Options of a peer that serves layers."""

    model: ModelId | None
    """None: the one that the swarm serves, or else the default."""
    layers: LayerRange | None = None
    """Served whatever others serve; None lets the peer choose."""
    keep: int = 1
    """Layers at each end that those who ask in this swarm run themselves; peers serve the rest."""
    listen: tuple[str, ...] = ()
    """Empty: all interfaces, at the port that is kept beside the key."""
    announce: tuple[str, ...] = ()
    """Told to others before the machine's own addresses."""
    bootstrap: tuple[str, ...] = ()
    network: str | Reach = "main"
    identity: Path | None = None
    """The key's file; None for the first in the data directory that no other peer uses."""
    machine: Machine = field(default_factory=Machine)
    memory_bytes: int | None = None
    """For weights and sessions; None for a share of the free memory."""
    here: list[str] = field(default_factory=list)
    """An address of each of this machine's peers that began with it, for other models."""
    shared: SharedMemory | None = None
    """With other models that this machine serves; ``memory_bytes`` does not count then."""
    transport: str = "libp2p"
    """``tcp`` is bare TCP, for measuring what libp2p costs."""
    only_idle: bool = False
    """Rest while the machine is on battery or busy with other work."""
    keep_bytes: int = 0
    """Disk lent to the model, besides what it serves."""
    sessions_per_requester: int = SESSIONS_PER_REQUESTER_DEFAULT
    """How many sessions one requester may have here at once."""


@dataclass(frozen=True)
class Serving:
    """A peer that serves a range of layers."""

    peer: PeerId
    addresses: tuple[str, ...]
    model: PartsModel
    first: int
    end: int
    layers_max: int
    """How many layers its memory can hold."""


@dataclass(frozen=True)
class Hooks:
    """Callbacks to the program that runs a peer, and its signal that the peer should leave."""

    on_serving: Callable[[Serving], None]
    """Called with every newly served range."""
    tell: Tell
    """Called with the progress of transfers."""
    step: Step
    """Called with each step before anything is served."""
    say: Callable[[str], None]
    """Called with each sentence for the person."""
    leaving: trio.Event
    """Once set, the peer lets sessions finish, hands its layers over, and leaves."""
    default_model: Choose
    """Finds the model if neither the person nor the swarm names one."""


async def serve_peers(options: Sequence[PeerOptions], store: Store, hooks: Hooks) -> None:
    """Serve several models, each as a peer of its own with its own key and port.

    To the swarm a peer serves one model, so this machine is as many peers as it serves models. They
    share its memory, and leave together. Raises as ``serve_peer``.
    """
    total = budget_bytes(options[0].memory_bytes, options[0].machine.gpu)
    shared = SharedMemory(total, len(options)) if len(options) > 1 else None
    here: list[str] = []
    with lone_errors():
        async with trio.open_nursery() as nursery:
            for each in options:
                nursery.start_soon(
                    serve_peer, replace(each, here=here, shared=shared), store, hooks
                )


async def serve_peer(options: PeerOptions, store: Store, hooks: Hooks) -> None:
    """Fetch the missing parts of some layers and serve them, until cancelled or asked to leave.

    Stored parts are served to other fetchers from the start.

    Raises:
        UserError: an option cannot be used; the sentence says what to do.
        EngineDied: llama.cpp cannot run the slice.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(lone_errors())
        key = stack.enter_context(hold_identity(options.identity))
        identity = key.identity
        chance = random.Random()  # noqa: S311 -- draws a port
        bookkeeper = LedgerKeeper(open_books())
        stack.callback(bookkeeper.finish)  # after the nursery has ended the sessions
        swarm = await stack.enter_async_context(
            open_swarm_connection(
                options.bootstrap,
                options.network,
                identity=identity,
                listen=options.listen or own_listen(key.path, chance, hooks.say),
                announce=options.announce,
                kind=options.transport,
            )
        )
        transport, directory, nursery = swarm.transport, swarm.directory, swarm.nursery
        notify_owner(swarm, hooks.say, options.announce)
        _listen(swarm, options.here)
        _seek_relays(swarm, options.model)
        tally = await stack.enter_async_context(counting(nursery))
        keep_server = _listen_for_parts(transport, store, tally)
        server: Server | None = None
        network = name_of(options.network)

        def describe() -> Status:
            statistics = server.statistics if server else None
            hidden = directory.is_hidden
            said = describe_peer(transport, statistics, hidden=hidden)
            return {"network": network} | said | vouching.status()

        vouching = VouchingPeer(identity, network)
        answer = partial(_answer, identity, options.network, transport, directory, vouching)
        await stack.enter_async_context(open_status(describe, answer))
        with trio.CancelScope() as preparing:
            nursery.start_soon(_cancel_at, hooks.leaving, preparing)
            await _enter(swarm, options, hooks)
            model_id = options.model or await swarm.pick_model(hooks.default_model)
            supplies = _Supplies(swarm, store, model_id, options, hooks, tally)
            model = await supplies.open_model()
            memory_bytes = await _memory(options, model)
        if preparing.cancelled_caught:
            return
        signer, accounts, credit, taken = keep_accounts(swarm, model, network, bookkeeper)
        vouching.begin(partial(serving_peers, directory, model.id), taken)
        Prover(transport, signer, platform.machine()).listen()
        nursery.start_soon(bookkeeper.run)
        server = _compose(supplies, model, signer, accounts, memory_bytes)
        if options.only_idle:
            await nursery.start(heed_owner, server.rest, partial(in_thread, ActivityMeter().look))
        if options.keep_bytes:
            space = options.keep_bytes
            keep = make_keeper(
                swarm, store, model.manifest, keep_server, space, say=hooks.say, tally=tally
            )
            nursery.start_soon(keep.run)
        frauds = _frauds(swarm, model, server, credit)
        await stack.enter_async_context(sharing(frauds, nursery))
        await server.run()
        directory.leave()


def _seek_relays(swarm: SwarmConnection, model: ModelId | None) -> None:
    """Let the transport find relays among a model's peers, should it need any."""
    transport = swarm.transport
    if model:
        me, directory = transport.peer_id, swarm.directory
        find = partial(relay_candidates, directory, me, model, transport.round_trip_s)
        transport.seek_relays(find)


def _listen(swarm: SwarmConnection, here: list[str]) -> None:
    """Answer others; know this machine's other peers, so that who finds one of them finds all."""
    swarm.directory.listen()
    swarm.directory.look_at(here)
    here.extend(swarm.transport.own_addresses[:1])


def _listen_for_parts(transport: Transport, store: Store, tally: Tally) -> KeepServer:
    """Serve stored parts, and tell others how their model is kept here."""
    PartsServer(transport, store, on_sent=tally.sent).listen()
    server = KeepServer(transport, store)
    server.listen()
    return server


def _answer(
    identity: Identity,
    reach: str | Reach,
    transport: Transport,
    directory: Directory,
    vouching: VouchingPeer,
    question: Status,
) -> Status:
    """Return what a peer adds to its status for processes of this machine that ask for it."""
    ways_in = ways_in_told(reach, lambda: transport.addresses, directory, question)
    return ways_in | vouching.answer(question) | sponsor(identity, name_of(reach), question)


def _frauds(swarm: SwarmConnection, parts: PartsModel, server: Server, credit: Credit) -> Frauds:
    """Return the record of proven cheats, judged beside serving, and answer others about it."""
    model, steps = parts.id, judge_of(parts.store, parts.manifest)
    gatherer = Gatherer(swarm.nursery, swarm.transport, secrets.token_bytes)
    serving = partial(swarm.directory.serving, model)
    replays = PeerReplays(swarm.transport, serving, model, gatherer, secrets.token_bytes)
    judges = partial(judges_beside, server, replays)
    frauds = open_frauds(swarm, model, swarm.identity.sign, judges, steps=steps)
    frauds.listen()
    credit.on_double = frauds.report
    return frauds


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _enter(swarm: SwarmConnection, options: PeerOptions, hooks: Hooks) -> None:
    """Learn which peers are there, if any, and stay in touch from then on."""
    if options.model:
        swarm.directory.follow(options.model)
    hooks.step("looking for peers in the swarm …")
    for fault in swarm.faults:
        hooks.say(fault)
    ways_in = tuple(swarm.bootstrap)
    if not (ways_in and await _ask(swarm.directory, swarm.transport, ways_in, hooks.say)):
        await swarm.find_anybody()
    swarm.stay_in_touch()


def _strange_selves(transport: Transport, ways_in: Iterable[str]) -> list[str]:
    """Return the bootstrap addresses with this peer's identity where it does not listen."""
    own = [address for address in ways_in if address.endswith(f"/p2p/{transport.peer_id}")]
    return [address for address in own if address not in transport.addresses]


async def _ask(
    directory: Directory, transport: Transport, ways_in: tuple[str, ...], say: Callable[[str], None]
) -> bool:
    """Learn which peers are there from the first that answers; say whether one did in time."""
    me = transport.peer_id
    for address in _strange_selves(transport, ways_in):
        say(SELF.format(address))
    with trio.move_on_after(ANSWER_S_MAX):
        while True:
            failures = await directory.enter(ways_in)
            if len(failures) < len(ways_in) or any(error.peer == me for error in failures):
                return True
            await trio.sleep(ANSWER_AGAIN_S)
    for failure in failures:
        _log.warning("%s; trying again", failure)
    return False


@dataclass
class _Supplies:
    """What a peer makes its engines from."""

    swarm: SwarmConnection
    store: Store
    model: ModelId
    options: PeerOptions
    hooks: Hooks
    tally: Tally
    machine: Machine | None = None
    """What is given to sessions, once that was decided."""
    newest: Path | None = None
    """The slice of the latest engine."""

    async def open_model(self) -> PartsModel:
        """Fetch the model's metadata; raises UserError if the layers cannot be served."""
        fixed = self.options.layers

        def needed(manifest: Manifest) -> Iterable[str]:
            if fixed is not None:
                check_layers(manifest, fixed)
            check_keep(manifest, self.options.keep)
            self.swarm.directory.advertise(_joining(self.swarm.transport, manifest))
            return (METADATA,)

        def check(model: PartsModel) -> None:
            if fixed:
                needed = model.manifest.needed(fixed.first, fixed.end)
                check_weights(model, needed, self.options.machine)
                check_memory(model, len(fixed), self.options.machine)

        model, _ = await self._obtain(needed, check)
        return model

    @asynccontextmanager
    async def open_engine(self, first: int, end: int) -> AsyncIterator[StageEngine]:
        """Fetch the missing parts of a range of layers, and run an engine for it."""

        def needed(manifest: Manifest) -> Iterable[str]:
            return manifest.needed(first, end)

        def make(model: PartsModel) -> Path:
            return model.stage(first, end, spare=0)

        model, path = await self._obtain(needed, make)
        self.newest = path
        machine = self.machine or for_model(self.options.machine, model)
        self.hooks.step(loading(f"layers {first}:{end}", (path,), machine.threads, machine.gpu))
        async with open_stage(
            path,
            first,
            sessions=machine.sessions,
            context=machine.context,
            threads=machine.threads,
            long_context=machine.long_context,
            long_cells=machine.long_cells,
            gpu=machine.gpu,
        ) as engine:
            yield engine
        if path != self.newest:  # the peer has moved, and no longer needs the slice
            await in_thread(model.drop_unused_stages)

    async def _obtain(
        self, needed: Callable[[Manifest], Iterable[str]], make: Callable[[PartsModel], T]
    ) -> tuple[PartsModel, T]:
        return await obtain(
            self.swarm.transport,
            self.swarm.directory,
            self.store,
            self.model,
            needed,
            make,
            self.hooks.tell,
            self.swarm.chance,
            had=self.tally.had,
        )


async def _memory(options: PeerOptions, model: PartsModel) -> int | None:
    """Return how much memory the model gets; None for a share of what is free."""
    if options.shared is None:
        return options.memory_bytes
    machine = for_model(options.machine, model)
    return await options.shared.share(model.info.name, appetite(model, machine, options.keep))


def _compose(
    supplies: _Supplies,
    model: PartsModel,
    signer: ReceiptSigner,
    accounts: Accounts,
    memory_bytes: int | None,
) -> Server:
    """Make a server with this machine's capacity; raises UserError if not even a layer fits."""
    options, hooks, transport = supplies.options, supplies.hooks, supplies.swarm.transport
    machine = for_model(options.machine, model)
    fixed = options.layers
    fit = layers_max(model, machine, memory_bytes, options.keep)
    if fit or fixed:
        wanted = len(fixed) if fixed else fit
        machine = for_stage(
            model, machine, memory_bytes, wanted, options.keep, is_fixed=bool(fixed)
        )
        fit = layers_max(model, machine, memory_bytes, options.keep)
        supplies.machine = machine
    if not (fit or fixed):
        raise UserError(too_small(model, machine, memory_bytes))
    me = evolve(
        _joining(transport, model.manifest),
        context=max(machine.context, machine.long_context),
        layers_max=max(fit, len(fixed) if fixed else 0),
        sessions_max=min(machine.sessions, SESSIONS_MAX),
    )

    def on_serving(held: HeldLayers) -> None:
        freeze_gc()
        first, end = held.layers.first, held.layers.end
        addresses = tuple(transport.addresses)
        hooks.on_serving(Serving(transport.peer_id, addresses, model, first, end, me.layers_max))

    return Server(
        transport,
        supplies.swarm.directory,
        supplies.open_engine,
        ServingPlan(
            me, inner_layers(model.manifest, options.keep), fixed, options.sessions_per_requester
        ),
        supplies.swarm.chance,
        clock_ms,
        hooks.leaving,
        round_trip_s=transport.round_trip_s,
        on_serving=on_serving,
        tell=hooks.say,
        signer=signer,
        account_of=accounts.of,
    )


def _joining(transport: Transport, model: Manifest) -> Advertisement:
    """Return a joining peer's advertisement, without layers or numerics class yet."""
    return Advertisement(
        peer=transport.peer_id,
        addresses=tuple(transport.addresses),
        model=model.id,
        model_name=model.name[:128],
        layers=model.layers,
        first=0,
        end=0,
        context=model.context,
        numerics_class="0" * 32,
        sequence=0,
        state=State.JOINING,
    )
