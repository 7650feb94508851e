"""A virtual network: production roles on virtual links, machines and time."""

import traceback
from collections.abc import AsyncIterator, Container, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import accumulate
from random import Random

import trio

from p2pinfer.core.advertisement import Advertisement, State
from p2pinfer.core.errors import lone_errors
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.ledger import LedgerEntry
from p2pinfer.engine.base import StageEngine
from peers.asking.client import Asked, SwarmClient
from peers.audits.auditor import Auditor
from peers.audits.frauds import judges_beside
from peers.audits.inspector import Inspector
from peers.audits.replay import PeerReplays
from peers.discovery.calling import call_around
from peers.discovery.directory import Directory
from peers.parts.protocol import in_place
from peers.receipts.prover import Prover
from peers.receipts.session_evidence import Gatherer
from peers.receipts.signer import ReceiptSigner
from peers.serving.server import Server, ServingPlan
from sim.drafting import VirtualDraftModel
from sim.engine import VirtualCheat, VirtualEnds, VirtualSpeed, VirtualStage, numerics_class
from sim.fraud_watch import FraudWatch
from sim.links import AccessLink, WorldNetwork
from sim.machines import VirtualMachine, VirtualPeer, VirtualRequester
from sim.model import VirtualModel
from sim.nats import NatKind, draw_nat
from sim.openings import VirtualJudge
from sim.record import RunRecord
from sim.scenario import PeersTable, Scenario
from sim.shared_cpu import Cores
from sim.signing import CheapSigner, is_cheaply_signed
from sim.ways import RelayHolder
from transports.blocklist import GuardedTransport
from transports.identity import SEED_BYTES, Identity
from transports.libp2p.relay_limits import RelayLimits

MODEL = ModelId("51" * 32)
MODEL_NAME = "virtual"

WAYS_IN = 3
"""Bootstrap peers that a new one gets."""

LOAD_S = 1.0
"""To start an engine once its layers are on disk."""

REQUESTER_SESSIONS = 64

MACHINE_KIND = "x86_64"
"""Of every virtual CPU: one whose openings are judged."""


class World:
    """Everything in the network, and what only an outside observer knows."""

    def __init__(self, scenario: Scenario, record: RunRecord) -> None:
        self.scenario, self.record = scenario, record
        regions = scenario.regions
        one_way_s = [[ms / 2000 for ms in row] for row in regions.round_trip_ms]
        self.model = VirtualModel(scenario.model.layers)
        keep = scenario.model.keep
        self.bounds = LayerRange(keep, scenario.model.layers - keep)
        limits = RelayLimits.of(scenario.nats.relay_mbit)
        self.network = WorldNetwork(one_way_s, scenario.model.width, self.chance("links"), limits)
        self.network.on_message = lambda *what: record.message(trio.current_time(), *what)
        self.spend = Cores(scenario.cores).spend if scenario.cores else trio.sleep
        self.peers: dict[PeerId, VirtualPeer] = {}
        self.ended_s: dict[PeerId, float] = {}
        """When past peers ended, or began to leave."""
        self.gone_s: dict[PeerId, float] = {}
        """When they were gone: a leaving peer hands over for a while."""
        self.moved_s: dict[PeerId, float] = {}
        """When peers last began to serve another range."""
        self.cut_s = -1.0
        """When the network last changed."""
        self.requesters: list[VirtualRequester] = []
        self.relaying: set[int] = set()
        """The numbers of the machines that relay."""
        self.liars: dict[PeerId, VirtualCheat] = {}
        self.lies = 0
        """Decodes whose rows were not what the layers give."""
        self.judge = VirtualJudge(self.model)
        self._fraud_watch = FraudWatch(MODEL, record, self.liars, self.judge)
        self.served: list[LedgerEntry] = []
        self.used: list[LedgerEntry] = []
        """What peers and requesters record in their ledgers."""
        self._born = 0

    def chance(self, name: str) -> Random:
        """Return a generator for one purpose, so that purposes do not disturb each other."""
        return Random(f"{self.scenario.seed} {name}")  # noqa: S311 -- a scenario's seed

    def machines(self) -> list[VirtualMachine]:
        """Draw the machine of each peer."""
        chance, liars = self.chance("machines"), self.chance("liars")
        groups = [group for group in self.scenario.peers for _ in range(group.count)]
        count = len(groups)
        cheats: dict[int, VirtualCheat] = {}
        for table in self.scenario.liars:
            honest = [number for number in range(count) if number not in cheats]
            for number in liars.sample(honest, min(round(table.share * count), len(honest))):
                cheats[number] = VirtualCheat(table.kind, table.rate)
        nats = self._nats()
        open_ = [number for number in range(count) if number not in nats]
        nats_table = self.scenario.nats
        relays = self.chance("relays").sample(open_, round(nats_table.relays * len(open_)))
        self.relaying = set(relays)
        return [
            self._machine(number, group, cheats.get(number), chance, nats.get(number, NatKind.NONE))
            for number, group in enumerate(groups)
        ]

    def _nats(self) -> dict[int, NatKind]:
        """Draw the NATs of the undialable peers, by number: the given share of each kind."""
        chance, kinds, first = self.chance("undialable"), self.chance("nats"), 0
        found: dict[int, NatKind] = {}
        for group in self.scenario.peers:
            numbers = range(first, first + group.count)
            hidden = chance.sample(numbers, round(group.undialable * group.count))
            found |= {number: draw_nat(self.scenario.nats, kinds) for number in hidden}
            first += group.count
        return found

    def _machine(
        self,
        number: int,
        group: PeersTable,
        cheat: VirtualCheat | None,
        chance: Random,
        nat: NatKind,
    ) -> VirtualMachine:
        names = self.scenario.regions.names
        region = names.index(group.regions[number % len(group.regions)]) if group.regions else 0
        access = AccessLink(
            region if group.regions else number % len(names),
            group.up_mbit.draw(chance),
            group.down_mbit.draw(chance),
            group.last_mile_ms.draw(chance),
            group.jitter,
            group.loss,
            nat,
        )
        threads = max(1, round(group.threads.draw(chance)))
        row_s = group.row_ms.draw(chance) / 1000
        chunk_s = group.chunk_ms.draw(chance) / 1000 / threads
        besides_s = (self.scenario.handling_ms / 1000, self.scenario.aside_ms / 1000)
        speed = VirtualSpeed(row_s, max(row_s, chunk_s), *besides_s)
        layers = min(max(1, round(group.layers.draw(chance))), len(self.bounds))
        join_s = 0.0 if number == 0 else group.join_s.draw(chance)
        serves = LayerRange(*group.serves) if group.serves else None
        return VirtualMachine(
            number, access, speed, layers, group.sessions, join_s, serves, group.numerics, cheat
        )

    @property
    def is_mixed(self) -> bool:
        """Whether peers round differently: a replacement then sends other bits."""
        return len({group.numerics for group in self.scenario.peers}) > 1

    def always_lies(self, peer: PeerId) -> bool:
        """Whether none of a peer's decodes is honest."""
        return peer in self.liars and self.liars[peer].rate == 1

    def ways_in(self) -> list[str]:
        """Return the addresses of the peers that have been there longest and can be dialled."""
        found = [peer for peer in self.peers.values() if peer.machine.access.is_dialable]
        return [f"/memory/0/p2p/{peer.id}" for peer in found[:WAYS_IN]]

    def is_covered(self, but: Container[PeerId] = ()) -> bool:
        """Whether every layer is served by a peer that is there, and that all can reach."""
        return self.least_holders(but) > 0

    def least_holders(self, but: Container[PeerId] = ()) -> int:
        """Return how many that can be called serve the layer that fewest do, some not counted."""
        change = [0] * (len(self.bounds) + 1)
        for peer, held in self.serving():
            is_open = peer.id not in but and self.is_reached(peer)
            if is_open and not peer.leaving.is_set():
                counted = held.within(self.bounds)
                change[counted.first - self.bounds.first] += 1
                change[counted.end - self.bounds.first] -= 1
        return min(accumulate(change[:-1]))

    def is_reached(self, peer: VirtualPeer) -> bool:
        """Whether strangers can call a peer now: at its address, or through a relay that holds."""
        here = self.network.peers.get(peer.id)
        if here is None or peer.machine.access.is_dialable:
            return here is not None
        return not self.network.ways.volunteers.keys().isdisjoint(here.relays)

    def serving(self) -> list[tuple[VirtualPeer, LayerRange]]:
        """Return which peers serve which layers to new sessions."""
        return [(peer, held) for peer in self.peers.values() if (held := peer.held)]

    def is_settled_since(self, peers: Sequence[PeerId], since_s: float) -> bool:
        """Whether nothing has happened to these peers, or to the network, since then."""
        lost_s = self.network.ways.lost_s
        return self.cut_s < since_s and all(
            peer in self.peers
            and peer not in self.ended_s
            and max(self.moved_s.get(peer, -1.0), lost_s.get(peer, -1.0)) < since_s
            for peer in peers
        )

    async def run_peer(self, machine: VirtualMachine) -> None:
        """Run a peer until it leaves or is killed; whatever it raises is a violation."""
        self._born += 1
        seed = self.chance(f"identity {self._born}").randbytes(SEED_BYTES)
        peer = VirtualPeer(machine, Identity(seed), trio.current_time())
        self.network.admit(peer.id, machine.access)
        if machine.number in self.relaying:
            self.network.ways.volunteer(peer.id)
        ways_in = self.ways_in()
        self.peers[peer.id] = peer
        if machine.cheat:
            self.liars[peer.id] = machine.cheat
        self.record.event(trio.current_time(), "join", machine.number)
        try:
            with peer.life, lone_errors():
                await self._live(peer, ways_in)
        except Exception as error:  # noqa: BLE001 -- a crash is what the run is to find
            text = "".join(traceback.format_exception(error)[-3:])
            self.record.violation("crash", trio.current_time(), f"peer {machine.number}: {text}")
        finally:
            self.peers.pop(peer.id)
            self.network.end(peer.id)
            self.ended_s.setdefault(peer.id, trio.current_time())
            self.gone_s[peer.id] = trio.current_time()
            self.record.event(trio.current_time(), "end", machine.number)
            peer.over.set()

    async def _live(self, peer: VirtualPeer, ways_in: list[str]) -> None:
        chance = self.chance(f"peer {self._born}")
        async with self._connect(peer.id, chance) as (transport, peer.directory, nursery):
            peer.directory.listen()
            signer = ReceiptSigner(transport, peer.identity.sign, self.served.append)
            signer.listen()
            Prover(transport, signer, MACHINE_KIND, in_place).listen()
            await _enter(peer.directory, ways_in, nursery)
            if not peer.machine.access.is_dialable:
                holder = RelayHolder(
                    self.network.ways,
                    self.network.peers[peer.id],
                    peer.directory,
                    MODEL,
                    partial(self.network.round_trip_s, peer.id),
                )
                nursery.start_soon(holder.run)

            @asynccontextmanager
            async def open_engine(first: int, end: int) -> AsyncIterator[StageEngine]:
                async with self._engine(peer, first, end, chance) as engine:
                    yield engine

            def on_serving(_: object) -> None:
                self.moved_s[peer.id] = trio.current_time()
                held = (peer.held.first, peer.held.end) if peer.held else None
                self.record.event(trio.current_time(), "serve", peer.machine.number, held)

            peer.server = Server(
                transport,
                peer.directory,
                open_engine,
                ServingPlan(self._advertisement(peer), self.bounds, peer.machine.serves),
                chance,
                _clock_ms,
                peer.leaving,
                round_trip_s=partial(self.network.round_trip_s, peer.id),
                on_serving=on_serving,
                signer=signer,
            )
            gatherer = Gatherer(nursery, transport, chance.randbytes)
            serving = partial(peer.directory.serving, MODEL)
            replays = PeerReplays(transport, serving, MODEL, gatherer, chance.randbytes)
            judges = partial(judges_beside, peer.server, replays)
            frauds = self._fraud_watch.open(
                transport, peer.directory, peer.identity, judges, chance
            )
            frauds.listen()
            nursery.start_soon(frauds.run)
            await peer.server.run()
            peer.directory.leave()

    @asynccontextmanager
    async def _connect(
        self, me: PeerId, chance: Random
    ) -> AsyncIterator[tuple[GuardedTransport, Directory, trio.Nursery]]:
        """Be on the network while the block lasts; what runs in the nursery ends with it."""
        async with self.network.join(me) as inner, trio.open_nursery() as nursery:
            transport, signer = GuardedTransport(inner), CheapSigner(me)
            directory = Directory(
                transport, signer, chance, verify=is_cheaply_signed, clock_ms=_clock_ms
            )
            directory.follow(MODEL)
            yield transport, directory, nursery
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def _engine(
        self, peer: VirtualPeer, first: int, end: int, chance: Random
    ) -> AsyncIterator[VirtualStage]:
        """Take the time to fetch layers and to start; then run them."""
        machine, model = peer.machine, self.scenario.model
        fetch_s = (end - first) * model.layer_mb * 8 / machine.access.down_mbit
        await trio.sleep(fetch_s + LOAD_S)
        engine = VirtualStage(
            self.model,
            first,
            end,
            machine.speed,
            sessions=machine.sessions,
            context=model.context,
            numerics=machine.numerics,
            cheat=machine.cheat,
            chance=chance,
            spend=self.spend,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            peer.engines.append(engine)
            try:
                yield engine
            finally:
                engine.die()
                peer.engines.remove(engine)
                self.lies += engine.lies
                nursery.cancel_scope.cancel()

    def _advertisement(self, peer: VirtualPeer) -> Advertisement:
        return Advertisement(
            peer=peer.id,
            addresses=(f"/memory/0/p2p/{peer.id}",),
            model=MODEL,
            model_name=MODEL_NAME,
            layers=self.model.layers,
            first=0,
            end=0,
            context=self.scenario.model.context,
            numerics_class=numerics_class(peer.machine.numerics),
            sequence=0,
            state=State.JOINING,
            layers_max=peer.machine.layers,
            sessions_max=peer.machine.sessions,
        )

    async def run_requester(self, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        """Run a requester for ever."""
        chance = self.chance(f"requester {number}")
        identity = Identity(chance.randbytes(SEED_BYTES))
        table, model = self.scenario.requests, self.scenario.model
        regions = len(self.scenario.regions.names)
        nat = draw_nat(self.scenario.nats, self.chance(f"nat {number}"))
        access = AccessLink(number % regions, jitter=0.1, nat=nat)
        self.network.admit(identity.peer_id, access)
        async with self._connect(identity.peer_id, chance) as (transport, directory, nursery):
            await _enter(directory, self.ways_in(), nursery)
            handling_s = self.scenario.handling_ms / 1000
            speed = VirtualSpeed(table.row_ms / 1000, table.chunk_ms / 1000, handling_s)
            ends = VirtualEnds(
                self.model,
                model.keep,
                speed,
                sessions=REQUESTER_SESSIONS,
                context=model.context,
                spend=self.spend,
            )
            asked = Asked(MODEL, MODEL_NAME, self.ways_in())
            gatherer = Gatherer(nursery, transport, chance.randbytes)
            round_trip_s = partial(self.network.round_trip_s, identity.peer_id)
            client = SwarmClient(
                nursery,
                transport,
                directory,
                ends,
                asked,
                chance.randbytes,
                gatherer,
                round_trip_s,
                drafts=table.drafts,
                draft_model=self._draft_model(number) if table.drafts else None,
            )
            serving = partial(directory.serving, MODEL)
            nursery.start_soon(call_around, transport, serving, chance, round_trip_s)
            replays = PeerReplays(transport, serving, MODEL, gatherer, chance.randbytes)
            frauds = self._fraud_watch.open(
                transport,
                directory,
                identity,
                replays.judges,
                chance,
                client.experiences.cheated,
            )
            nursery.start_soon(frauds.run)
            inspector = Inspector(
                transport,
                self.judge,
                serving,
                table.proof_rate,
                frauds.accuse,
                client.experiences.failed,
                in_place,
            )
            auditor = Auditor(
                replays.find,
                table.audit_rate,
                on_fraud=frauds.accuse,
                inspector=inspector if table.proof_rate else None,
            )
            self.requesters.append(
                VirtualRequester(number, identity.peer_id, client, directory, ends, auditor)
            )
            task_status.started()
            await trio.sleep_forever()

    def _draft_model(self, number: int) -> VirtualDraftModel:
        """Return what a requester drafts by."""
        table, chance = self.scenario.requests, self.chance(f"drafts {number}")
        return VirtualDraftModel(
            self.model,
            lambda: min(1.0, table.agreement.draw(chance)),
            table.draft_ms / 1000,
            context=self.scenario.model.context,
            sessions=REQUESTER_SESSIONS,
            spend=self.spend,
        )


def _clock_ms() -> int:
    return 1 + int(1000 * trio.current_time())


async def _enter(directory: Directory, ways_in: Sequence[str], nursery: trio.Nursery) -> None:
    """Learn which peers exist, and keep up to date."""
    await directory.enter(ways_in)
    nursery.start_soon(directory.run, ways_in)
