"""A peer's access to a real network: libp2p over TCP, encrypted and authenticated by Noise.

Everything that libp2p raises is translated here, and its weaknesses are cured in `host`.
A channel is one stream of our muxer, opened in one round trip: the name of the protocol goes out
together with the greeting, and the answers to both come back together.
"""

import secrets
import time
import weakref
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from random import Random
from typing import Any

import trio
from libp2p.abc import IHost

from p2pinfer.core.errors import ChannelClosed, PeerUnavailable, UserError
from p2pinfer.core.ids import PeerId
from transports.base import (
    Accept,
    Channel,
    Handler,
    Reach,
    Reachability,
    Relaying,
    Topic,
    check_network_name,
)
from transports.identity import Identity, ephemeral_identity
from transports.interfaces import check_announced, is_global
from transports.libp2p.channel import StreamChannel, framed_for
from transports.libp2p.circuit import Circuits
from transports.libp2p.dialler import Dialler
from transports.libp2p.dialling import CIRCUIT, REACHED, libp2p_id, parse_address
from transports.libp2p.extension import Extender
from transports.libp2p.gossip import Gossip
from transports.libp2p.guests import Guests
from transports.libp2p.held_relays import HeldRelays
from transports.libp2p.host import (
    CONNECTIONS_MAX,
    Meetings,
    Muxer,
    build_host,
    check_port,
    connections,
    cut_off,
    has_direct,
    is_relayed,
    log,
    own_hosts,
    preference,
    protocol_id,
    stranger_upgrader,
)
from transports.libp2p.host_run import leave, run_host
from transports.libp2p.library_channel import open_library, wrap
from transports.libp2p.muxer import Connection
from transports.libp2p.negotiation import open_stream
from transports.libp2p.padded import Padding
from transports.libp2p.path import Extension, dial_over
from transports.libp2p.peer_finding import Lookout
from transports.libp2p.punching import Punches
from transports.libp2p.reach_watch import ReachWatch
from transports.libp2p.relay import Relay
from transports.libp2p.relay_limits import RelayLimits
from transports.port_mapping.keeper import PortKeeper
from transports.port_mapping.messages import NONCE_BYTES

ADDRESSES_PER_PEER_MAX = 8
"""Tried at once; a machine has an address per interface and family."""

MOVED_LOOK_S = 5.0
"""How often a peer looks whether it has other addresses, as in another Wi-Fi: 0.2 ms each time."""

KNOWN_PEERS_MAX = 10_000
"""Peers whose addresses are remembered; the one longest unused is forgotten first."""


class Libp2pTransport:
    """A `transports.base.Transport` on a libp2p host that runs."""

    def __init__(
        self,
        host: IHost,
        identity: Identity,
        reach: Reach,
        gossip: Gossip,
        lookout: Lookout,
        announced: Sequence[str],
        meetings: Meetings,
        via: Extension | None = None,
    ) -> None:
        self._host, self.via = host, via
        self.reach = ReachWatch(
            host,
            announced,
            stranger_upgrader(reach.key, reach.members),
            Random(secrets.randbits(64)),  # noqa: S311 -- picks which peer to ask first
            partial(secrets.randbits, 64),
            on_change=self.note_moved,
            on_alone=self._note_alone,
        )
        """Whether others can dial this peer, and where."""
        self.port_keeper = (
            PortKeeper(self._inner_port, secrets.token_bytes(NONCE_BYTES), self._note_mapping)
            if reach.maps_port and self.reach.listens and not announced
            else None
        )
        """Asks the router for a port; nobody does where a person has named an address."""
        self._private = reach.key is not None
        self._lookout, self._gossip, self._identity = lookout, gossip, identity
        self._network, self.was_dialled = reach.network, False
        self._moved = self._elsewhere = trio.Event()
        self._known: dict[PeerId, tuple[str, ...]] = {}
        self._dialling: weakref.WeakValueDictionary[tuple[PeerId, bool], trio.Lock] = (
            weakref.WeakValueDictionary()
        )
        self.circuits = Circuits(host, self.reach_directly)
        made = self.circuits, Padding(host, reach.network, via)
        self._dialler = Dialler(host, *made, is_private=self._private, is_hiding=bool(via))
        self.circuits.watch.call_again = lambda peer: self._reach(peer, ())
        self.circuits.watch.ways = lambda peer: self._known.get(peer, ())
        self.circuits.watch.has_direct = partial(has_direct, host)
        self.relays = HeldRelays(
            self.circuits,
            self.reach_directly,
            self._dialled_directly,
            self._needs_relays,
            time.time,
            self.peer_id,
            self.note_moved,
        )
        self.punches = Punches(
            host,
            meetings,
            stranger_upgrader(reach.key, reach.members),
            lambda: self.addresses,
            self.reach_directly,
            is_off=bool(via),
        )
        """Ways from circuits to direct connections."""
        self.circuits.on_begin, self.circuits.on_call = self.punches.begin, self.punches.called
        self.reach.touched = self.punches.touched
        self._relaying, limits = reach.relaying, RelayLimits.of(reach.relay_mbit)
        self.relay = Relay(host, limits, self._where, time.time, self._relays_for_others)
        self.extender = self._make_extender(limits)
        """Carries what others say who do not want to be seen."""

    def _where(self) -> list[str]:
        return list(self.own_addresses)

    def _make_extender(self, limits: RelayLimits) -> Extender:
        return Extender(
            self._host,
            self._network,
            self.relay,
            limits,
            partial(self.reach_directly, own=True),
            lambda peer: [*self.punches.addresses_of(peer), *self._known.get(peer, ())],
            self._where,
        )

    @property
    def peer_id(self) -> PeerId:
        """Who this peer is."""
        return self._identity.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        """Multiaddrs at which others reach this peer, with its id.

        Of a hidden peer those through its relays, which else stand behind its own: while that is
        open, or where it is hidden by IPv4 alone.
        """
        relayed = self.relays.addresses
        if self.reachability is Reachability.HIDDEN:
            return relayed
        if self.reachability is Reachability.PUBLIC:
            own = [f"{each}/p2p/{self.peer_id}" for each in self.reach.proved]
        else:
            own = [*self.own_addresses]
        return [*own[: ADDRESSES_PER_PEER_MAX - len(relayed)], *relayed]

    @property
    def own_addresses(self) -> Sequence[str]:
        """Multiaddrs of this machine's interfaces, with its id, reached by others or not."""
        try:
            return [str(address) for address in self._host.get_addrs()]
        except OSError:  # a listener is closed already: this peer is leaving
            return []

    @property
    def reachability(self) -> Reachability:
        """Whether others can dial this peer; see `transports.base.Transport.reachability`."""
        return self.reach.reachability

    def is_connected(self, peer: PeerId) -> bool:
        """Whether there is a connection with a peer."""
        return bool(self._connections(peer))

    def part(self, peer: PeerId) -> None:
        """End all connections with a peer; it may come back."""
        for connection in self._connections(peer):
            connection.abort("it is no member of this network any more")

    async def wait_moved(self) -> None:
        """Wait for other addresses; see `transports.base.Transport.wait_moved`."""
        await self._moved.wait()

    async def wait_elsewhere(self) -> None:
        """Wait until this machine's own addresses change."""
        await self._elsewhere.wait()

    def note_moved(self) -> None:
        """Tell those who wait for it that the addresses, or whether others reach them, changed."""
        self._moved.set()
        self._moved = trio.Event()

    async def watch_addresses(self) -> None:
        """Notice when the machine's addresses change, for ever."""
        told, hosts = self.own_addresses, own_hosts()
        while True:
            await trio.sleep(MOVED_LOOK_S)
            told_before, told = told, self.own_addresses
            hosts_before, hosts = hosts, own_hosts()
            if lost := hosts_before - hosts:  # what is sent from there goes nowhere
                for connection in connections(self._host):
                    if connection.own_host in lost:
                        connection.abort("this machine has lost the address that it was made from")
            if hosts != hosts_before:
                self.reach.move()
                self._look_for_router()
            if told == told_before:
                continue
            log.info("this peer's addresses are now: %s", ", ".join(told))
            if not set(told_before) <= set(told):  # whether the others can be dialled is open
                self.was_dialled = False
            self._elsewhere.set()
            self._elsewhere = trio.Event()
            self.note_moved()

    def _inner_port(self, own_host: str) -> int | None:
        """Return the port at which this peer listens on one of this machine's IPv4 addresses."""
        for each in map(str, self._host.get_transport_addrs()):
            found = REACHED.match(each)
            if found and found[1] == "ip4" and found[2] in ("0.0.0.0", own_host):  # noqa: S104
                return int(found[3].split("/")[2])
        return None

    def _note_mapping(self) -> None:
        found = self.port_keeper and self.port_keeper.mapping
        self.reach.map([found.address] if found else [])

    def _look_for_router(self) -> None:
        if self.port_keeper:
            self.port_keeper.look()

    def _note_alone(self) -> None:
        self._look_for_router()
        self.note_moved()

    def _relays_for_others(self) -> bool:
        if self._relaying is Relaying.IF_PUBLIC:
            return self.reachability is Reachability.PUBLIC
        return self._relaying is Relaying.ALWAYS

    def _needs_relays(self) -> bool:
        """Whether others cannot dial this peer by IPv4, or none could be asked and it looks so.

        By IPv6 not everybody can, and what is global stands behind a firewall at home.
        """
        verdict = self.reach.families["ip4"].verdict
        if verdict is not Reachability.UNKNOWN:
            return verdict is Reachability.HIDDEN
        found = [REACHED.match(each) for each in self.own_addresses]
        hosts = [each[2] for each in found if each and each[1] == "ip4"]
        return not any(map(is_global, hosts)) and any(
            (remote := each.get_remote_address()) and is_global(remote[0])
            for each in self._dialled_directly()
        )

    def _dialled_directly(self) -> list[Connection]:
        """Return the connections that this peer has made without a relay."""
        found = connections(self._host)
        return [each for each in found if each.is_initiator and each.relay is None]

    def sign(self, data: bytes) -> bytes:
        """Sign with this peer's key; `transports.identity.verify` checks it."""
        return self._identity.sign(data)

    def rtt_s(self, peer: PeerId) -> float | None:
        """The smoothed round trip to a connected peer in seconds, once measured."""
        samples = [conn.rtt_s for conn in self._connections(peer) if conn.rtt_s is not None]
        return min(samples, default=None)

    def relay_to(self, peer: PeerId) -> PeerId | None:
        """Return the relay that carries what this peer and another say; None if none does."""
        relays = [conn.relay for conn in self._connections(peer)]
        return None if None in relays else next(iter(relays), None)

    @property
    def channels(self) -> int:
        """How many channels this peer opened that have not ended."""
        return sum(conn.channels for conn in connections(self._host))

    def handle(self, protocol: str, handler: Handler, *, outlives: bool = False) -> None:
        """Serve inbound channels of ``protocol``; see `transports.base.Transport.handle`."""

        async def serve(stream: Any) -> None:
            self.was_dialled |= self._shows_dialable(stream.muxed_conn)
            stream.muxed_stream.outlives = outlives
            channel = wrap(stream)
            try:
                await handler(channel)
            except ChannelClosed as error:
                log.debug("a handler of %s lost its peer: %s", protocol, error)
                channel.abort()
            except BaseException:
                channel.abort()
                raise
            else:
                await channel.close()

        self._host.set_stream_handler(protocol_id(self._network, protocol), serve)

    def _shows_dialable(self, muxed: Any) -> bool:
        """Whether a connection was made by a peer that nothing but an open way let in."""
        remote = muxed.get_remote_address()
        is_met = remote is not None and remote[0] in self.punches.touched()
        return not (muxed.is_initiator or is_relayed(muxed) or is_met)

    async def connect(self, address: str) -> PeerId:
        """Reach the peer at ``address``; see `transports.base.Transport.connect`."""
        multiaddr = parse_address(address)
        names = [protocol.name for protocol in multiaddr.protocols()]
        if not REACHED.fullmatch(address) or names[-1] != "p2p":
            raise UserError(f"{address} must look like /ip4/192.0.2.1/tcp/4001/p2p/<peer id>.")
        peer = PeerId(address.rpartition("/p2p/")[2])  # behind a relay's, if there is one
        await self._reach(peer, [address], own=False)
        return peer

    async def open(
        self,
        peer: PeerId,
        protocol: str,
        addresses: Sequence[str] = (),
        *,
        own: bool = False,
        first: bytes = b"",
    ) -> Channel:
        """Open a channel; see `transports.base.Transport.open`."""
        name = protocol_id(self._network, protocol)
        for last in (False, True):
            muxed = await self._reach(peer, addresses, own=own)
            if protocol in self.punches.patient and is_relayed(muxed):
                await self.punches.wait_direct(peer)
                muxed = await self._reach(peer, addresses, own=own)
            if not isinstance(muxed, Connection):
                return await open_library(self._host, peer, name, first)
            try:
                framed = framed_for(muxed, first) if first else b""
                return StreamChannel(await open_stream(muxed, peer, name, first=framed), peer)
            except ChannelClosed:
                if last or not muxed.is_closed:
                    raise
                log.debug("connection to %s was gone already; dialling again", peer)
        raise AssertionError("the second attempt returns or raises")

    async def discover(self, topic: str | None) -> Sequence[str]:
        """Return hints of others; see `transports.base.Transport.discover`."""
        return await self._lookout.find(topic)

    def join_topic(self, name: str, accept: Accept) -> AbstractAsyncContextManager[Topic]:
        """Take part in gossip; see `transports.base.Transport.join_topic`."""
        return self._gossip.join(name, accept)

    def _connections(self, peer: PeerId) -> list[Connection]:
        return connections(self._host, libp2p_id(peer))

    async def reach_directly(
        self, peer: PeerId, addresses: Sequence[str], *, own: bool = False
    ) -> Connection:
        """Return a connection that no relay carries, dialling if there is none.

        With ``own`` one that this peer has made.

        Raises:
            PeerUnavailable: there is none, and none of the addresses answers.
        """
        found = await self._reach(peer, addresses, own=own, direct=True)
        assert isinstance(found, Connection), "circuits need our muxer"
        return found

    async def _reach(
        self, peer: PeerId, addresses: Sequence[str], *, own: bool = False, direct: bool = False
    ) -> object:
        """Return a live connection to ``peer``, dialling if there is none; one dial at a time.

        A direct one is preferred, and with ``direct`` no other counts.
        """
        if peer == self.peer_id:
            raise PeerUnavailable(peer, "that peer is this one")
        # Two, since a circuit's dial waits for its relay, which may be dialling through this peer.
        lock = self._dialling.setdefault((peer, direct), trio.Lock())
        async with lock:
            found = [
                conn
                for conn in self._host.get_network().get_connections(libp2p_id(peer))
                if not conn.is_closed
                and not conn.muxed_conn.is_closed
                and (conn.muxed_conn.is_initiator or not own)
                and not (direct and is_relayed(conn.muxed_conn))
            ]
            if found:
                return min((conn.muxed_conn for conn in found), key=preference)
            tried = list(dict.fromkeys([*addresses, *self._known.get(peer, ())]))
            if direct:
                tried = [address for address in tried if not CIRCUIT.fullmatch(address)]
            muxed, address = await self._dialler.dial(peer, tried[:ADDRESSES_PER_PEER_MAX])
            self._remember(peer, [address, *(other for other in tried if other != address)])
            return muxed

    def _remember(self, peer: PeerId, addresses: Sequence[str]) -> None:
        self._known.pop(peer, None)
        self._known[peer] = tuple(addresses[:ADDRESSES_PER_PEER_MAX])
        if len(self._known) > KNOWN_PEERS_MAX:
            del self._known[next(iter(self._known))]


@asynccontextmanager
async def open_libp2p(
    identity: Identity | None,
    listen: Sequence[str],
    network: str | Reach,
    *,
    announce: Sequence[str] = (),
    connections_max: int = CONNECTIONS_MAX,
    muxer: Muxer = "own",
    guests: Guests | None = None,
    via: Extension | None = None,
) -> AsyncGenerator[Libp2pTransport, None]:
    """Run a peer of ``network`` that listens on the multiaddrs ``listen`` until the block ends.

    Without an ``identity`` one is drawn and kept nowhere. The network's name is part of every
    protocol's, so that swarms of different names never mix. A peer whose key is not the `Reach`'s
    cannot take part, whatever the name: see `private_noise`.
    ``announce`` are addresses told before the machine's own, such as of a router that passes it on.
    ``muxer="library"`` is to measure with. ``guests`` get a private network's key for a token.
    With ``via`` everybody is reached over that path, and nobody otherwise; none listens then.

    Raises:
        UserError: an address or the network's name cannot be used, or a port is taken.
    """
    reach = Reach(network) if isinstance(network, str) else network
    check_network_name(reach.network)
    listening = [parse_address(address) for address in listen]
    for address in listening:
        check_port(address)
    identity = identity or ephemeral_identity()
    announced = check_announced(announce, identity.peer_id)
    meetings = Meetings()
    host = build_host(
        identity,
        connections_max=connections_max,
        muxer=muxer,
        network_key=reach.key,
        members=reach.members,
        announced=announced,
        meetings=meetings,
        guests=guests,
    )
    if via:
        dial_over(host, via)
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            gossip = Gossip(host, reach.network, partial(cut_off, host))
            await nursery.start(run_host, host, listening)
            await nursery.start(gossip.run)
            lookout = Lookout(host, reach, gossip.topics, listens=bool(listening))
            told = (identity, reach, gossip, lookout, announced, meetings, via)
            transport = Libp2pTransport(host, *told)
            lookout.start(nursery, transport.wait_elsewhere)
            nursery.start_soon(transport.watch_addresses)
            nursery.start_soon(transport.circuits.watch.run)
            nursery.start_soon(transport.relays.run)
            nursery.start_soon(transport.reach.run)
            if transport.port_keeper:
                nursery.start_soon(transport.port_keeper.run)
            nursery.start_soon(transport.punches.run)
            yield transport
        except BaseException as error:  # noqa: BLE001 - raised below, outside the nursery's group
            failure = error
        await leave(host)
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
