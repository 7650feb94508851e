"""Virtual NATs and relays: which peers reach which, how, at what price, and until when."""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import combinations_with_replacement
from random import Random

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.errors import ChannelClosed, PeerUnavailable
from sim.links import AccessLink, WorldNetwork
from sim.nats import NatKind, can_punch, draw_nat
from sim.report import all_public, beside, lines, summary
from sim.run import run_scenario
from sim.scenario import (
    ChurnTable,
    ExpectTable,
    ModelTable,
    NatsTable,
    PeersTable,
    RequestsTable,
    Scenario,
)
from sim.toml_schema import Spread
from sim.ways import HELD_MAX, IDLE_S
from tests.support.swarm import peer
from transports.base import Channel
from transports.libp2p.held_relays import RELAYS_MAX
from transports.libp2p.relay_limits import RelayLimits
from transports.memory.network import MemoryTransport

HIDDEN, CALLER, RELAY, OTHER = (peer(name) for name in ("hidden", "caller", "relay", "other"))
SAY = "say"
DIRECT_S, LEG_S = 0.1, 0.2
"""Round trips: between two peers of one region, and to the relay's."""


async def greet(channel: Channel) -> None:
    """Answer each message, until the end."""
    while True:
        await channel.send(await channel.receive())


@asynccontextmanager
async def connected(
    caller: NatKind, callee: NatKind, limits: RelayLimits | None = None
) -> AsyncIterator[tuple[WorldNetwork, Sequence[MemoryTransport]]]:
    """Run a caller, and a callee that holds one far relay."""
    one_way = [[DIRECT_S / 2, LEG_S / 2], [LEG_S / 2, DIRECT_S / 2]]
    network = WorldNetwork(one_way, 8, Random(1), limits)
    network.admit(CALLER, AccessLink(nat=caller))
    network.admit(HIDDEN, AccessLink(nat=callee))
    for relay in (RELAY, OTHER):
        network.admit(relay, AccessLink(region=1))
    network.ways.volunteer(RELAY)
    async with AsyncExitStack() as stack:
        joined = [
            await stack.enter_async_context(network.join(name))
            for name in (CALLER, HIDDEN, RELAY, OTHER)
        ]
        for transport in joined:
            transport.handle(SAY, greet)
        await joined[1].is_reached(RELAY)
        network.ways.volunteers[RELAY].table.reserve(HIDDEN, HIDDEN, "", trio.current_time())
        joined[1].hold([RELAY])
        yield network, joined


async def round_trip_s(channel: Channel) -> float:
    """Measure one."""
    before_s = trio.current_time()
    await channel.send(b"x" * 500)
    await channel.receive()
    return trio.current_time() - before_s


def test_which_pairs_punch() -> None:
    """Fifteen pairs of kinds: a symmetric NAT needs a lenient one at the other side."""
    kinds = [kind for kind in NatKind if kind is not NatKind.NONE]
    failing = {
        frozenset((one, other))
        for one, other in combinations_with_replacement(kinds, 2)
        if not can_punch(one, other)
    }
    hard, usual = NatKind.SYMMETRIC, NatKind.PORT_FILTER
    assert failing == {frozenset((hard,)), frozenset((hard, usual))}
    assert all(can_punch(a, b) == can_punch(b, a) for a in kinds for b in kinds)


def test_nats_are_as_common_as_measured() -> None:
    """About 70 of 100 pairs drawn can punch, within what 85,000 networks showed (7)."""
    chance = Random(1)
    drawn = [draw_nat(NatsTable(), chance) for _ in range(4000)]
    pairs = zip(drawn[::2], drawn[1::2], strict=True)
    assert 0.63 < sum(can_punch(*pair) for pair in pairs) / 2000 < 0.77


def test_hidden_peers_hold_as_many_relays_as_real_ones() -> None:
    """The simulator's constant is that of the transport."""
    assert HELD_MAX == RELAYS_MAX


@pytest.mark.parametrize(
    ("caller", "callee", "round_trips", "dial_s", "kind"),
    [
        (NatKind.NONE, NatKind.SYMMETRIC, DIRECT_S, 2 * LEG_S + DIRECT_S, "called back"),
        (NatKind.PORT_FILTER, NatKind.PORT_FILTER, DIRECT_S, 4 * LEG_S + DIRECT_S, "punched"),
        (NatKind.SYMMETRIC, NatKind.PORT_FILTER, 2 * LEG_S, 2 * LEG_S, "relayed"),
    ],
)
async def test_a_hidden_peer_is_reached_as_the_nats_allow(
    autojump_clock: MockClock,
    caller: NatKind,
    callee: NatKind,
    round_trips: float,
    dial_s: float,
    kind: str,
) -> None:
    """Who can be dialled is called back; others punch, or pay the way through the relay."""
    async with connected(caller, callee) as (network, (calling, *_)):
        before_s = trio.current_time()
        channel = await calling.open(HIDDEN, SAY)
        assert trio.current_time() - before_s == pytest.approx(dial_s, abs=1e-6)
        assert await round_trip_s(channel) == pytest.approx(round_trips, abs=1e-3)
        assert network.round_trip_s(CALLER, HIDDEN) == pytest.approx(round_trips)
        assert network.ways.made == {kind: 1}
        assert (network.ways.relay_of(CALLER, HIDDEN) == RELAY) == (kind == "relayed")
        assert bool(network.ways.relayed_bytes) == (kind == "relayed")


async def test_without_a_reservation_nobody_reaches_it(autojump_clock: MockClock) -> None:
    """A relay brings callers only to those who asked it to, and none once it is gone."""
    async with connected(NatKind.SYMMETRIC, NatKind.SYMMETRIC) as (network, (calling, hidden, *_)):
        hidden.hold([OTHER])  # which does not relay
        with pytest.raises(PeerUnavailable):
            await calling.open(HIDDEN, SAY)
        hidden.hold([RELAY])
        channel = await calling.open(HIDDEN, SAY)
        network.end(RELAY)
        with pytest.raises(ChannelClosed):
            await channel.receive()
        assert network.ways.lost_s[HIDDEN] == trio.current_time()
        with pytest.raises(PeerUnavailable):
            await calling.open(HIDDEN, SAY)


async def test_a_punched_way_outlives_its_relay(autojump_clock: MockClock) -> None:
    """Nothing of it passes through there."""
    async with connected(NatKind.PORT_FILTER, NatKind.PORT_FILTER) as (network, (calling, *_)):
        channel = await calling.open(HIDDEN, SAY)
        network.end(RELAY)
        assert await round_trip_s(channel) == pytest.approx(DIRECT_S, abs=1e-3)


async def test_a_relay_keeps_its_limits(autojump_clock: MockClock) -> None:
    """One circuit where that is its limit; idle ones are closed, and bytes wait for its rate."""
    limits = RelayLimits(circuits_max=1, bytes_per_s=2000, burst_bytes=4000)
    hard = NatKind.SYMMETRIC
    async with connected(hard, hard, limits) as (network, (calling, *_)):
        network.admit(late := peer("late"), AccessLink(nat=hard))
        async with network.join(late) as another:
            channel = await calling.open(HIDDEN, SAY)
            with pytest.raises(PeerUnavailable):
                await another.open(HIDDEN, SAY)
            waits = [await round_trip_s(channel) for _ in range(9)]
            assert waits[0] == pytest.approx(2 * LEG_S, abs=1e-3)
            assert waits[-1] > 2 * LEG_S + 0.1
            await trio.sleep(IDLE_S + 1)
            await another.open(HIDDEN, SAY)


SMALL = Scenario(
    about="hidden peers behind NATs of all kinds, and relays that vanish",
    duration_s=40.0,
    settle_s=20.0,
    calm_s=10.0,
    model=ModelTable(layers=8, layer_mb=0.1, context=128),
    peers=(
        PeersTable(count=4, layers=Spread(3, 3), undialable=0.0),
        PeersTable(count=8, layers=Spread(3, 3), undialable=1.0),
    ),
    requests=RequestsTable(
        requesters=2, per_minute=12.0, prompt=Spread(4, 20), answer=Spread(2, 8)
    ),
    churn=ChurnTable(relays_per_minute=5.0, away_s=5.0),
)


def test_hidden_peers_serve_though_relays_vanish() -> None:
    """All questions are answered, by hidden peers too; the report says how they were reached."""
    outcome = run_scenario(SMALL)
    assert outcome.is_good, outcome.record.violations
    numbers = summary(outcome)
    assert numbers["outcomes"] == {"answered": numbers["questions"]}
    assert numbers["relays_killed"] >= 2
    assert numbers["layer_rows_by_undialable"] > 0.3
    assert sum(numbers["connections"].values()) > 0
    both = beside(numbers, summary(run_scenario(all_public(SMALL))))
    assert both["token_s_ratio"] > 0
    assert math.isfinite(both["token_s_ratio"])
    shown = "\n".join(lines(both))
    assert "of the layer-rows by those that cannot" in shown
    assert "times the time of a token in the same world without NATs" in shown


def test_without_relays_hidden_peers_serve_nothing() -> None:
    """Then nobody reaches them, and what a scenario demands of them is a violation."""
    alone = evolve(
        SMALL, nats=NatsTable(relays=0.0), churn=ChurnTable(), expect=ExpectTable(undialable=0.1)
    )
    outcome = run_scenario(alone)
    assert summary(outcome)["layer_rows_by_undialable"] == 0
    assert [each.check for each in outcome.record.violations] == ["undialable"]
