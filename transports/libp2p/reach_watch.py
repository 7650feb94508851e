"""Finds out at which of its addresses others can dial this peer, and keeps asking.

The candidates are the addresses that a person announced, ports that a router passes on, addresses
of this machine that are global, and its own port at the address that others see. Connected peers
are asked to dial them; what follows is decided in `reach_inquiry`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from typing import Any, Final

import trio
from libp2p.abc import IHost
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.transport.upgrader import TransportUpgrader

from p2pinfer.core.ids import PeerId
from transports.base import Reachability
from transports.interfaces import machine_addresses, routed_hosts, told_addresses
from transports.libp2p.autonat_client import DialBacks
from transports.libp2p.autonat_messages import DIAL_BACK, DIAL_REQUEST
from transports.libp2p.autonat_server import AutonatServer, ways_out
from transports.libp2p.dialling import numeric
from transports.libp2p.host import direct_connections, log, own_hosts
from transports.libp2p.muxer import Connection
from transports.libp2p.reach_inquiry import (
    DialOutcome,
    DialQuestion,
    DialServer,
    FamilyReach,
    family_of,
    host_of,
    is_global,
    overall,
)

LOOK_S = 1.0
"""How often a peer looks whether there is somebody to ask, or a new address to ask about."""

RESOLVE_S = 60.0
"""How often an announced name is looked up: home connections have names that move."""

_FAMILIES: Final = ("ip4", "ip6")


class ReachWatch:
    """One host's view of whether others can dial it.

    Args:
        host: it answers others, too, from the moment that `run` starts.
        announced: addresses that a person named, without an id.
        upgrader: as in `AutonatServer`.
        chance: picks which peer to ask first.
        draw: as in `DialBacks`.
        on_change: called whenever the verdict or the proved addresses change.
        on_alone: called when the last connection has ended.
    """

    def __init__(
        self,
        host: IHost,
        announced: Sequence[str],
        upgrader: TransportUpgrader,
        chance: Random,
        draw: Callable[[], int],
        on_change: Callable[[], object],
        on_alone: Callable[[], object],
    ) -> None:
        self._host, self._announced, self._chance = host, announced, chance
        self._on_change, self._on_alone = on_change, on_alone
        self._upgrader = upgrader
        self._dial_backs = DialBacks(lambda: direct_connections(host), draw)
        self.families: Mapping[str, FamilyReach] = {each: FamilyReach() for each in _FAMILIES}
        self.mapped: tuple[str, ...] = ()
        """Ports that a router passes on, as multiaddrs."""
        self.touched: Callable[[], Collection[str]] = tuple
        """Returns hosts that a NAT may let in, besides those that this peer is connected with."""
        self._named: dict[str, str] = {}
        """What announced names stand for, and the names."""
        self._routed = routed_hosts()
        self._is_alone = True
        self._said: tuple[Reachability, tuple[str, ...]] = (Reachability.UNKNOWN, ())

    @property
    def reachability(self) -> Reachability:
        """Whether others can dial this peer."""
        return self._said[0]

    @property
    def proved(self) -> tuple[str, ...]:
        """Multiaddrs that others have dialled when asked to, without this peer's id.

        Those that a person announced come first, with the names that they have; also those of them
        that nobody could prove: private ones, which are for peers in the same network.
        """
        unprovable = [
            each
            for each in self._announced
            if each not in self._named.values() and not is_global(host_of(each))
        ]
        return tuple(dict.fromkeys([*unprovable, *self._said[1]]))

    @property
    def listens(self) -> bool:
        """Whether there is a port that others could dial."""
        return bool(self._host.get_transport_addrs())

    async def run(self) -> None:
        """Ask others whenever it is due, and answer them, for ever."""
        if not self.listens:
            return
        server = AutonatServer(
            self._upgrader, lambda: ways_out(routed_hosts()), own_hosts, self._chance
        )
        self._host.set_stream_handler(TProtocol(DIAL_REQUEST), server.serve)
        self._host.set_stream_handler(TProtocol(DIAL_BACK), self._dial_backs.serve)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._resolve)
            while True:
                self._look(nursery)
                await trio.sleep(LOOK_S)

    def map(self, addresses: Sequence[str]) -> None:
        """Take in which ports a router passes on: others are asked to dial them soon."""
        self.mapped = tuple(addresses)
        for state in self.families.values():
            state.doubt(trio.current_time())

    def move(self) -> None:
        """Take in that this machine may have other addresses."""
        before, self._routed = self._routed, routed_hosts()
        for family, state in self.families.items():
            if any(family_of(host) == family for host in before ^ self._routed):
                state.move(trio.current_time())
        self._say()

    def _look(self, nursery: trio.Nursery) -> None:
        """Ask what is to be asked now."""
        now, found = trio.current_time(), direct_connections(self._host)
        if not found and not self._is_alone:
            for state in self.families.values():
                state.doubt(now)
            self._on_alone()
        self._is_alone = not found
        servers = self._servers(found)
        if servers:
            candidates = self._candidates()
            for family, state in self.families.items():
                wanted = [each for each in candidates if family_of(host_of(each)) == family]
                for question in state.look(now, wanted, list(servers)):
                    nursery.start_soon(
                        self._ask, nursery, state, question, servers[question.server]
                    )
        else:
            for state in self.families.values():
                state.look(now, (), ())
        self._say()

    async def _ask(
        self, nursery: trio.Nursery, state: FamilyReach, question: DialQuestion, server: Connection
    ) -> None:
        outcome = DialOutcome.NO_ANSWER
        if not server.is_closed:
            outcome = await self._dial_backs.ask(server, question.candidate)
        servers = list(self._servers(direct_connections(self._host)))
        state.answered(trio.current_time(), question, outcome, servers)
        self._say()
        self._look(nursery)

    def _say(self) -> None:
        verdict = overall(each.verdict for each in self.families.values())
        proved = [
            self._named.get(address, address)
            for each in self.families.values()
            for address in each.proved
        ]
        said = verdict, tuple(dict.fromkeys(proved))
        if said != self._said:
            self._said = said
            log.info("to others this peer is %s %s", verdict.value, ", ".join(said[1]))
            self._on_change()

    def _servers(self, found: Sequence[Connection]) -> dict[DialServer, Connection]:
        """Return who may be asked, in a random order.

        Left out are neighbours, and hosts that this peer has dialled from the port that it listens
        on, now or lately: a NAT lets in whatever comes from there.
        """
        ports = {int(str(each.value_for_protocol("tcp"))) for each in self._listening()}
        servers: dict[DialServer, Connection] = {}
        known = set(self.touched())
        for connection in found:
            remote = connection.get_remote_address()
            if remote is None or connection.get_connection_type() is not ConnectionType.DIRECT:
                continue
            if connection.is_initiator and connection.own_port in ports:
                known.add(remote[0])
            elif is_global(remote[0]):
                servers[DialServer(PeerId(str(connection.peer_id)), remote[0])] = connection
        picked = [each for each in servers if each.host not in known]
        self._chance.shuffle(picked)
        return {each: servers[each] for each in picked}

    def _listening(self) -> list[Any]:
        try:
            return [each for each in self._host.get_transport_addrs() if "/tcp/" in str(each)]
        except OSError:  # a listener's socket is closed: this peer is leaving
            return []

    def _candidates(self) -> list[str]:
        """Return the addresses at which others may perhaps dial this peer, the best first."""
        listening = [str(each).partition("/p2p/")[0] for each in self._listening()]
        own = told_addresses(listening, machine_addresses(), routed_hosts())
        found = [*self._named, *self._announced, *self.mapped, *own, *self._seen(listening)]
        return [each for each in dict.fromkeys(found) if is_global(host_of(each))]

    def _seen(self, listening: Sequence[str]) -> list[str]:
        """Return the hosts that others see this peer at, with the ports that lead to it.

        Those that a router passes on come first: what it says of its own address may be wrong.
        """
        manager: Any = getattr(self._host, "_observed_addr_manager", None)
        seen = [] if manager is None else [str(each) for each in manager.addrs(min_observers=1)]
        hosts = dict.fromkeys(map(host_of, seen))
        return [
            f"/{family}/{host}/tcp/{each.split('/')[4]}"
            for host in hosts
            for family in [family_of(host)]
            for each in (*self.mapped, *listening)
            if each.startswith(f"/{family}/")
        ]

    async def _resolve(self) -> None:
        """Keep looking announced names up."""
        names = [each for each in self._announced if each.startswith("/dns")]
        while names:
            found: dict[str, str] = {}
            for name in names:
                try:
                    found |= dict.fromkeys(await numeric(name), name)
                except (OSError, ValueError) as error:
                    log.info("%s cannot be looked up: %s", name, error)
            self._named = found
            await trio.sleep(RESOLVE_S)
