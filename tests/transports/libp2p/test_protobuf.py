"""Our page of Protocol Buffers, against the official library and against noise."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message

from transports.libp2p import protobuf

NOISE_COUNT = 20_000


@given(st.binary(max_size=300), st.binary(max_size=9), st.lists(st.binary(max_size=40), max_size=5))
def test_it_writes_what_the_official_library_reads(
    key: bytes, seen: bytes, addresses: list[bytes]
) -> None:
    """And reads what that writes."""
    message = Identify(public_key=key, observed_addr=seen, listen_addrs=addresses)
    fields = protobuf.parse(message.SerializeToString())
    assert protobuf.data_of(fields, 1) == key
    assert protobuf.data_of(fields, 4) == seen
    assert protobuf.all_data_of(fields, 2) == addresses
    ours = protobuf.data(1, key) + protobuf.data(4, seen)
    ours += b"".join(protobuf.data(2, each) for each in addresses)
    assert Identify.FromString(ours) == message


@given(st.integers(0, 9), st.integers(0, 2**31 - 1))
def test_numbers_are_those_of_the_official_library(kind: int, level: int) -> None:
    """Varints of one byte and of five."""
    kind %= 6
    message = Message(type=kind, clusterLevelRaw=level)  # type: ignore[arg-type]  # any number
    fields = protobuf.parse(message.SerializeToString())
    assert protobuf.number_of(fields, 10) == level
    ours = Message.FromString(protobuf.number(1, kind) + protobuf.number(10, level))
    assert ours.clusterLevelRaw == level


@given(st.integers(0, 2**64 - 1))
def test_eight_bytes_come_back(value: int) -> None:
    """A nonce, which the libraries at hand have no message for."""
    assert protobuf.number_of(protobuf.parse(protobuf.fixed64(2, value)), 2) == value
    assert protobuf.number_of(protobuf.parse(protobuf.number(3, value)), 3) == value


@pytest.mark.parametrize(
    "message",
    [
        b"\x08",
        b"\x0a\x05abc",
        b"\x09abc",
        b"\x80" * 11,
        b"\x0b",
        b"\x00\x00",
        b"\xff" * 9 + b"\x7f",
    ],
    ids=["no value", "cut bytes", "cut number", "endless", "group", "field 0", "65 bits"],
)
def test_what_is_no_message_is_an_error_of_one_kind(message: bytes) -> None:
    """However it is broken."""
    with pytest.raises(ValueError, match="."):
        protobuf.parse(message)


def test_more_fields_than_any_message_has_are_refused() -> None:
    """A message must not cost more than its bytes."""
    assert protobuf.parse(protobuf.number(1, 1) * protobuf.FIELDS_MAX)
    with pytest.raises(ValueError, match="more than"):
        protobuf.parse(protobuf.number(1, 1) * (protobuf.FIELDS_MAX + 1))


def fuzz(count: int) -> int:
    """Parse noise, and messages with a few bytes changed; return how many were understood."""
    chance = random.Random(1)
    good = protobuf.data(1, b"address" * 3) + protobuf.fixed64(2, 7) + protobuf.number(3, 300)
    understood = 0
    for i in range(count):
        message = bytearray(good if i % 2 else chance.randbytes(chance.randrange(40)))
        for _ in range(chance.randrange(4) if message else 0):
            message[chance.randrange(len(message))] = chance.randrange(256)
        try:
            fields = protobuf.parse(bytes(message))
            for field in (1, 2, 3):
                protobuf.number_of(fields, field)
                protobuf.data_of(fields, field)
        except ValueError:
            continue
        understood += 1
    return understood


def test_noise_is_understood_or_refused() -> None:
    """Nothing else happens."""
    fuzz(NOISE_COUNT)


@pytest.mark.long
def test_a_million_messages_of_noise() -> None:
    """The same for longer."""
    fuzz(1_000_000)
