"""The router of this machine's default route: where it is, by the system's own tables."""

import ipaddress
import re
import sys
from contextlib import suppress
from pathlib import Path
from subprocess import CalledProcessError
from typing import Final

import trio

_ROUTES: Final = Path("/proc/net/route")

LOOK_S_MAX = 5.0
"""For the system's program to answer, where there is no such file."""

_GATEWAY: Final = 2
"""The flag of a route that leads through a router."""


async def find_gateway() -> str | None:
    """Return the IPv4 address of the router; None where there is none, or no telling."""
    if sys.platform == "linux":
        try:
            return parse_linux(await trio.Path(_ROUTES).read_text())
        except OSError:
            return None
    if sys.platform == "darwin":
        return parse_macos(await _run("/sbin/route", "-n", "get", "default"))
    if sys.platform == "win32":
        return parse_windows(await _run("route", "print", "-4", "0.0.0.0"))  # noqa: S104 - a name
    return None


async def _run(*command: str) -> str:
    with suppress(OSError, CalledProcessError), trio.move_on_after(LOOK_S_MAX):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True)
        return done.stdout.decode(errors="replace")
    return ""


def parse_linux(text: str) -> str | None:
    """Find it in ``/proc/net/route``; of several the one with the least metric."""
    found: list[tuple[int, str]] = []
    for line in text.splitlines()[1:]:
        words = line.split()
        with suppress(ValueError, IndexError):
            destination, router, flags = words[1], words[2], int(words[3], 16)
            if destination == "00000000" and flags & _GATEWAY and words[7] == "00000000":
                address = ipaddress.IPv4Address(bytes.fromhex(router)[::-1])
                found.append((int(words[6]), str(address)))
    return min(found)[1] if found else None


def parse_macos(text: str) -> str | None:
    """Find it in the output of ``route -n get default``."""
    found = re.search(r"gateway:\s*(\d+\.\d+\.\d+\.\d+)", text)
    return _checked(found[1]) if found else None


def parse_windows(text: str) -> str | None:
    """Find it in the output of ``route print``, whatever language the rest is in."""
    routes = re.findall(
        r"^\s*0\.0\.0\.0\s+0\.0\.0\.0\s+(\d+\.\d+\.\d+\.\d+)\s+\S+\s+(\d+)", text, re.MULTILINE
    )
    found = sorted((int(metric), router) for router, metric in routes)
    return _checked(found[0][1]) if found else None


def _checked(text: str) -> str | None:
    with suppress(ValueError):
        return str(ipaddress.IPv4Address(text))
    return None
