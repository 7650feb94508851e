"""From a circuit to a direct connection: by dialling a public caller, or by punching holes (DCUtR).

    called peer B                                      caller A
      is A public?  ───────────── dial ────────────────▶        reversal: no more is needed
      CONNECT, where B is seen  ── circuit ────────────▶
                 ◀──────────────── circuit ──  CONNECT, where A is seen
      SYNC  ────────────────────── circuit ────────────▶
      after half the round trip: dial ──▶ NAT | NAT ◀── dial at once

Hidden peers open their NATs for each other: both dial from the port that they listen on. If the two
first packets cross between the NATs, the kernels make one connection of them; if one comes late,
the other's listener accepts it. Who has dialled says nothing then, so the roles are agreed: A is
the client of the handshakes, B the server, and A's listener takes B's connection as a client, too.
On the last try they are swapped, for peers whose listener does not. What may be dialled, and how
often, is in `punching_rules`.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from p2pinfer.core.errors import PeerError, RemoteProtocolError
from p2pinfer.core.ids import PeerId
from transports.libp2p.dialling import REACHED
from transports.libp2p.host import Meetings, connections, has_direct, own_hosts
from transports.libp2p.muxer import Connection
from transports.libp2p.negotiation import open_stream, read_delimited
from transports.libp2p.news import News
from transports.libp2p.outside_view import OutsideView, View, connect_from, end_gently
from transports.libp2p.protobuf import delimited
from transports.libp2p.punching_rules import (
    CONNECT,
    DCUTR,
    DIALS_PER_ADDRESS_MAX,
    MESSAGE_BYTES_MAX,
    REST_S,
    SYNC,
    TRIES_MAX,
    HolePunch,
    Ledger,
    Place,
    PunchStatistics,
    choose,
    decode,
    encode,
    hosts_of,
    place_of,
    public,
)
from transports.libp2p.reach_inquiry import family_of, is_global
from transports.libp2p.stream import Stream

log: Final = logging.getLogger("p2pinfer.relay")

MESSAGE_S_MAX = 5.0
"""For the other side to say the next thing; it may ask its relay first where it is seen."""

REVERSAL_S_MAX = 3.0
"""For a public caller to answer."""

TRY_S = 2.0
"""For two dials to meet: a packet that a NAT drops is sent again after one second."""

HANDSHAKE_S_MAX = 3.0
"""For Noise and the muxer to agree, once they have met."""

REDIAL_S_MIN, REDIAL_S_MAX = 0.01, 0.1
"""Before an address that refused is dialled again in one try; twice as long each time."""

DIRECT_S_MAX = 1.75
"""For which a channel of a session waits for a direct connection, once for each peer in `REST_S`: a
punch takes seven round trips, of 250 ms in the worst case that is waited for."""

IN_VAIN_MAX = 1024
"""Peers remembered that this was in vain for; more are waited for again."""

RELAY_TOUCHED_S = 300.0
"""For which a NAT may let in a relay that was dialled from the listening port, after the end: 240 s
(RFC 5382, section 5)."""

PEER_TOUCHED_S = 7440.0
"""The same for a peer that punches, whose connection may last: 124 minutes."""


class Punches:
    """The ways of one host from circuits to direct connections.

    Args:
        host: whose they are; it answers others from now on.
        meetings: tells the host's listener of peers that it meets.
        upgrader: as of `OutsideView`.
        own: returns this peer's addresses, as it says them to others.
        reach: returns a direct connection to a peer; raises PeerUnavailable.
        is_off: punch with nobody, which would show where this machine is.
    """

    def __init__(
        self,
        host: IHost,
        meetings: Meetings,
        upgrader: TransportUpgrader,
        own: Callable[[], Sequence[str]],
        reach: Callable[[PeerId, Sequence[str]], Awaitable[Connection]],
        *,
        is_off: bool = False,
    ) -> None:
        swarm = host.get_network()
        assert isinstance(swarm, Swarm), "new_host makes a Swarm"
        self._host, self._swarm, self._meetings = host, swarm, meetings
        self._own, self._reach = own, reach
        self._outside = OutsideView(upgrader, self._here, partial(self._touch, RELAY_TOUCHED_S))
        self._ledger = Ledger()
        self._nursery: trio.Nursery | None = None
        self._news = trio.Event()
        self._in_vain: dict[PeerId, float] = {}
        self.statistics = PunchStatistics()
        self._touched: dict[str, float] = {}
        self._replacing: dict[PeerId, trio.CancelScope] = {}
        self._answering: Counter[PeerId] = Counter()
        self.patient: Collection[str] = ()
        """The protocols whose channels wait for a direct connection; the node sets them."""
        self.addresses_of: Callable[[PeerId], Sequence[str]] = lambda _: ()
        """Returns where a peer says to be reached; the node sets it."""
        self._is_off = is_off
        if not is_off:
            host.set_stream_handler(TProtocol(DCUTR), self._serve)
        swarm.register_notifee(News(self._tell))

    async def run(self) -> None:
        """Serve, for ever."""
        if not self._is_off:
            async with trio.open_nursery() as self._nursery:
                await trio.sleep_forever()

    def begin(self, relay: Connection) -> None:
        """Take note that a circuit through a relay is being made: ask it now where it sees us."""
        if self._nursery and not self._told_by_ipv4():
            self._nursery.start_soon(self._look, relay, self._nursery)

    def called(self, circuit: Connection) -> None:
        """Try to replace a circuit that another peer has made."""
        if self._nursery:
            self._nursery.start_soon(self._replace, circuit)

    @property
    def tries(self) -> Mapping[str, int]:
        """How many tries to reach a peer without its relay succeeded, and how many did not.

        Both of those that this peer called and of those that called it.
        """
        return {"won": self._ledger.won, "lost": self._ledger.lost}

    def touched(self) -> Collection[str]:
        """Return the hosts that a NAT may let in because this peer dialled them from its port.

        What they connect is no proof that others can.
        """
        now = trio.current_time()
        self._touched = {host: until for host, until in self._touched.items() if until > now}
        return self._touched.keys()

    async def wait_direct(self, peer: PeerId) -> None:
        """Wait a moment for a direct connection, where only a circuit was there so far."""
        if self._is_in_vain(peer):
            return
        circuits = connections(self._host, peer_id := ID.from_string(peer))
        if not any(map(self._leads_out, circuits)):
            return
        with trio.move_on_after(DIRECT_S_MAX):
            await self._wait_direct(peer_id, or_in_vain=True)
        if not has_direct(self._host, peer_id):
            self._give_up(peer)

    async def _wait_direct(self, peer: ID, *, or_in_vain: bool = False) -> None:
        while not has_direct(self._host, peer):
            if or_in_vain and self._is_in_vain(PeerId(str(peer))):
                return
            await self._news.wait()

    def _is_in_vain(self, peer: PeerId) -> bool:
        """Whether a direct connection was tried in vain not long ago."""
        return self._in_vain.get(peer, 0.0) > trio.current_time()

    def _leads_out(self, circuit: Connection) -> bool:
        """Whether a circuit's relay is in the Internet; on a local network nothing is punched."""
        relay = self._relay_of(circuit)
        remote = relay.get_remote_address() if relay else None
        return remote is not None and is_global(remote[0])

    def _relay_of(self, circuit: Connection) -> Connection | None:
        """Return the connection to a circuit's relay."""
        if circuit.relay is None:
            return None
        found = connections(self._host, ID.from_string(circuit.relay))
        return next((each for each in found if each.relay is None), None)

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _give_up(self, peer: PeerId) -> None:
        self._in_vain.pop(peer, None)
        self._in_vain[peer] = trio.current_time() + REST_S
        if len(self._in_vain) > IN_VAIN_MAX:
            del self._in_vain[next(iter(self._in_vain))]
        self._tell()

    def _touch(self, for_s: float, *hosts: str) -> None:
        until = trio.current_time() + for_s
        for host in hosts:
            self._touched[host] = max(until, self._touched.get(host, 0.0))

    def _here(self) -> Place:
        """Return where this peer listens by IPv4; any port if it does not."""
        for address in self._host.get_transport_addrs():
            found = REACHED.match(str(address))
            if found and found[1] == "ip4":
                return found[2], int(found[3].split("/")[2])
        return "0.0.0.0", 0  # noqa: S104 - to dial from

    def _told_by_ipv4(self) -> tuple[str, ...]:
        """Return the addresses at which others reach this peer anyway, without its id."""
        told = (each.partition("/p2p/")[0] for each in public(self._own()))
        return tuple(each for each in told if each.startswith("/ip4/"))

    def _by_ipv6(self) -> Place | None:
        """Return where this peer listens by IPv6, which is where others see it; None if nowhere."""
        own = {host for host in own_hosts() if ":" in host and is_global(host)}
        told = (place_of(str(address)) for address in self._host.get_addrs())
        return next((each for each in told if each and each[0] in own), None)

    async def _look(self, relay: Connection, nursery: trio.Nursery) -> View | None:
        return await self._outside.look(relay, self._identified(relay.peer_id), nursery)

    def _identified(self, peer: ID) -> list[str]:
        """Return the addresses at which a peer says that it is, by libp2p's identify."""
        try:
            return [str(each) for each in self._host.get_peerstore().addrs(peer)]
        except PeerStoreError:
            return []

    async def _view(self, circuit: Connection) -> tuple[View | None, tuple[str, ...]]:
        """Return what the circuit's relay sees, where that is of use, and the addresses to say."""
        if told := self._told_by_ipv4():
            return None, told
        six = self._by_ipv6()
        by_ipv6 = (f"/ip6/{six[0]}/tcp/{six[1]}",) if six else ()
        relay = self._relay_of(circuit)
        if relay is None or self._nursery is None:
            return None, by_ipv6
        view = await self._look(relay, self._nursery)
        if view is None:
            return None, by_ipv6
        host, port = view.outside
        ports = dict.fromkeys((port, view.here[1]))  # most NATs keep the port
        return view, (*(f"/ip4/{host}/tcp/{each}" for each in ports), *by_ipv6)

    async def _replace(self, circuit: Connection) -> None:
        """As the called peer: dial the caller if it is public, punch otherwise."""
        peer_id = circuit.peer_id
        peer = PeerId(str(peer_id))
        if has_direct(self._host, peer_id) or peer in self._replacing:
            return
        with trio.CancelScope() as self._replacing[peer]:
            try:
                await self._reverse_or_punch(circuit, peer)
            except Exception as error:  # noqa: BLE001 - what the other end provokes ends this only
                log.info("peer %s is reached through a relay only: %r", peer, error)
        scope = self._replacing.pop(peer)
        if scope.cancelled_caught or peer in self._answering:
            return  # each has called the other, and what that one began goes on
        if not has_direct(self._host, peer_id):
            self._count(in_vain=self.statistics.in_vain + 1)
            self._give_up(peer)

    async def _reverse_or_punch(self, circuit: Connection, peer: PeerId) -> None:
        dialled: set[str] = set()
        for number in range(1, TRIES_MAX + 1):
            said = [each for each in self._said_by(circuit) if each not in dialled]
            dialled |= set(said)
            if said and await self._reverse(peer, said):
                self._count(reversed=self.statistics.reversed + 1)
                return
            if not await self._try(circuit, peer, swapped=number == TRIES_MAX):
                break
            if has_direct(self._host, circuit.peer_id):
                log.info("peer %s is reached directly, at try %d", peer, number)
                punched = list(self.statistics.punched)
                punched[number - 1] += 1
                self._count(punched=tuple(punched))
                break

    def _said_by(self, circuit: Connection) -> list[str]:
        """Return the public addresses of a caller; libp2p asks it for them meanwhile (identify)."""
        peer = PeerId(str(circuit.peer_id))
        found = list(self.addresses_of(peer))
        # By IPv6 what is global is seldom open: both dial at once then, which opens it.
        four = [each for each in self._identified(circuit.peer_id) if each.startswith("/ip4/")]
        found += [each if "/p2p/" in each else f"{each}/p2p/{peer}" for each in four]
        return public(dict.fromkeys(found))

    def _count(self, **changed: Any) -> None:
        self.statistics = replace(self.statistics, **changed)

    async def _reverse(self, peer: PeerId, addresses: Sequence[str]) -> bool:
        """Dial a public caller; say whether it answered."""
        hosts = [found[2] for each in addresses if (found := REACHED.match(each))]
        if not self._ledger.begin(peer, hosts, trio.current_time()):
            return False
        reached = False
        try:
            with trio.move_on_after(REVERSAL_S_MAX):
                await self._reach(peer, addresses)
                reached = True
        except PeerError as error:
            log.debug("caller %s is not reached directly: %s", peer, error)
        finally:
            self._ledger.end(peer, succeeded=reached)
        return reached

    async def _try(self, circuit: Connection, peer: PeerId, *, swapped: bool) -> bool:
        """Punch once, as the called peer; return False if there is nothing to try."""
        view, ours = await self._view(circuit)
        first = delimited(encode(HolePunch(CONNECT, ours, swapped)))
        began = trio.current_time()
        with trio.fail_after(MESSAGE_S_MAX):
            stream = await open_stream(circuit, peer, DCUTR, watched=False, first=first)
            try:
                said = await _hear(stream, peer, CONNECT)
            except BaseException:
                stream.abort()
                raise
        round_trip_s = trio.current_time() - began
        if not ours:  # to punch from: but the other side may be open
            stream.abort()
            addresses = public(f"{each}/p2p/{peer}" for each in said.addresses)
            return bool(addresses) and await self._reverse(peer, addresses)
        places = choose(said.addresses, self._own_hosts(view), _families(ours))
        if not places or not self._ledger.begin(peer, hosts_of(places), trio.current_time()):
            stream.abort()
            return False
        try:
            stream.send_now(delimited(encode(HolePunch(SYNC))))
            stream.finish()
            await trio.sleep(round_trip_s / 2)
            await self._meet(circuit.peer_id, places, view, is_client=swapped)
        finally:
            self._ledger.end(peer, succeeded=has_direct(self._host, circuit.peer_id))
            stream.abort()
        return True

    async def _serve(self, inbound: INetStream) -> None:
        """Punch once, as the caller."""
        given: Any = inbound
        stream, circuit = given.muxed_stream, given.muxed_conn
        if (
            not isinstance(stream, Stream)
            or not isinstance(circuit, Connection)
            or circuit.relay is None
            or not circuit.is_initiator
        ):
            await inbound.reset()
            return
        peer = PeerId(str(circuit.peer_id))
        if own := self._replacing.get(peer):  # each has called the other: one is enough
            if str(self._host.get_id()) < peer:
                stream.abort()
                return
            own.cancel()
        self._answering[peer] += 1
        try:
            with trio.fail_after(MESSAGE_S_MAX):
                said = await _hear(stream, peer, CONNECT)
            await self._answer(stream, circuit, said)
        except (MuxedStreamError, trio.TooSlowError) as error:
            log.debug("peer %s began to punch, and then %r", peer, error)
        finally:
            stream.abort()
            self._answering[peer] -= 1
            if not self._answering[peer]:
                del self._answering[peer]

    async def _answer(self, stream: Stream, circuit: Connection, said: HolePunch) -> None:
        peer_id = circuit.peer_id
        peer = PeerId(str(peer_id))
        view, ours = await self._view(circuit)
        places = choose(said.addresses, self._own_hosts(view), _families(ours))
        if not ours or not self._ledger.begin(peer, hosts_of(places), trio.current_time()):
            return
        try:
            await stream.write(delimited(encode(HolePunch(CONNECT, ours))))
            with trio.fail_after(MESSAGE_S_MAX):
                await _hear(stream, peer, SYNC)
            if not has_direct(self._host, peer_id):
                await self._meet(peer_id, places, view, is_client=not said.swapped)
        finally:
            self._ledger.end(peer, succeeded=has_direct(self._host, peer_id))

    def _own_hosts(self, view: View | None) -> set[str]:
        return own_hosts() | ({view.outside[0]} if view else set())

    async def _meet(
        self, peer: ID, places: Sequence[Place], view: View | None, *, is_client: bool
    ) -> None:
        """Dial a peer while it dials us; return once it is connected, or the try is over."""
        hosts = hosts_of(places)
        self._touch(PEER_TOUCHED_S, *hosts)
        port = (view.here if view else self._here())[1]
        here = {"ip4": ("0.0.0.0", port), "ip6": self._by_ipv6()}  # noqa: S104 - to dial from
        with self._meetings.expected(peer if is_client else None, hosts):
            with trio.move_on_after(TRY_S) as patience:
                async with trio.open_nursery() as dials:
                    for place in places:
                        if own := here[family_of(place[0])]:
                            dials.start_soon(self._dial, peer, own, place, is_client, patience)
                    await self._wait_direct(peer)
                    dials.cancel_scope.cancel()

    async def _dial(
        self, peer: ID, here: Place, place: Place, is_client: bool, patience: trio.CancelScope
    ) -> None:
        """Dial one address until it answers; then shake hands, which nothing cuts short.

        The two ends may otherwise each keep another of two connections, and end the other's.
        """
        pause_s = REDIAL_S_MIN
        for _ in range(DIALS_PER_ADDRESS_MAX):
            try:
                tcp = await connect_from(here, place)
            except OSError as error:
                log.debug("%s:%d: %s", *place, error)
                await trio.sleep(pause_s)
                pause_s = min(REDIAL_S_MAX, 2 * pause_s)
                continue
            patience.deadline = max(patience.deadline, trio.current_time() + HANDSHAKE_S_MAX)
            assert self._nursery, "it runs while peers are met"
            self._nursery.start_soon(self._shake, tcp, peer, place, is_client)
            return

    async def _shake(self, tcp: trio.SocketStream, peer: ID, place: Place, is_client: bool) -> None:
        """Make a connection of a socket whose other end is perhaps the peer."""
        raw = RawConnection(TrioTCPStream(tcp), is_client)
        kept = tcp.socket.dup()  # the muxer takes the socket over
        made = False
        try:
            with trio.fail_after(HANDSHAKE_S_MAX):
                muxed: Any
                if is_client:
                    muxed = (await self._swarm.upgrade_outbound_raw_conn(raw, peer)).muxed_conn
                else:
                    at = Multiaddr(f"/{family_of(place[0])}/{place[0]}/tcp/{place[1]}")
                    muxed = await self._swarm.upgrade_inbound_raw_conn(raw, at)
                if muxed.peer_id != peer:
                    muxed.abort("it is not the peer that was to be met")
                else:
                    end_gently(kept)
                    made = True
        except Exception as error:  # noqa: BLE001 - the other end provokes any
            log.debug("%s:%d is not %s: %r", *place, peer, error)
        finally:
            kept.close()
            if not made:
                with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                    await raw.close()


def _families(addresses: Sequence[str]) -> set[str]:
    """Return the families of addresses: ``ip4``, ``ip6``."""
    return {each.split("/")[1] for each in addresses}


async def _hear(stream: Stream, peer: PeerId, kind: int) -> HolePunch:
    """Return the next message.

    Raises:
        RemoteProtocolError: it is none, or not the one that is due.
        MuxedStreamError: the stream ended.
    """
    try:
        said = decode(await read_delimited(stream, MESSAGE_BYTES_MAX))
    except ValueError as error:
        raise RemoteProtocolError(peer, f"it sent what is not of DCUtR: {error}") from error
    if said.kind != kind:
        raise RemoteProtocolError(peer, "its message of DCUtR is not the one that is due")
    return said
