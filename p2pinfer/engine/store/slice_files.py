"""The slices in the cache, and which of them may be removed.

    vN/ID/NAME.gguf     a slice of a model, as version N of p2pinfer cuts it
    vN/ID/NAME.gguf.*   its adapter, and what was measured of that slice: removed with it
    vN/ID/.NAME.gguf.*  a slice that is being written, or that a killed process was writing

A slice can be cut again, but that costs time and needs its parts. A process that runs one keeps its
file locked, since a worker that dies loads it again; unlocked slices may be removed.

A model with an adapter has its base's slices, as further names of the same files where the file
system has such: they take room once, and are locked and wanted under all their names.
"""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.engine.store.disk import is_named

VERSION = 2
"""Part of every slice's path; increase it when the same cut gives a different file."""

_VERSIONS = re.compile(r"v\d+")

GRACE_S = 60.0
"""A slice is left alone for this long after it was requested: a process is about to run it."""


def _clock_s() -> float:
    return time.time_ns() / 1e9


class Slices:
    """The slices under ``cache``, of all processes.

    Args:
        cache: the directory.
        clock_s: returns the time in seconds, on the clock of file times.
    """

    def __init__(self, cache: Path, clock_s: Callable[[], float] = _clock_s) -> None:
        self.root, self._clock_s = cache, clock_s

    def path(self, model: ModelId, name: str) -> Path:
        """Return where a slice of that name is, or would be."""
        return self.root / f"v{VERSION}" / model[:32] / name

    def note_wanted(self, path: Path) -> bool:
        """Record that a slice is about to be run; False if it is not there."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def link(self, source: Path, path: Path) -> bool:
        """Give a slice a further name; False if the file system has no such names."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, path)
        except FileExistsError:  # it was only its adapter that was missing
            return True
        except OSError:
            return False
        return True

    def used_bytes(self) -> int:
        """Return the bytes of all slices, including those being written."""
        found = {}
        for path, _, _ in self._files("*"):
            with suppress(FileNotFoundError):  # another process has removed it
                status = path.stat()
                found[status.st_ino] = status.st_size
        return sum(found.values())

    def drop_unused(self, model: ModelId, kind: str, spare: int = 0) -> int:
        """Remove a model's unused slices; return the bytes freed.

        Args:
            model: the model.
            kind: how the slices' names begin.
            spare: keep this many, the most recently wanted.
        """
        # A killed process's unfinished file begins with a dot.
        files = self._files(model[:32])
        found = [each for each in files if each[0].name.removeprefix(".").startswith(kind)]
        idle = [
            path for path, at, _ in found if self._was_wanted_long_ago(at) and not _is_in_use(path)
        ]
        return sum(map(_remove, idle[spare:]))

    def make_room(self, wanted_bytes: int) -> int:
        """Remove unused slices, of any model, until that much is freed; return how much."""
        freed = 0
        for path, wanted_at, _ in reversed(self._files("*")):
            if freed >= wanted_bytes:
                break
            if self._was_wanted_long_ago(wanted_at):
                freed += _remove(path)
        return freed

    def remove(self, model: ModelId) -> int:
        """Remove all unused slices of a model; return the bytes freed."""
        freed = sum(_remove(path) for path, _, _ in self._files(model[:32]))
        for folder in self._folders(model[:32]):
            left = list(folder.iterdir())
            if not any(map(_is_slice, left)):
                for path in left:
                    path.unlink(missing_ok=True)
                with suppress(OSError):  # a slice was cut meanwhile
                    folder.rmdir()
        return freed

    def _was_wanted_long_ago(self, wanted_at: float) -> bool:
        return self._clock_s() - wanted_at > GRACE_S

    def _files(self, model: str) -> list[tuple[Path, float, int]]:
        """Return the slices in the folders of that name, with time last wanted, and size."""
        found = []
        for folder in self._folders(model):
            for path in filter(_is_slice, folder.iterdir()):
                with suppress(FileNotFoundError):  # another process has removed it
                    status = path.stat()
                    found.append((path, status.st_mtime, status.st_size))
        return sorted(found, key=lambda each: -each[1])

    def _folders(self, model: str) -> list[Path]:
        """Return the folders of that name, from every version of p2pinfer."""
        return [
            path
            for path in self.root.glob(f"v*/{model}")
            if _VERSIONS.fullmatch(path.parent.name) and path.is_dir()
        ]


@contextmanager
def in_use(*paths: Path) -> Iterator[None]:
    """Keep slices from being removed while the block lasts.

    Raises:
        UserError: one was removed after it was requested.
    """
    held: list[int] = []
    try:
        for path in paths:
            try:
                held.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                fcntl.flock(held[-1], fcntl.LOCK_SH)
                if not is_named(path, held[-1]):
                    raise FileNotFoundError(path)
            except FileNotFoundError as error:
                raise UserError(
                    f"{path} was removed before it was loaded: start again, and it is cut again"
                ) from error
        yield
    finally:
        for file in held:
            os.close(file)


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Hold a slice locked while the block lasts; yield whether no other process does."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(file)


def _is_slice(path: Path) -> bool:
    return path.suffix == ".gguf" or path.name.startswith(".")


def _is_in_use(path: Path) -> bool:
    """Whether a process is running a slice."""
    with _alone(path) as is_mine:
        return not is_mine


def _remove(path: Path) -> int:
    """Remove a slice unless a process is running it; return the bytes freed."""
    with _alone(path) as is_mine:
        if not is_mine:
            return 0
        status = path.stat()
        size = status.st_size if status.st_nlink == 1 else 0
        path.unlink()
        for other in path.parent.iterdir():
            if other.name.startswith(f"{path.name}."):
                other.unlink(missing_ok=True)
        return size
