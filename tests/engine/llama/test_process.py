"""The node's side of a worker, with processes that are none."""

import signal
import socket
from dataclasses import asdict
from itertools import pairwise
from tempfile import TemporaryFile
from typing import IO, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pinfer.engine.llama.frames import PartReady, WorkerConfig, pack
from p2pinfer.engine.llama.process import NO_MEMORY, Worker, _last_words


class Ended:
    """A process that is over."""

    def poll(self) -> int:
        """Return how it ended."""
        return 1

    def wait(self, _: float) -> int:
        """Return at once."""
        return 1

    def kill(self) -> None:
        """Do nothing."""


async def test_pauses_begin_anew_once_it_has_answered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They double for each process that dies at once, and not for those that did some work."""
    answering = [False, False, False, True, False, False]
    begun: list[float] = []

    def start(_: Worker, __: IO[bytes]) -> tuple[Ended, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        nursery.start_soon(live, theirs, answering[len(begun)])
        begun.append(trio.current_time())
        worker.generation += 1
        return Ended(), ours

    async def live(sock: socket.socket, answers: bool) -> None:
        with sock:
            sock.sendall(pack(["ready", [asdict(PartReady(1, 8, 0, True, "ab" * 16))]]))
            await wait_all_tasks_blocked()
            if answers:
                worker.request(lambda _: None, "rows")
                sock.sendall(pack([1, 0]))
                await wait_all_tasks_blocked()
        if len(begun) == len(answering):
            nursery.cancel_scope.cancel()

    monkeypatch.setattr(Worker, "_start", start)
    worker = Worker(WorkerConfig((), 1, 1))
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.keep_running)
    pauses = [round(after - before, 2) for before, after in pairwise(begun)]
    assert pauses == [0.1, 0.2, 0.4, 0.1, 0.2]


@pytest.mark.parametrize(
    ("code", "starved", "words"),
    [
        (-signal.SIGKILL, True, NO_MEMORY),
        (-signal.SIGKILL, False, "the engine's process ended on signal 9: last line"),
        (-signal.SIGSEGV, True, "the engine's process ended on signal 11: last line"),
        (3, True, "the engine's process ended with code 3: last line"),
    ],
)
def test_a_lack_of_memory_is_named(code: int, starved: bool, words: str) -> None:
    """The system kills without a word; only it knows why."""
    ended: Any = Ended()
    ended.poll = lambda: code
    with TemporaryFile() as stderr:
        stderr.write(b"first line\nlast line\n")
        assert _last_words(ended, stderr, starved=starved) == words
