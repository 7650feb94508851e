"""Links between virtual peers: distance, last mile, bandwidth, jitter, loss, and cuts.

Channels are reliable and ordered, so what a real network loses is only late here: by the time
after which TCP retransmits it.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import trio

from p2pinfer.core.ids import PeerId
from sim.model import WIDTH
from sim.nats import NatKind, can_punch
from sim.ways import Ways
from transports.base import Reachability
from transports.libp2p.relay_limits import RelayLimits
from transports.memory.network import MemoryNetwork

PACKET_BYTES = 1400

RETRANSMIT_S = 0.2
"""TCP's minimum, in Linux; more where the round trip is longer."""

TCP_IP_BYTES = 52
"""IP's header (20), and TCP's with its timestamps (32)."""

HEADER_BYTES = TCP_IP_BYTES + 30
"""With Noise (18) and Yamux (12) around a small message."""

GOSSIP = "gossip"

GOSSIP_COPIES = 3.5
"""Sent on by each peer of a large swarm: measured on 24 hosts of ``transports.libp2p.gossip``."""

GOSSIP_BYTES = 124
"""Written by GossipSub around a message: its name, and the topic with the model's id."""

GOSSIP_MESH_MAX = 8
"""A mesh this small joins all, except pairs that cannot dial each other, and each peer sends on to
all except the sender. In a larger swarm a peer sends its own messages to this many."""

GOSSIP_HOPS = 3
"""Typical of a mesh of that degree with some hundred peers."""

GOSSIP_STEP_S = 0.1
"""Far less than the time in which any peer reacts; one wake-up per step and message."""

STEP = b"\xa4Step"
"""How msgpack writes the name of the one message whose rows are narrower here than in reality."""


@dataclass(frozen=True)
class AccessLink:
    """How a peer is connected."""

    region: int = 0
    up_mbit: float = 1000.0
    down_mbit: float = 1000.0
    last_mile_ms: float = 0.0
    """One way, between the peer and its region's backbone."""
    jitter: float = 0.0
    """The mean random addition to a delay, as a share of it."""
    loss: float = 0.0
    """Share of packets."""
    nat: NatKind = NatKind.NONE

    @property
    def is_dialable(self) -> bool:
        """Whether others can connect to it; else it must call back, or a relay brings them."""
        return self.nat is NatKind.NONE


class WorldNetwork(MemoryNetwork):
    """A memory network with distances between regions, in seconds one way."""

    def __init__(
        self,
        one_way_s: Sequence[Sequence[float]],
        model_width: int,
        chance: Random,
        relay_limits: RelayLimits | None = None,
    ) -> None:
        super().__init__(self._latency_s)
        self.access: dict[PeerId, AccessLink] = {}
        self._sent: defaultdict[PeerId, Counter[str]] = defaultdict(Counter)
        self.messages = 0
        self.on_message: Callable[[PeerId, PeerId, bytes], None] = lambda *_: None
        self._one_way_s, self._widening, self._chance = one_way_s, model_width / WIDTH, chance
        self._up_free_at: defaultdict[PeerId, float] = defaultdict(float)
        self._apart: Callable[[PeerId, PeerId], bool] | None = None
        self.ways = Ways(relay_limits or RelayLimits())
        # One row per peer: gossip reaches hundreds at once, again and again.
        self._row: dict[PeerId, int] = {}
        self._region = np.empty(0, np.int64)
        self._last_mile_s = np.empty(0)
        self._is_dialable = np.empty(0, np.bool_)
        self._passed_on = np.empty(0, np.int64)
        """Bytes of others' gossip passed on."""

    def admit(self, peer: PeerId, access: AccessLink) -> None:
        """Connect a peer to the network."""
        self.access[peer] = access
        self._row[peer] = len(self._row)
        self._region = np.append(self._region, access.region)
        self._last_mile_s = np.append(self._last_mile_s, access.last_mile_ms / 1000)
        self._is_dialable = np.append(self._is_dialable, access.is_dialable)
        self._passed_on = np.append(self._passed_on, 0)

    def sent(self, peer: PeerId) -> Counter[str]:
        """Return the bytes that a peer has sent, by kind of message."""
        return self._sent[peer] + Counter({GOSSIP: int(self._passed_on[self._row[peer]])})

    def cut(self, are_apart: Callable[[PeerId, PeerId], bool]) -> None:
        """Let nothing pass between these peers any more."""
        self._apart = are_apart
        self.sever(are_apart)
        self.ways.part(are_apart)

    def heal(self) -> None:
        """Let everything pass again."""
        self._apart = None

    def are_apart(self, one: PeerId, other: PeerId) -> bool:
        """Whether nothing passes between two peers at present."""
        return self._apart is not None and self._apart(one, other)

    def dials(self, sender: PeerId, receiver: PeerId, *, own: bool) -> bool:
        """Whether a peer must connect to reach another; see `transports.memory.network`."""
        return own or not self.ways.connected(sender, receiver)

    def reachability(self, peer: PeerId, asked: PeerId) -> Reachability:  # noqa: ARG002
        """Return what a peer learns by asking another to dial it back."""
        return Reachability.PUBLIC if self.access[peer].is_dialable else Reachability.HIDDEN

    def reach_s(self, sender: PeerId, receiver: PeerId, *, own: bool) -> float:
        """Return the seconds a peer takes to reach another; see `transports.memory.network`."""
        if not self.dials(sender, receiver, own=own):
            return 2 * self._way_s(sender, receiver)
        access = self.access.get(receiver)  # others may name a peer that was never there
        if access and not access.is_dialable:
            return self._call_s(sender, receiver)
        round_trip_s = super().reach_s(sender, receiver, own=own)
        if receiver in self.peers and not math.isinf(round_trip_s):
            self.ways.connect(sender, receiver)
        return round_trip_s

    def _call_s(self, sender: PeerId, receiver: PeerId) -> float:
        """Connect with a peer that cannot be dialled, through its nearest relay; return how long.

        It then calls back, or both punch a hole through their NATs, or the relay carries all.
        """
        there, now = self.peers.get(receiver), trio.current_time()
        held = self.ways.relays_of(receiver, there.relays if there else (), now)
        if sender in held:
            return 2 * self._latency_s(sender, receiver)
        by_way = sorted(
            (self._latency_s(sender, by) + self._latency_s(by, receiver), by) for by in held
        )
        for way_s, relay in by_way:
            volunteer = self.ways.volunteers[relay]
            if math.isinf(way_s) or not volunteer.open(sender, receiver, now):
                continue
            ours, theirs = self.access[sender].nat, self.access[receiver].nat
            straight_s = 2 * self._latency_s(sender, receiver)
            if self.ways.connected(sender, receiver):  # it only shows that it can be called
                volunteer.table.ended(sender, receiver)
                return 2 * way_s
            if ours is NatKind.NONE or can_punch(ours, theirs):
                volunteer.table.ended(sender, receiver)
                self.ways.made["called back" if ours is NatKind.NONE else "punched"] += 1
                self.ways.connect(sender, receiver)
                turns = 1 if ours is NatKind.NONE else 2  # who punches agrees on a moment before
                return turns * 2 * way_s + straight_s
            volunteer.used_at[sender, receiver] = now
            self.ways.made["relayed"] += 1
            self.ways.connect(sender, receiver, relay)
            return 2 * way_s
        return math.inf

    def round_trip_s(self, one: PeerId, other: PeerId) -> float | None:
        """Return the ping time of two connected peers; None if they are not connected."""
        return 2 * self._way_s(one, other) if self.ways.connected(one, other) else None

    def _way_s(self, sender: PeerId, receiver: PeerId) -> float:
        """Return the minimum delay between two connected peers, infinite where nothing passes."""
        relay = self.ways.relay_of(sender, receiver)
        if relay is None:
            return self._latency_s(sender, receiver)
        return self._latency_s(sender, relay) + self._latency_s(relay, receiver)

    def _latency_s(self, sender: PeerId, receiver: PeerId) -> float:
        """Return a link's minimum delay, infinite where nothing passes."""
        if self.are_apart(sender, receiver):
            return math.inf
        ours, theirs = self.access[sender], self.access[receiver]
        miles_s = (ours.last_mile_ms + theirs.last_mile_ms) / 1000
        return self._one_way_s[ours.region][theirs.region] + miles_s

    def end(self, peer: PeerId) -> None:
        """Forget the connections of a peer that is gone, and end those that it relayed."""
        pairs = self.ways.end(peer, trio.current_time())
        if pairs:
            self.sever(lambda one, other: (one, other) in pairs or (other, one) in pairs)

    def delay_s(self, sender: PeerId, receiver: PeerId, message: bytes) -> float:
        """Return the seconds that a message sent now takes."""
        self.on_message(sender, receiver, message)
        self.messages += 1
        latency_s = self._way_s(sender, receiver)
        size = self._size(message)
        self._sent[sender][kind_of(message)] += size
        ours, theirs = self.access[sender], self.access[receiver]
        queued_s = self._queued_s(sender, size, theirs.down_mbit)
        if relay := self.ways.relay_of(sender, receiver):
            queued_s += self._queued_s(relay, size, theirs.down_mbit)
            if volunteer := self.ways.volunteers.get(relay):
                queued_s += volunteer.carry_s(sender, receiver, size, trio.current_time())
            self.ways.relayed_bytes += size
        jitter = ours.jitter + theirs.jitter
        late_s = latency_s * self._chance.expovariate(1 / jitter) if jitter else 0.0
        loss = 1 - (1 - ours.loss) * (1 - theirs.loss)
        if loss and not math.isinf(latency_s):
            late_s += self._resent_s(loss, size, latency_s)
        return latency_s + late_s + queued_s

    def _queued_s(self, sender: PeerId, size: int, down_mbit: float) -> float:
        """Return how long bytes wait to be sent, and take to be sent and received."""
        now, up_s = trio.current_time(), size * 8e-6 / self.access[sender].up_mbit
        start = max(now, self._up_free_at[sender])
        self._up_free_at[sender] = start + up_s
        return start - now + max(up_s, size * 8e-6 / down_mbit)

    def spread(
        self, sender: PeerId, receivers: Sequence[PeerId], message: bytes
    ) -> dict[float, list[PeerId]]:
        """Return the peers that gossip reaches, over several hops, in steps to limit wake-ups."""
        once, ours = HEADER_BYTES + GOSSIP_BYTES + len(message), self.access[sender]
        if self._apart:
            receivers = [peer for peer in receivers if not self._apart(sender, peer)]
        rows = np.fromiter(map(self._row.__getitem__, receivers), np.int64, len(receivers))
        is_open = self._is_dialable[rows]
        told = len(rows) if ours.is_dialable else int(is_open.sum())
        self._sent[sender][GOSSIP] += min(GOSSIP_MESH_MAX, told) * once
        if len(rows) <= GOSSIP_MESH_MAX:
            by_hidden = max(0, is_open.sum() - (not ours.is_dialable))
            self._passed_on[rows] += once * np.where(is_open, len(rows) - 1, by_hidden)
        else:
            self._passed_on[rows] += round(GOSSIP_COPIES * once)
        backbone_s = np.array(self._one_way_s[ours.region])[self._region[rows]]
        way_s = backbone_s + self._last_mile_s[rows] + ours.last_mile_ms / 1000
        steps = np.ceil(GOSSIP_HOPS / GOSSIP_STEP_S * way_s)
        found: defaultdict[float, list[PeerId]] = defaultdict(list)
        for peer, step in zip(receivers, steps.tolist(), strict=True):
            found[GOSSIP_STEP_S * step].append(peer)
        return found

    def _resent_s(self, loss: float, size: int, latency_s: float) -> float:
        """Return the delay of a message due to lost packets."""
        packets = math.ceil(size / PACKET_BYTES)
        late_s, again_s = 0.0, max(RETRANSMIT_S, 2 * latency_s)
        while self._chance.random() > (1 - loss) ** packets:
            late_s, packets, again_s = late_s + again_s, 1, 2 * again_s
        return late_s

    def _size(self, message: bytes) -> int:
        """Return a message's bytes as they would be with rows of the real width."""
        if message[1:6] == STEP:
            return HEADER_BYTES + int(len(message) * self._widening)
        return HEADER_BYTES + len(message)


def kind_of(message: bytes) -> str:
    """Return the name that a message begins with."""
    if len(message) < 2:
        return "end"
    return message[2 : 2 + (message[1] & 31)].decode(errors="replace")
