"""Machines that differ from a developer's: what their owner reads there."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pinfer.core.errors import EXIT_USAGE
from tests.support.processes import COMMAND, environment

pytestmark = pytest.mark.real

COMMAND_S_MAX = 120.0
HERE = ["--listen", "/ip4/127.0.0.1/tcp/0"]

LIMIT_BYTES = 300_000_000
_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


def run(
    home: Path, *words: str, before: tuple[str, ...] = (), cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*before, *COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=COMMAND_S_MAX,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        check=False,
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the sentence that a command ended with."""
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_a_folder_of_other_modules_is_no_danger(home: Path, tmp_path: Path) -> None:
    """A ``numpy.py`` in the current folder is read by none of a whole swarm's processes."""
    for name in ("numpy", "json", "random", "jinja2", "trio", "llama_cpp"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module ran')\n")
    words = ("demo", "Name a colour.", "--peers", "2", "--max-tokens", "4", "--context", "512")
    done = run(home, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.fixture
def small(home: Path) -> Iterator[tuple[str, ...]]:
    """Give what runs a command in a cgroup of 300 MB; the model is in the store already."""
    assert run(home, "model", "add", "default").returncode == 0
    is_v1 = _V1.is_dir()
    group = (_V1 if is_v1 else _V2) / f"p2pinfer-test-{os.getpid()}"
    try:
        group.mkdir()
        limit = group / ("memory.limit_in_bytes" if is_v1 else "memory.max")
        limit.write_text(str(LIMIT_BYTES))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no cgroup with a memory limit may be made here: {error}")
    enter = f'echo $$ > "{group}/cgroup.procs" && exec "$@"'
    yield ("sh", "-c", enter, "sh")
    group.rmdir()


def test_a_limit_of_300_megabytes_is_explained(home: Path, small: tuple[str, ...]) -> None:
    """Whatever the machine has: each command says what it needs, and what there is."""
    done = run(home, "join", *HERE, before=small)
    assert done.returncode == EXIT_USAGE
    words = "one layer of Smollm2 135M 8k Lc100K Mix1 Ep2 with 8 sessions of 4,096 positions takes"
    assert words in last_line(done)
    assert "choose a smaller --context, fewer --sessions, or more --memory" in last_line(done)
    done = run(home, "join", *HERE, "--layers", "1:29", before=small)
    assert done.returncode == EXIT_USAGE
    assert "8 sessions of 4,096 positions need 0.7 GiB of memory, and 0.2 GiB" in last_line(done)
    done = run(home, "demo", "hi", before=small)
    assert done.returncode == EXIT_USAGE
    assert "with 3 local peers needs at least 862 MiB of memory" in last_line(done)
    assert "raise the limit if a container sets one" in last_line(done)
