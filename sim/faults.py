"""Faults: peers that come and go, and links that are cut."""

import math

import trio

from p2pinfer.core.ids import PeerId
from sim.machines import VirtualMachine, VirtualPeer
from sim.scenario import CutTable
from sim.world import World


async def live_and_churn(
    world: World, machine: VirtualMachine, start_s: float, until_s: float
) -> None:
    """Run a peer; during churn it comes and goes, each time under a new identity."""
    chance, table = world.chance(f"churn {machine.number}"), world.scenario.churn
    await trio.sleep_until(machine.join_s)
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(world.run_peer, machine)
            await trio.lowlevel.checkpoint()
            if not table.stay_s:
                return
            begins_s = max(trio.current_time(), start_s)
            stays_s = chance.expovariate(1 / table.stay_s)
            is_killed = chance.random() < table.killed
            away_s = chance.expovariate(1 / table.away_s)
            if begins_s + stays_s >= until_s:
                return
            await trio.sleep_until(begins_s + stays_s)
            peer = next((p for p in world.peers.values() if p.machine is machine), None)
            if peer is None:  # it crashed, which is recorded, or was killed as a relay
                return
            end(world, peer, is_killed=is_killed)
            await peer.over.wait()
            await trio.sleep(away_s)


def end(world: World, peer: VirtualPeer, *, is_killed: bool) -> None:
    """Kill a peer, or ask it to leave."""
    world.ended_s[peer.id] = trio.current_time()
    world.record.event(trio.current_time(), "kill" if is_killed else "leave", peer.machine.number)
    if is_killed:
        peer.kill()
    else:
        peer.leaving.set()


async def kill_relays(world: World, start_s: float, until_s: float) -> None:
    """Kill the busiest relay again and again; another peer comes in its place some time later."""
    chance, table = world.chance("relay kills"), world.scenario.churn
    if not table.relays_per_minute:
        return
    async with trio.open_nursery() as nursery:
        at_s = start_s
        while (at_s := at_s + 60 / table.relays_per_minute) < until_s:
            await trio.sleep_until(at_s)
            peer = _busiest_relay(world)
            if peer is not None:
                world.record.event(trio.current_time(), "relay killed", peer.machine.number)
                end(world, peer, is_killed=True)
                away_s = chance.expovariate(1 / table.away_s)
                nursery.start_soon(_replace, world, peer, away_s)


def _busiest_relay(world: World) -> VirtualPeer | None:
    """Return the peer that relays for most pairs, and of equals for most peers."""

    def load(peer: VirtualPeer) -> tuple[int, int]:
        table = world.network.ways.volunteers[peer.id].table
        return table.circuits, table.reservations

    volunteers = world.network.ways.volunteers
    found = [p for p in world.peers.values() if p.id in volunteers and not p.leaving.is_set()]
    return max(found, key=load, default=None)


async def _replace(world: World, gone: VirtualPeer, away_s: float) -> None:
    """Run another peer on the machine of one that is gone."""
    await gone.over.wait()
    await trio.sleep(away_s)
    if all(peer.machine is not gone.machine for peer in world.peers.values()):
        await world.run_peer(gone.machine)


async def cut_and_heal(world: World, cut: CutTable, start_s: float) -> None:
    """Cut some regions off from the others for a while, starting at a given moment."""
    names, network = world.scenario.regions.names, world.network
    inside = {names.index(name) for name in cut.regions}

    def are_apart(one: PeerId, other: PeerId) -> bool:
        regions = network.access[one].region, network.access[other].region
        return (regions[0] in inside) != (regions[1] in inside)

    await trio.sleep_until(start_s + cut.at_s)
    world.cut_s = math.inf
    network.cut(are_apart)
    world.record.event(trio.current_time(), "cut", sorted(inside))
    await trio.sleep_until(start_s + cut.heal_s)
    network.heal()
    world.cut_s = trio.current_time()
    world.record.event(trio.current_time(), "heal", sorted(inside))
