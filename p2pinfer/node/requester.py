"""Compose a real requester: a client that asks the swarm."""

import gc
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import trio

from p2pinfer.core.errors import UserError, lone_errors
from p2pinfer.core.ids import ModelId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.limits import (
    AUDIT_RATE_DEFAULT,
    CONTEXT_DEFAULT,
    PROOF_RATE_DEFAULT,
    SESSIONS_DEFAULT,
)
from p2pinfer.core.manifest import TOKENIZER, Manifest
from p2pinfer.core.model_names import readable_name
from p2pinfer.core.trust import Trust
from p2pinfer.engine.base import Ends
from p2pinfer.engine.gguf.architectures import RULES
from p2pinfer.engine.gguf.model_header import have_same_tokens
from p2pinfer.engine.gpu import Gpu
from p2pinfer.engine.llama.engine import LocalEnds, open_ends
from p2pinfer.engine.llama.measured_bounds import bounds_of
from p2pinfer.engine.llama.memory import (
    NODE_BYTES,
    WORKER_BYTES,
    aside_sessions,
    available_bytes,
    budget_bytes,
    check_fits,
    check_runs,
    sessions_bytes,
    swap_bytes,
)
from p2pinfer.engine.store.assemble import PartsModel, open_parts, whole_header
from p2pinfer.engine.store.damage import DamagedPart, MissingChunk
from p2pinfer.engine.store.store import Store
from p2pinfer.logs import note
from p2pinfer.node.adapter_ends import child_at_home
from p2pinfer.node.bookkeeping import counting, keep_used
from p2pinfer.node.checks_db import open_checks
from p2pinfer.node.disguises import Disguises
from p2pinfer.node.fraud_files import open_frauds, sharing
from p2pinfer.node.held_proofs import holding
from p2pinfer.node.inviting import ways_in_told
from p2pinfer.node.ledger_db import Side
from p2pinfer.node.loading_steps import Step, ignore, loading_ends
from p2pinfer.node.local_replay import Replays
from p2pinfer.node.model_supply import Choose, obtain
from p2pinfer.node.proof_keys import fetching, judge_of, keep_fresh
from p2pinfer.node.reputation_file import keep_standings, load_standings
from p2pinfer.node.swarm_connection import SwarmConnection, looks_around, open_swarm_connection
from p2pinfer.node.vouching import speaking_for
from p2pinfer.places import cache_dir
from peers.asking.client import FIND_S_MAX, Asked, SwarmClient
from peers.asking.session import Requester, Session
from peers.audits.auditor import Auditor
from peers.audits.frauds import Frauds
from peers.audits.inspector import Inspector
from peers.discovery.calling import call_around
from peers.parts.describe import Tell
from peers.parts.protocol import in_thread
from peers.receipts.session_evidence import Gatherer
from transports.base import Reach

_log = logging.getLogger("p2pinfer.node")

NO_WAY_IN = (
    "no swarm is known here. To try it on this machine alone: p2pinfer demo, or for a web page"
    " p2pinfer serve --local 3. To reach other machines: an invitation (p2pinfer invite prints one"
    " there), or --bootstrap ADDRESS; --no-mdns keeps this one from looking on the local network"
)


SHOWN = (
    "--keep-layers 0: {} can read all that is asked and answered, since rows that went through no"
    " layer here amount to tokens"
)


@dataclass(frozen=True)
class Machine:
    """How much of this machine a node may use."""

    sessions: int = SESSIONS_DEFAULT
    context: int = CONTEXT_DEFAULT
    """Positions of a usual session."""
    threads: int | None = 1
    """Of each engine; None: as many as make this machine faster."""
    long_context: int = 0
    """Positions of the longest session; 0: none is longer than usual."""
    long_sessions: int | None = None
    """How many may be so long at once; None: not decided yet, as many as memory allows."""
    gpu: Gpu | None = None
    """Where engines compute if that is exact, and whose memory counts; None: the CPU."""

    @property
    def long_cells(self) -> int:
        """Positions that all sessions longer than usual share."""
        return self.long_context * (self.long_sessions or 0)


Fits = Callable[[int, int], bool]
"""Whether memory has room for a number of sessions of a length, in positions, beside usual ones."""


def with_long_sessions(machine: Machine, fits: Fits) -> Machine:
    """Decide how long the longest sessions are, and how many of them fit: at most all."""
    if machine.long_sessions is not None:
        return machine
    length = machine.long_context
    while length > machine.context:
        for count in range(machine.sessions, 0, -1):
            if fits(count, length):
                return replace(machine, long_context=length, long_sessions=count)
        length //= 2
    return replace(machine, long_context=0, long_sessions=0)


def freeze_gc() -> None:
    """Exempt all live objects from garbage collection, whose pauses would delay tokens."""
    gc.collect()
    gc.freeze()


def for_model(machine: Machine, model: PartsModel) -> Machine:
    """Return the machine with its context limited to the model's."""
    most = model.info.context_tokens
    return replace(
        machine,
        context=min(machine.context, most),
        long_context=min(machine.long_context, most),
    )


def for_ends(machine: Machine, model: PartsModel, first: int, last: int) -> Machine:
    """Return the machine for a requester's own layers of a model, with its longest sessions."""
    machine = for_model(machine, model)
    needs = partial(sessions_bytes, model.header, first + last)
    weights = sum(model.manifest.part(name).size for name in model.manifest.ends(first, last))
    room = budget_bytes(None, machine.gpu) - weights - needs(machine.sessions, machine.context)
    return with_long_sessions(machine, lambda count, length: needs(count, length) <= room)


def check_memory(model: PartsModel, layers: int, machine: Machine) -> None:
    """Raise UserError if the sessions' cells in N layers need more memory than there is."""
    context = for_model(machine, model).context
    held = machine.sessions + aside_sessions(machine.sessions)
    needed = sessions_bytes(model.header, layers, held, context)
    free = machine.gpu.free_bytes if machine.gpu else available_bytes()
    check_fits(needed, free, machine.sessions, context)


def check_weights(
    model: PartsModel, parts: Iterable[str], machine: Machine, peers: int = 0
) -> None:
    """Raise UserError if an engine with these parts, and N local peers, cannot run here."""
    weights = sum(model.manifest.part(name).size for name in set(parts))
    needed = weights + WORKER_BYTES + peers * (NODE_BYTES + WORKER_BYTES)
    name = model.info.name
    what = f"{name} with {peers} local peers" if peers else f"this machine's part of {name}"
    of_gpu = machine.gpu.free_bytes if machine.gpu else 0
    check_runs(what, needed, available_bytes() + of_gpu, swap_bytes())


def check_keep(model: Manifest, keep: int) -> None:
    """Raise UserError if ends of ``keep`` layers overlap or leave the swarm no layer."""
    most = (model.layers - 1) // 2
    if not 0 <= keep <= most:
        raise UserError(
            f"--keep-layers must be from 0 to {most}: {readable_name(model.name)} has"
            f" {model.layers} layers, and the swarm must run at least one"
        )


def check_shown(keep: int, network: str | Reach, *, shown: bool) -> None:
    """Raise UserError if strangers would see tokens, and nobody said that they may.

    On a private network that is said aloud; a swarm of this machine alone has no strangers.
    """
    if keep or isinstance(network, str):
        return
    if network.key:
        note(SHOWN.format("the stages of this private network"))
    elif shown:
        note(SHOWN.format("the stages of this open network"))
    else:
        raise UserError(
            "with --keep-layers 0 the stages of this open network would see what amounts to the"
            " tokens of all that is asked and answered: keep a layer, use a private network"
            " (--network-key), or say --show-tokens as well"
        )


def check_layers(model: Manifest, layers: LayerRange) -> None:
    """Raise UserError if the model has no such layers."""
    if not layers or layers.end > model.layers:
        raise UserError(
            f"{readable_name(model.name)} has no layers {layers}; choose a range"
            f" within 0:{model.layers}"
        )


@dataclass(frozen=True)
class ClientOptions:
    """Options of a client, which runs ``keep`` layers at each end of the model itself."""

    model: ModelId | None
    """None: the one that the swarm serves, or else the default."""
    bootstrap: Sequence[str]
    network: str | Reach = "main"
    keep: int = 1
    """Layers at each end that it runs itself; with 0, stages see what amounts to tokens."""
    machine: Machine = field(default_factory=Machine)
    transport: str = "libp2p"
    """As for a peer."""
    shows_tokens: bool = False
    """Let the stages of an open network see tokens."""
    find_s_max: float = FIND_S_MAX
    """How long to wait for peers that serve all layers."""
    evidence: bool = True
    """Gather receipts; only benchmarks do without."""
    audit_rate: float = AUDIT_RATE_DEFAULT
    """The share of stages whose work on an answer is run again elsewhere."""
    proof_rate: float = PROOF_RATE_DEFAULT
    """The share of stages that open rows although others could run them again."""
    sponsored: bool = True
    """Ask on the account of a peer that serves on this machine, if there is one."""
    anonymous: bool = False
    """Have that peer vouch as one of several instead, so that stages do not learn of which."""
    drafts: bool = False
    """Send rows of likely tokens ahead; benchmarks of other things do without."""
    draft_model: PartsModel | None = None
    """A small model with the same tokens, all of it here, that drafts too."""
    default_model: Choose | None = None
    """Required if no model is named."""
    via: int = 0
    """How many relays to hide behind: then no peer is asked on another's account."""
    pace_ms: int = 0
    """Between two rows, where they are to leave in a rhythm; 0: they leave as they are made."""

    @property
    def is_named(self) -> bool:
        """Whether others may learn which peer of this machine stands behind its requests."""
        return self.sponsored and not self.anonymous and not self.via

    @property
    def books(self) -> Side:
        """Where what others do is written down: a statement of it would name the peer here."""
        return Side.USED if self.is_named else Side.UNNAMED


class Client(SwarmClient):
    """A requester in a swarm, which runs the ends of one model in llama.cpp."""

    def __init__(
        self,
        swarm: SwarmConnection,
        ends: LocalEnds,
        model: PartsModel,
        options: ClientOptions,
        gatherer: Gatherer,
        draft_model: Ends | None = None,
        child: PartsModel | None = None,
    ) -> None:
        """Ask for a model; ``child``: what it is here, with an adapter in its ends."""
        transport, directory, nursery = swarm.transport, swarm.directory, swarm.nursery
        self.transport = transport
        self.ways_in_told = partial(ways_in_told, options.network, tuple, directory)
        """What this client adds to its status for an invitation."""
        self.model, self.ends, self._sign = child or model, ends, swarm.identity.sign
        asked = Asked(model.id, model.info.name, swarm.bootstrap, options.find_s_max)
        standings = load_standings()
        nursery.start_soon(keep_standings, standings)
        super().__init__(
            nursery,
            transport,
            directory,
            ends,
            asked,
            secrets.token_bytes,
            gatherer if options.evidence else None,
            transport.round_trip_s,
            standings,
            transport.relay_to,
            drafts=options.drafts,
            draft_model=draft_model,
            keeps_state=RULES[model.info.architecture].is_hybrid,
        )
        self.audit_rate = options.audit_rate if options.evidence else 0.0
        self._books = options.books
        self._auditor: Auditor | None = None
        self.frauds: Frauds | None = None
        """The record of proven cheats; None if no evidence is gathered."""
        self._disguises: Disguises | None = None
        if swarm.another:
            self.joins_conversations = False
            self._disguises = Disguises(swarm, options, self._requester, 4 * ends.width)
        if options.evidence:
            self._open_checks(swarm, model, options, gatherer)

    def _open_checks(
        self, swarm: SwarmConnection, model: PartsModel, options: ClientOptions, gatherer: Gatherer
    ) -> None:
        """Make what checks answers, and what tells others of cheats."""
        transport, directory, nursery = swarm.transport, swarm.directory, swarm.nursery
        serving = partial(directory.serving, model.id)
        replays = Replays(transport, serving, model, gatherer, secrets.token_bytes)
        judge = judge_of(model.store, model.manifest)
        self.frauds = open_frauds(
            swarm,
            model.id,
            self._sign,
            replays.judges,
            self.experiences.cheated,
            judge,
            holding(nursery, options.bootstrap, options.network, options.via),
        )
        inspector = Inspector(
            transport,
            judge,
            serving,
            options.proof_rate,
            self.frauds.accuse,
            self.experiences.failed,
        )
        fetch = fetching(transport, partial(directory.holding, model.id), model.manifest)
        nursery.start_soon(keep_fresh, judge, model.store, model.manifest, fetch)
        self._auditor = Auditor(
            replays.find,
            options.audit_rate,
            bounds_of(model.store, model.id),
            self.frauds.accuse,
            inspector,
        )
        if self._disguises:
            self._disguises.audit_with(self._auditor, replays.over, self.frauds.accuse)

    def _ask_as(self) -> AbstractAsyncContextManager[Requester]:
        return self._disguises.take() if self._disguises else super()._ask_as()

    @property
    def engine_is_lost(self) -> bool:
        """Whether this client's own engine has ended, and its replacement is not ready yet."""
        return not self.ends.worker.is_running

    async def examine(self, session: Session) -> Trust | None:
        """Check and audit a session's work so far; None if there is nothing to check."""
        if not (self._auditor and session.evidence and session.tokens):
            return None
        evidence, position = session.evidence, len(session.tokens)
        auditor = self._auditor
        if self._disguises:
            auditor = self._disguises.worn(evidence.terms.requester).auditor or auditor
        trust = await auditor.examine(evidence, position)
        session.is_trusted = trust.held
        self.learn(trust)
        await trio.to_thread.run_sync(open_checks().keep, trust)
        await keep_used(self._books, evidence.work(position), self.model.manifest)
        return trust

    def certify(self, session: Session, answer: str, trust: Trust) -> bytes:
        """Return the certificate of an answer just examined, signed by who asked."""
        assert session.evidence
        signs: Callable[[bytes], bytes] = self._sign
        if self._disguises:
            signs = self._disguises.worn(session.evidence.terms.requester).sign
        return session.evidence.certify(session.tokens, answer, trust, signs)


def _check_held(options: ClientOptions, store: Store) -> None:
    """Check the options against what the store has of the model, before joining the swarm.

    Raises:
        UserError: an option cannot be used.
    """
    manifest = store.manifest(options.model) if options.model else None
    if manifest:
        check_keep(manifest, options.keep)
        with suppress(MissingChunk, DamagedPart):  # then it is fetched, and checked again
            model = open_parts(store, manifest, cache_dir())
            check_weights(model, manifest.ends(options.keep), options.machine)
            check_memory(model, 2 * options.keep, options.machine)


def open_own_ends(
    model: PartsModel, first: Path, last: Path, machine: Machine
) -> AbstractAsyncContextManager[LocalEnds]:
    """Run both ends of a model, which lie in files, with so much of this machine."""
    return open_ends(
        first,
        last,
        model.info.layers,
        sessions=machine.sessions,
        context=machine.context,
        threads=machine.threads,
        long_context=machine.long_context,
        long_cells=machine.long_cells,
        gpu=machine.gpu,
    )


def _open_draft_model(
    small: PartsModel, model: PartsModel, options: ClientOptions
) -> AbstractAsyncContextManager[LocalEnds]:
    """Cut the draft model's slices; raises UserError if it has other tokens, or does not fit."""
    one, other = (whole_header(each.store, each.manifest, TOKENIZER) for each in (small, model))
    if not have_same_tokens(one, other):
        raise UserError(
            f"--draft-model {small.info.name} has other tokens than {model.info.name}: choose a"
            " smaller model of the same family"
        )
    check_weights(small, (part.name for part in small.manifest.parts), options.machine)
    check_memory(small, small.info.layers, options.machine)
    half = small.info.layers // 2
    machine = for_ends(options.machine, small, half, half)
    return open_own_ends(small, *small.halves(), machine)


@asynccontextmanager
async def open_client(
    options: ClientOptions, store: Store, tell: Tell, step: Step = ignore
) -> AsyncIterator[Client]:
    """Fetch the missing parts of the ends, and join a swarm as a requester during the block.

    Args:
        options: which model and swarm to ask, and how.
        store: where the parts are kept.
        tell: called with the progress of a transfer.
        step: called with each step.

    Raises:
        UserError: an option cannot be used; the sentence says what to do.
        NobodyServes: none of the bootstrap addresses answers.
    """
    if not (options.bootstrap or options.via or looks_around(options.network)):
        raise UserError(NO_WAY_IN)
    check_shown(options.keep, options.network, shown=options.shows_tokens)
    await in_thread(_check_held, options, store)
    first, last, child = options.keep, options.keep, None

    def needed(manifest: Manifest) -> Iterable[str]:
        check_keep(manifest, options.keep)
        return manifest.ends(first, last)

    def make(model: PartsModel) -> tuple[PartsModel, tuple[Path, Path]]:
        own = open_parts(store, child, cache_dir()) if child else model
        check_weights(own, own.manifest.ends(first, last), options.machine)
        check_memory(own, first + last, for_model(options.machine, own))
        return own, own.ends(first, last)

    async with AsyncExitStack() as stack:
        stack.enter_context(lone_errors())
        kind, via = options.transport, options.via
        joined = open_swarm_connection(options.bootstrap, options.network, kind=kind, via=via)
        swarm = await stack.enter_async_context(joined)
        transport, directory, nursery = swarm.transport, swarm.directory, swarm.nursery
        step("looking for peers in the swarm …")
        await swarm.enter(options.model)
        spoken_for = speaking_for(nursery, transport.peer_id, options)
        named = options.model
        if named is None:
            assert options.default_model
            named = await swarm.pick_model(options.default_model)
        is_served = named in directory.models()
        if not is_served and (found := await in_thread(child_at_home, store, named, first)):
            child, base, (first, last) = found
            named = base.id
            directory.follow(named)
        async with counting(used=options.books) as tally:
            model, (own, (first_end, last_end)) = await obtain(
                transport, directory, store, named, needed, make, tell, swarm.chance, had=tally.had
            )
        step(loading_ends(own, first, last, options.machine.threads, options.machine.gpu))
        ends = await stack.enter_async_context(
            open_own_ends(own, first_end, last_end, for_ends(options.machine, model, first, last))
        )
        freeze_gc()
        gatherer = Gatherer(nursery, transport, secrets.token_bytes, *spoken_for)
        serving = partial(directory.serving, model.id)
        nursery.start_soon(call_around, transport, serving, swarm.chance, transport.round_trip_s)
        drafting = None
        if options.draft_model and options.drafts:
            step(f"loading the draft model {options.draft_model.info.name} …")
            opening = await in_thread(_open_draft_model, options.draft_model, model, options)
            drafting = await stack.enter_async_context(opening)
        client = Client(swarm, ends, model, options, gatherer, drafting, own)
        await stack.enter_async_context(sharing(client.frauds, nursery))
        yield client
