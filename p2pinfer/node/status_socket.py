"""What the processes of p2pinfer on this machine do, asked over one Unix socket for each.

Whoever asks may say in one line of JSON what else it wants; a process that serves answers every
connection with one JSON object, and closes it. Its socket lies in a directory that nobody else may
enter; one that was left behind refuses, and is removed by the next process that starts.
"""

import errno
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trio
from trio import socket

from p2pinfer.core.errors import UserError
from p2pinfer.places import run_dir

_log = logging.getLogger("p2pinfer.status")

Status = dict[str, Any]

WRITE_S_MAX = 1.0
"""For whoever asks to take the answer; the next one waits as long."""

QUESTION_S_MAX = 0.5
"""For whoever asks to say what else it wants; an earlier release says nothing."""

QUESTION_BYTES_MAX = 1024

ASK_S_MAX = 3.0
"""For all processes to answer: one that is stopped never does."""

STATUS_BYTES_MAX = 1 << 20
"""Of one answer: 1,000 sessions of 300 bytes fit."""

PROCESSES_MAX = 64
"""That are asked, as many as have keys on one machine."""

ASKERS_WAITING_MAX = 8

ACCEPT_AGAIN_S = 5.0
"""After the system refused to take an asker's connection."""


@asynccontextmanager
async def open_status(
    describe: Callable[[], Status], answer: Callable[[Status], Status] = lambda _: {}
) -> AsyncIterator[None]:
    """Answer whoever asks on this machine while the block lasts, where sockets can be made.

    Args:
        describe: returns what the process does.
        answer: returns what else it says to a question.
    """
    started_at = trio.current_time()

    def report(question: Status) -> bytes:
        about = {"pid": os.getpid(), "version": version("p2pinfer")}
        uptime_s = round(trio.current_time() - started_at, 3)
        return json.dumps(about | {"uptime_s": uptime_s} | describe() | answer(question)).encode()

    with socket.socket(socket.AF_UNIX) as listener:
        try:
            path = run_dir() / f"{os.getpid()}.sock"
            _sweep(path.parent)
            path.unlink(missing_ok=True)  # of a former process of this id
            await listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(ASKERS_WAITING_MAX)
        except (OSError, UserError) as error:  # for example, a path that is too long for a socket
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


async def _answer(listener: socket.SocketType, report: Callable[[Status], bytes]) -> None:
    """Answer one after the other, for ever."""
    while True:
        try:
            asker, _ = await listener.accept()
        except (
            OSError
        ) as error:  # such as too many open files, which is no reason for a peer to end
            _log.warning("whoever asks for the status must wait: %s", error)
            await trio.sleep(ACCEPT_AGAIN_S)
            continue
        with trio.move_on_after(WRITE_S_MAX), suppress(OSError, trio.BrokenResourceError):
            async with trio.SocketStream(asker) as stream:
                await stream.send_all(report(await _question(stream)))


async def _question(stream: trio.SocketStream) -> Status:
    """Return what an asker wants to know beside; nothing if it does not say."""
    data = b""
    with trio.move_on_after(QUESTION_S_MAX):
        while not data.endswith(b"\n") and len(data) < QUESTION_BYTES_MAX:
            if not (more := await stream.receive_some(QUESTION_BYTES_MAX)):
                break
            data += more
    return _object(data) or {}


def _object(data: bytes | bytearray) -> Status | None:
    """Return the JSON object that the bytes hold, if they do."""
    try:
        found = json.loads(data)
    except ValueError:  # it ended in the middle
        return None
    return found if isinstance(found, dict) else None


def _sweep(folder: Path) -> None:
    """Remove what processes left behind that are gone."""
    for path in folder.glob("*.sock"):
        if path.stem.isdecimal() and not _is_alive(int(path.stem)):
            path.unlink(missing_ok=True)


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
    return sorted(int(path.stem) for path in run_dir().glob("*.sock") if path.stem.isdecimal())


async def ask_all(question: Status | None = None) -> list[Status]:
    """Return what every process on this machine says, the oldest first; none that is silent."""
    found: list[Status] = []
    line = json.dumps(question or {}).encode() + b"\n"

    async def ask(pid: int) -> None:
        status = await _ask(run_dir() / f"{pid}.sock", line)
        if status:
            found.append(status)

    with trio.move_on_after(ASK_S_MAX):
        async with trio.open_nursery() as nursery:
            for pid in running_pids()[:PROCESSES_MAX]:
                nursery.start_soon(ask, pid)
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
