"""Which addresses are advertised, and that a peer notices when they change."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2pinfer.core.checks import ADDRESSES_MAX
from transports.interfaces import Address, choose_hosts, machine_addresses, told_addresses

LOOPBACK = [Address("lo", "127.0.0.1"), Address("lo", "::1")]
ROOT = Path(__file__).parents[2]


def addresses(**interfaces: str) -> list[Address]:
    """Return loopback's and those of the named interfaces, in the system's order."""
    named = [
        Address(n.replace("_", "-"), host) for n, h in interfaces.items() for host in h.split()
    ]
    return [*LOOPBACK, *named]


@pytest.mark.parametrize(
    ("found", "routed", "told"),
    [
        (addresses(), "", "127.0.0.1 ::1"),
        (addresses(docker0="172.17.0.1", eth0="192.168.1.7"), "192.168.1.7", "192.168.1.7"),
        (addresses(docker0="172.17.0.1", br_9f="172.18.0.1"), "", "172.17.0.1 172.18.0.1"),
        (addresses(eth0="172.17.0.2"), "172.17.0.2", "172.17.0.2"),  # within a container
        (
            addresses(tun0="10.8.0.2", wlan0="192.168.1.7 fe80::1 2001:470::7"),
            "10.8.0.2",  # all traffic goes through the VPN, and the LAN is still the LAN
            "2001:470::7 192.168.1.7 10.8.0.2",
        ),
        (addresses(eth0="10.0.0.5", eth1="8.8.4.4"), "10.0.0.5", "10.0.0.5 8.8.4.4"),
        (addresses(eth0="10.0.0.5", eth1="8.8.4.4"), "", "8.8.4.4 10.0.0.5"),
        (addresses(eth0="169.254.3.4"), "", "169.254.3.4"),
        (addresses(eth0="fe80::1"), "", "127.0.0.1 ::1"),
        (addresses(br0="192.168.1.7", virbr0="192.168.122.1"), "192.168.1.7", "192.168.1.7"),
        (addresses(docker0="172.17.0.1", tailscale0="100.100.1.1"), "", "100.100.1.1"),
    ],
)
def test_useful_addresses_are_advertised(found: list[Address], routed: str, told: str) -> None:
    """The best first; bridges and loopback only where there is nothing better."""
    assert choose_hosts(found, routed.split()) == told.split()


def test_privacy_addresses_leave_room_for_others() -> None:
    """IPv6 gives an interface a new one every day; the old ones stay for a week."""
    many = [Address("eth0", f"2001:470::{n}") for n in range(1, 10)]
    found = [*many, Address("eth0", "192.168.1.7"), Address("eth1", "10.1.1.1")]
    told = choose_hosts(found, ["2001:470::9"])
    assert len(told) == ADDRESSES_MAX
    assert told[0] == "2001:470::9"
    assert {"192.168.1.7", "10.1.1.1"} < set(told)


def test_all_interfaces_are_advertised_for_each_family_listened_on() -> None:
    """Named ones come first, those seen by others last; a family that is closed never."""
    found = addresses(eth0="192.168.1.7 2001:470::7", eth1="10.1.1.1")
    both = ["/ip4/0.0.0.0/tcp/1", "/ip6/::/tcp/2"]
    four = ["/ip4/192.168.1.7/tcp/1", "/ip4/10.1.1.1/tcp/1"]
    routed = ["192.168.1.7"]
    assert told_addresses(both[:1], found, routed) == four
    assert told_addresses(both, found, routed) == [four[0], "/ip6/2001:470::7/tcp/2", four[1]]
    seen = "/ip4/8.8.8.8/tcp/1"
    assert told_addresses([both[0], seen], found, routed) == [*four, seen]
    assert told_addresses(["/ip4/127.0.0.1/tcp/1"], found, routed) == ["/ip4/127.0.0.1/tcp/1"]
    assert told_addresses([], found, routed) == []
    assert told_addresses(both[:1], LOOPBACK, []) == ["/ip4/127.0.0.1/tcp/1"]


def test_no_machine_has_too_many_addresses() -> None:
    """Whatever it listens on, and wherever others have seen it."""
    found = addresses(**{f"eth{n}": f"10.9.{n}.1" for n in range(1, 30)})
    named = [f"/ip4/10.9.{n}.1/tcp/1" for n in range(1, 12)]
    seen = [f"/ip4/8.8.8.{n}/tcp/1" for n in range(1, 12)]
    for listening in (named, ["/ip4/0.0.0.0/tcp/1"], [*named, "/ip4/0.0.0.0/tcp/1", *seen], seen):
        told = told_addresses(listening, found, [])
        assert 0 < len(told) <= ADDRESSES_MAX
    assert seen[0] in told_addresses([*named, *seen], found, [])


def test_this_machine_has_loopback() -> None:
    """The system reports it."""
    assert "127.0.0.1" in {each.host for each in machine_addresses()}


MOVES = """
import subprocess, trio, trio.testing
from p2pinfer.core.checks import ADDRESSES_MAX
from transports.libp2p import transport as libp2p
from transports.libp2p.transport import open_libp2p

libp2p.MOVED_LOOK_S = 0.05

def ip(words):
    subprocess.run(["ip", *words.split()], check=True)

def hosts(transport):
    return [address.split("/")[2] for address in transport.addresses]

async def moved(transport, words):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.wait_moved)
        await trio.testing.wait_all_tasks_blocked()
        ip(words)
    return hosts(transport)

async def main():
    ip("link set lo up")
    async with (
        open_libp2p(None, ["/ip4/0.0.0.0/tcp/0"], "test") as a,
        open_libp2p(None, ["/ip4/0.0.0.0/tcp/0"], "test") as b,
    ):
        a.handle("echo", echo)
        with trio.fail_after(30):
            assert hosts(a) == ["127.0.0.1"]
            ip("link add docker0 type veth peer name far0")
            ip("link set docker0 up")
            ip("link set far0 up")
            assert await moved(a, "addr add 172.17.0.1/16 dev docker0") == ["172.17.0.1"]
            ip("link add d0 type veth peer name far1")
            ip("link set d0 up")
            ip("link set far1 up")
            assert await moved(a, "addr add 10.9.0.1/24 dev d0") == ["10.9.0.1"]
            for n in range(1, 8):
                assert len(await moved(a, f"addr add 10.9.{n}.1/24 dev d0")) == n + 1
            ip("addr add 10.9.8.1/24 dev d0")  # the ninth
            assert len(hosts(a)) == ADDRESSES_MAX
            channel = await b.open(a.peer_id, "echo", [f"/ip4/10.9.0.1/{rest(a)}"])
            await channel.send(b"hi")
            assert await channel.receive() == b"hi"
            assert a.was_dialled
            for n in range(8):
                await moved(a, f"addr del 10.9.{n}.1/24 dev d0")
            assert hosts(a) == ["10.9.8.1"]
            assert not a.was_dialled
            try:
                await channel.receive()
            except libp2p.ChannelClosed:
                pass
            again = await b.open(a.peer_id, "echo", a.addresses)
            await again.send(b"hi")
            assert await again.receive() == b"hi"

def rest(transport):
    return transport.addresses[0].split("/", 3)[3]

async def echo(channel):
    await channel.send(await channel.receive())
    await trio.sleep_forever()

trio.run(main)
"""


def test_a_peer_follows_the_machine_from_network_to_network() -> None:
    """In a network namespace: nine addresses on one interface, and then others than those."""
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    if (
        sys.platform != "linux"
        or subprocess.run(
            [*alone, "ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1"],
            capture_output=True,
            check=False,
        ).returncode
    ):
        pytest.skip("no network namespace with interfaces may be made here")
    done = subprocess.run(
        [*alone, sys.executable, "-c", MOVES],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env=dict(os.environ),
    )
    assert (done.returncode, done.stderr) == (0, "")
