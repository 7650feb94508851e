"""How the engines of one machine share its cores, decode by decode.

For each core that engines may keep busy there is a file, and an engine that computes there holds
its lock; the system releases the locks of a process that ends. Each engine keeps one core for
itself once it finds one free, and takes more for the time of a decode. So a machine's only engine
has all of them, the engines of a chain on one machine have them in turn, and together they never
run more threads than there are cores, unless there are more engines than that, which run one thread
each.
"""

import fcntl
import os
import resource
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

CONTENDED_PER_S: Final = 50.0
"""Times per second and thread that the system took the core away to give it to others: 100 to 300
where somebody else computes there, below 10 where nobody does."""

CALM_S: Final = 1.0
"""How long an engine decodes undisturbed before it tries twice as many threads again."""

LOOK_S: Final = 0.05
"""Of decoding, before its disturbances are counted."""


class Yielding:
    """How many threads to run beside other programs that want the cores.

    A decode is as slow as its slowest thread, and each waits for all others hundreds of times; so
    one that others disturb makes all of them slow, and fewer threads are faster.
    """

    def __init__(self, most: int) -> None:
        self._most, self.limit = most, most
        self._decoding_s, self._switches, self._calm_s = 0.0, 0, 0.0

    def note(self, decoding_s: float, threads: int, switches: int) -> None:
        """Note a decode, and how often its threads had to make way."""
        self._decoding_s += threads * decoding_s
        self._switches += switches
        if self._decoding_s < LOOK_S:
            return
        if self._switches > CONTENDED_PER_S * self._decoding_s:
            self.limit, self._calm_s = max(1, self.limit // 2), 0.0
        else:
            self._calm_s += self._decoding_s / threads
            if self._calm_s >= CALM_S:
                self.limit, self._calm_s = min(self._most, 2 * self.limit), 0.0
        self._decoding_s, self._switches = 0.0, 0


def switches() -> int:
    """Return how often this process's threads had to make way for others so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def shares_folder() -> Path | None:
    """Return where all engines of this person share this machine's cores; None if nowhere."""
    folder = Path(tempfile.gettempdir()) / f"p2pinfer-cores-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    return folder if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() else None


@contextmanager
def in_turn(what: str = "turn") -> Iterator[None]:
    """Wait until no other engine of this machine is in a block of this name, if they share."""
    folder = shares_folder()
    files = _opened(folder, [what]) if folder else []
    try:
        for file in files:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        for file in files:
            os.close(file)


def _opened(folder: Path, cores: Sequence[int | str]) -> list[int]:
    """Open the files of these cores; those that cannot be opened are not shared."""
    found = []
    for core in cores:
        with suppress(OSError):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            found.append(os.open(folder / f"core-{core}", flags, 0o600))
    return found


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlock(file: int) -> None:
    fcntl.flock(file, fcntl.LOCK_UN)


class CoreShares:
    """One process's part in the sharing.

    Args:
        folder: where all engines of this machine and person keep the files; None: there is none,
            and nothing is shared.
        cores: a number for each core that engines may keep busy.
    """

    def __init__(self, folder: Path | None, cores: Sequence[int]) -> None:
        self.count = len(cores)
        """Cores that engines may keep busy, together."""
        self._files = [] if folder is None else _opened(folder, cores)
        self._own: int | None = None
        self._lent: list[int] = []

    def keep(self, most: int) -> None:
        """Keep this many cores, of those that are free now, until the process ends."""
        for file in list(self._free(most)):
            self._files.remove(file)

    def take(self, counts: Sequence[int], limit: int) -> int:
        """Take as many cores as are free, and one in any case; ``give_back`` before the next time.

        Args:
            counts: the numbers of threads that may be run, ascending, from 1 on.
            limit: take no more than this.
        """
        most = max(count for count in counts if count <= max(1, limit))
        if not self._files:
            return most
        if self._own is None:
            self._own = next(self._free(1), None)
        if self._own is None:
            return 1
        self._lent = list(self._free(most - 1))
        threads = max(count for count in counts if count <= 1 + len(self._lent))
        while len(self._lent) >= threads:
            _unlock(self._lent.pop())
        return threads

    def give_back(self) -> None:
        """Give back all that was taken beyond one's own."""
        while self._lent:
            _unlock(self._lent.pop())

    def _free(self, most: int) -> Iterator[int]:
        found = 0
        for file in self._files:
            if found == most:
                return
            if file != self._own and _lock(file):
                found += 1
                yield file


class _Given:
    """A number for a block, with nothing to hold: every decode of one thread takes one."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> int:
        return self._number

    def __exit__(self, *_: object) -> None:
        pass


class Threads:
    """How many threads the decodes of one slice run with, each in its turn.

    Args:
        counts: the numbers of threads that may be run, ascending, from 1 on.
        shares: the cores; None: the last of ``counts`` is run whatever else is going on.
    """

    def __init__(
        self,
        counts: Sequence[int],
        shares: CoreShares | None,
        clock: Callable[[], float] = time.perf_counter,
        switches: Callable[[], int] = switches,
    ) -> None:
        self._counts, self._shares = counts, shares if len(counts) > 1 else None
        self._clock, self._switches = clock, switches
        self._yielding = Yielding(counts[-1])
        self._now = 0

    def held(self) -> AbstractContextManager[int]:
        """Hold cores during a decode; gives how many threads to run it with.

        A decode in the pause of another runs on the cores of that one.
        """
        if self._shares is None or self._now:
            return _Given(self._now or self._counts[-1])
        return self._holding(self._shares)

    @contextmanager
    def _holding(self, shares: CoreShares) -> Iterator[int]:
        threads = self._now = shares.take(self._counts, self._yielding.limit)
        started_s, before = self._clock(), self._switches()
        try:
            yield threads
        finally:
            self._yielding.note(self._clock() - started_s, threads, self._switches() - before)
            shares.give_back()
            self._now = 0
