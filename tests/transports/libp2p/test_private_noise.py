"""A private network: with its key all works as usual; without it nothing does."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pinfer.core.errors import PeerUnavailable, UserError
from peers.parts.protocol import PARTS
from peers.steps.messaging import DIRECTORY, SESSION
from tests.support.gossip_contract import GossipContract, Listener
from tests.support.transport_contract import echo
from transports.base import Channel, Reach, Transport
from transports.identity import ephemeral_identity
from transports.libp2p.noise_records import NoiseWire
from transports.libp2p.transport import Libp2pTransport, open_libp2p
from transports.secret import create_secret, read_secret

TEST_S_MAX = 20.0
HERE = ["/ip4/127.0.0.1/tcp/0"]
KEY, OTHER = b"k" * 32, b"x" * 32


class TestPrivate(GossipContract):
    """Two peers that share a key."""

    @asynccontextmanager
    async def peers(self) -> AsyncGenerator[tuple[Transport, Transport], None]:
        """Run two hosts."""
        async with (
            open_libp2p(ephemeral_identity(), HERE, Reach("test", KEY)) as alice,
            open_libp2p(ephemeral_identity(), HERE, Reach("test", KEY)) as bob,
        ):
            yield alice, bob


@asynccontextmanager
async def two(
    near: bytes | None, far: bytes | None
) -> AsyncGenerator[tuple[Libp2pTransport, Libp2pTransport], None]:
    """Run a peer that echoes and one to dial it, each with a key or none."""
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, Reach("test", near)) as server,
            open_libp2p(None, HERE, Reach("test", far)) as dialler,
        ):
            server.handle("echo", echo)
            yield server, dialler


async def test_a_private_connection_is_as_fast() -> None:
    """Our muxer writes its records straight to the socket, as without a key."""
    async with two(KEY, KEY) as (server, dialler):
        await dialler.connect(server.addresses[0])
        (connection,) = dialler._connections(server.peer_id)
        assert isinstance(connection._wire, NoiseWire)


@pytest.mark.parametrize(
    ("near", "far", "text"),
    [
        pytest.param(KEY, None, "private network.*--network-key", id="no key"),
        pytest.param(KEY, OTHER, "another network key", id="another key"),
        pytest.param(None, KEY, "not belong to this private network", id="a key for an open peer"),
    ],
)
async def test_a_stranger_gets_nothing(near: bytes | None, far: bytes | None, text: str) -> None:
    """It is told why at once; no channel opens, no gossip is heard, in either direction."""
    heard = Listener()
    async with (
        two(near, far) as (server, dialler),
        server.join_topic("news", heard) as topic,
        dialler.join_topic("news", heard),
    ):
        begun = trio.current_time()
        with pytest.raises(PeerUnavailable, match=text):
            await dialler.open(server.peer_id, "echo", server.addresses)
        assert trio.current_time() - begun < 2
        topic.publish(b"secret")
        assert topic.neighbours == 0
        assert not server._connections(dialler.peer_id)
    assert heard.heard == []


@pytest.mark.parametrize("protocol", [SESSION, DIRECTORY, PARTS])
async def test_a_stranger_opens_no_session_and_learns_and_fetches_nothing(protocol: str) -> None:
    """Whatever peers serve each other is out of its reach, on a connection in either direction."""
    served: list[Channel] = []

    async def serve(channel: Channel) -> None:
        served.append(channel)

    async with two(KEY, None) as (member, stranger):
        for peer in (member, stranger):
            peer.handle(protocol, serve)
        with pytest.raises(PeerUnavailable):
            await stranger.open(member.peer_id, protocol, member.addresses)
        with pytest.raises(PeerUnavailable):
            await member.open(stranger.peer_id, protocol, stranger.addresses)
    assert served == []


async def test_a_recording_opens_nothing() -> None:
    """A recorded handshake, replayed byte for byte by another, is refused."""
    recorded: list[bytes] = []

    async def relay(near: trio.SocketStream, far: trio.SocketStream, *, keep: bool) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in near:
                if keep:
                    recorded.append(bytes(data))
                await far.send_all(data)
        await far.aclose()

    async with two(KEY, KEY) as (server, dialler), trio.open_nursery() as nursery:
        _, _, host, _, port, *_ = server.addresses[0].split("/")

        async def tap(near: trio.SocketStream) -> None:
            far = await trio.open_tcp_stream(host, int(port))
            async with near, far, trio.open_nursery() as both:
                both.start_soon(partial(relay, near, far, keep=True))
                both.start_soon(partial(relay, far, near, keep=False))

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, tap, [listener])
        tapped = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}/p2p/{server.peer_id}"
        await dialler.connect(tapped)
        dialler._connections(server.peer_id)[0].abort("recorded enough")
        await wait_all_tasks_blocked(0.05)
        assert not server._connections(dialler.peer_id)
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            with suppress(trio.BrokenResourceError):
                for data in recorded:
                    await stream.send_all(data)
                async for _ in stream:
                    pass  # it hangs up, for it has drawn other keys this time
        assert sum(map(len, recorded)) > 300
        assert not server._connections(dialler.peer_id)
        nursery.cancel_scope.cancel()


def test_a_key_is_drawn_once_and_read_back(tmp_path: Path) -> None:
    """The file belongs to its owner alone, and is not replaced."""
    path = tmp_path / "folder" / "key"
    assert create_secret(path)
    assert path.stat().st_mode & 0o777 == 0o600
    key = read_secret(path, "network key", "")
    assert len(key) == 32
    assert not create_secret(path)
    assert read_secret(path, "network key", "") == key
    assert [each.name for each in path.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("text", ["", "abc", "00" * 31, "xy" * 32, "é"])
def test_a_file_without_a_key_is_reported(text: str, tmp_path: Path) -> None:
    """A file with anything else is named, with what to do."""
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UserError, match="network key"):
        read_secret(path, "network key", "Ask for it.")
    path.chmod(0o640)
    with pytest.raises(UserError, match=r"chmod 600|cannot be used"):
        read_secret(path, "network key", "Ask for it.")
