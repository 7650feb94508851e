"""UPnP: finding the router's description by SSDP, and asking it for a port by miniupnpc.

Only the router of the default route is asked: what others on the network say of themselves is not
looked at, and a description that leads elsewhere is refused.
"""

import json
import re
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import trio

from p2pinfer.core.python_process import python_command, python_environment
from transports.port_mapping.asking import ANSWERS_MAX
from transports.port_mapping.messages import RouterAnswerError, RouterRefusal, RouterSilence
from transports.port_mapping.upnp_orders import check_url

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

ORDER_S_MAX = 10.0
"""For an order to be carried out: a slow router takes a second for each of four requests."""

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


@dataclass(frozen=True)
class UpnpControl:
    """The service of a router that opens ports; each order takes a process."""

    description: str
    """The URL of the router's description."""
    router: str

    async def add(self, inner: int, outer: int) -> tuple[str, int]:
        """Have a port passed on to this machine; return the outer host and port.

        Raises:
            RouterRefusal: it does not.
            RouterSilence: it does not answer.
        """
        host, port = await self._order("add", inner, outer)
        return str(host), int(port)

    async def knows(self, inner: int, outer: int, host: str) -> bool:
        """Whether the port is still passed on, at the same outer address; raises RouterSilence."""
        return bool(await self._order("knows", inner, outer, host))

    async def remove(self, outer: int) -> None:
        """Give a port back; raises RouterSilence."""
        await self._order("remove", outer)

    async def _order(self, *words: object) -> Any:
        order = json.dumps([self.description, self.router, *words])
        with trio.move_on_after(ORDER_S_MAX):
            done = await trio.run_process(
                python_command("transports.port_mapping.upnp_orders", order),
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                check=False,
                env=python_environment(),
            )
            return _read(done.stdout)
        raise RouterSilence(f"no answer within {ORDER_S_MAX:g} s")


def _read(printed: bytes) -> Any:
    """Read what came of an order."""
    try:
        found = json.loads(printed)
    except ValueError as error:
        raise RouterSilence("what speaks to it has ended") from error
    if "refused" in found:
        raise RouterRefusal(found["refused"])
    if "silent" in found:
        raise RouterSilence(found["silent"])
    return found["done"]
