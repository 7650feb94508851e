"""Dials that fail say why, and names work as well as numbers."""

import errno
import socket
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types

from p2pinfer.core.errors import PeerUnavailable, UserError
from tests.support.transport_contract import echo
from transports.identity import ephemeral_identity
from transports.libp2p.dialling import NAMES_MAX, explain, numeric
from transports.libp2p.host import check_port
from transports.libp2p.transport import open_libp2p

TEST_S_MAX = 20.0
HERE = ["/ip4/127.0.0.1/tcp/0"]
SOMEBODY = ephemeral_identity().peer_id


class Names(trio.abc.HostnameResolver):
    """Knows one name, which stands for this machine, and one that stands for far too much."""

    async def getaddrinfo(self, host: bytes | None, *_: Any) -> list[Any]:
        """Return the addresses of a name."""
        if host == b"here":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))] * 2
        if host == b"both":
            found = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
            return [found, *await self.getaddrinfo(b"here")]
        if host == b"everywhere":
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"10.0.0.{n}", 0)) for n in range(200)
            ]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        """Never called."""
        raise AssertionError


async def failure(address: str) -> str:
    """Return the error text of a dial that fails."""
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, [], "test") as dialler:
            with pytest.raises(PeerUnavailable) as failed:
                await dialler.connect(address)
    return str(failed.value)


async def test_a_closed_port_is_said_to_be() -> None:
    """The address once, without the id that was named already, and what the system says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # no process listens there
        said = await failure(f"/ip4/127.0.0.1/tcp/{port}/p2p/{SOMEBODY}")
    assert said == f"cannot reach {SOMEBODY}: /ip4/127.0.0.1/tcp/{port}: connection refused"


async def test_another_peer_at_the_address_is_named() -> None:
    """A peer with a new key is not the one that was meant."""
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, HERE, "test") as other:
            where = other.addresses[0].partition("/p2p/")[0]
            said = await failure(f"{where}/p2p/{SOMEBODY}")
    assert said.endswith(f"{where}: another peer is there: {other.peer_id}")


async def test_a_program_that_is_not_a_peer_hangs_up() -> None:
    """Another program's port, which knows nothing of the handshake."""

    async def hang_up(_: trio.SocketStream) -> None:
        pass

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, hang_up, [listener])
        port = listener.socket.getsockname()[1]
        assert "is not a peer" in await failure(f"/ip4/127.0.0.1/tcp/{port}/p2p/{SOMEBODY}")
        nursery.cancel_scope.cancel()


async def test_a_peer_is_reached_by_name() -> None:
    """As the machine's own resolver knows it; an unknown name is reported as one."""
    trio.socket.set_custom_hostname_resolver(Names())
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, HERE, "test") as here, open_libp2p(None, [], "test") as me:
            here.handle("echo", echo)
            for kind in ("dns", "dns4"):
                named = here.addresses[0].replace("/ip4/127.0.0.1", f"/{kind}/here")
                assert await me.connect(named) == here.peer_id
    said = await failure(f"/dns4/nowhere/tcp/1/p2p/{SOMEBODY}")
    assert said == f"cannot reach {SOMEBODY}: /dns4/nowhere/tcp/1: name or service not known"


@pytest.mark.parametrize("name", ["x" * 80, "a..b", "no\0name"])
async def test_an_invalid_name_fails_alone(name: str) -> None:
    """A peer may advertise anything: it ends one dial, and nothing else."""
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, [], "test") as dialler:
            with pytest.raises(PeerUnavailable, match="/dns4/"):
                await dialler.open(SOMEBODY, "echo", [f"/dns4/{name}/tcp/1/p2p/{SOMEBODY}"])


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("/dns/both/tcp/1/p2p/x", ["/ip6/::1/tcp/1/p2p/x", "/ip4/127.0.0.1/tcp/1/p2p/x"]),
        ("/ip4/192.0.2.1/tcp/1", ["/ip4/192.0.2.1/tcp/1"]),
        ("nonsense", ["nonsense"]),
    ],
)
async def test_names_become_numbers(address: str, found: Sequence[str]) -> None:
    """Each number once; an address without a name stays as it is."""
    trio.socket.set_custom_hostname_resolver(Names())
    assert await numeric(address) == found


async def test_a_name_does_not_stand_for_a_whole_network() -> None:
    """However many addresses a name has, only a few are dialled."""
    trio.socket.set_custom_hostname_resolver(Names())
    assert len(await numeric("/dns4/everywhere/tcp/1")) == NAMES_MAX


def test_all_that_went_wrong_is_said_once() -> None:
    """A group's errors one by one, equal ones once."""
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "error connecting to somewhere")
    late = TimeoutError(errno.ETIMEDOUT, "late")
    outer = OSError("all attempts failed")
    outer.__cause__ = ExceptionGroup("several", [refused, late, refused])
    assert explain(outer, private=False) == "connection refused; connection timed out"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EADDRINUSE, "Port 4001 is in use by another program: stop that, or take another"),
        (errno.EADDRNOTAVAIL, "has no address 192.0.2.1; 0.0.0.0 stands for all that it has"),
        (errno.EACCES, "port 4001 is the system's"),
        (errno.EINVAL, "Invalid argument.: take another address or port"),
    ],
)
def test_why_an_address_cannot_be_listened_on(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence for each reason, with what to do."""

    def bind(*_: object) -> None:
        raise OSError(number, "Invalid argument")

    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(UserError, match=words):
        check_port(Multiaddr("/ip4/192.0.2.1/tcp/4001"))
