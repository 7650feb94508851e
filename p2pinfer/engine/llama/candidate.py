"""One way to compute a slice, tried in a process of its own, where a crash does no harm.

``attempt`` and ``measured`` start the process, ``main`` runs in it. It prints a line feed per
decode, so that a slow machine is distinguished from a hang, and JSON at the end; it exits when its
standard input closes, so that no orphan is left.
"""

import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core import errors
from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.exits import ending, lacked_memory, last_line_of
from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.engine.frames import PartConfig
from p2pinfer.engine.gguf.adapters import read_slice_header
from p2pinfer.engine.gguf.layer_kinds import layers_of_attention, layers_to_probe
from p2pinfer.engine.llama import speeds
from p2pinfer.engine.llama.binding import Settings, Slice, Span
from p2pinfer.engine.llama.probe import Crash, Probe
from p2pinfer.engine.llama.trial import CONTEXT, Layers, try_settings

COMMAND = python_command("p2pinfer.engine.llama.candidate")

SILENCE_S_MAX = 600
"""Between two decodes, or until the slice is loaded (48 GB at 80 MB/s). Longer is a hang."""


def attempt(part: PartConfig, settings: Settings, device: str = "") -> Probe | Crash | None:
    """Try settings; None when they are not exact.

    ``device``: all that a GPU's arithmetic depends on.

    Raises:
        BadModelFile: llama.cpp does not load the slice.
        EngineError: memory ran out.
    """
    said = _ask(part, [settings], is_measure=False, device=device if settings.device else "")
    if isinstance(said, Crash):
        return said
    found = said["probe"]
    return found and Probe.parse(found)


def measured(part: PartConfig, choices: Sequence[Settings]) -> list[float]:
    """Return what choices of settings cost, as ``speeds`` does; nothing where that failed."""
    try:
        said = _ask(part, choices, is_measure=True)
    except P2pinferError:
        return []
    return [] if isinstance(said, Crash) else said["seconds"]


def _ask(
    part: PartConfig, choices: Sequence[Settings], *, is_measure: bool, device: str = ""
) -> dict[str, Any] | Crash:
    words = [asdict(part), [asdict(each) for each in choices], is_measure, device]
    command = [*COMMAND, json.dumps(words)]
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            command,
            env=python_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as process,
    ):
        assert process.stdout is not None
        data = _read_all(process.stdout)
        if data is None:
            process.kill()
            return Crash(f"nothing came for {SILENCE_S_MAX} s", lacked_memory=False)
        if process.wait():
            last_line = last_line_of(stderr)
            how = f"it ended {ending(process.returncode)}"
            how += f": {last_line}" if last_line else ""
            return Crash(how, lacked_memory=lacked_memory(process.returncode, last_line))
    said: dict[str, Any] = json.loads(data)
    if "refused" in said:
        kind, text = said["refused"]
        raise getattr(errors, kind)(text)
    return said


def _read_all(stream: IO[bytes]) -> bytes | None:
    """Read to the end; None if nothing comes for too long."""
    data = b""
    while select.select([stream], [], [], SILENCE_S_MAX)[0]:
        chunk = os.read(stream.fileno(), 1 << 16)
        if not chunk:
            return data
        data += chunk
    return None


class _ReportingSlice(Slice):
    """A slice that prints a line feed per decode."""

    answers: int
    """The descriptor to print on."""

    def decode(
        self, spans: Sequence[Span], *, pad_to: int = 0, pause: Callable[[], None] | None = None
    ) -> list[NDArray[np.float32]]:
        found = super().decode(spans, pad_to=pad_to, pause=pause)
        os.write(self.answers, b"\n")
        return found


def main() -> None:
    """Try the settings in the first argument, and print what was found."""
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever llama.cpp prints must not mix with the answers
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # gigabytes that are never read
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    part, choices, is_measure, device = json.loads(sys.argv[1])
    config, settings = PartConfig(**part), [Settings(**each) for each in choices]
    run = _measure if is_measure else partial(_try_one, device)
    said: dict[str, Any]
    try:
        said = run(config, settings, answers)
    except P2pinferError as error:
        said = {"refused": [type(error).__name__, str(error)]}
    os.write(answers, json.dumps(said).encode())
    os._exit(0)  # nothing to save; llama.cpp's destructors only take time


def _try_one(
    device: str, config: PartConfig, choices: list[Settings], answers: int
) -> dict[str, Any]:
    def load(settings: Settings) -> Slice:
        path = Path(config.path)
        part = _ReportingSlice(
            path, logits=config.logits, settings=settings, sessions=2, context=CONTEXT
        )
        part.answers = answers
        return part

    layers: Layers = (None, None)  # where logits come out, all run
    if not config.logits:
        header = read_slice_header(Path(config.path))
        layers = layers_to_probe(header), layers_of_attention(header)
    found = try_settings(load, choices[0], tokens=config.tokens, layers=layers, device=device)
    return {"probe": found and asdict(found)}


def _measure(config: PartConfig, choices: list[Settings], answers: int) -> dict[str, Any]:
    """Measure layers alone: all slices of a model are to prefer the same attention."""
    path = Path(config.path)

    def load(settings: Settings, like: Slice | None) -> Slice:
        context = speeds.CONTEXT
        part = _ReportingSlice(
            path, logits=False, settings=settings, sessions=1, context=context, like=like
        )
        part.answers = answers
        return part

    layers = layers_of_attention(read_slice_header(path))
    return {"seconds": speeds.measure(load, choices, tokens=config.tokens, layers=layers)}


def _leave_with_parent() -> None:
    os.read(0, 1)  # sys.stdin's reader holds a lock that an exit would fail on
    os._exit(1)


if __name__ == "__main__":
    main()
