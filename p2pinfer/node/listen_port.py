"""Where a peer listens unless a person says otherwise: on all interfaces, at a port of its own.

The port is drawn once and kept beside the key: so the lines that others saved, and what a firewall
or a router lets through, hold after a restart.
"""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final

from p2pinfer.node.atomic_file import replace_text

PORTS: Final = range(20_000, 30_000)
"""Below those that Linux, macOS and Windows give to outgoing connections, one of which could hold
the port at a restart."""

DRAWS_MAX = 64
"""Ports looked at before the system chooses one; a machine where most are taken is no machine."""

TAKEN = (
    "port {}, which is this peer's own, is in use by another program: this run listens on {}, and"
    " what others noted of it leads here again once the port is free"
)

UNKEPT = (
    "this peer's port could not be kept ({}), so it is another one next time: --listen sets one"
)

_EVERYWHERE: Final = {
    socket.AF_INET: ("0.0.0.0", "/ip4/0.0.0.0/tcp/{}"),  # noqa: S104 -- a peer is for others
    socket.AF_INET6: ("::", "/ip6/::/tcp/{}"),
}


def own_listen(
    key: Path,
    chance: Random,
    say: Callable[[str], None],
    can_bind: Callable[[socket.AddressFamily, int], bool] | None = None,
) -> tuple[str, ...]:
    """Return the multiaddrs that the peer of this key listens on: both families, one port.

    Args:
        key: the file of its identity, which no other process holds.
        chance: draws the port the first time, and where the own one is taken.
        say: a sentence for the person, where the own port is not to be had.
        can_bind: whether a port of a family is free; asks the system.
    """
    can_bind = can_bind or _can_bind
    families = [family for family in _EVERYWHERE if can_bind(family, 0)]

    def is_free(port: int) -> bool:
        return all(can_bind(family, port) for family in families)

    path = key.with_name(f"{key.name}.port")
    kept = _read(path)
    port = kept if kept and is_free(kept) else _draw(chance, is_free)
    if kept is None:
        _keep(path, port, say)
    elif port != kept:
        say(TAKEN.format(kept, port or "another"))
    return _multiaddrs(families, port)


def _multiaddrs(families: Sequence[socket.AddressFamily], port: int) -> tuple[str, ...]:
    # Where none can be bound, the attempt says why.
    return tuple(_EVERYWHERE[family][1].format(port) for family in families or [socket.AF_INET])


def _draw(chance: Random, is_free: Callable[[int], bool]) -> int:
    """Return a port that is free, or 0, for which the system chooses."""
    drawn = (chance.choice(PORTS) for _ in range(DRAWS_MAX))
    return next((port for port in drawn if is_free(port)), 0)


def _read(path: Path) -> int | None:
    """Return the port that was kept; what is damaged counts as none."""
    try:
        port = int(path.read_text())
    except (OSError, ValueError):
        return None
    return port if port in PORTS else None


def _keep(path: Path, port: int, say: Callable[[str], None]) -> None:
    if not port:
        return
    try:
        replace_text(path, f"{port}\n")
    except OSError as error:
        say(UNKEPT.format(error.strerror))


def _can_bind(family: socket.AddressFamily, port: int) -> bool:
    try:
        with socket.socket(family) as probe:
            # REUSEADDR only skips what a closed socket leaves behind.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((_EVERYWHERE[family][0], port))
    except OSError:  # also of a family that this machine does not have
        return False
    return True
