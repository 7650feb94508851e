"""The code that judges strangers' bytes, and what must hold for any bytes.

A target makes an input from a random generator, and judges it: what is accepted is what it
claims to be, anything else is refused by the one exception meant for it.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any

import msgpack
from blake3 import blake3
from libp2p.peer.id import ID

from p2pinfer.core import fraud
from p2pinfer.core.advertisement import Advertisement, Heard
from p2pinfer.core.certificate import MAGIC, check, parse
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.manifest import BadManifest, parse_manifest
from p2pinfer.core.receipts import BODY_BYTES, SIGNED_AS, BadReceipt, Receipt
from p2pinfer.core.sections import BadFile
from p2pinfer.core.wire import BadMessage, decode, encode
from peers.discovery.view import SwarmView, Taken
from tests.core.test_certificate import CERTIFICATE, FILE, STAGES
from tests.core.test_manifest import values as manifest_values
from tests.core.test_wire import KINDS
from tests.fuzz import openings, signed
from tests.fuzz.damage import damage, packed, spoil
from tests.support.good_messages import GOOD
from tests.support.proofs import FILE as PROOF_FILE
from transports.identity import verify
from transports.libp2p import circuit_messages, punching_rules
from transports.libp2p.punching_rules import HolePunch
from transports.libp2p.reach_inquiry import family_of
from transports.libp2p.yamux import (
    HEADER,
    STREAMS_MAX,
    UNREAD_BYTES_MAX,
    DataReceived,
    StreamOpened,
    StreamReset,
    Yamux,
    YamuxViolation,
)
from transports.port_mapping import messages as router_messages
from transports.port_mapping.messages import RouterAnswerError, RouterRefusal
from transports.port_mapping.upnp import read_location

SMALL_VIEW = 4
NOW = 1000.0


@dataclass(frozen=True)
class Target:
    """One place where strangers' bytes are judged."""

    make: Callable[[Random], Any]
    judge: Callable[[Any], None]
    """Raises if it finds a bug of ours."""


def _message(chance: Random) -> bytes:
    name = chance.choice(list(GOOD))
    return packed(chance, (name, *GOOD[name]))


def _judge_message(data: bytes) -> None:
    with suppress(BadMessage):
        message = decode(data, *KINDS)
        assert decode(encode(message), *KINDS) == message


def _manifest(chance: Random) -> bytes:
    return packed(chance, manifest_values())


def _judge_manifest(data: bytes) -> None:
    with suppress(BadManifest):
        found = parse_manifest(data)
        assert found.encode() == data
        assert found.id == blake3(data).hexdigest()


def _receipt(chance: Random) -> tuple[PeerId, bytes, bytes]:
    signer = chance.choice(STAGES)
    body, signature = chance.choice(CERTIFICATE.stages).receipts[0].body, bytes(64)
    if chance.random() < 0.8:
        body = damage(chance, body)
    if chance.random() < 0.8:
        body = body[:BODY_BYTES].ljust(BODY_BYTES, b"\0")
    if chance.random() < 0.5:
        signature = damage(chance, signer.sign(SIGNED_AS + body))
    return chance.choice((signer.peer_id, PeerId("x" * 52))), body, signature


def _judge_receipt(given: tuple[PeerId, bytes, bytes]) -> None:
    peer, body, signature = given
    with suppress(BadReceipt):
        assert Receipt.parse(body).body() == body
    if verify(peer, SIGNED_AS + body, signature):
        assert signature in [key.sign(SIGNED_AS + body) for key in STAGES]


def _sections(magic: bytes, file: bytes) -> list[tuple[bytes, Any]]:
    """Take a good file apart into names and values."""
    found, at = [], len(magic)
    while at < len(file) - 64:
        name = file[at + 1 : at + 1 + file[at]]
        start = at + 1 + file[at] + 4
        end = start + int.from_bytes(file[start - 4 : start], "little")
        found.append((name, msgpack.unpackb(file[start:end], use_list=False)))
        at = end + 32
    return found


SECTIONS = _sections(MAGIC, FILE)
PROOF_SECTIONS = _sections(fraud.MAGIC, PROOF_FILE)


def _certificate(chance: Random) -> bytes:
    return _spoilt(chance, MAGIC, FILE, list(SECTIONS))


def _fraud(chance: Random) -> bytes:
    return _spoilt(chance, fraud.MAGIC, PROOF_FILE, list(PROOF_SECTIONS))


def _spoilt(chance: Random, magic: bytes, file: bytes, sections: list[tuple[bytes, Any]]) -> bytes:
    """Spoil a file, mostly inside sections whose hashes are then corrected."""
    if chance.random() < 0.2:
        return damage(chance, file)
    for _ in range(chance.randint(1, 2)):
        at = chance.randrange(len(sections))
        name, values = sections[at]
        match chance.randrange(10):
            case 0 if len(sections) > 1:
                del sections[at]
            case 1:
                sections.insert(at, (damage(chance, name), values))
            case _:
                sections[at] = name, spoil(chance, values)
    data = magic
    for name, values in sections:
        body = msgpack.packb(values)
        head = bytes([len(name) % 256]) + name + len(body).to_bytes(4, "little") + body
        data += head + blake3(head).digest()
    return data + bytes(64)


def _judge_certificate(data: bytes) -> None:
    with suppress(BadFile):
        found, body, signature = parse(data)
        assert found.body() == body == data[: -len(signature)]
        check(found)


def _judge_fraud(data: bytes) -> None:
    """With all signatures valid, so that what they cover is reached."""
    with suppress(BadFile):
        proof = fraud.parse(data, lambda *_: True)
        assert data.startswith(proof.body())
        assert len(proof.inputs.regimes) == proof.case().rows


def _gossip(chance: Random) -> list[Heard]:
    """Make advertisements signed by a stranger, of itself and of others, valid and invalid."""
    found = []
    for _ in range(chance.randint(1, 6)):
        author, named = chance.choice(STAGES), chance.choice(STAGES)
        values = ["Advertisement", *GOOD["Advertisement"]]
        values[1], values[-1] = named.peer_id, chance.randrange(5)
        body = msgpack.packb(values) if chance.random() < 0.4 else packed(chance, values)
        signature = author.sign(body) if chance.random() < 0.9 else chance.randbytes(64)
        found.append(Heard(body[:4096], signature, chance.choice((0, 0, 5, 10**5, 1 << 40))))
    return found


def _judge_gossip(given: list[Heard]) -> None:
    """Whatever is accepted is signed by the peer that it names, and within the limit."""
    view = SwarmView(PeerId("x" * 52), verify, Random(1), SMALL_VIEW)
    topics = (ModelId(GOOD["Advertisement"][2]), None)
    view.follow(topics[0])
    for number, heard in enumerate(given):
        if view.take(heard, NOW + number, topics[number % 2]) is Taken.NEW:
            said = decode(heard.body, Advertisement)
            assert verify(said.peer, heard.body, heard.signature)
        known = [entry for model in view.indexes for entry in view.of(model)]
        assert len(known) <= SMALL_VIEW
    view.expire(NOW + 10**9)
    assert view.knows_nobody()


def _frames(chance: Random) -> list[bytes]:
    """Make frames of a muxer, in any order, cut anywhere."""
    data = b""
    for _ in range(chance.randint(1, 12)):
        kind, flags = (
            chance.choice((0, 0, 0, 1, 1, 2, 3, 4)),
            chance.choice((0, 0, 1, 1, 2, 4, 8, 15)),
        )
        stream, size = chance.choice((0, 1, 2, 2, 4, 6, 7)), chance.choice((0, 1, 12, 300, 1 << 20))
        body = bytes(min(size, 300)) if kind == 0 else b""
        version = 0 if chance.random() < 0.98 else 1
        data += HEADER.pack(version, kind, flags, stream, size) + body
    if chance.random() < 0.3:
        data = damage(chance, data)
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(4)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _judge_frames(pieces: list[bytes]) -> None:
    core = Yamux(initiator=True)
    core.open_stream()
    with suppress(YamuxViolation):
        for piece in pieces:
            unread: Counter[int] = Counter()
            for event in core.receive(piece):
                if isinstance(event, DataReceived):
                    unread[event.stream_id] += len(event.data)
                elif isinstance(event, StreamOpened | StreamReset):
                    del unread[event.stream_id]  # what came before is gone
            for stream_id, size in unread.items():
                core.consumed(stream_id, size)
            core.frames_to_send()
    streams = core._streams.values()
    assert core._unread == sum(stream.unread for stream in streams) <= UNREAD_BYTES_MAX
    assert len(streams) <= 2 * STREAMS_MAX
    assert all(stream.receive_window >= 0 for stream in streams)


def _circuit(chance: Random) -> bytes:
    """Return a message of relays, or what is left of one."""
    peer = ID(b"\x00\x24\x08\x01\x12\x20" + chance.randbytes(32))
    whole = chance.choice(
        [
            circuit_messages.reserve_request(),
            circuit_messages.connect_request(peer),
            circuit_messages.reserved(chance.randrange(1 << 40), ["/ip4/5.5.5.5/tcp/4001"]),
            circuit_messages.hop_answer(chance.choice(list(circuit_messages.CircuitStatus))),
            circuit_messages.stop_request(peer),
            circuit_messages.stop_answer(circuit_messages.CircuitStatus.OK),
        ]
    )
    body = whole[1:] if whole[0] < 0x80 else whole[2:]
    return chance.randbytes(chance.randrange(80)) if chance.random() < 0.1 else damage(chance, body)


def _judge_circuit(body: bytes) -> None:
    """Each reader understands it, or says in one way that it does not."""
    for read in (
        circuit_messages.read_hop_request,
        circuit_messages.read_hop_answer,
        circuit_messages.read_stop_request,
        circuit_messages.read_stop_answer,
    ):
        try:
            said = read(body)
        except circuit_messages.MalformedMessage:
            continue
        if isinstance(said, circuit_messages.RelayAnswer):
            assert len(said.addresses) <= circuit_messages.ADDRESSES_MAX
            assert said.status >= 0
            assert said.name
        elif isinstance(said, ID):
            assert 2 < len(said.to_bytes()) <= circuit_messages.PEER_ID_BYTES_MAX


def _punch(chance: Random) -> bytes:
    """Return a message of hole punching, or what is left of one."""
    hosts = [chance.choice(_HOSTS) for _ in range(6)]
    told = [f"/{family_of(host)}/{host}/tcp/{chance.randrange(1 << 16)}" for host in hosts]
    kind = chance.choice([punching_rules.CONNECT, punching_rules.SYNC])
    told = told[: chance.randrange(7)]
    body = punching_rules.encode(HolePunch(kind, tuple(told), chance.random() < 0.5))
    return chance.randbytes(chance.randrange(80)) if chance.random() < 0.1 else damage(chance, body)


_HOSTS = (
    *("5.5.5.5", "5.5.5.11", "192.168.1.7", "10.0.0.1", "127.0.0.1", "169.254.1.1", "224.0.0.1"),
    *("2600:1::7", "2600:1::8", "2600:2::8", "2600:3::8", "fd00::8", "fe80::8", "64:ff9b::a00:1"),
)


def _judge_punch(body: bytes) -> None:
    """Whatever it says, few addresses are dialled, and none that is not of the Internet."""
    with suppress(ValueError):
        said = punching_rules.decode(body)
        places = punching_rules.choose(said.addresses, {"5.5.5.11", "2600:1::7"}, ("ip4", "ip6"))
        assert len(places) <= punching_rules.ADDRESSES_MAX
        hosts = punching_rules.hosts_of(places)
        assert len(hosts) <= sum(punching_rules.HOSTS_MAX.values())
        assert not any(ip_address(host) in ip_network("2600:1::/48") for host in hosts)
        for host, port in places:
            assert ip_address(host).is_global
            assert port >= (punching_rules.PORT_MIN if host == "5.5.5.11" else 1)


NONCE = bytes(range(router_messages.NONCE_BYTES))
ROUTER, ROUTER_PORT = "192.168.1.1", 4001
ROUTER_ANSWERS = (
    bytes.fromhex("0080 0000 00000e10 c6336407"),
    bytes.fromhex("0082 0000 00000e10 0fa1 1f90 00000e10"),
    bytes.fromhex("02 80 00 00 00000000 00000064") + bytes(12),
    bytes.fromhex("02 81 00 00 00000e10 00000064")
    + bytes(12)
    + NONCE
    + bytes.fromhex("06 000000 0fa1 1f90 00000000000000000000ffff c6336407"),
    f"HTTP/1.1 200 OK\r\nLocation: http://{ROUTER}:5000/x.xml\r\n\r\n".encode(),
)


def _router(chance: Random) -> bytes:
    return damage(chance, chance.choice(ROUTER_ANSWERS))


def _judge_router(answer: bytes) -> None:
    with suppress(RouterAnswerError, RouterRefusal):
        router_messages.read_natpmp_outside(answer)
    with suppress(RouterAnswerError, RouterRefusal):
        assert router_messages.read_pcp_announce(answer) < 1 << 32
    with suppress(RouterAnswerError, RouterRefusal):
        granted = router_messages.read_natpmp_map(answer, ROUTER_PORT)
        assert granted.port or not granted.lease_s
    with suppress(RouterAnswerError, RouterRefusal):
        granted = router_messages.read_pcp_map(answer, NONCE, ROUTER_PORT)
        assert granted.host
        assert granted.port or not granted.lease_s
    with suppress(RouterAnswerError):
        assert read_location(answer, ROUTER).partition("//")[2].startswith(ROUTER)


TARGETS = {
    "circuit": Target(_circuit, _judge_circuit),
    "codec": Target(_message, _judge_message),
    "manifest": Target(_manifest, _judge_manifest),
    "receipt": Target(_receipt, _judge_receipt),
    "certificate": Target(_certificate, _judge_certificate),
    "fraud": Target(_fraud, _judge_fraud),
    "gossip": Target(_gossip, _judge_gossip),
    "trace": Target(openings.make_trace, openings.judge_trace),
    "opening": Target(openings.make_answers, openings.judge_answers),
    "prover": Target(openings.make_questions, openings.judge_questions),
    "signed": Target(signed.make_signed, signed.judge_signed),
    "muxer": Target(_frames, _judge_frames),
    "punch": Target(_punch, _judge_punch),
    "router": Target(_router, _judge_router),
}
