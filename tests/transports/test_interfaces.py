"""Which addresses are advertised, and that a peer notices when they change."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2pinfer.core.checks import ADDRESSES_MAX
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from transports.interfaces import (
    Address,
    check_announced,
    choose_hosts,
    machine_addresses,
    told_addresses,
)

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


ANNOUNCED = ["/ip4/203.0.113.7/tcp/4001", "/dns4/box.example.org/tcp/443"]


def test_announced_addresses_are_told_first() -> None:
    """Before the machine's own, each once, and never more than eight in all."""
    found = addresses(eth0="10.0.0.5")
    listening = ["/ip4/0.0.0.0/tcp/1", "/ip4/8.8.8.8/tcp/9"]
    told = told_addresses(listening, found, [], ANNOUNCED)
    assert told == [*ANNOUNCED, "/ip4/10.0.0.5/tcp/1", "/ip4/8.8.8.8/tcp/9"]
    assert told_addresses(listening, found, [], ["/ip4/8.8.8.8/tcp/9"])[0] == "/ip4/8.8.8.8/tcp/9"
    many = [f"/ip4/203.0.113.{n}/tcp/1" for n in range(ADDRESSES_MAX)]
    assert told_addresses(listening, found, [], many) == many
    assert told_addresses(listening, found, [], many[1:]) == [*many[1:], "/ip4/8.8.8.8/tcp/9"]


def test_announced_addresses_may_name_this_peer() -> None:
    """As in the line that it prints; an address given twice is one."""
    given = [*ANNOUNCED, f"{ANNOUNCED[0]}/p2p/12D3KooWme", "/ip6/2001:db8::1/tcp/65535"]
    assert check_announced(given, PeerId("12D3KooWme")) == [*ANNOUNCED, given[-1]]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("203.0.113.7:4001", "must look like /ip4/203"),
        ("/ip4/203.0.113.7/udp/4001/quic-v1", "must look like /ip4/203"),
        ("/ip4/203.0.113.7/tcp/0", "must look like /ip4/203"),
        ("/ip4/203.0.113.7/tcp/65536", "must look like /ip4/203"),
        ("/ip4/203.0.113.7/tcp/4001\n", "must look like /ip4/203"),
        (f"/dns4/{'x' * 250}/tcp/1", "must look like /ip4/203"),
        ("/ip4/203.0.113/tcp/4001", "203.0.113 is no ip4 address"),
        ("/ip4/2001:db8::1/tcp/4001", "is no ip4 address"),
        ("/ip6/203.0.113.7/tcp/4001", "is no ip6 address"),
        ("/ip4/0.0.0.0/tcp/4001", "nobody can call 0.0.0.0"),
        ("/ip6/fe80::1/tcp/4001", "nobody can call fe80::1"),
        ("/ip4/224.0.0.1/tcp/4001", "nobody can call 224.0.0.1"),
        ("/ip4/203.0.113.7/tcp/4001/p2p/12D3KooWyou", "names another peer"),
    ],
)
def test_an_address_that_nobody_can_call_is_not_announced(address: str, why: str) -> None:
    """One sentence says why."""
    with pytest.raises(UserError, match=why):
        check_announced([address], PeerId("12D3KooWme"))


def test_few_addresses_are_announced() -> None:
    """As few as an advertisement has room for."""
    many = [f"/ip4/203.0.113.{n}/tcp/1" for n in range(ADDRESSES_MAX + 1)]
    assert check_announced(many[1:], PeerId("12D3KooWme")) == many[1:]
    with pytest.raises(UserError, match="8 addresses at most, not 9"):
        check_announced(many, PeerId("12D3KooWme"))


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


FORWARDED = """
import json, subprocess, sys, trio
from p2pinfer.core.errors import PeerUnavailable
from transports.libp2p.transport import open_libp2p

def ip(words):
    subprocess.run(["ip", *words.split()], check=True)

def begin(role):  # in a namespace of its own
    command = ["unshare", "--net", sys.executable, "-c", sys.argv[1], sys.argv[1], role]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\\n"
    return process

def go(process):  # its cables are there
    process.stdin.write("go\\n")
    process.stdin.flush()
    return process.stdout.readline()

async def echo(channel):
    await channel.send(await channel.receive())

async def home():  # knows nothing of the router's outer address but what it is told
    ip("addr add 192.168.7.2/24 dev lan1")
    ip("link set lan1 up")
    announced = ["/ip4/203.0.113.1/tcp/4001"]
    listen = ["/ip4/0.0.0.0/tcp/24001"]
    async with open_libp2p(None, listen, "test", announce=announced) as peer:
        peer.handle("echo", echo)
        with trio.fail_after(30):
            while len(peer.addresses) < 2:  # the system takes a moment to see that a cable is live
                await trio.sleep(0.01)
        print(json.dumps(peer.addresses), flush=True)
        await trio.sleep_forever()

async def router():  # passes one port on, and nothing else
    for name, address in (("lan0", "192.168.7.1"), ("wan1", "203.0.113.1")):
        ip(f"addr add {address}/24 dev {name}")
        ip(f"link set {name} up")

    async def pass_on(outer):
        async def copy(source, target):
            async for data in source:
                await target.send_all(data)
            nursery.cancel_scope.cancel()
        async with await trio.open_tcp_stream("192.168.7.2", 24001) as inner:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(copy, outer, inner)
                nursery.start_soon(copy, inner, outer)

    async with trio.open_nursery() as nursery:
        await nursery.start(lambda *, task_status: trio.serve_tcp(
            pass_on, 4001, host="203.0.113.1", task_status=task_status))
        print("open", flush=True)

async def say_hi(addresses):
    async with open_libp2p(None, [], "test") as stranger:
        peer = addresses[0].rpartition("/")[2]
        channel = await stranger.open(peer, "echo", addresses)
        await channel.send(b"hi")
        assert await channel.receive() == b"hi"

async def outside(addresses):
    assert [each.split("/p2p/")[0] for each in addresses] == [
        "/ip4/203.0.113.1/tcp/4001", "/ip4/192.168.7.2/tcp/24001"
    ]
    with trio.fail_after(30):
        await say_hi(addresses)
        try:
            await say_hi(addresses[1:])
        except PeerUnavailable:
            return
    raise AssertionError("the router passed on what it should not")

if len(sys.argv) > 2:
    print("here", flush=True)
    sys.stdin.readline()
    trio.run({"home": home, "router": router}[sys.argv[2]])
else:
    sys.argv.append(sys.stdin.read())
    processes = [begin("home"), begin("router")]
    home_pid, router_pid = (process.pid for process in processes)
    try:
        ip(f"link add lan0 netns {router_pid} type veth peer name lan1 netns {home_pid}")
        ip(f"link add wan0 type veth peer name wan1 netns {router_pid}")
        ip("addr add 203.0.113.9/24 dev wan0")
        ip("link set wan0 up")
        assert go(processes[1]) == "open\\n"
        addresses = json.loads(go(processes[0]))
        trio.run(outside, addresses)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
"""


def test_a_forwarded_port_is_announced_and_leads_home() -> None:
    """A stranger beyond a router reaches a peer at the router's address, and at no other."""
    run_in_a_namespace(FORWARDED)


def test_a_peer_follows_the_machine_from_network_to_network() -> None:
    """In a network namespace: nine addresses on one interface, and then others than those."""
    run_in_a_namespace(MOVES)


def run_in_a_namespace(program: str) -> None:
    """Run a program with no network but what it makes; skip where that may not be had."""
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
        [*alone, sys.executable, "-c", program],
        input=program,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env=dict(os.environ),
    )
    assert (done.returncode, done.stderr) == (0, "")
