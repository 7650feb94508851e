"""Agreeing on protocols costs one round trip each."""

from unittest.mock import Mock

import pytest
from libp2p.custom_types import TProtocol
from libp2p.io.abc import ReadWriteCloser
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.stream_muxer.exceptions import MuxedStreamReset

from p2pinfer.core.ids import PeerId
from transports.libp2p.negotiation import MULTISTREAM, JoinedClient
from transports.libp2p.noise_records import StreamPipe
from transports.libp2p.private_noise import PRIVATE_NOISE_ID
from transports.libp2p.protobuf import delimited
from transports.libp2p.stream import Stream

ONE, OTHER = TProtocol("/one"), TProtocol("/other")


class Pipe(ReadWriteCloser):
    """A connection whose other end has answered already; ``written`` is what it was sent."""

    def __init__(self, *answers: str) -> None:
        self._left = b"".join(delimited(each.encode() + b"\n") for each in answers)
        self.written: list[bytes] = []

    async def read(self, n: int | None = None) -> bytes:
        """Return what is left of the answers."""
        data, self._left = self._left[:n], self._left[n or 0 :]
        return data

    async def write(self, data: bytes) -> None:
        """Note what is sent."""
        self.written.append(data)

    async def close(self) -> None:
        """Do nothing."""

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return None: there is none."""
        return None


async def test_the_greeting_and_the_name_go_out_together() -> None:
    """Libp2p waits for the answer to its greeting before it says what it wants."""
    pipe = Pipe(MULTISTREAM, ONE)
    assert await JoinedClient().select_one_of([ONE], MultiselectCommunicator(pipe)) == ONE
    assert pipe.written == [b"\x13/multistream/1.0.0\n\x05/one\n"]


async def test_a_second_protocol_is_proposed_where_the_first_is_unknown() -> None:
    """As without joining."""
    pipe = Pipe(MULTISTREAM, "na", OTHER)
    assert await JoinedClient().select_one_of([ONE, OTHER], MultiselectCommunicator(pipe)) == OTHER
    assert pipe.written[1:] == [b"\x07/other\n"]


async def test_no_common_protocol_is_said() -> None:
    """Its words tell a private network's peer from a broken one."""
    communicator = MultiselectCommunicator(Pipe(MULTISTREAM, "na"))
    with pytest.raises(MultiselectClientError, match="protocols not supported"):
        await JoinedClient().select_one_of([ONE], communicator)


def circuit(name: str, *answers: bytes) -> tuple[StreamPipe, Mock]:
    """Return a circuit as a handshake sees it, and what carries it; the answers have come."""
    carrier = Mock(congested=False)
    carrier.send.side_effect = lambda _, data: len(data)
    stream = Stream(carrier, 1)
    for answer in answers:
        stream.fed(delimited(answer))
    pipe = StreamPipe(stream, PeerId("relay"), PeerId("peer"))
    pipe.propose(delimited(b"/multistream/1.0.0\n") + delimited(f"{name}\n".encode()))
    return pipe, carrier


async def test_over_a_circuit_a_handshake_does_not_wait_for_agreement() -> None:
    """Its first message goes out with the names, and the answers to both come together."""
    pipe, carrier = circuit(NOISE_ID, b"/multistream/1.0.0\n", b"/noise\n", b"second message")
    await pipe.write(b"first message")
    ((_, sent),) = [call.args for call in carrier.send.call_args_list]
    assert bytes(sent) == b"\x13/multistream/1.0.0\n\x07/noise\nfirst message"
    assert await pipe.read(15) == delimited(b"second message")


@pytest.mark.parametrize("name", [NOISE_ID, PRIVATE_NOISE_ID])
async def test_over_a_circuit_a_refusal_is_heard_at_once(name: str) -> None:
    """It is shorter than an agreement: one that waits for as many bytes waits for ever."""
    pipe, _ = circuit(name, b"/multistream/1.0.0\n", b"na\n")
    with pytest.raises(MuxedStreamReset, match="not supported"):
        await pipe.read(1)
