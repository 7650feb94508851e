"""A peer that shakes hands as any, and then writes whatever a test likes."""

from contextlib import suppress

import pytest
import trio
from libp2p.abc import ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux as LibraryYamux
from libp2p.transport.upgrader import TransportUpgrader

from transports.libp2p import circuit_messages, yamux
from transports.libp2p.circuit_messages import CircuitStatus
from transports.libp2p.noise_records import StreamPipe
from transports.libp2p.transport import Libp2pTransport


def endpoint(transport: Libp2pTransport) -> tuple[str, int]:
    """Return host and port."""
    _, _, address, _, port, *_ = transport.own_addresses[0].split("/")
    return address, int(port)


async def hostile(victim: Libp2pTransport) -> ISecureConn:
    """Connect and shake hands as a peer does; what follows on the wire is up to the test."""
    tcp = TrioTCPStream(await trio.open_tcp_stream(*endpoint(victim)))
    return await _shaken(RawConnection(tcp, initiator=True), victim, create_new_key_pair())


async def hostile_circuit(
    caller: Libp2pTransport, relay: Libp2pTransport, victim: Libp2pTransport
) -> ISecureConn:
    """Do the same over a circuit, which ``caller`` opens."""
    them = ID.from_string(victim.peer_id)
    outer = await caller.reach_directly(relay.peer_id, relay.own_addresses)
    stream, answer = await caller.circuits._ask(outer, circuit_messages.connect_request(them))
    assert answer.status == CircuitStatus.OK
    pipe = StreamPipe(stream, relay.peer_id, victim.peer_id)
    own = create_new_key_pair(caller._identity.seed)  # the relay says who calls
    return await _shaken(RawConnection(pipe, initiator=True), victim, own)


async def _shaken(raw: RawConnection, victim: Libp2pTransport, own: KeyPair) -> ISecureConn:
    noise = Noise(own, noise_privkey=create_x25519_key_pair().private_key)
    upgrader = TransportUpgrader({NOISE_ID: noise}, {TProtocol(YAMUX_ID): LibraryYamux})
    secured = await upgrader.upgrade_security(raw, True, ID.from_string(victim.peer_id))
    await upgrader.muxer_multistream.select_transport(secured)
    return secured


async def read_to_the_end(conn: ISecureConn) -> None:
    """Wait until the other side hangs up."""
    with suppress(BaseLibp2pError):
        while await conn.read():
            pass


async def write_until_cut(conn: ISecureConn, data: bytes) -> None:
    """Write until the other side hangs up; fail if it takes 400 MB."""
    with suppress(BaseLibp2pError):
        for _ in range(400_000_000 // len(data)):
            await conn.write(data)
        pytest.fail("it takes everything")


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    """Build a Yamux frame."""
    return yamux.HEADER.pack(0, kind, flags, stream_id, length) + body
