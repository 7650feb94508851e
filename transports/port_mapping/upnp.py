"""UPnP: finding the router's description by SSDP, and asking it for a port by miniupnpc.

Only the router of the default route is asked: what others on the network say of themselves is not
looked at, and a description that leads elsewhere is refused.
"""

import ipaddress
import logging
import re
import socket
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import trio

from transports.port_mapping.asking import ANSWERS_MAX, RouterSilence
from transports.port_mapping.messages import LEASE_S, RouterAnswerError, RouterRefusal

log: Final = logging.getLogger("p2pinfer.transports")

SSDP: Final = ("239.255.255.250", 1900)
"""Where devices listen for questions (UPnP device architecture, section 1)."""

KINDS: Final = (
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
)
"""Of devices that are asked to speak up; some know only the older."""

SEARCH_WAITS_S: Final = (1.0, 1.5)
"""For an answer, after each time they are asked: they may take one second."""

REPLY_BYTES_MAX = 4096
"""Of an answer; more than twenty times what routers send."""

PORTS_TRIED = 4
"""Outer ports asked for in turn, where another machine of the home holds the first."""

PERMANENT_ONLY: Final = "OnlyPermanentLeasesSupported"
"""What old routers answer to a lease; then the port is given back at the end alone."""

NO_ANSWER: Final = "Miniupnpc"
"""How texts of miniupnpc begin where the router gave none."""

NAME: Final = "p2pinfer"
"""Shown in the router's list of ports."""

_LOCATION: Final = re.compile(rb"^location:[ \t]*(\S{1,1024})[ \t]*\r?$", re.I | re.M)


def read_location(reply: bytes, router: str) -> str:
    """Return the URL of the description in an answer of SSDP.

    Raises:
        RouterAnswerError: there is none, or it leads to another host than the router.
    """
    found = _LOCATION.search(reply)
    if not reply.startswith(b"HTTP/1.") or len(reply) > REPLY_BYTES_MAX or not found:
        raise RouterAnswerError("not an answer of SSDP")
    return check_url(found[1].decode("latin-1"), router)


def check_url(url: str, router: str) -> str:
    """Return a URL if it is one of the router's.

    Raises:
        RouterAnswerError: it is not.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme == "http" and parts.hostname == router and parts.port != 0
    except ValueError as error:
        raise RouterAnswerError(f"{url!r} is no URL") from error
    if not (good and url.isascii() and url.isprintable() and not parts.username):
        raise RouterAnswerError(f"{url!r} does not lead to the router {router}")
    return url


async def find_description(router: str, own_host: str) -> str:
    """Return where the router describes itself.

    Args:
        router: its IPv4 address.
        own_host: this machine's in the same network.

    Raises:
        RouterSilence: it does not answer.
    """
    try:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.bind((own_host, 0))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own_host))
            return await _search(sock, router)
    except OSError as error:
        raise RouterSilence(str(error)) from error


async def _search(sock: trio.socket.SocketType, router: str) -> str:
    seen = 0
    for wait_s in SEARCH_WAITS_S:
        for kind in KINDS:
            for place in (SSDP, (router, SSDP[1])):
                with suppress(OSError):  # one of the two is enough
                    await sock.sendto(_question(kind), place)
        with trio.move_on_after(wait_s):
            while seen < ANSWERS_MAX:
                reply, place = await sock.recvfrom(REPLY_BYTES_MAX + 1)
                if place[0] != router:
                    continue
                seen += 1
                with suppress(RouterAnswerError):
                    return read_location(reply, router)
    raise RouterSilence("no answer")


def _question(kind: str) -> bytes:
    host, port = SSDP
    lines = (
        "M-SEARCH * HTTP/1.1",
        f"HOST: {host}:{port}",
        'MAN: "ssdp:discover"',
        "MX: 1",
        f"ST: {kind}",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


class UpnpControl:
    """The service of a router that opens ports; its calls take a thread each, one at a time.

    Args:
        device: of miniupnpc, or what stands for it.
    """

    def __init__(self, device: Any) -> None:
        self._device = device
        self._one = trio.CapacityLimiter(1)  # a call that was given up may still be under way

    async def add(self, inner: int, outer: int) -> tuple[str, int]:
        """Have a port passed on to this machine for `LEASE_S`; return the outer host and port.

        Raises:
            RouterRefusal: it does not.
            RouterSilence: it does not answer.
        """
        return await trio.to_thread.run_sync(
            self._add, inner, outer, abandon_on_cancel=True, limiter=self._one
        )

    async def knows(self, inner: int, outer: int, host: str) -> bool:
        """Whether the port is still passed on, at the same outer address."""
        return await trio.to_thread.run_sync(
            self._knows, inner, outer, host, abandon_on_cancel=True, limiter=self._one
        )

    async def remove(self, outer: int) -> None:
        """Give a port back; the router may be gone."""
        await trio.to_thread.run_sync(
            self._remove, outer, abandon_on_cancel=True, limiter=self._one
        )

    def _add(self, inner: int, outer: int) -> tuple[str, int]:
        here = str(self._device.lanaddr)
        reason = "all ports that were asked for are taken"
        for port in outer_ports(outer):
            holder = self._device.getspecificportmapping(port, "TCP")
            if holder and holder[:2] != (here, inner):
                continue  # some routers take it from the other machine without a word
            for lease_s in (LEASE_S, 0):
                try:
                    self._device.addportmapping(port, "TCP", here, inner, NAME, "", lease_s)
                    return self._outside(), port
                except RouterRefusal:
                    raise
                except Exception as error:
                    if type(error) is not Exception:  # the router's no is just that
                        raise
                    reason = str(error)
                    if reason.startswith(NO_ANSWER):
                        raise RouterSilence(reason) from error
                    if reason != PERMANENT_ONLY:
                        break
        raise RouterRefusal(reason)

    def _outside(self) -> str:
        try:
            return str(ipaddress.IPv4Address(self._device.externalipaddress()))
        except Exception as error:
            raise RouterRefusal("it does not know its own address") from error

    def _knows(self, inner: int, outer: int, host: str) -> bool:
        here = str(self._device.lanaddr)
        try:
            holder = self._device.getspecificportmapping(outer, "TCP")
            return bool(holder) and holder[:2] == (here, inner) and self._outside() == host
        except RouterRefusal:
            return False

    def _remove(self, outer: int) -> None:
        try:
            self._device.deleteportmapping(outer, "TCP")
        except Exception as error:  # noqa: BLE001 - as above
            log.debug("the router does not take its port back: %s", error)


def outer_ports(first: int) -> list[int]:
    """Return the outer ports to ask for in turn, the wanted one first."""
    return [1024 + (first - 1024 + 1009 * i) % (65_536 - 1024) for i in range(PORTS_TRIED)]


async def open_control(description: str, router: str) -> UpnpControl:
    """Read a router's description.

    Raises:
        RouterSilence: it gives none, or none of a router, or one that leads elsewhere.
    """
    try:
        device = await trio.to_thread.run_sync(_open, description, abandon_on_cancel=True)
        check_url(str(device[1]), router)
    except RouterAnswerError as error:
        raise RouterSilence(str(error)) from error
    return UpnpControl(device[0])


def _open(description: str) -> tuple[Any, object]:
    try:
        import miniupnpc
    except ImportError as error:
        raise RouterSilence("miniupnpc is not installed") from error
    device = miniupnpc.UPnP()
    try:
        return device, device.selectigd(description)
    except Exception as error:
        raise RouterSilence(str(error)) from error
