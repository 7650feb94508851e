"""Running commands: their whole output goes to a log, and their progress to the person."""

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

from p2pinfer.core.exits import ending, lacked_memory

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

PLAIN_LINE_S = 15
"""Without a terminal: seconds after which a step prints another line."""
PLAIN_LINE_PERCENT = 10
"""Without a terminal: progress in percent after which it prints one sooner."""
TAIL_LINES = 20
"""Lines of a failed command's output that are shown; the log has all of them."""


class SetupError(Exception):
    """Setup cannot continue; the text says why, and what to type."""

    def __init__(self, text: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class CommandFailed(SetupError):
    """A command did not exit with 0; ``how`` says in words how it ended."""

    def __init__(self, text: str, returncode: int) -> None:
        super().__init__(text)
        self.how = ending(returncode)
        self.lacked_memory = lacked_memory(returncode)


class Status(NamedTuple):
    """The progress that a line of a command's output reports."""

    text: str
    percent: int | None = None


_BUILD_STEP = re.compile(r"\s*\[\s*(\d+)(?:/(\d+)|%)\]\s")
_PIP_STEP = re.compile(r"\s*(Collecting|Processing|Building wheel for|Installing collected) (\S+)")


def read_status(line: str) -> Status | None:
    """Parse ninja's `[3/139]`, make's `[ 12%]` or a headline of pip's; None for other lines."""
    if match := _BUILD_STEP.match(line):
        done, total = int(match[1]), int(match[2] or 100)
        return Status("compiling", 100 * done // max(total, 1))
    if match := _PIP_STEP.match(line):
        headline, name = match.groups()
        if headline == "Installing collected":
            return Status("installing")
        verb = "compiling" if headline == "Building wheel for" else "fetching"
        return Status(f"{verb} {Path(name).name}")
    return None


class StepProgress:
    """One line that updates itself on a terminal; elsewhere an occasional plain line."""

    def __init__(self, title: str, stream: TextIO, now: Callable[[], float]) -> None:
        self._title = title
        self._stream = stream
        self._now = now
        self._started_s = self._said_s = now()
        self._said_percent = 0
        self._live = stream.isatty()

    def show(self, status: Status) -> None:
        """Show the command's progress, if a line is due."""
        percent = self._said_percent if status.percent is None else status.percent
        waited_s = self._now() - self._said_s
        is_due = waited_s >= PLAIN_LINE_S or percent >= self._said_percent + PLAIN_LINE_PERCENT
        if self._live or is_due:
            self._say(status.text if status.percent is None else f"{status.text} {percent} %")
            self._said_s, self._said_percent = self._now(), percent

    def finish(self, word: str) -> None:
        """Show how the command ended, and end the line."""
        self._say(word)
        if self._live:
            self._stream.write("\n")

    def _say(self, text: str) -> None:
        minutes, seconds = divmod(int(self._now() - self._started_s), 60)
        elapsed = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        line = f"  {self._title}: {text} ({elapsed})"
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r\x1b[K{line[:width]}" if self._live else f"{line}\n")
        self._stream.flush()


@dataclass(frozen=True)
class Shell:
    """Where commands run: their environment variables, their folder, and the log they share."""

    environment: Mapping[str, str]
    folder: Path
    log: Path

    def succeeds(self, command: Sequence[str], stdin: str = "") -> bool:
        """Run a command silently; return whether it exits with 0."""
        try:
            result = subprocess.run(
                command,
                env=self.environment,
                input=stdin,
                text=True,
                capture_output=True,
                check=False,
            )
        except OSError:
            return False
        return result.returncode == 0

    def run(
        self, command: Sequence[str], title: str, more: Mapping[str, str] | None = None
    ) -> None:
        """Run a command to its end, and show its progress.

        Args:
            command: the program and its arguments.
            title: what it does, for the person.
            more: variables for this command alone.

        Raises:
            CommandFailed: the text holds its last lines and names the log with all of them.
        """
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        progress = StepProgress(title, sys.stdout, time.monotonic)
        with self.log.open("a") as log:
            log.write(f"\n$ {shlex.join(command)}\n")
            log.flush()
            with subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self.environment, **(more or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    log.write(line)
                    tail.append(f"    {line.rstrip()[:200]}")
                    if status := read_status(line):
                        progress.show(status)
        if process.returncode:
            progress.finish("failed")
            last = "\n".join(tail)
            text = f"{last}\n{title}: failed; the full output is in {self.log}"
            raise CommandFailed(text, process.returncode)
        progress.finish("done")
