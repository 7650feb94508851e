"""What only the libp2p transport has: messages from strangers, networks by name, signatures."""

import errno

import pytest
import trio

from p2pinfer.core.errors import ChannelClosed, PeerUnavailable, RemoteProtocolError, UserError
from transports.base import MESSAGE_BYTES_MAX, Channel
from transports.identity import Identity, verify
from transports.libp2p.channel import StreamChannel
from transports.libp2p.stream import Stream
from transports.libp2p.transport import open_libp2p
from transports.tcp import TcpChannel, open_tcp

TEST_S_MAX = 20.0
HERE = ["/ip4/127.0.0.1/tcp/0"]
ALICE, BOB = Identity(b"A" * 32), Identity(b"B" * 32)


async def test_a_message_announced_too_long_is_blamed_on_the_remote() -> None:
    """The channel is aborted before a byte of it is awaited, and the remote is blamed."""
    blamed: list[RemoteProtocolError] = []
    done = trio.Event()

    async def listen(channel: Channel) -> None:
        try:
            await channel.receive()
        except RemoteProtocolError as error:
            blamed.append(error)
        with pytest.raises(ChannelClosed):
            await channel.receive()
        done.set()

    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(ALICE, HERE, "test") as alice, open_libp2p(BOB, [], "test") as bob:
            alice.handle("listen", listen)
            channel = await bob.open(alice.peer_id, "listen", alice.addresses)
            assert isinstance(channel, StreamChannel)
            channel._stream.send_now((MESSAGE_BYTES_MAX + 1).to_bytes(4, "big"))
            await done.wait()
            with pytest.raises(ChannelClosed):
                await channel.receive()
    assert [error.peer for error in blamed] == [BOB.peer_id]


async def test_bare_tcp_blames_the_same() -> None:
    """The yardstick keeps the limit too."""
    raised = trio.Event()

    async def listen(channel: Channel) -> None:
        with pytest.raises(RemoteProtocolError):
            await channel.receive()
        raised.set()

    with trio.fail_after(TEST_S_MAX):
        async with open_tcp(ALICE.peer_id) as alice, open_tcp(BOB.peer_id) as bob:
            alice.handle("listen", listen)
            channel = await bob.open(alice.peer_id, "listen", alice.addresses)
            assert isinstance(channel, TcpChannel)
            await channel._socket.send((MESSAGE_BYTES_MAX + 1).to_bytes(4, "big"))
            await raised.wait()


async def test_networks_of_different_names_do_not_mix() -> None:
    """A peer of another network can be reached, but speaks none of our protocols."""

    async def serve(channel: Channel) -> None:
        await channel.receive()

    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, HERE, "one") as one, open_libp2p(None, [], "two") as two:
            one.handle("session", serve)
            await two.connect(one.addresses[0])
            with pytest.raises(PeerUnavailable, match="does not speak /p2pinfer/two/session/1"):
                await two.open(one.peer_id, "session")


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "-x", "a" * 65])
async def test_a_network_needs_a_plain_name(name: str) -> None:
    """A name that would make an invalid protocol id is the user's to change."""
    with pytest.raises(UserError, match="name a network"):
        async with open_libp2p(None, HERE, name):
            pass


@pytest.mark.parametrize("text", ["", "nonsense", "/ip4/127.0.0.1", "/ip4/127.0.0.1/udp/1"])
async def test_an_unusable_listen_address_is_a_user_error(text: str) -> None:
    """An address that is invalid, or not TCP, is named."""
    with pytest.raises(UserError):
        async with open_libp2p(None, [text], "test"):
            pass


async def test_a_peer_signs_as_itself() -> None:
    """What a transport signs verifies with nothing but its peer id."""
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(ALICE, [], "test") as alice:
            assert alice.peer_id == ALICE.peer_id
            assert verify(alice.peer_id, b"data", alice.sign(b"data"))


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    """An exception in the block is not wrapped in a group."""
    with trio.fail_after(TEST_S_MAX), pytest.raises(KeyError):
        async with open_libp2p(None, HERE, "test"):
            raise KeyError


async def test_a_peer_is_dialled_though_it_has_dialled() -> None:
    """Its own inbound connection proves nothing: at a wrong address, the dial fails."""
    nowhere = "/ip4/127.0.0.1/tcp/9"

    async def hang_up(_: Channel) -> None: ...

    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(ALICE, HERE, "test") as alice, open_libp2p(BOB, HERE, "test") as bob:
            bob.handle("talk", hang_up)
            await bob.connect(alice.addresses[0])
            await alice.open(bob.peer_id, "talk", [f"{nowhere}/p2p/{bob.peer_id}"])
            assert not bob.was_dialled
            with pytest.raises(PeerUnavailable, match=nowhere):
                await alice.open(bob.peer_id, "talk", [f"{nowhere}/p2p/{bob.peer_id}"], own=True)
            await alice.open(bob.peer_id, "talk", bob.addresses, own=True)
            await alice.open(bob.peer_id, "talk", own=True)
            assert len(alice._connections(bob.peer_id)) == 2
            assert bob.was_dialled


async def test_what_is_first_does_not_wait_for_the_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes out with the protocol's name, which saves a round trip."""
    sent: list[bytes] = []
    write = Stream.write

    async def note(stream: Stream, data: bytes) -> None:
        sent.append(data)
        await write(stream, data)

    async def hang_up(_: Channel) -> None: ...

    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(ALICE, HERE, "test") as alice, open_libp2p(BOB, HERE, "test") as bob:
            bob.handle("talk", hang_up)
            monkeypatch.setattr(Stream, "write", note)
            await alice.open(bob.peer_id, "talk", bob.addresses, first=b"hello")
    assert any(b"/p2pinfer/test/talk/1\n" in data and b"hello" in data for data in sent)


async def test_a_peer_that_leaves_has_no_address_and_no_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its tasks go on until its last words are said, when its listeners are closed already."""

    def closed() -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(ALICE, HERE, "test") as alice:
            monkeypatch.setattr(alice._host, "get_addrs", closed)
            assert alice.own_addresses == []
