"""The limits of this process's container or cgroup, which may be far below what the machine has.

Linux keeps the limits in files, in one tree (version 2) or in one per resource (version 1). The
limits of every enclosing group apply. Other systems have none, and nothing is limited there.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_UNLIMITED_BYTES = 1 << 60
"""Version 1 says "no limit" as the largest number of pages."""

_V2_BASES = ("sys/fs/cgroup", "sys/fs/cgroup/unified")


def memory_left_bytes(root: Path = Path("/")) -> int | None:
    """Return how much memory may still be taken before the tightest limit; None without a limit.

    The cache of files not read recently does not count as taken: it makes way.
    """
    left = []
    for folder in _folders("memory", root):
        limits = [_number(folder / name) for name in ("memory.max", "memory.high")]
        limits.append(_number(folder / "memory.limit_in_bytes"))
        limit = min((each for each in limits if each is not None), default=_UNLIMITED_BYTES)
        if limit >= _UNLIMITED_BYTES:
            continue
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        table = _table(folder / "memory.stat")
        idle = table.get("total_inactive_file", table.get("inactive_file", 0))
        left.append(max(0, limit - max(0, used - idle)))
    return min(left, default=None)


def processors(root: Path = Path("/")) -> float | None:
    """Return how many processors' time may be used at most; None if that is not limited."""
    found = []
    for folder in _folders("cpu", root):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                found.append(int(quota) / int(period))
        quota_us = _number(folder / "cpu.cfs_quota_us")
        period_us = _number(folder / "cpu.cfs_period_us")
        if quota_us and period_us and quota_us > 0:
            found.append(quota_us / period_us)
    return min(found, default=None)


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folder of each group that contains this process, as far as they are visible."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            bases = _V2_BASES
        elif controller in controllers.split(","):
            bases = (f"sys/fs/cgroup/{controllers}", f"sys/fs/cgroup/{controller}")
        else:
            continue
        # Inside a container the path may be the host's; then only the topmost folder exists.
        parts = [part for part in path.split("/") if part and part != ".."]
        for base in bases:
            for depth in range(len(parts), -1, -1):
                folder = root.joinpath(base, *parts[:depth])
                if folder.is_dir():
                    yield folder


def _number(path: Path) -> int | None:
    """Return the number in a file; None if there is no such file, or no number in it."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _table(path: Path) -> dict[str, int]:
    """Return the numbers in a file of names and numbers; empty if there is no such file."""
    found = {}
    with suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, number = line.partition(" ")
            if number.strip().isdecimal():
                found[name] = int(number)
    return found
