"""The node's side of an engine worker: start it, send it requests, and restart it when it dies.

Requests go out as soon as the socket takes them, without a pass through the scheduler, since every
token waits for several of them in turn.
"""

import logging
import signal
import socket
import subprocess
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import trio
from trio import TaskStatus

from p2pinfer.core import errors
from p2pinfer.core.errors import EngineDied, EngineError, lone_errors
from p2pinfer.core.exits import NEEDS_LESS, ending, lacked_memory, last_line_of
from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.engine.base import REFUSALS
from p2pinfer.engine.frames import RECEIVE_BYTES, PartReady, Splitter, WorkerConfig, pack

_log = logging.getLogger("p2pinfer.engine")

_EXIT_S_MAX = 3.0
"""How long a worker whose socket has closed may take to exit: at most a core dump."""

DEATHS_MAX = 5
"""In a row and in the same way: a sixth process would end like them, so the node reports it and
ends. A process that lived for ``STEADY_S`` resets the count, whatever ended it."""

STEADY_S = 60.0
"""How long a worker must have lived to count as sound."""

_RESTART_S_MIN, _RESTART_S_MAX = 0.1, 10.0
"""Pause before a dead worker is replaced; doubled after each that died without an answer."""

HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Let malloc ask for transparent huge pages: weights are read from end to end for every token, and
with 4 KiB pages address translation takes 5 to 8 % of decoding (measured)."""

Answer = list[Any]
"""``[microseconds of decoding, *values]``."""

Answered = Callable[[Answer | EngineError], None]


class Pending:
    """An answer that a task is waiting for."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._answer: Answer | EngineError = []

    def resolve(self, answer: Answer | EngineError) -> None:
        """Take the answer."""
        self._answer = answer
        self._event.set()

    async def wait(self) -> Answer:
        """Return the answer once it is there; raises EngineError if that is what it is."""
        await self._event.wait()
        if isinstance(self._answer, EngineError):
            raise self._answer
        return self._answer


class Worker:
    """A worker process; ``open_worker`` starts it, and restarts it when it dies."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.parts: list[PartReady] = []
        self.generation = 0
        """How many processes have been started; a session's cells die with their generation."""
        self.pid = 0
        self._sock: socket.socket | None = None
        self._unsent: deque[bytes] = deque()
        self._unsent_added = trio.Event()
        self._pending: dict[int, Answered] = {}
        self._numbers = 0
        self._has_answered = False

    @property
    def is_running(self) -> bool:
        """Whether requests can be sent now."""
        return bool(self.parts) and self._sock is not None

    def request(self, answered: Answered, kind: str, *values: Any) -> None:
        """Send a request; ``answered`` is called with the answer. Never waits.

        Raises:
            EngineDied: no worker is running now.
        """
        self._numbers += 1
        self.tell(kind, self._numbers, *values)
        self._pending[self._numbers] = answered

    async def ask(self, kind: str, *values: Any) -> Answer:
        """Send a request and wait for the answer.

        Raises:
            EngineError: the engine refused.
            EngineDied: no worker is running now, or it ended before it answered.
        """
        return await self.start(kind, *values).wait()

    def start(self, kind: str, *values: Any) -> Pending:
        """Send a request, whose answer can be awaited once; raises as ``request``."""
        pending = Pending()
        self.request(pending.resolve, kind, *values)
        return pending

    def tell(self, kind: str, *values: Any) -> None:
        """Send a request that has no answer; never waits.

        Raises:
            EngineDied: no worker is running now.
        """
        if self._sock is None:
            raise EngineDied("the engine's process has ended and is being restarted")
        self._write(self._sock, pack([kind, *values]))

    def _write(self, sock: socket.socket, frame: bytes) -> None:
        sent = 0
        if not self._unsent:
            try:
                sent = sock.send(frame)
            except BlockingIOError:
                pass
            except OSError:
                return  # the worker has died; the reader is about to notice
        if sent < len(frame):
            # Bounded, since each session has a limit of steps in flight.
            self._unsent.append(frame[sent:])
            self._unsent_added.set()

    async def keep_running(self, *, task_status: TaskStatus[None]) -> None:
        """Start the process, exchange frames with it, and start another when it dies.

        Raises:
            EngineDied: the first died while loading, or ``DEATHS_MAX`` died in the same way.
        """
        pause_s = _RESTART_S_MIN
        deaths: list[int] = []
        while True:
            self._has_answered = False
            started_s = trio.current_time()
            with tempfile.TemporaryFile() as stderr:
                process, sock = self._start(stderr)
                died = False
                try:
                    await self._handshake(sock)
                    if self.generation == 1:
                        task_status.started()
                    await self._converse(sock)
                except EOFError:
                    died = True
                finally:
                    self._lose(sock)
                    if not died:
                        process.kill()  # it has nothing to save
                    with trio.CancelScope(shield=True):
                        returncode = await trio.to_thread.run_sync(_reap, process)
                death = _Death(returncode, last_line_of(stderr))
            if trio.current_time() - started_s >= STEADY_S:
                deaths.clear()
            deaths = [each for each in deaths if each == death.returncode] + [death.returncode]
            if not self.parts or len(deaths) == DEATHS_MAX:
                raise EngineDied(_obituary(death, self.config, len(deaths)))
            if self._has_answered:
                pause_s = _RESTART_S_MIN
            _log.warning("%s; starting another", death)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RESTART_S_MAX)

    def _start(self, stderr: IO[bytes]) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                python_command("p2pinfer.engine.llama.worker", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={"GLIBC_TUNABLES": HUGE_PAGES, **python_environment()},
                process_group=0,
            )
        ours.setblocking(False)
        self.generation += 1
        self.pid = process.pid
        return process, ours

    async def _handshake(self, sock: socket.socket) -> None:
        """Tell the worker what to load, and wait until it has; EOFError if it ends."""
        try:
            sock.send(self.config.frame())
        except OSError as error:
            raise EOFError from error
        splitter = Splitter()
        while True:
            for frame in splitter.feed(await _receive(sock)):
                if frame[0] == "refused":
                    raise getattr(errors, frame[1])(frame[2])
                self.parts = [PartReady(**part) for part in frame[1]]
                self._sock = sock
                return

    async def _converse(self, sock: socket.socket) -> None:
        """Deliver answers and send what the socket did not take, until the worker dies."""
        with lone_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._flush, sock)
                splitter = Splitter()
                while True:
                    for number, *answer in splitter.feed(await _receive(sock)):
                        self._has_answered = True
                        answered = self._pending.pop(number)
                        answered(_refusal(*answer[1:]) if answer[0] is None else answer)

    async def _flush(self, sock: socket.socket) -> None:
        while True:
            await self._unsent_added.wait()
            self._unsent_added = trio.Event()
            while self._unsent:
                await trio.lowlevel.wait_writable(sock.fileno())
                frame = self._unsent[0]
                try:
                    sent = sock.send(frame)
                except BlockingIOError:
                    continue
                except OSError:
                    return  # the worker has died; the reader is about to notice
                if sent < len(frame):
                    self._unsent[0] = frame[sent:]
                else:
                    self._unsent.popleft()

    def _lose(self, sock: socket.socket) -> None:
        """Fail all requests that the ended process did not answer."""
        self._sock = None
        sock.close()
        self._unsent.clear()
        lost, self._pending = self._pending, {}
        for answered in lost.values():
            answered(EngineDied("the engine's process died"))


@asynccontextmanager
async def open_worker(config: WorkerConfig) -> AsyncIterator[Worker]:
    """Run an engine worker while the block lasts.

    Raises:
        BadModelFile, UnsupportedModel: its slice cannot be loaded.
        EngineDied: it died while loading.
    """
    worker = Worker(config)
    with lone_errors():
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.keep_running)
            yield worker
            nursery.cancel_scope.cancel()


def _refusal(sentence: str, kind: str) -> EngineError:
    return REFUSALS.get(kind, EngineError)(sentence)


async def _receive(sock: socket.socket) -> bytes:
    """Wait for bytes; EOFError if the worker has ended."""
    while True:
        await trio.lowlevel.wait_readable(sock.fileno())
        try:
            data = sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            continue
        except OSError:
            data = b""
        if not data:
            raise EOFError
        return data


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Wait until the process has ended, or kill it; return its code, negative for a signal."""
    try:
        return process.wait(_EXIT_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@dataclass(frozen=True)
class _Death:
    """How a worker ended, and the last line that it printed."""

    returncode: int
    said: str

    def __str__(self) -> str:
        how = f"the engine's process ended {ending(self.returncode)}"
        return f"{how}: {self.said}" if self.said else how


def _obituary(death: _Death, config: WorkerConfig, times: int) -> str:
    """Return a sentence that says which slice ended its process, how, and what to do."""
    paths = [part.path for part in config.parts]
    names = " and ".join(Path(path).name for path in paths)
    often = f" {times} times in a row" if times > 1 else ""
    if lacked_memory(death.returncode, death.said):
        remedy = f"memory ran out: {NEEDS_LESS}"
    elif death.returncode == -signal.SIGILL:
        remedy = "llama.cpp was compiled for another CPU; type: make clean setup"
    else:
        remedy = (
            f"remove {' '.join(paths)} to have it written and tried again; if it still ends so, "
            "compile llama.cpp again: make clean setup"
        )
    return f"{death}{often}, with {names}; {remedy}"
