"""The lab's own promises: what its links and NATs do to real sockets of real hosts."""

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.natlab import nats
from tests.support.natlab.hosts import Host
from tests.support.natlab.internet import Internet
from tests.support.natlab.links import QUEUE_S_MAX, Link
from tests.support.natlab.nats import ADDRESS, ENDPOINT_INDEPENDENT, SYMMETRIC

FAR, THIRD, HOME = "5.5.5.5", "5.5.6.6", "5.5.5.11"
PLACES = [(FAR, 1000), (FAR, 1001), (THIRD, 1000)]
INSIDE = "10.1.0.2"
SOON_S = 5.0
"""For what must happen; a busy machine takes its time."""
NEVER_S = 0.3
"""For what must not."""


def udp(host: Host, port: int = 0) -> socket.socket:
    """Return a socket of UDP on a host."""
    made = host.socket(socket.SOCK_DGRAM, port)
    made.settimeout(SOON_S)
    return made


def hears(sock: socket.socket) -> tuple[bytes, Any] | None:
    """Return what comes soon, and from where; None for silence."""
    sock.settimeout(NEVER_S)
    try:
        return sock.recvfrom(100)
    except TimeoutError:
        return None


def seen_from(sock: socket.socket, *others: socket.socket) -> list[tuple[str, int]]:
    """Send to each of the others; return where it came from, for them."""
    found = []
    for other, place in zip(others, PLACES, strict=False):
        sock.sendto(b"x", place)
        other.settimeout(SOON_S)
        found.append(other.recvfrom(100)[1])
    return found


@pytest.fixture
def others(internet: Internet) -> list[socket.socket]:
    """Provide three sockets outside: two of one host, one of another."""
    far, third = internet.host("far", FAR), internet.host("third", THIRD)
    return [udp({FAR: far, THIRD: third}[address], port) for address, port in PLACES]


def test_an_endpoint_independent_nat_shows_one_port(
    internet: Internet, others: list[socket.socket]
) -> None:
    """It keeps the inside's port while that is free."""
    home = internet.nat("home", HOME)
    one = udp(internet.host("a", INSIDE, behind=home), 4100)
    two = udp(internet.host("b", "10.1.0.3", behind=home), 4100)
    assert seen_from(one, *others) == [(HOME, 4100)] * 3
    ports = {port for _, port in seen_from(two, *others)}
    assert len(ports) == 1
    assert ports != {4100}


def test_a_symmetric_nat_shows_a_port_to_each(
    internet: Internet, others: list[socket.socket]
) -> None:
    """Three that it speaks to see three ports, none of them the inside's."""
    one = udp(internet.host("a", INSIDE, behind=internet.nat("home", HOME, **SYMMETRIC)), 4100)
    ports = {port for _, port in seen_from(one, *others)}
    assert len(ports - {4100}) == 3


@pytest.mark.parametrize(
    ("options", "let_in"),
    [
        ({}, [True, False, False]),
        ({"filtering": ADDRESS}, [True, True, False]),
        ({"filtering": ENDPOINT_INDEPENDENT}, [True, True, True]),
    ],
)
def test_a_nat_lets_in_what_its_filter_says(
    internet: Internet,
    others: list[socket.socket],
    options: dict[str, Any],
    let_in: list[bool],
) -> None:
    """Answers always; the same host's other port, and strangers, by its kind."""
    home = internet.nat("home", HOME, **options)
    one = udp(internet.host("a", INSIDE, behind=home), 4100)
    seen_from(one, others[0])
    found = []
    for other in others:
        other.sendto(b"hello", (HOME, 4100))
        found.append(hears(one) is not None)
    assert found == let_in
    assert home.dropped == let_in.count(False)


def connects(host: Host, address: str, port: int, timeout_s: float = SOON_S) -> str:
    """Try to connect; return the first line that comes, or what happened."""
    sock = host.socket()
    sock.settimeout(timeout_s)
    try:
        sock.connect((address, port))
        return sock.recv(100).decode()
    except OSError as error:
        return type(error).__name__


def serve(host: Host, word: str, port: int = 4001) -> None:
    """Say one word to each caller, from now on."""
    lines = (
        "import socket, sys",
        f"server = socket.create_server(('0.0.0.0', {port}))",
        "print('up', flush=True)",
        "while True:",
        f"    with server.accept()[0] as sock: sock.sendall(b'{word}')",
    )
    server = host.popen(["python3", "-c", "\n".join(lines)], stdout=subprocess.PIPE)
    assert server.stdout is not None
    server.stdout.readline()


def test_a_forward_a_refusal_and_silence(internet: Internet) -> None:
    """A stranger is refused, or hears nothing, until the port is forwarded."""
    silent, refusing = internet.nat("s", HOME), internet.nat("r", "5.5.5.12", refuses=True)
    far = internet.host("far", FAR)
    for nat in (silent, refusing):
        serve(internet.host(nat.name, INSIDE, behind=nat), nat.name)
    assert connects(far, HOME, 4001, NEVER_S) == "TimeoutError"
    assert connects(far, "5.5.5.12", 4001) == "ConnectionRefusedError"
    for nat in (silent, refusing):
        nat.forward(80, (INSIDE, 4001))
        assert connects(far, nat.address, 80) == nat.name
        nat.forget()
        assert connects(far, nat.address, 80) == nat.name
    silent.unforward(80)
    assert connects(far, HOME, 80, NEVER_S) == "TimeoutError"


def test_a_firewall_lets_out_and_not_in(internet: Internet) -> None:
    """The host's address is public, and yet nobody reaches it."""
    far, walled = internet.host("far", FAR), internet.host("w", THIRD, firewall=True)
    serve(far, "far")
    serve(walled, "walled")
    assert connects(walled, FAR, 4001) == "far"
    assert connects(far, THIRD, 4001, NEVER_S) == "TimeoutError"


def test_a_nat_behind_a_nat_and_a_hairpin(internet: Internet) -> None:
    """Two homes of one carrier reach each other at its outer address only if it hairpins."""
    carrier = internet.nat("carrier", "5.5.5.20")
    one = internet.nat("one", "100.64.0.2", behind=carrier)
    two = internet.nat("two", "100.64.0.3", behind=carrier)
    a = internet.host("a", INSIDE, behind=one)
    b = internet.host("b", "10.2.0.2", behind=two)
    serve(internet.host("far", FAR), "far")
    serve(a, "a")
    one.forward(4001, (INSIDE, 4001))
    carrier.forward(4001, ("100.64.0.2", 4001))
    assert connects(b, FAR, 4001) == "far"
    assert connects(b, "5.5.5.20", 4001, NEVER_S) == "TimeoutError"
    carrier.hairpins = True
    assert connects(b, "5.5.5.20", 4001) == "a"


def test_a_restarted_router_forgets(internet: Internet, others: list[socket.socket]) -> None:
    """What comes in afterwards is dropped until the inside sends again."""
    home = internet.nat("home", HOME, udp_idle_s=0.1)
    one = udp(internet.host("a", INSIDE, behind=home), 4100)
    for idle_s in (0.0, 0.15):
        seen_from(one, others[0])
        if idle_s:
            time.sleep(idle_s)
        else:
            home.forget()
        others[0].sendto(b"hello", (HOME, 4100))
        assert hears(one) is None


def test_hosts_move_and_addresses_change(internet: Internet, others: list[socket.socket]) -> None:
    """A laptop is carried to another network; a provider gives another address."""
    home, cafe = internet.nat("home", HOME), internet.nat("cafe", "5.5.5.12")
    laptop = internet.host("a", INSIDE, behind=home)
    assert seen_from(udp(laptop), others[0])[0][0] == HOME
    internet.move(laptop, "10.2.0.9", behind=cafe)
    assert seen_from(udp(laptop), others[0])[0][0] == "5.5.5.12"
    internet.renumber(cafe, "5.5.5.13")
    assert seen_from(udp(laptop), others[0])[0][0] == "5.5.5.13"
    cafe.link.is_up = False
    udp(laptop).sendto(b"x", (FAR, 1000))
    assert hears(others[0]) is None
    cafe.link.is_up = True
    assert seen_from(udp(laptop), others[0])[0][0] == "5.5.5.13"


def test_links_delay_and_lose(internet: Internet, others: list[socket.socket]) -> None:
    """A round trip takes at least its delays; a link that loses all carries nothing."""
    slow = internet.host("slow", "5.5.7.7", delay_ms=40)
    began = time.monotonic()
    one = udp(slow, 4100)
    seen_from(one, others[0])
    others[0].sendto(b"back", ("5.5.7.7", 4100))
    assert one.recvfrom(100)[0] == b"back"
    assert time.monotonic() - began >= 0.08
    slow.link.loss = 1.0
    one.sendto(b"x", (FAR, 1000))
    assert hears(others[0]) is None


def test_a_link_has_a_rate_an_order_and_a_short_queue(internet: Internet) -> None:
    """By its own clock: 1 Mbit/s is 125 KB in a second, and what would wait longer is dropped."""
    link = Link(mbit=1.0, jitter_ms=50.0)
    found = [link.arrival(0.0, 1000, "up", internet.chance) for _ in range(200)]
    carried = [at for at in found if at is not None]
    assert 120 <= len(carried) / QUEUE_S_MAX <= 125
    assert carried == sorted(carried)
    assert link.arrival(0.0, 1000, "down", internet.chance) is not None


def test_nat_pmp_opens_and_closes_a_port(internet: Internet) -> None:
    """As RFC 6886 has it; another host that asks for the same port gets another one."""
    home = internet.nat("home", HOME, inner="10.1.0.1", speaks_nat_pmp=True)
    a = internet.host("a", INSIDE, behind=home)
    b = internet.host("b", "10.1.0.3", behind=home)
    far = internet.host("far", FAR)
    serve(a, "a")

    def ask(host: Host, request: bytes) -> bytes:
        sock = udp(host)
        sock.sendto(request, ("10.1.0.1", 5351))
        return sock.recvfrom(100)[0]

    assert ask(a, b"\0\0")[8:] == socket.inet_aton(HOME)
    request = b"\0\x02\0\0" + (4001).to_bytes(2) + (4001).to_bytes(2)
    assert ask(a, request + (3600).to_bytes(4))[8:12] == (4001).to_bytes(2) * 2
    assert connects(far, HOME, 4001) == "a"
    assert ask(b, request + (3600).to_bytes(4))[10:12] != (4001).to_bytes(2)
    assert set(home.forwards.values()) == {(INSIDE, 4001), ("10.1.0.3", 4001)}
    ask(a, request[:6] + bytes(6))
    assert connects(far, HOME, 4001, NEVER_S) == "TimeoutError"


def test_multicast_stays_in_its_network(internet: Internet) -> None:
    """A neighbour hears it, the Internet does not."""
    home = internet.nat("home", HOME)
    a = internet.host("a", INSIDE, behind=home)
    group = socket.inet_aton("224.0.0.251")
    ears = []
    for host in (internet.host("b", "10.1.0.3", behind=home), internet.host("far", FAR)):
        sock = udp(host, 5353)
        sock.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + socket.inet_aton(host.address)
        )
        ears.append(sock)
    sender = udp(a)
    sender.sendto(b"who is there?", ("224.0.0.251", 5353))
    assert ears[0].recvfrom(100)[0] == b"who is there?"
    assert hears(ears[1]) is None


def test_a_table_of_mappings_is_bounded(
    internet: Internet, others: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of ports pushes out the oldest mapping, never the owner's forward."""
    monkeypatch.setattr(nats, "MAPPINGS_MAX", 4)
    home = internet.nat("home", HOME)
    home.forward(80, (INSIDE, 80))
    a = internet.host("a", INSIDE, behind=home)
    one = udp(a, 4100)
    seen_from(one, others[0])
    for port in range(4101, 4104):
        seen_from(udp(a, port), others[0])
    others[0].sendto(b"hello", (HOME, 4100))
    assert hears(one) is None
    assert home.forwards == {80: (INSIDE, 80)}


def test_nothing_is_left_behind(internet: Internet) -> None:
    """The host's processes end with it, and no namespace has a name."""
    host = internet.host("a", "5.5.5.9")
    process = host.popen(["sleep", "60"])
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, check=True).stdout
    assert not listed
    assert host.call(os.getpid).result() == os.getpid()
    host.close()
    assert process.returncode is not None
    assert not Path(f"/proc/{process.pid}").exists()
