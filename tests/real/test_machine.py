"""Machines unlike a developer's: what their owners read."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pinfer.cli.announcement import ONLY_HERE
from p2pinfer.core.checks import ADDRESSES_MAX
from p2pinfer.core.errors import EXIT_DONE, EXIT_FAILED, EXIT_NOBODY_SERVES, EXIT_USAGE
from tests.support.processes import COMMAND, environment, read_until, stop

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
    """Return the last line that a command printed."""
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_modules_in_the_current_folder_are_not_imported(home: Path, tmp_path: Path) -> None:
    """No process of a whole swarm imports a ``numpy.py`` in the current folder."""
    for name in ("numpy", "json", "random", "jinja2", "trio", "llama_cpp"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module ran')\n")
    words = ("demo", "Name a colour.", "--peers", "2", "--max-tokens", "4", "--context", "512")
    done = run(home, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.fixture
def small(home: Path) -> Iterator[tuple[str, ...]]:
    """Provide the prefix that runs a command in a cgroup of 300 MB; the model is in the store."""
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
    """Whatever the machine has, each command says what it needs and what is free."""
    done = run(home, "join", *HERE, before=small)
    assert done.returncode == EXIT_USAGE
    words = "one layer of SmolLM2-135M-Instruct with 8 sessions of 4,096 positions takes"
    assert words in last_line(done)
    assert "choose a smaller --context, fewer --sessions, or more --memory" in last_line(done)
    done = run(home, "join", *HERE, "--layers", "1:29", before=small)
    assert done.returncode == EXIT_USAGE
    assert "8 sessions of 4,096 positions need 0.8 GiB of memory, and 0.2 GiB" in last_line(done)
    done = run(home, "demo", "hi", before=small)
    assert done.returncode == EXIT_USAGE
    assert "with 3 local peers needs at least 862 MiB of memory" in last_line(done)
    assert "raise the limit if a container sets one" in last_line(done)


IN_A_SMALL_HOME = """
set -e
mount -t tmpfs -o size=$1 small "$2"
shift 2
set +e
eval "$PREPARE"
for command in "$@"; do
  $P2PINFER $command </dev/null >"$OUT" 2>"$ERR"
  echo "$? $(tail -n 1 "$ERR")"
done
"""
"""Runs commands one after the other with P2PINFER_HOME on a small disk of its own."""


def in_small_home(
    tmp_path: Path, size: str, *commands: str, prepare: str = ""
) -> list[tuple[int, str]]:
    """Return each command's exit code and last line; skip if no disk may be mounted."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    probe = [*alone, "mount", "-t", "tmpfs", "probe", str(tmp_path)]
    if (
        not shutil.which("unshare")
        or subprocess.run(probe, capture_output=True, check=False).returncode
    ):
        pytest.skip("no mount namespace may be made here")
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [*alone, "sh", "-c", IN_A_SMALL_HOME, "sh", size, str(home), *commands],
        capture_output=True,
        text=True,
        timeout=len(commands) * COMMAND_S_MAX,
        env=environment(home / "p2pinfer")
        | {
            "P2PINFER": shlex.join(COMMAND),
            "PREPARE": prepare,
            "DISK": str(home),
            "OUT": str(tmp_path / "out"),
            "ERR": str(tmp_path / "err"),
        },
        check=False,
    )
    assert "Traceback" not in done.stderr
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    assert len(lines) == len(commands), done
    return [(int(code), text) for code, _, text in lines]


JOIN = "join --listen /ip4/127.0.0.1/tcp/0 --layers 1:10 --sessions 1 --context 512"


def test_a_disk_that_is_too_small_is_named(tmp_path: Path) -> None:
    """It is refused before anything is written to it."""
    commands = ["model add default", JOIN, "demo hi", "serve --local 2 --port 0"]
    for code, text in in_small_home(tmp_path, "50m", *commands):
        assert code == EXIT_USAGE
        words = r"98\.4 MB are needed in .* and 52\.\d MB are free: make room, or set P2PINFER_HOME"
        assert re.search(words, text), text


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    """With the model there is no room left; once there is, everything works."""
    fill = 'dd if=/dev/zero of="$DISK/fill" bs=64k 2>/dev/null; dd if=/dev/zero of="$DISK/rest"'
    prepare = f"$P2PINFER model add default >/dev/null 2>&1; {fill} bs=1 2>/dev/null"
    nobody = "12D3KooWGFgCLy6XehU9vhoStQAgaNDPQPoRbqRbZiE85zLuEQb8"
    chat = f"chat hi --bootstrap /ip4/127.0.0.1/tcp/1/p2p/{nobody}"
    ended = in_small_home(
        tmp_path,
        "150m",
        JOIN,
        f"{JOIN} --identity {tmp_path}/key",
        "serve --local 2 --port 0",
        chat,
        "model verify 4d00",
        prepare=prepare,
    )
    codes = [code for code, _ in ended]
    assert codes == [EXIT_USAGE, EXIT_USAGE, EXIT_FAILED, EXIT_NOBODY_SERVES, EXIT_DONE]
    key, slice_, serve, asked, _ = (text for _, text in ended)
    assert "No space left on device): make room for it" in key
    assert "MB are needed in" in slice_
    assert "make room, or set P2PINFER_HOME to a directory on a larger disk" in slice_
    assert "a local peer did not start: " in serve
    assert "make room" in serve
    assert "no peer answers" in asked  # it needs to write nothing


def test_a_read_only_home_is_named(tmp_path: Path) -> None:
    """An empty one, and one that has everything needed."""
    commands = ["model add default", JOIN, "chat hi", "serve --local 2 --port 0", "demo hi"]
    remount = 'mount -o remount,ro "$DISK"'
    for code, text in in_small_home(tmp_path, "50m", *commands, prepare=remount):
        assert code == EXIT_USAGE
        assert "Read-only file system): set P2PINFER_HOME to a directory that you may" in text
    shutil.rmtree(tmp_path / "home")
    prepare = f"$P2PINFER model list >/dev/null 2>&1; {remount}"
    for code, text in in_small_home(tmp_path, "50m", *commands, prepare=prepare):
        assert code == EXIT_USAGE
        assert re.search("cannot (write to|keep anything in) .* set P2PINFER_HOME", text), text


def joined_in_network(home: Path, setup: str) -> list[str]:
    """Return what ``join`` prints with other network interfaces; skip if none can be made."""
    alone = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c"]
    veth = "ip link set lo up && ip link add d0 type veth peer name far0"
    if (
        not shutil.which("unshare")
        or subprocess.run([*alone, veth], capture_output=True, check=False).returncode
    ):
        pytest.skip("no network namespace with interfaces may be made here")
    up = "ip link set d0 up && ip link set far0 up"
    words = ["join", "--layers", "1:10", "--sessions", "1", "--context", "512"]
    words += ["--until-stdin-closes", "--identity", str(home / "key-of-a-network")]
    with subprocess.Popen(
        [*alone, f'{veth} && {up} && {setup} && exec "$@"', "sh", *COMMAND, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(home),
        process_group=0,
    ) as process:
        try:
            printed = read_until(process.stdout, b"ready; Ctrl-C to leave\n")
        finally:
            stop(process)
    return printed.decode().splitlines()


def test_nine_addresses_on_one_interface_are_limited_to_eight(home: Path) -> None:
    """Eight are advertised; the printed one is not that of a container bridge."""
    setup = (
        "ip link add docker0 type veth peer name far1 && ip link set docker0 up"
        " && ip link set far1 up && ip addr add 172.17.0.1/16 dev docker0"
        " && for i in 1 2 3 4 5 6 7 8 9; do ip addr add 10.9.$i.1/24 dev d0; done"
    )
    lines = joined_in_network(home, setup)
    told = [line for line in lines if line.startswith("address ")]
    assert len(told) == ADDRESSES_MAX
    assert all("/ip4/10.9." in line for line in told)
    (next_,) = [line for line in lines if line.startswith("  p2pinfer join")]
    assert "--layers 10:29 --bootstrap /ip4/10.9." in next_


def test_a_machine_without_a_network_says_so(home: Path) -> None:
    """No other machine could reach the address it prints."""
    lines = joined_in_network(home, "true")
    assert ONLY_HERE in lines
    addresses = [line.split()[1] for line in lines if line.startswith("address ")]
    assert addresses
    assert all(each.startswith(("/ip4/127.0.0.1/tcp/", "/ip6/::1/tcp/")) for each in addresses)
