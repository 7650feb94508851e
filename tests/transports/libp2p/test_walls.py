"""What strangers and accidents do to a libp2p peer, and that it survives.

Each docstring says what happens to a plain libp2p 0.8.1 host; each test was seen to fail without
its cure. Cancelled reads, writes and opens, and handlers that raise, are in ``test_contract.py``.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.network import swarm as swarm_module
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types
from trio.testing import wait_all_tasks_blocked

from p2pinfer.core.errors import ChannelClosed, PeerError, PeerUnavailable, UserError
from tests.support.hostile import endpoint, frame, hostile, read_to_the_end, write_until_cut
from transports.base import Channel
from transports.identity import ephemeral_identity
from transports.libp2p import dialler, host_run, muxer, yamux
from transports.libp2p import host as host_module
from transports.libp2p.dialling import libp2p_id
from transports.libp2p.host import connections
from transports.libp2p.transport import Libp2pTransport, open_libp2p

TEST_S_MAX = 20.0
ROOT = Path(__file__).parents[3]
HERE = ["/ip4/127.0.0.1/tcp/0"]


async def echo(channel: Channel) -> None:
    """Send back what comes."""
    while True:
        await channel.send(await channel.receive())


@asynccontextmanager
async def peer(**options: int) -> AsyncGenerator[Libp2pTransport, None]:
    """Run a peer that echoes, for a bounded time."""
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, HERE, "test", **options) as transport:  # type: ignore[arg-type]  # ints only
            transport.handle("echo", echo)
            yield transport


async def assert_serves(transport: Libp2pTransport) -> None:
    """A newcomer can reach ``transport`` and is served."""
    async with open_libp2p(None, [], "test") as newcomer:
        channel = await newcomer.open(transport.peer_id, "echo", transport.addresses)
        await channel.send(b"ping")
        assert await channel.receive() == b"ping"


async def test_a_name_that_is_not_utf8_ends_one_stream() -> None:
    """In libp2p, a stream that asks for such a protocol ends the process."""
    async with peer() as victim:
        conn = await hostile(victim)
        line = b"\x13/multistream/1.0.0\n" + b"\x05\xff\xfe\xfd\xfc\n"
        await conn.write(frame(yamux.DATA, yamux.SYN, 1, len(line), line))
        answer = b""
        while not answer.endswith(frame(yamux.WINDOW, yamux.RST, 1, 0)):
            answer += await conn.read()
        await assert_serves(victim)
        await conn.close()


async def test_a_sender_that_ignores_its_window_is_cut() -> None:
    """In libp2p such a sender fills the memory of a peer that does not read."""
    stuck = trio.Event()

    async def never_read(channel: Channel) -> None:
        stuck.set()
        await trio.sleep_forever()

    async with peer() as victim:
        victim.handle("stuck", never_read)
        conn = await hostile(victim)
        name = b"/p2pinfer/test/stuck/1\n"
        line = b"\x13/multistream/1.0.0\n" + bytes([len(name)]) + name
        await conn.write(frame(yamux.DATA, yamux.SYN, 1, len(line), line))
        await stuck.wait()
        await write_until_cut(conn, frame(yamux.DATA, 0, 1, 50_000, bytes(50_000)))
        await assert_serves(victim)
        await conn.close()


async def test_a_flood_of_streams_is_cut() -> None:
    """In libp2p one peer may open 10,000 streams, each with a task and a window."""
    async with peer() as victim:
        conn = await hostile(victim)
        ids = range(1, 20_000, 2)
        with suppress(BaseLibp2pError):  # it is cut before it has written all
            await conn.write(b"".join(frame(yamux.WINDOW, yamux.SYN, i, 0) for i in ids))
        await read_to_the_end(conn)
        await assert_serves(victim)
        await conn.close()


async def test_a_peer_that_asks_and_never_reads_is_cut() -> None:
    """Answers to pings that are never read must not pile up."""
    async with peer() as victim:
        conn = await hostile(victim)
        pings = frame(yamux.PING, yamux.SYN, 0, 1) * 5000
        await write_until_cut(conn, pings)
        await assert_serves(victim)
        await conn.close()


async def test_streams_of_one_peer_are_bounded_over_its_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A peer with several connections has no more streams than with one."""
    monkeypatch.setattr(host_module, "STREAMS_PER_PEER_MAX", 3)
    async with peer() as victim, open_libp2p(None, [], "test") as greedy:
        await greedy.connect(victim.addresses[0])
        async with trio.open_nursery() as nursery:
            refused = trio.Event()

            async def open_one() -> None:
                try:
                    await greedy.open(victim.peer_id, "echo")
                except PeerUnavailable:
                    refused.set()

            for _ in range(8):
                nursery.start_soon(open_one)
            await refused.wait()
        await assert_serves(victim)


async def test_ended_connections_give_their_place_back() -> None:
    """In libp2p the slot of an inbound connection is never given back: 250 and no more, ever."""
    async with peer(connections_max=4) as victim:
        for _ in range(12):
            await assert_serves(victim)


async def test_silent_sockets_do_not_shut_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """In libp2p, as many silent sockets as it has slots keep all peers out."""
    monkeypatch.setattr(host_module, "HALF_OPEN_PER_ADDRESS_MAX", 2)
    async with peer(connections_max=6) as victim, AsyncExitStack() as stack:
        for _ in range(6):
            silent = trio.socket.socket()
            stack.callback(silent.close)
            await silent.bind(("127.0.0.2", 0))
            await silent.connect(endpoint(victim))
        await wait_all_tasks_blocked(0.05)
        await assert_serves(victim)


async def test_plaintext_is_refused() -> None:
    """A libp2p host with its default securities lets peers talk without encryption."""
    key_pair = create_new_key_pair()
    plain = new_host(key_pair, sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(key_pair)})
    async with peer() as victim, plain.run(listen_addrs=[]):
        address = Multiaddr(victim.addresses[0])
        with pytest.raises(Exception, match="connect"):
            await plain.connect(PeerInfo(ID.from_string(victim.peer_id), [address]))


async def test_a_handler_ends_soon_after_its_connection() -> None:
    """In libp2p a handler that waits for something else outlives its peer."""
    begun, ended = trio.Event(), trio.Event()

    async def wait_for_something_else(channel: Channel) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with peer() as victim:
        victim.handle("wait", wait_for_something_else)
        async with open_libp2p(None, [], "test") as other:
            await other.open(victim.peer_id, "wait", victim.addresses)
            await begun.wait()
        await ended.wait()


async def test_a_handler_that_outlives_its_connection_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As that of a session does, whose requester may come back another way; its peer ends it."""
    monkeypatch.setattr(host_module, "HANDLER_GRACE_S", 0.0)
    begun, over, ended = trio.Event(), trio.Event(), trio.Event()

    async def wait_for_something_else(channel: Channel) -> None:
        begun.set()
        with pytest.raises(ChannelClosed):
            await channel.receive()
        with trio.move_on_after(0.1):
            await trio.sleep_forever()
        over.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with peer() as victim:
        victim.handle("wait", wait_for_something_else, outlives=True)
        async with open_libp2p(None, [], "test") as other:
            await other.open(victim.peer_id, "wait", victim.addresses)
            await begun.wait()
        await over.wait()
        assert not ended.is_set()
    assert ended.is_set()


async def test_what_a_peer_does_in_a_stream_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Strangers may refuse, break protocols and leave as often as they like."""

    async def fail(channel: Channel) -> None:
        await channel.receive()
        raise PeerError(channel.remote, "it said no")

    async with peer() as victim, open_libp2p(None, [], "test") as other:
        victim.handle("fail", fail)
        channel = await other.open(victim.peer_id, "fail", victim.addresses)
        await channel.send(b"no")
        with pytest.raises(ChannelClosed):
            await channel.receive()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_dead_address_does_not_hide_a_good_one() -> None:
    """Libp2p tries one address of a kind: a dead one listed first makes the peer unreachable."""
    async with peer() as victim, open_libp2p(None, [], "test") as other:
        with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
            refusing = "/ip4/127.0.0.1/tcp/1"
            mute = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"
            addresses = [f"{address}/p2p/{victim.peer_id}" for address in (mute, refusing)]
            with trio.fail_after(dialler.DIAL_S_MAX / 2):
                await other.open(victim.peer_id, "echo", [*addresses, *victim.addresses])


async def test_a_dial_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that accepts and says nothing must not hold its dialler."""
    monkeypatch.setattr(dialler, "DIAL_S_MAX", 0.2)
    stranger = ephemeral_identity().peer_id
    with trio.fail_after(TEST_S_MAX), socket.create_server(("127.0.0.1", 0)) as silent:
        async with open_libp2p(None, [], "test") as other:
            with pytest.raises(PeerUnavailable, match="no answer"):
                await other.connect(f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{stranger}")


async def test_a_peer_that_was_down_can_be_reached_at_once() -> None:
    """Libp2p refuses for 60 s to dial a peer that did not answer once."""
    identity = ephemeral_identity()
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    listen = f"/ip4/127.0.0.1/tcp/{port}"
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, [], "test") as other:
            for _ in range(2):
                with pytest.raises(PeerUnavailable):
                    await other.connect(f"{listen}/p2p/{identity.peer_id}")
                async with open_libp2p(identity, [listen], "test"):
                    await other.connect(f"{listen}/p2p/{identity.peer_id}")


async def test_a_peer_that_came_back_is_dialled_again() -> None:
    """A channel to a peer that restarted is opened at its remembered address."""
    identity = ephemeral_identity()
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, [], "test") as other:
            async with open_libp2p(identity, HERE, "test") as before:
                await other.connect(before.addresses[0])
                listen = "/".join(before.addresses[0].split("/")[:5])
            async with open_libp2p(identity, [listen], "test") as after:
                after.handle("echo", echo)
                channel = await other.open(identity.peer_id, "echo")
                await channel.send(b"again")
                assert await channel.receive() == b"again"


async def test_a_dial_does_not_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dial of libp2p takes 250 ms, the head start of a first address over a second."""

    async def timed(dial: Callable[[], Awaitable[object]]) -> float:
        start = trio.current_time()
        await dial()
        return trio.current_time() - start

    assert swarm_module._HAPPY_EYEBALLS_DELAY == 0.0
    ours, theirs = [], []
    for _ in range(3):
        async with peer() as victim, open_libp2p(None, [], "test") as other:
            ours.append(await timed(lambda: other.connect(victim.addresses[0])))
        plain = new_host()
        async with peer() as victim, plain.run(listen_addrs=[]):
            monkeypatch.setattr(swarm_module, "_HAPPY_EYEBALLS_DELAY", 0.25)
            info = PeerInfo(ID.from_string(victim.peer_id), [Multiaddr(victim.addresses[0])])
            theirs.append(await timed(lambda: plain.connect(info)))  # noqa: B023
            monkeypatch.undo()
            await plain.disconnect(info.peer_id)
    assert sorted(ours)[1] * 3 < sorted(theirs)[1]


async def test_no_peer_is_dialled_unasked() -> None:
    """Libp2p, when it has no connection, dials every peer that it ever heard of."""
    dialled: list[ID] = []

    async def dial(peer_id: ID) -> None:
        dialled.append(peer_id)

    with trio.fail_after(TEST_S_MAX):
        lonely = host_module.build_host(ephemeral_identity())
        heard_of = ID.from_string(ephemeral_identity().peer_id)
        lonely.get_peerstore().add_addrs(heard_of, [Multiaddr("/ip4/8.8.8.8/tcp/4001")], 3600)
        swarm: Any = lonely.get_network()
        swarm.dial_peer = dial
        async with lonely.run(listen_addrs=[]):
            await swarm.auto_connector.maybe_connect()
    assert not dialled


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_a_taken_port_is_named(host: str) -> None:
    """Two libp2p processes share a port, and their peers reach either."""
    async with peer() as first:
        port = endpoint(first)[1]
        with pytest.raises(UserError, match=f"Port {port} is in use"):
            async with open_libp2p(None, [f"/ip4/{host}/tcp/{port}"], "test"):
                pass


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_both_families_listen_at_one_port() -> None:
    """Libp2p's ``::`` takes the port of IPv4, too: who calls by that is of neither family then.

    And by IPv6 it does not know where the other end is, so that nobody there could be asked whether
    a peer is reached by it.
    """
    own = ephemeral_identity()
    async with open_libp2p(own, ["/ip6/::/tcp/0"], "test") as six:
        port = six.addresses[0].split("/")[4]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port))).close()
    both = [f"/ip4/0.0.0.0/tcp/{port}", f"/ip6/::/tcp/{port}"]
    async with open_libp2p(own, both, "test") as listener:
        listener.handle("echo", echo)
        for place in ("/ip4/127.0.0.1", "/ip6/::1"):
            async with peer() as caller:
                address = f"{place}/tcp/{port}/p2p/{own.peer_id}"
                channel = await caller.open(own.peer_id, "echo", [address])
                await channel.send(b"hi")
                assert await channel.receive() == b"hi"
                (there,) = connections(caller._host, libp2p_id(own.peer_id))
                (here,) = connections(listener._host, libp2p_id(caller.peer_id))
                host = place.rpartition("/")[2]
                assert there.get_remote_address() == (host, int(port))
                assert (here.get_remote_address() or ("", 0))[0] == host


async def test_an_address_of_another_machine_is_named() -> None:
    """Libp2p listens on nothing and says nothing."""
    with pytest.raises(UserError, match=r"203\.0\.113\.1"):
        async with open_libp2p(None, ["/ip4/203.0.113.1/tcp/4001"], "test"):
            pass


async def test_all_interfaces_are_advertised_by_their_addresses() -> None:
    """Libp2p tells others to reach it at 0.0.0.0."""
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, ["/ip4/0.0.0.0/tcp/0"], "test") as transport:
            assert transport.addresses
            assert not any("0.0.0.0" in address for address in transport.addresses)
            for address in transport.addresses:
                assert address.endswith(f"/p2p/{transport.peer_id}")
                async with open_libp2p(None, [], "test") as other:
                    await other.connect(address)


async def read_line(stream: trio.abc.ReceiveStream) -> str:
    """Read up to the end of a line."""
    line = b""
    while not line.endswith(b"\n"):
        line += await stream.receive_some(1)
    return line.decode().strip()


async def send_for_ever(channel: Channel) -> None:
    """Send until the channel ends."""
    while True:
        await channel.send(bytes(1_000_000))


FROZEN = """
import trio
from transports.libp2p.transport import open_libp2p

async def take(channel):
    print("ready", flush=True)
    await trio.sleep_forever()

async def main():
    async with open_libp2p(None, ["/ip4/127.0.0.1/tcp/0"], "test") as transport:
        transport.handle("take", take)
        print(transport.addresses[0], flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.real
async def test_a_frozen_peer_is_noticed() -> None:
    """In libp2p a stopped process with full sockets stays connected, and closing it hangs."""
    with trio.fail_after(TEST_S_MAX):
        command = [sys.executable, "-c", FROZEN]
        child = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, cwd=ROOT)
        assert child.stdout is not None
        try:
            address = await read_line(child.stdout)
            async with open_libp2p(None, [], "test") as transport:
                remote = await transport.connect(address)
                channel = await transport.open(remote, "take")
                assert await read_line(child.stdout) == "ready"
                os.kill(child.pid, signal.SIGSTOP)
                with trio.fail_after(2 * muxer.SILENCE_S_MAX), pytest.raises(ChannelClosed):
                    await send_for_ever(channel)
                with pytest.raises(ChannelClosed):
                    await channel.receive()
        finally:
            child.kill()
            await child.wait()
            await child.stdout.aclose()


async def test_leaving_under_load_is_quick() -> None:
    """Libp2p leaves its connections one by one, and waits for peers that do not read."""

    async def never_read(channel: Channel) -> None:
        await trio.sleep_forever()

    async def push_and_leave() -> None:
        with trio.CancelScope() as scope:
            async with open_libp2p(None, [], "test") as other, trio.open_nursery() as senders:
                for _ in range(5):
                    channel = await other.open(victim.peer_id, "stuck", victim.addresses)
                    senders.start_soon(channel.send, bytes(8_000_000))
                await wait_all_tasks_blocked(0.02)
                scope.cancel()

    async with peer() as victim:
        victim.handle("stuck", never_read)
        with trio.fail_after(20 * host_run.FLUSH_S_MAX):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(push_and_leave)


QUIET = """
import logging, trio
from transports.libp2p.transport import open_libp2p

async def main():
    here = ["/ip4/127.0.0.1/tcp/0"]
    async with open_libp2p(None, here, "test") as a, open_libp2p(None, here, "test") as b:
        await a.connect(b.addresses[0])
    assert not logging.getLogger().handlers, logging.getLogger().handlers

trio.run(main)
"""


@pytest.mark.real
async def test_logging_is_left_alone() -> None:
    """Libp2p installs a handler on the root logger, and so decides the program's log format."""
    with trio.fail_after(TEST_S_MAX):
        done = await trio.run_process(
            [sys.executable, "-c", QUIET], capture_stdout=True, capture_stderr=True, cwd=ROOT
        )
    assert done.stderr == b""
