"""Compose real nodes: a peer that serves a stage, and a client that asks the swarm."""

import gc
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio
from attrs import evolve

from p2pinfer.core.errors import NobodyServes, PeerError, UserError, lone_errors
from p2pinfer.core.ids import ModelId, PeerId, SessionId
from p2pinfer.core.limits import CONTEXT_DEFAULT, SESSIONS_DEFAULT
from p2pinfer.core.manifest import Manifest
from p2pinfer.core.messages import Advertisement, Hop
from p2pinfer.engine.local import LocalEnds, open_ends, open_stage
from p2pinfer.engine.memory import available_bytes, check_fits, sessions_bytes
from p2pinfer.engine.parts_model import PartsModel
from p2pinfer.engine.store import Store
from p2pinfer.identities import hold_identity
from p2pinfer.supply import obtain
from peers.directory import Directory
from peers.parts_fetch import Tell
from peers.parts_server import PartsServer
from peers.requester import Requester, Session
from peers.stage import Stage
from scheduler.routing import NoRoute, find_route
from transports.base import Transport
from transports.identity import Identity, ephemeral_identity

_log = logging.getLogger("p2pinfer.node")

LISTEN_DEFAULT = "/ip4/0.0.0.0/tcp/0"

FIND_S_MAX = 10.0
"""How long a client waits for a whole chain to show up before it says who is missing."""

FIND_AGAIN_S = 1.0


@dataclass(frozen=True)
class Machine:
    """What a node may use of this machine."""

    sessions: int = SESSIONS_DEFAULT
    context: int = CONTEXT_DEFAULT
    """Positions per session."""
    threads: int = 1


@dataclass(frozen=True)
class PeerOptions:
    """A peer that serves layers ``first`` up to but not including ``end``."""

    model: ModelId
    first: int
    end: int
    listen: Sequence[str] = (LISTEN_DEFAULT,)
    bootstrap: Sequence[str] = ()
    network: str = "main"
    identity: Path | None = None
    """The key's file; None for the first in the data directory that no other peer has."""
    machine: Machine = field(default_factory=Machine)
    transport: str = "libp2p"
    """``tcp`` is bare TCP, for measuring what libp2p costs."""


@dataclass(frozen=True)
class Serving:
    """A peer that is ready."""

    peer: PeerId
    addresses: tuple[str, ...]
    model: PartsModel
    first: int
    end: int
    stage: Stage


def _open_transport(
    kind: str, identity: Identity, listen: Sequence[str], network: str
) -> AbstractAsyncContextManager[Transport]:
    if kind == "tcp":
        from transports.tcp import open_tcp

        return open_tcp(identity.peer_id)
    from transports.libp2p import open_libp2p  # half a second of imports

    return open_libp2p(identity, listen, network)


def _settle() -> None:
    """Spare the garbage collector all that was imported: it would stop a token to look through."""
    gc.collect()
    gc.freeze()


def _for_model(machine: Machine, model: PartsModel) -> Machine:
    """Let no session be longer than the model was made for."""
    return replace(machine, context=min(machine.context, model.info.context_tokens))


def check_memory(model: PartsModel, layers: int, machine: Machine) -> None:
    """Raise UserError if sessions in so many layers need more memory than this machine has."""
    context = _for_model(machine, model).context
    needed = sessions_bytes(model.header, layers, machine.sessions, context)
    check_fits(needed, available_bytes(), machine.sessions, context)


def check_keep(model: Manifest, keep: int) -> None:
    """Raise UserError if ends of ``keep`` layers leave nothing for others to run, or overlap."""
    most = (model.layers - 1) // 2
    if not 1 <= keep <= most:
        raise UserError(
            f"--keep-layers must be from 1 to {most}: {model.name} has {model.layers}"
            " layers, and some must be left for the swarm"
        )


def check_layers(model: Manifest, first: int, end: int) -> None:
    """Raise UserError if the model has no such layers."""
    if not 0 <= first < end <= model.layers:
        raise UserError(
            f"{model.name} has no layers {first}:{end}; choose a range within 0:{model.layers}"
        )


async def serve_peer(
    options: PeerOptions, store: Store, on_ready: Callable[[Serving], None], tell: Tell
) -> None:
    """Fetch what is missing of some layers, and serve them until cancelled.

    What is here is served to other fetchers from the start. ``tell`` hears of the transfer.

    Raises:
        UserError: an option cannot be used; the sentence says what to do.
        EngineDied: llama.cpp cannot run the slice.
    """
    chance = random.Random()  # noqa: S311 -- picks whom to ask, and where to begin
    first, end = options.first, options.end
    async with AsyncExitStack() as stack:
        stack.enter_context(lone_errors())
        identity = stack.enter_context(hold_identity(options.identity))
        transport = await stack.enter_async_context(
            _open_transport(options.transport, identity, options.listen, options.network)
        )
        directory = Directory(transport, identity, chance)
        directory.listen()
        PartsServer(transport, store).listen()
        for failure in await directory.enter(options.bootstrap):
            _log.warning("%s; trying again", failure)
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        nursery.start_soon(directory.run, options.bootstrap)

        def needed(manifest: Manifest) -> Iterable[str]:
            check_layers(manifest, first, end)
            directory.advertise(_advertisement(transport, manifest, 0, 0))
            return manifest.needed(first, end)

        def make(model: PartsModel) -> Path:
            check_memory(model, end - first, _for_model(options.machine, model))
            return model.stage(first, end)

        model, path = await obtain(
            transport, directory, store, options.model, needed, make, tell, chance
        )
        machine = _for_model(options.machine, model)
        engine = await stack.enter_async_context(
            open_stage(
                path,
                first,
                sessions=machine.sessions,
                context=machine.context,
                threads=machine.threads,
            )
        )
        stage = Stage(transport, engine, model.id)
        stage.listen()
        directory.advertise(
            evolve(
                _advertisement(transport, model.manifest, first, end),
                context=engine.context,
                numerics_class=engine.numerics_class,
            )
        )
        await directory.enter(options.bootstrap)
        _settle()
        on_ready(Serving(transport.peer_id, tuple(transport.addresses), model, first, end, stage))
        await trio.sleep_forever()


def _advertisement(transport: Transport, model: Manifest, first: int, end: int) -> Advertisement:
    """Say who this is and what it has; of a peer that still joins, no layers and no numerics."""
    return Advertisement(
        peer=transport.peer_id,
        addresses=tuple(transport.addresses),
        model=model.id,
        model_name=model.name[:128],
        layers=model.layers,
        first=first,
        end=end,
        context=model.context,
        numerics_class="0" * 32,
        sequence=time.time_ns() // 1_000_000,
    )


@dataclass(frozen=True)
class ClientOptions:
    """A client that keeps ``keep`` layers at each end of the model to itself."""

    model: ModelId
    bootstrap: Sequence[str]
    network: str = "main"
    keep: int = 1
    machine: Machine = field(default_factory=Machine)
    transport: str = "libp2p"
    """As of a peer."""
    find_s_max: float = FIND_S_MAX
    """How long to wait for a whole chain of peers."""


class Client:
    """A requester in a swarm, with the ends of one model."""

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        ends: LocalEnds,
        model: PartsModel,
        options: ClientOptions,
    ) -> None:
        self.model, self.ends = model, ends
        self._directory, self._options = directory, options
        self._failed: dict[PeerId, int] = {}
        """Peers that ended a session, and the number of their word for it that they serve."""
        self._requester = Requester(transport, ends, model.id)

    async def find_route(self, on_wait: Callable[[str], None]) -> list[Advertisement]:
        """Return a chain of peers that joins the own ends, waiting a while for one to show up.

        ``on_wait`` is told what is still missing.

        Raises:
            NobodyServes: there is none; the text says which layers are missing.
        """
        missing = ""
        with trio.move_on_after(self._options.find_s_max):
            if self._failed:  # somebody else may serve those layers by now
                await self._directory.enter(self._options.bootstrap)
            while True:
                try:
                    return self._route()
                except NoRoute as error:
                    if str(error) != missing:
                        missing = str(error)
                        on_wait(f"{missing}; waiting …")
                await trio.sleep(FIND_AGAIN_S)
                await self._directory.enter(self._options.bootstrap)
        others = set(self._directory.models().values())
        if not self._directory.serving(self.model.id) and others:
            names = ", ".join(sorted(others))
            raise NobodyServes(
                f"the peers found serve another model ({names}), not {self.model.info.name}"
            )
        raise NobodyServes(f"no chain of peers for {self.model.info.name}: {missing}")

    def _route(self) -> list[Advertisement]:
        """Go around peers that failed and have not been heard of since, if there is a way."""
        offers = self._directory.serving(self.model.id)
        failed = self._failed.items() & {(offer.peer, offer.sequence) for offer in offers}
        self._failed = dict(failed)
        good = [offer for offer in offers if offer.peer not in self._failed]
        with suppress(NoRoute):
            return find_route(good, self.ends.first, self.ends.end)
        return find_route(offers, self.ends.first, self.ends.end)

    @asynccontextmanager
    async def open_session(self, route: Sequence[Advertisement]) -> AsyncIterator[Session]:
        """Open a session along a route; raises as ``Requester.open``.

        A peer that ends it is not chosen again at once.
        """
        hops = [Hop(a.peer, a.addresses, a.first, a.end) for a in route]
        context = min([self.ends.context, *(a.context for a in route)])
        session = SessionId(secrets.token_bytes(16))
        try:
            async with self._requester.open(hops, session, context) as opened:
                yield opened
        except PeerError as error:
            self._failed |= {a.peer: a.sequence for a in route if a.peer == error.peer}
            raise


@asynccontextmanager
async def open_client(options: ClientOptions, store: Store, tell: Tell) -> AsyncIterator[Client]:
    """Fetch what is missing of the ends, and join a swarm as a requester while the block lasts.

    Raises:
        UserError: an option cannot be used; the sentence says what to do.
        NobodyServes: nobody answers at any of the bootstrap addresses.
    """
    if not options.bootstrap:
        raise UserError("name a peer of the swarm with --bootstrap MULTIADDR (join prints one)")
    chance = random.Random()  # noqa: S311 -- picks whom to ask, and where to begin
    keep = options.keep
    identity = ephemeral_identity()

    def needed(manifest: Manifest) -> Iterable[str]:
        check_keep(manifest, keep)
        return manifest.ends(keep)

    def make(model: PartsModel) -> tuple[Path, Path]:
        check_memory(model, 2 * keep, _for_model(options.machine, model))
        return model.ends(keep)

    async with AsyncExitStack() as stack:
        stack.enter_context(lone_errors())
        transport = await stack.enter_async_context(
            _open_transport(options.transport, identity, [], options.network)
        )
        directory = Directory(transport, identity, chance)
        failures = await directory.enter(options.bootstrap)
        if len(failures) == len(options.bootstrap):
            reasons = "; ".join(str(failure) for failure in failures)
            raise NobodyServes(f"no peer answers: {reasons}")
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        nursery.start_soon(directory.run, options.bootstrap)
        model, (first_end, last_end) = await obtain(
            transport, directory, store, options.model, needed, make, tell, chance
        )
        machine = _for_model(options.machine, model)
        ends = await stack.enter_async_context(
            open_ends(
                first_end,
                last_end,
                model.info.layers,
                sessions=machine.sessions,
                context=machine.context,
                threads=machine.threads,
            )
        )
        _settle()
        yield Client(transport, directory, ends, model, options)
