"""The status of p2pinfer's processes on this machine, over one Unix socket for each.

A client may send a question as one line of JSON; the process answers every connection with one JSON
object, and closes it. Its socket is in a directory that only the owner may enter; one that was left
behind refuses connections, and the next process that starts removes it.
"""

import errno
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trio
from trio import socket

from p2pinfer.core.errors import UserError
from p2pinfer.places import run_dir

_log = logging.getLogger("p2pinfer.status")

Status = dict[str, Any]

_own: set[str] = set()
"""Names of the sockets that this process answers at."""

WRITE_S_MAX = 1.0
"""For a client to read the answer, while the next one waits."""

QUESTION_S_MAX = 0.5
"""For a client to send its question; an earlier release sends none."""

QUESTION_BYTES_MAX = 1024

ASK_S_MAX = 3.0
"""For all processes to answer: a stopped process never does."""

STATUS_BYTES_MAX = 1 << 20
"""For one answer: 1,000 sessions of 300 bytes fit."""

PROCESSES_MAX = 64
"""Processes that are asked, as many as have keys on one machine."""

ASKERS_WAITING_MAX = 8

ACCEPT_AGAIN_S = 5.0
"""Until the next try after the system refused to accept a connection."""


@asynccontextmanager
async def open_status(
    describe: Callable[[], Status], answer: Callable[[Status], Status] = lambda _: {}
) -> AsyncIterator[None]:
    """Answer clients on this machine during the block, if a socket can be made.

    Args:
        describe: returns what the process does.
        answer: returns what it adds in answer to a question.
    """
    started_at = trio.current_time()

    def report(question: Status) -> bytes:
        about = {"pid": os.getpid(), "version": version("p2pinfer")}
        uptime_s = round(trio.current_time() - started_at, 3)
        return json.dumps(about | {"uptime_s": uptime_s} | describe() | answer(question)).encode()

    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            path = stack.enter_context(_own_path())
            path.unlink(missing_ok=True)  # of an earlier process with this id
            await listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(ASKERS_WAITING_MAX)
        except (OSError, UserError) as error:  # such as a path that is too long for a socket
            _log.warning("p2pinfer status will not see this process: %s", error)
            yield
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_answer, listener, report)
                yield
                nursery.cancel_scope.cancel()
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _own_path() -> Iterator[Path]:
    """Reserve a path for a socket; a process that is several peers has several.

    Raises:
        UserError: there is no folder for it.
    """
    path = run_dir() / f"{os.getpid()}.sock"
    _sweep(path.parent)
    number = 1
    while path.name in _own:
        number += 1
        path = path.with_name(f"{os.getpid()}.{number}.sock")
    _own.add(path.name)
    try:
        yield path
    finally:
        _own.remove(path.name)


async def _answer(listener: socket.SocketType, report: Callable[[Status], bytes]) -> None:
    """Answer clients one after the other, for ever."""
    while True:
        try:
            asker, _ = await listener.accept()
        except OSError as error:  # such as too many open files: no reason for a peer to end
            _log.warning("requests for the status must wait: %s", error)
            await trio.sleep(ACCEPT_AGAIN_S)
            continue
        with trio.move_on_after(WRITE_S_MAX), suppress(OSError, trio.BrokenResourceError):
            async with trio.SocketStream(asker) as stream:
                await stream.send_all(report(await _question(stream)))


async def _question(stream: trio.SocketStream) -> Status:
    """Return a client's question; an empty one if it sends none."""
    data = b""
    with trio.move_on_after(QUESTION_S_MAX):
        while not data.endswith(b"\n") and len(data) < QUESTION_BYTES_MAX:
            if not (more := await stream.receive_some(QUESTION_BYTES_MAX)):
                break
            data += more
    return _object(data) or {}


def _object(data: bytes | bytearray) -> Status | None:
    """Return the JSON object in the bytes; None if they are something else."""
    try:
        found = json.loads(data)
    except ValueError:  # such as a truncated answer
        return None
    return found if isinstance(found, dict) else None


def _sweep(folder: Path) -> None:
    """Remove the sockets of processes that are gone."""
    for path, pid in _sockets(folder):
        if not _is_alive(pid):
            path.unlink(missing_ok=True)


def _sockets(folder: Path) -> list[tuple[Path, int]]:
    """Return the sockets of all processes, and their ids."""
    found = [(path, path.name.split(".")[0]) for path in folder.glob("*.sock")]
    return sorted((path, int(pid)) for path, pid in found if pid.isdecimal())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def running_pids() -> list[int]:
    """Return the ids of the processes that can be asked; some may be gone."""
    return sorted({pid for _, pid in _sockets(run_dir())})


async def ask_all(question: Status | None = None) -> list[Status]:
    """Return the status of every process here that answers, the oldest process first."""
    found: list[Status] = []
    line = json.dumps(question or {}).encode() + b"\n"

    async def ask(path: Path) -> None:
        status = await _ask(path, line)
        if status:
            found.append(status)

    with trio.move_on_after(ASK_S_MAX):
        async with trio.open_nursery() as nursery:
            for path, _ in _sockets(run_dir())[:PROCESSES_MAX]:
                nursery.start_soon(ask, path)
    return sorted(found, key=lambda status: (-status["uptime_s"], status["pid"]))


async def _ask(path: Path, question: bytes) -> Status | None:
    try:
        stream = await trio.open_unix_socket(path)
    except OSError as error:
        if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
            _log.warning("%s: %s", path, error)
        return None
    data = bytearray()
    async with stream:
        with suppress(trio.BrokenResourceError):  # an earlier release answers without being asked
            await stream.send_all(question)
        while len(data) <= STATUS_BYTES_MAX:
            try:
                more = await stream.receive_some()
            except trio.BrokenResourceError:
                break
            if not more:
                break
            data += more
    return _object(data)
