"""A libp2p host that strangers cannot bring down: TCP, Noise, our muxer, and a cure per weakness.

Each function that starts with ``_cure`` replaces one piece of libp2p 0.8.1 on one host and says
what goes wrong without it; ``tests/transports/libp2p/test_walls.py`` has a test for each. They
lean on private names: the version is pinned.
"""

import errno
import logging
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Literal

import trio
from libp2p import new_host
from libp2p.abc import IHost, IMuxedConn, INetStream, ISecureConn, ISecureTransport
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network import swarm as swarm_module
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection import swarm_connection as swarm_connection_module
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.exceptions import StreamError
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.tcp import tcp as tcp_module
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from p2pinfer.core.errors import PeerError, UserError
from transports.base import Gatekeeper
from transports.blocklist import Blocklist
from transports.identity import Identity, ephemeral_identity
from transports.interfaces import machine_addresses, routed_hosts, told_addresses
from transports.libp2p.circuit import check_caller
from transports.libp2p.guests import Guests, admit_guests
from transports.libp2p.muxer import Connection
from transports.libp2p.negotiation import JoinedClient, agree_on_muxer
from transports.libp2p.past_peers import remember_few
from transports.libp2p.private_noise import (
    MEMBER_NOISE_ID,
    PRIVATE_NOISE_ID,
    MemberNoise,
    PrivateNoise,
)

log: Final = logging.getLogger("p2pinfer.transports")

Muxer = Literal["own", "library"]
"""``library`` is libp2p's own Yamux, to measure ours against; it survives no hostile peer."""

CONNECTIONS_MAX = 256
"""A swarm's worth of peers; each costs three tasks and, at worst, `yamux.UNREAD_BYTES_MAX`."""

CONNECTIONS_PER_PEER_MAX = 4
"""Two are normal when both sides dial at once; beyond this libp2p closes the oldest."""

HALF_OPEN_PER_ADDRESS_MAX = 64
"""Handshakes under way from one address: a NAT full of honest peers fits, a flood does not."""

HANDSHAKE_S_MAX = 5.0
"""For Noise and the muxer to agree, three round trips in all; then a silent socket is dropped."""

STREAMS_PER_PEER_MAX = 300
"""Inbound streams being served for one peer, over all its connections."""

NEGOTIATION_S_MAX = 10
"""For an inbound stream to say which protocol it speaks (whole seconds: libp2p's type)."""

CUT_OFF_S = 60.0
"""For which a peer that broke the rules of gossip is served nothing."""

CUT_OFF_MAX = 1024
"""Peers remembered so; more identities than that cost their maker more than they cost us."""

_SET_REUSE_FLAGS: Final = tcp_module._set_reuse_flags

HANDLER_GRACE_S = 1.0
"""For a handler to notice that its connection is gone, before it is cancelled."""


class Meetings:
    """Peers that dial this host while it dials them, and are the servers of the handshakes."""

    def __init__(self) -> None:
        self._peers: dict[str, ID] = {}

    def server_at(self, address: str) -> ID | None:
        """Return the peer that is expected from an IP address as a server."""
        return self._peers.get(address)

    @contextmanager
    def expected(self, peer: ID | None, addresses: Sequence[str]) -> Iterator[None]:
        """Expect a peer from some IP addresses while the block lasts; None expects nobody."""
        if peer is not None:
            self._peers |= dict.fromkeys(addresses, peer)
        try:
            yield
        finally:
            for address in addresses:
                if peer is not None and self._peers.get(address) is peer:
                    del self._peers[address]


def build_host(
    identity: Identity,
    *,
    connections_max: int = CONNECTIONS_MAX,
    muxer: Muxer = "own",
    network_key: bytes | None = None,
    members: Gatekeeper | None = None,
    announced: Sequence[str] = (),
    meetings: Meetings | None = None,
    guests: Guests | None = None,
) -> IHost:
    """Make a host that does not run yet; with a network's key it knows only those who have it.

    With ``members``, only those of them who prove to be one.

    ``announced`` are told to others before the machine's own addresses. Peers that ``meetings``
    expect are taken for servers, though they have dialled. ``guests`` get the network's key for a
    token.
    """
    _quiet_libraries()
    key_pair = ed25519_key_pair(identity.seed)
    host = new_host(
        key_pair=key_pair,
        # Given explicitly: libp2p's own list of securities accepts plaintext.
        sec_opt=_security(key_pair, network_key, members),
        muxer_opt={TProtocol(YAMUX_ID): Yamux},
        connection_config=ConnectionConfig(
            max_connections=connections_max,
            high_watermark=connections_max,
            low_watermark=1,
            min_connections=0,
            max_connections_per_peer=CONNECTIONS_PER_PEER_MAX,
            inbound_upgrade_timeout=HANDSHAKE_S_MAX,
            outbound_upgrade_timeout=HANDSHAKE_S_MAX,
            inbound_stream_protocol_negotiation_timeout=NEGOTIATION_S_MAX,
        ),
        addrs_factory=partial(real_addresses, announced),
    )
    swarm = host.get_network()
    assert isinstance(swarm, Swarm), "new_host makes a Swarm"
    swarm.retry_config.max_retries = 0  # the caller decides whether to try again
    _cure_limits(swarm)
    _cure_dial_delay()
    _cure_negotiation(swarm.upgrader)
    _cure_sockets_of_both_families()
    _cure_inbound_slots(swarm, meetings or Meetings())
    _cure_raising_handlers(swarm)
    _cure_trimming(swarm)
    _cure_stale_views(host)
    remember_few(host)
    if muxer == "own":
        _use_own_muxer(swarm)
    if guests and network_key:
        admit_guests(host, key_pair, network_key, guests)
    return host


def _security(
    key_pair: KeyPair, network_key: bytes | None, members: Gatekeeper | None
) -> dict[TProtocol, ISecureTransport]:
    """Return the one handshake that this host speaks."""
    static = x25519_key_pair().private_key
    if network_key is None:
        return {NOISE_ID: Noise(key_pair, noise_privkey=static)}
    if members:
        noise = MemberNoise(key_pair, noise_privkey=static)
        noise.key, noise.members = network_key, members
        return {MEMBER_NOISE_ID: noise}
    private = PrivateNoise(key_pair, noise_privkey=static)
    private.key = network_key
    return {PRIVATE_NOISE_ID: private}


def stranger_upgrader(
    network_key: bytes | None, members: Gatekeeper | None = None
) -> TransportUpgrader:
    """Return what shakes hands under a key drawn now, which no other peer knows."""
    key_pair = ed25519_key_pair(ephemeral_identity().seed)
    upgrader = TransportUpgrader(
        _security(key_pair, network_key, members), {TProtocol(YAMUX_ID): Yamux}
    )
    _cure_negotiation(upgrader)
    return upgrader


def connections(host: IHost, peer: ID | None = None) -> list[Connection]:
    """Return the live connections that our muxer runs, to one peer or to all."""
    found = (conn.muxed_conn for conn in host.get_network().get_connections(peer))
    return [conn for conn in found if isinstance(conn, Connection) and not conn.is_closed]


def direct_connections(host: IHost) -> list[Connection]:
    """Return the live connections that no relay carries."""
    return [each for each in connections(host) if each.relay is None]


def is_relayed(muxed: object) -> bool:
    """Whether a connection goes through a relay."""
    return isinstance(muxed, Connection) and muxed.relay is not None


def preference(muxed: object) -> tuple[bool, float]:
    """Sort connections to one peer: direct ones first, then circuits that were heard of last."""
    if isinstance(muxed, Connection) and muxed.relay is not None:
        return True, muxed.silent_s
    return False, 0.0


def has_direct(host: IHost, peer: ID) -> bool:
    """Whether a peer is connected without a relay."""
    found = host.get_network().get_connections(peer)
    return any(not is_relayed(conn.muxed_conn) for conn in found)


def cut_off(host: IHost, peer: ID) -> None:
    """Drop a peer now, and serve it nothing for a while."""
    swarm: Any = host.get_network()
    cut_off_peers: Blocklist = swarm.cut_off_peers
    cut_off_peers.block(peer, trio.current_time() + CUT_OFF_S)
    for connection in connections(host, peer):
        connection.abort("it broke the rules of gossip")


def _quiet_libraries() -> None:
    """Keep libp2p and multiaddr off the logs, and off the root logger's handlers.

    libp2p's SwarmConn calls ``logging.debug``, which installs a handler on the root logger.
    """
    names = [name for name in logging.root.manager.loggerDict if name.startswith("libp2p.")]
    for name in ("libp2p", "multiaddr", *names):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    quiet: Any = logging.getLogger("libp2p.network.connection")
    swarm_connection_module.logging = quiet  # type: ignore[attr-defined]  # not exported


def _use_own_muxer(swarm: Swarm) -> None:
    """Have this host's connections run by `transports.libp2p.muxer`; libp2p hard-wires its own."""
    upgrader = swarm.upgrader

    async def upgrade_connection(conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        check_caller(conn, peer_id)
        if not await agree_on_muxer(conn, YAMUX_ID):
            await upgrader.muxer_multistream.select_transport(conn)
        return Connection(conn, peer_id)

    upgrader.upgrade_connection = upgrade_connection  # type: ignore[method-assign]


def _cure_limits(swarm: Swarm) -> None:
    """Drop libp2p's resource manager: at its limit of streams, the next one hangs. Ours refuse."""
    swarm.set_resource_manager(None)


def _cure_dial_delay() -> None:
    """Make libp2p's own dials return when they are done, not 250 ms later."""
    swarm_module._HAPPY_EYEBALLS_DELAY = 0.0


def _cure_negotiation(upgrader: TransportUpgrader) -> None:
    """Negotiate twice a dial in one round trip each; libp2p's greeting waits for an answer first.

    Over a circuit across an ocean, each is half a second.
    """
    for multistream in (upgrader.security_multistream, upgrader.muxer_multistream):
        multistream._selector.multiselect_client = JoinedClient()


def _cure_sockets_of_both_families() -> None:
    """Let ``::`` stand for IPv6 alone; libp2p's socket takes the same port of IPv4, too.

    Then two listeners share one port, and a caller by IPv4 may seem to come from an IPv6 address.
    """

    def set_flags(sock: Any) -> None:
        _SET_REUSE_FLAGS(sock)
        _keep_to_its_family(sock)

    replaced: Any = tcp_module
    replaced._set_reuse_flags = set_flags


def _keep_to_its_family(sock: Any) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def _cure_inbound_slots(swarm: Swarm, meetings: Meetings) -> None:
    """Serve an inbound connection for its life only, and few half-open ones per address.

    libp2p keeps the slot of an ended connection for ever, so that the 251st inbound connection is
    refused; and 250 silent sockets shut the port.
    """
    half_open: Counter[str] = Counter()

    async def inbound(wire: Any, listener: Multiaddr, failure: object) -> None:  # noqa: ARG001
        address = _address(wire)
        server = meetings.server_at(address)
        raw = RawConnection(wire, initiator=server is not None)
        try:
            if half_open[address] >= HALF_OPEN_PER_ADDRESS_MAX:
                log.info("too many handshakes at once from %s", address)
                return
            half_open[address] += 1
            try:
                muxed: Any
                if server is None:
                    muxed = await swarm.upgrade_inbound_raw_conn(raw, listener)
                else:
                    with trio.fail_after(HANDSHAKE_S_MAX):
                        met = await swarm.upgrade_outbound_raw_conn(raw, server)
                    muxed = met.muxed_conn
            finally:
                half_open[address] -= 1
                if not half_open[address]:
                    del half_open[address]
            await muxed.event_closed.wait()
        except Exception as error:  # noqa: BLE001 - a stranger's handshake ends only itself
            log.debug("inbound connection from %s failed: %r", address, error)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                await raw.close()

    replaced: Any = swarm
    replaced._do_handle_inbound_connection = inbound


def _cure_trimming(swarm: Swarm) -> None:
    """Count only direct connections against a peer's share.

    In libp2p circuits, which many relays may bring, push out the direct ones.
    """
    trim = swarm._trim_connections

    def trim_direct(peer: ID) -> None:
        direct = [each for each in swarm.connections[peer] if not is_relayed(each.muxed_conn)]
        if len(direct) > CONNECTIONS_PER_PEER_MAX:
            trim(peer)

    replaced: Any = swarm
    replaced._trim_connections = trim_direct


def _cure_stale_views(host: IHost) -> None:
    """Ask a peer that connects again what it sees this one at now.

    libp2p asks each peer once: after a reconnection, as from another outer address, nobody's view
    is known any more.
    """
    replaced: Any = host
    forget = replaced._on_notifee_disconnected

    def is_identified(peer: ID) -> bool:
        return peer in replaced._identified_peers

    def disconnected(conn: Any) -> None:
        forget(conn)
        peer: ID = conn.muxed_conn.peer_id
        if any(not each.is_closed for each in replaced.get_network().get_connections(peer)):
            replaced._schedule_identify(peer, reason="connected otherwise")

    replaced._has_cached_protocols = is_identified
    replaced._on_notifee_disconnected = disconnected


def _address(wire: Any) -> str:
    """Return the IP address at the other end; libp2p's own way knows no IPv6."""
    try:
        return str(wire.stream.socket.getpeername()[0])
    except (AttributeError, OSError):
        return "?"  # no plain socket, or gone already


def _cure_raising_handlers(swarm: Swarm) -> None:
    """Let nothing that happens in one stream reach the others, or outlive its connection.

    In libp2p an exception in a handler, or a protocol name that is not UTF-8, ends the process.
    """
    serve = swarm.common_stream_handler
    serving: Counter[ID] = Counter()
    cut_off_peers = Blocklist(CUT_OFF_MAX)
    host: Any = swarm
    host.cut_off_peers = cut_off_peers

    async def guarded(stream: INetStream) -> None:
        muxed: Any = stream.muxed_conn
        peer: ID = muxed.peer_id
        done = False
        serving[peer] += 1
        try:
            if serving[peer] > STREAMS_PER_PEER_MAX:
                log.info("peer %s has too many streams", peer)
            elif cut_off_peers.blocks(peer, trio.current_time()):
                log.debug("peer %s is cut off", peer)
            else:
                await _until_end(muxed, serve, stream)
                done = True
        except StreamError as error:
            log.debug("a stream from peer %s ended before it was agreed on: %r", peer, error)
        except PeerError as error:  # a warning would let strangers fill the log
            log.info("a stream from peer %s ended: %s", peer, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this stream only
            log.warning("a stream from peer %s failed: %r", peer, error)
        finally:
            serving[peer] -= 1
            if not serving[peer]:
                del serving[peer]
            with trio.CancelScope(shield=True), trio.move_on_after(HANDLER_GRACE_S):
                await (stream.close() if done else stream.reset())

    swarm.set_stream_handler(guarded)


async def _until_end(muxed: Any, serve: Any, stream: Any) -> None:
    """Serve a stream; cancel that soon after its connection has ended, unless it goes on then."""
    with trio.CancelScope() as scope:
        if not isinstance(muxed, Connection):
            await serve(stream)
            return

        def expire() -> None:
            if not stream.muxed_stream.outlives:
                scope.deadline = trio.current_time() + HANDLER_GRACE_S

        take_back = muxed.call_at_end(expire)
        try:
            await serve(stream)
        finally:
            take_back()


def real_addresses(announced: Sequence[str], addresses: Sequence[Multiaddr]) -> list[Multiaddr]:
    """Replace the addresses that mean "all interfaces" by the most useful of the interfaces."""
    listening = [str(each) for each in addresses]
    told = told_addresses(listening, machine_addresses(), routed_hosts(), announced)
    return [Multiaddr(each) for each in told]


def own_hosts() -> set[str]:
    """Return all addresses of this machine, including those not advertised."""
    return {address.host for address in machine_addresses()}


def check_port(address: Multiaddr) -> None:
    """Try to bind ``address``: libp2p would share a taken port, and peers would reach either.

    Raises:
        UserError: the port is taken or forbidden, or the address is not this machine's.
    """
    names = [protocol.name for protocol in address.protocols()]
    if names not in (["ip4", "tcp"], ["ip6", "tcp"]):
        raise UserError(f"Cannot listen on {address}: give it as /ip4/0.0.0.0/tcp/PORT.")
    host, port = address.value_for_protocol(names[0]), int(address.value_for_protocol("tcp"))
    family = socket.AF_INET if names[0] == "ip4" else socket.AF_INET6
    with socket.socket(family) as probe:
        # Not REUSEPORT, which would share; REUSEADDR only skips what a closed socket leaves behind.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _keep_to_its_family(probe)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(_why_not(address, host, port, error)) from error


def _why_not(address: Multiaddr, host: str, port: int, error: OSError) -> str:
    """Say why an address cannot be listened on, and what to do."""
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"Port {port} is in use by another program: stop that, or take another port"
                " (0 is any free one)."
            )
        case errno.EADDRNOTAVAIL:
            everywhere = "0.0.0.0" if ":" not in host else "::"  # noqa: S104 - only named
            return (
                f"Cannot listen on {address}: this machine has no address {host};"
                f" {everywhere} stands for all that it has."
            )
        case errno.EACCES:
            return f"Cannot listen on {address}: port {port} is the system's; take one from 1024."
        case _:
            return f"Cannot listen on {address} ({error.strerror}): take another address or port."


def protocol_id(network: str, protocol: str) -> TProtocol:
    """Name a protocol of ours on the wire; another network's peers do not speak it."""
    return TProtocol(f"/p2pinfer/{network}/{protocol}/1")
