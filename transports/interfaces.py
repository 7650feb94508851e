"""Which of a machine's addresses to advertise: the useful ones, the best first.

A machine may have dozens: of containers, virtual machines, VPNs, and privacy addresses of IPv6.
A dialling peer tries all that are advertised, so they are few.
"""

import ipaddress
import re
import socket
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import psutil

from p2pinfer.core.checks import ADDRESS_CHARS_MAX, ADDRESSES_MAX
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId

BRIDGE: Final = re.compile(
    r"(docker|podman|br-|virbr|veth|vnet|vmnet|vboxnet|lxc|lxd|cni|flannel|cali|kube|bridge\d|vmenet"
    r"|vEthernet|awdl|llw|anpi|waydroid)",
    re.IGNORECASE,
)
"""Interfaces known only to this machine's containers and virtual machines, which can reach its
other addresses, too."""

TUNNEL: Final = re.compile(
    r"(tun|tap|wg|utun|ppp|ipsec|tailscale|zt|nordlynx|proton|warp|ham)", re.IGNORECASE
)
"""Interfaces of VPNs."""

SAME_MAX = 2
"""Addresses of one interface and family before those of others have had their turn."""

_PORT_MAX: Final = 65_535

SEEN_MAX = 2
"""Addresses at which others have seen a host, beside its own."""

_ANNOUNCED: Final = re.compile(
    r"(/(ip4|ip6|dns|dns4|dns6)/([^/\s]+)/tcp/([1-9]\d{0,4}))(?:/p2p/(\w+))?", re.ASCII
)
"""An address to announce without the peer's id, the kind of its host, that, its port; an id."""

_OUTSIDE: Final = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses reserved for documentation: the route to them is the default route."""


@dataclass(frozen=True)
class Address:
    """An address of this machine."""

    interface: str
    host: str
    """As text, without an interface name after it."""

    @property
    def family(self) -> str:
        """The multiaddr name of its kind."""
        return "ip6" if ":" in self.host else "ip4"


class Use(IntEnum):
    """How useful an address is to others, the most useful first."""

    ROUTED = 0
    """The source address of this machine's outgoing calls."""
    PUBLIC = 1
    PRIVATE = 2
    TUNNEL = 3
    LAST_RESORT = 4
    """Self-assigned, for lack of another: two laptops on one cable."""
    BRIDGE = 5
    LOOPBACK = 6
    NONE = 7
    """Useless: link-local IPv6 needs the name of the caller's own interface."""


def use_of(address: Address, routed: Collection[str]) -> Use:
    """Judge an address; ``routed`` are those from which this machine calls the outside."""
    found = ipaddress.ip_address(address.host)
    if found.is_unspecified or found.is_multicast or (found.version == 6 and found.is_link_local):
        return Use.NONE
    if found.is_loopback:
        return Use.LOOPBACK
    if found.is_link_local:
        return Use.LAST_RESORT
    if TUNNEL.match(address.interface):
        return Use.TUNNEL
    if address.host in routed:
        return Use.ROUTED
    if BRIDGE.match(address.interface):
        return Use.BRIDGE
    return Use.PUBLIC if found.is_global else Use.PRIVATE


def choose_hosts(
    found: Iterable[Address], routed: Collection[str], most: int = ADDRESSES_MAX
) -> list[str]:
    """Return the hosts to advertise, the best first, at most ``most``.

    Bridges are included only if there is nothing better, loopback only if there is nothing else.
    """
    judged = [(use_of(address, routed), address) for address in found]
    good = sorted((each for each in judged if each[0] < Use.NONE), key=lambda each: each[0])
    for limit in (Use.BRIDGE, Use.LOOPBACK, Use.NONE):
        if told := [each for each in good if each[0] < limit]:
            break
    else:
        return []
    seen: Counter[tuple[str, str]] = Counter()
    first: list[str] = []
    later: list[str] = []
    for use, address in told:
        same = seen[address.interface, address.family]
        seen[address.interface, address.family] += 1
        (later if same >= SAME_MAX and use is not Use.ROUTED else first).append(address.host)
    return list(dict.fromkeys([*first, *later]))[:most]


def check_announced(announced: Sequence[str], me: PeerId) -> list[str]:
    """Return addresses that a person wants told to others, each once and without this peer's id.

    Raises:
        UserError: nobody could dial one of them, or they are too many.
    """
    checked = list(dict.fromkeys(_check_announced(each, me) for each in announced))
    if len(checked) > ADDRESSES_MAX:
        raise UserError(f"--announce takes {ADDRESSES_MAX} addresses at most, not {len(checked)}.")
    return checked


def _check_announced(address: str, me: PeerId) -> str:
    found = _ANNOUNCED.fullmatch(address)
    if not found or int(found[4]) > _PORT_MAX or len(f"{found[1]}/p2p/{me}") > ADDRESS_CHARS_MAX:
        raise UserError(
            f"--announce {address} must look like /ip4/203.0.113.7/tcp/4001 or"
            " /dns4/box.example.org/tcp/4001."
        )
    whole, kind, host, _, peer = found.groups()
    if peer not in (None, me):
        raise UserError(
            f"--announce {address} names another peer, and this one is {me}: leave /p2p/ and what"
            " follows out."
        )
    if kind.startswith("dns"):
        return whole
    try:
        ip = (ipaddress.IPv4Address if kind == "ip4" else ipaddress.IPv6Address)(host)
    except ValueError as error:
        raise UserError(f"--announce {address}: {host} is no {kind} address.") from error
    if ip.is_unspecified or ip.is_multicast or (ip.version == 6 and ip.is_link_local):
        raise UserError(
            f"--announce {address}: nobody can call {host}; name the address at which others reach"
            " this machine."
        )
    return whole


def told_addresses(
    listening: Sequence[str],
    found: Sequence[Address],
    routed: Collection[str],
    announced: Sequence[str] = (),
) -> list[str]:
    """Return the multiaddrs to advertise for a host, at most `ADDRESSES_MAX`.

    Args:
        listening: multiaddrs that it listens on; those of all interfaces stand for ours. After
            them come those at which others have seen it.
        found: this machine's addresses.
        routed: as in `use_of`.
        announced: told before all others, at most `ADDRESSES_MAX`.
    """
    wildcards = {"ip4": "/ip4/0.0.0.0/", "ip6": "/ip6/::/"}
    open_to = {
        family: [each.removeprefix(prefix) for each in listening if each.startswith(prefix)]
        for family, prefix in wildcards.items()
    }
    own = {address.host for address in found}
    plain = [each for each in listening if not each.startswith(tuple(wildcards.values()))]
    named = [each for each in plain if own.intersection(each.split("/")[2:3])]
    others = [each for each in plain if each not in named and each not in announced]
    seen = others[: min(SEEN_MAX, ADDRESSES_MAX - len(announced))]
    hosts = choose_hosts([each for each in found if open_to[each.family]], routed)
    family = {address.host: address.family for address in found}
    real = [f"/{family[host]}/{host}/{rest}" for host in hosts for rest in open_to[family[host]]]
    first = list(dict.fromkeys([*announced, *named, *real]))
    return first[: ADDRESSES_MAX - len(seen)] + seen


def is_loopback(multiaddr: str) -> bool:
    """Whether a multiaddr can be reached only from this machine."""
    with suppress(ValueError, IndexError):  # a name, for example
        return ipaddress.ip_address(multiaddr.split("/")[2]).is_loopback
    return False


def are_only_here(multiaddrs: Sequence[str]) -> bool:
    """Whether addresses are named, and all can be reached only from this machine."""
    return bool(multiaddrs) and all(map(is_loopback, multiaddrs))


def machine_addresses() -> list[Address]:
    """Return the addresses of all interfaces that are up; the routed ones if none are reported."""
    try:
        up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
        interfaces = psutil.net_if_addrs()
    except OSError:  # some systems keep them from programs
        return [Address("?", host) for host in (*routed_hosts(), "127.0.0.1", "::1")]
    return [
        Address(name, each.address.partition("%")[0])
        for name, addresses in interfaces.items()
        if name in up
        for each in addresses
        if each.family in (socket.AF_INET, socket.AF_INET6)
    ]


def routed_hosts() -> set[str]:
    """Return the addresses from which this machine would call the outside; sends nothing."""
    found = set()
    for family, outside in _OUTSIDE.items():
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((outside, 9))  # of a datagram socket: only looks the way up
            found.add(str(probe.getsockname()[0]))
    return found


def is_global(host: str) -> bool:
    """Whether a host is an IP address of the whole Internet."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return False
