"""How a process ended, in words. Standard library only, since setup uses it too."""

import os
import signal
from typing import IO

_TAIL_BYTES = 2000


def ending(returncode: int) -> str:
    """Return words to follow "it ended": ``on signal 11 (SIGSEGV)``, or ``with code 1``."""
    if returncode >= 0:
        return f"with code {returncode}"
    number = -returncode
    try:
        return f"on signal {number} ({signal.Signals(number).name})"
    except ValueError:  # a real-time signal has no name
        return f"on signal {number}"


def last_line_of(stderr: IO[bytes]) -> str:
    """Return the last line that a process printed to a file: ggml says there why it aborts."""
    stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _TAIL_BYTES))
    lines = stderr.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


_NO_MEMORY = ("memoryerror", "bad_alloc", "failed to allocate", "cannot allocate", "out of memory")


def lacked_memory(returncode: int, last_line: str = "") -> bool:
    """Return whether memory ran out: the process said so, or was killed by SIGKILL.

    Nothing but the system, when memory runs out, sends SIGKILL to these processes.

    Args:
        returncode: negative for a signal.
        last_line: the last line that the process printed.
    """
    said = last_line.lower()
    return returncode == -signal.SIGKILL or any(words in said for words in _NO_MEMORY)


NEEDS_LESS = (
    "free some, or let p2pinfer use less: fewer layers (--memory), fewer --sessions, or a smaller "
    "--context"
)
