"""A small Internet in one process: hosts in network namespaces, with delays, loss and NATs.

Each host is a network namespace whose only interface is a TUN device. All packets of all hosts come
to a thread of this process, which is every link and every NAT between them. So real programs on
real kernel sockets can be tested behind any kind of NAT and over any delay, on kernels without
netem, and nothing ever leaves the machine: no namespace has another way out.

    with Internet() as net:
        relay = net.host("relay", "5.5.5.5", delay_ms=10)
        home = net.nat("home", "5.5.5.11", delay_ms=25)                   # a usual home router
        cafe = net.nat("cafe", "5.5.5.12", delay_ms=25, **SYMMETRIC)
        a, b = net.host("a", "10.1.0.2", behind=home), net.host("b", "10.2.0.2", behind=cafe)
        a.run(["curl", "http://5.5.5.5/"])                                # as subprocess.run
        home.link.delay_ms = 80                                           # at any time
        home.link.is_up = False                                           # the cable is cut
        home.forget()                                                     # it restarts
        net.move(a, "10.2.0.3", behind=cafe)                              # another Wi-Fi

A NAT may itself be behind another one (a carrier's). NATs speak TCP, UDP and ICMP echo over IPv4;
what has an ``address6`` speaks TCP and UDP over IPv6 besides, past NATs, whose firewalls let in
answers alone; multicast reaches all hosts of one network. Take public addresses that programs take
for public: Python's `ipaddress` counts 203.0.113.0/24 and its like as private. Some 20 to 100
Mbit/s go through, as every packet is handled in Python; delays are good to 1 to 3 ms.

It needs CAP_NET_ADMIN, CAP_SYS_ADMIN and /dev/net/tun. Without root, where that file is open to
all: ``unshare --user --map-root-user --net pytest …``. The tests' fixture ``internet`` skips a test
where the machine does not allow it.
"""

import heapq
import itertools
import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from tests.support.natlab.hosts import Host
from tests.support.natlab.links import Link
from tests.support.natlab.nats import Nat
from tests.support.natlab.packets import ACK, FIN, RST, SYN, TCP, Packet

HOSTS_MAX = 64
"""In one Internet: more than one thread of Python can serve."""

DELAYED_MAX = 20_000
"""Packets on their way at once; more are dropped. 28 MB at most."""

READS_MAX = 64
"""Packets taken of one host before the others have their turn."""

_LINK = ("delay_ms", "jitter_ms", "loss", "mbit")


class Internet:
    """All links and NATs; the packets go through a thread of this process."""

    def __init__(self, seed: int = 1, trace: Callable[[str], object] | None = None) -> None:
        self.hosts: list[Host] = []
        self.nats: list[Nat] = []
        self.chance = random.Random(seed)
        self.trace = trace
        self.now = time.monotonic
        self._failure: BaseException | None = None
        self._at: dict[tuple[Nat | None, bytes], Host | Nat] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._poll = select.epoll()
        self._by_tun: dict[int, Host] = {}
        self._stop_r, self._stop_w = os.pipe()
        self._thread = threading.Thread(target=self._run, name="internet", daemon=True)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._poll.register(self._stop_r, select.EPOLLIN)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop_w, b"x")
        self._thread.join()
        for host in self.hosts:
            host.close()
        self._poll.close()
        os.close(self._stop_r)
        os.close(self._stop_w)
        if self._failure:
            raise self._failure

    def host(
        self,
        name: str,
        address: str,
        behind: Nat | None = None,
        *,
        firewall: bool = False,
        address6: str = "",
        **link: Any,
    ) -> Host:
        """Add a host; ``link`` is as of `Link`."""
        if len(self.hosts) >= HOSTS_MAX:
            raise ValueError(f"an Internet has {HOSTS_MAX} hosts at most")
        host = Host(name, address, behind, Link(**link), firewall=firewall, address6=address6)
        self._place(host)
        if address6:
            self._at[None, socket.inet_pton(socket.AF_INET6, address6)] = host
        self.hosts.append(host)  # first, so that what is half made is taken away, too
        host.open()
        self._by_tun[host.tun] = host
        self._poll.register(host.tun, select.EPOLLIN)
        return host

    def nat(self, name: str, address: str, behind: Nat | None = None, **options: Any) -> Nat:
        """Add a NAT; ``options`` are those of `Link` and `Nat`."""
        link = Link(**{key: options.pop(key) for key in _LINK if key in options})
        nat = Nat(name, address, behind, link, now=self.now, chance=self.chance, **options)
        self._place(nat)
        self.nats.append(nat)
        return nat

    def move(self, host: Host, address: str, behind: Nat | None = None) -> None:
        """Put a host into another network, as a laptop that is carried there."""
        with self._lock:
            del self._at[host.behind, socket.inet_aton(host.address)]
        host.move(address, behind)
        self._place(host)

    def renumber(self, nat: Nat, address: str) -> None:
        """Give a NAT another outer address, as a provider does; what it carried is lost."""
        with self._lock:
            del self._at[nat.behind, nat.outer]
            nat.renumber(address)
        self._place(nat)

    def _place(self, node: Host | Nat) -> None:
        key = node.behind, socket.inet_aton(node.address)
        with self._lock:
            if key in self._at:
                raise ValueError(f"{node.address} is taken there")
            self._at[key] = node

    def _run(self) -> None:
        try:
            while True:
                wait_s = max(0.0, self._due[0][0] - self.now()) if self._due else -1
                for descriptor, _ in self._poll.poll(wait_s):
                    if descriptor == self._stop_r:
                        return
                    with self._lock:
                        self._read(self._by_tun[descriptor])
                with self._lock:
                    while self._due and self._due[0][0] <= self.now():
                        heapq.heappop(self._due)[2]()
        except BaseException as error:  # noqa: BLE001 - raised when the block ends
            self._failure = error

    def _read(self, host: Host) -> None:
        for _ in range(READS_MAX):
            try:
                data = os.read(host.tun, 65_536)
            except BlockingIOError:
                return
            packet = Packet.parse(data)
            if packet:
                host.sends(packet)
                self._leave(host, packet)

    def _leave(self, node: Host | Nat, packet: Packet) -> None:
        """Carry a packet up a link, to the network that is there."""
        behind = node.behind

        def go_on() -> None:
            if packet.is_ipv6 and behind is not None:  # routed, not translated
                self._leave(behind, packet)
            else:
                self._route(behind, packet, node)

        self._cross(node.link, packet, "up", go_on)

    def _route(self, network: Nat | None, packet: Packet, sender: Host | Nat | None) -> None:
        """Hand a packet to the one that has its address in a network, or to the NAT at its edge."""
        if packet.is_multicast:
            self._spread(network, packet, sender)
            return
        target = self._at.get((network, packet.destination[0]))
        if target is not None:
            self._deliver(target, packet)
        elif network is not None:
            self._cross_border(network, packet)

    def _cross_border(self, network: Nat, packet: Packet) -> None:
        """Take a packet that leaves a private network, or is for its router."""
        if network.inner and packet.destination[0] == socket.inet_aton(network.inner):
            if answer := network.answer(packet):
                self._route(network, answer, None)
            return
        hairpin = packet.destination[0] == network.outer
        if hairpin and not network.hairpins:
            return
        network.outward(packet)
        self._say(network, packet, "out")
        if hairpin:
            self._arrive(network, packet)
        else:
            self._leave(network, packet)

    def _spread(self, network: Nat | None, packet: Packet, sender: Host | Nat | None) -> None:
        """Hand a packet to all other hosts of a private network."""
        for (place, _), node in list(self._at.items()):
            if network is not None and place is network and node is not sender:
                self._deliver(node, packet.copy())

    def _deliver(self, node: Host | Nat, packet: Packet) -> None:
        """Carry a packet down a link, and by IPv6 down that of the home's router first."""

        def go_on() -> None:
            self._cross(node.link, packet, "down", lambda: self._arrive(node, packet))

        if packet.is_ipv6 and node.behind is not None:
            self._cross(node.behind.link, packet, "down", go_on)
        else:
            go_on()

    def _arrive(self, node: Host | Nat, packet: Packet) -> None:
        if isinstance(node, Host):
            if node.takes(packet):
                with suppress(OSError):  # its device is down, or gone
                    os.write(node.tun, packet.data)
        elif packet.is_multicast:
            return
        elif node.inward(packet):
            self._say(node, packet, "in")
            self._route(node, packet, None)
        else:
            self._say(node, packet, "refused" if node.refuses else "dropped")
            if node.refuses and packet.protocol == TCP and not packet.flags & RST:
                self._leave(node, packet.refusal())

    def _cross(self, link: Link, packet: Packet, way: str, then: Callable[[], None]) -> None:
        now = self.now()
        at = link.arrival(now, len(packet.data), way, self.chance)
        if at is None or len(self._due) >= DELAYED_MAX:
            return
        if at <= now:
            then()
        else:
            heapq.heappush(self._due, (at, next(self._order), then))

    def _say(self, nat: Nat, packet: Packet, what: str) -> None:
        if not self.trace:
            return
        ends = [f"{socket.inet_ntoa(a)}:{p}" for a, p in (packet.source, packet.destination)]
        names = (("S", SYN), ("A", ACK), ("F", FIN), ("R", RST))
        flags = "".join(name for name, bit in names if packet.flags & bit)
        self.trace(f"{nat.name} {what}: {' > '.join(ends)} {flags}")
