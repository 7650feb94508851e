"""Carries out orders to a router by UPnP, in a process of its own: asks miniupnpc to.

miniupnpc is the library of most programs with this feature. It is C, and holds whatever a router
sends: a hostile one in a cafe could send for ever. So this process may hold little, and
`transports.port_mapping.upnp` ends it when it takes long.
"""

import ipaddress
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from transports.port_mapping.messages import (
    LEASE_S,
    RouterAnswerError,
    RouterRefusal,
    RouterSilence,
)

MEMORY_BYTES_MAX: Final = 128 * 1024 * 1024
"""Of this process, where the system heeds it: Python takes a quarter, answers some kilobytes."""

PORTS_TRIED = 4
"""Outer ports asked for in turn, where another machine of the home holds the first."""

PERMANENT_ONLY: Final = "OnlyPermanentLeasesSupported"
"""What old routers answer to a lease; then the port is given back at the end alone."""

NO_ANSWER: Final = "Miniupnpc"
"""How texts of miniupnpc begin where the router gave none."""

NAME: Final = "p2pinfer"
"""Shown in the router's list of ports."""


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


def outer_ports(first: int) -> list[int]:
    """Return the outer ports to ask for in turn, the wanted one first."""
    return [1024 + (first - 1024 + 1009 * i) % (65_536 - 1024) for i in range(PORTS_TRIED)]


def add(device: Any, inner: int, outer: int) -> tuple[str, int]:
    """Have a port passed on to this machine for `LEASE_S`; return the outer host and port.

    Raises:
        RouterRefusal: it does not.
        RouterSilence: it does not answer.
    """
    here = str(device.lanaddr)
    reason = "all ports that were asked for are taken"
    for port in outer_ports(outer):
        holder = device.getspecificportmapping(port, "TCP")
        if holder and holder[:2] != (here, inner):
            continue  # some routers take it from the other machine without a word
        for lease_s in (LEASE_S, 0):
            try:
                device.addportmapping(port, "TCP", here, inner, NAME, "", lease_s)
            except Exception as error:
                if type(error) is not Exception:  # the router's no is just that
                    raise
                reason = str(error)
                if reason.startswith(NO_ANSWER):
                    raise RouterSilence(reason) from error
                if reason != PERMANENT_ONLY:
                    break
            else:
                return _outside(device), port
    raise RouterRefusal(reason)


def knows(device: Any, inner: int, outer: int, host: str) -> bool:
    """Whether the port is still passed on, at the same outer address."""
    holder = device.getspecificportmapping(outer, "TCP")
    with suppress(RouterRefusal):
        return bool(holder) and holder[:2] == (device.lanaddr, inner) and _outside(device) == host
    return False


def remove(device: Any, outer: int) -> None:
    """Give a port back; the router may have forgotten it."""
    with suppress(Exception):  # miniupnpc raises no other
        device.deleteportmapping(outer, "TCP")


def _outside(device: Any) -> str:
    try:
        return str(ipaddress.IPv4Address(device.externalipaddress()))
    except Exception as error:
        raise RouterRefusal("it does not know its own address") from error


ORDERS: Final[dict[str, Callable[..., Any]]] = {"add": add, "knows": knows, "remove": remove}


def open_device(description: str, router: str) -> Any:
    """Read a router's description.

    Raises:
        RouterSilence: it gives none, or none of a router.
        RouterAnswerError: it leads elsewhere.
    """
    try:
        import miniupnpc
    except ImportError as error:
        raise RouterSilence("miniupnpc is not installed") from error
    device = miniupnpc.UPnP()
    try:
        control = device.selectigd(check_url(description, router))
    except RouterAnswerError:
        raise
    except Exception as error:
        raise RouterSilence(str(error)) from error
    check_url(str(control), router)
    return device


def main() -> None:
    """Carry out the order in the first argument, and print what came of it, both as JSON."""
    with suppress(ImportError, OSError, ValueError):  # not on all systems
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    description, router, order, *values = json.loads(sys.argv[1])
    try:
        found = {"done": ORDERS[order](open_device(description, router), *values)}
    except RouterRefusal as error:
        found = {"refused": str(error)}
    except (RouterSilence, RouterAnswerError, MemoryError) as error:
        found = {"silent": str(error)}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
