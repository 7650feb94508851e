"""Processes that answer one question at a time, for work that may crash, hang or eat memory.

A question that ends its process fails alone: the next one gets a new process. Questions and
answers are frames (see ``frames``) on the process's standard input and output.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import trio

from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.engine.frames import RECEIVE_BYTES, Splitter, pack

NICENESS = 10
"""A tenth of the processor's time when engines want it too: an answer in progress takes precedence
over a prompt being prepared, however long. The process that starts a helper is not slowed."""


class HelperEnded(Exception):
    """The process ended before it answered."""

    def __init__(self, code: int, *, is_overdue: bool) -> None:
        super().__init__(f"on signal {-code}" if code < 0 else f"with code {code}")
        self.code = code
        self.is_overdue = is_overdue
        """It was killed because its answer took too long."""


class Helper:
    """A process that is started when needed, and kept for the next question.

    Args:
        module: the module to run; its ``main`` calls ``answer_questions``.
        arguments: its command line.
        answer_s_max: seconds after which the question is abandoned and the process killed.
    """

    def __init__(self, module: str, *arguments: str, answer_s_max: float) -> None:
        self._command = python_command(module, *arguments)
        self._answer_s_max = answer_s_max
        self._turn = trio.Lock()
        self._process: trio.Process | None = None

    async def start(self) -> None:
        """Start the process unless it is running."""
        if self._process is None or self._process.returncode is not None:
            await self.end()
            self._process = await trio.lowlevel.open_process(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=python_environment(),
                process_group=0,  # a terminal's Ctrl-C stops an answer, not this process
            )

    async def ask(self, question: list[Any]) -> list[Any]:
        """Return the answer; concurrent callers wait for their turn.

        A caller that is cancelled ends the process, so that no caller gets another's answer.

        Raises:
            HelperEnded: the process crashed, or took too long.
        """
        async with self._turn:
            await self.start()
            process = self._process
            assert process
            answer: list[Any] | None = None
            try:
                with trio.move_on_after(self._answer_s_max) as limit:
                    answer = await _exchange(process, question)
            finally:
                if answer is None:
                    await self.end()
            if answer is None:
                assert process.returncode is not None
                raise HelperEnded(process.returncode, is_overdue=limit.cancelled_caught)
            return answer

    async def end(self) -> None:
        """End the process, if there is one; it has nothing to save."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin
        assert process.stdout
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            await process.stdout.aclose()
            process.kill()
            await process.wait()


async def _exchange(process: trio.Process, question: list[Any]) -> list[Any] | None:
    """Send a question and return its answer; None when the process ends first."""
    assert process.stdin
    assert process.stdout
    try:
        await process.stdin.send_all(pack(question))
        splitter = Splitter()
        while data := await process.stdout.receive_some(RECEIVE_BYTES):
            for answer in splitter.feed(bytes(data)):
                return answer
    except trio.BrokenResourceError:
        pass
    await process.wait()
    return None


def answer_questions(answer: Callable[[list[Any]], list[Any]]) -> None:
    """Answer questions from standard input until it ends: a helper process's main loop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    splitter = Splitter()
    while data := os.read(0, RECEIVE_BYTES):
        for question in splitter.feed(data):
            sys.stdout.buffer.write(pack(answer(question)))
            sys.stdout.buffer.flush()
