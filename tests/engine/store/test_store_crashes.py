"""The store when processes share it, when one is killed, and when the disk is full."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.core.manifest import CHUNK_BYTES
from p2pinfer.engine.store import store as store_module
from p2pinfer.engine.store.damage import DamagedPart, MissingChunk
from p2pinfer.engine.store.store import Store
from tests.support.stored import DATA, PART, chunk, files, flip, part_of, put

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Provide an empty store."""
    return Store(tmp_path / "store")


def run(code: str, *arguments: str) -> str:
    """Run Python code in another process, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start Python code in another process."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[str]"]]:
    """Provide a list of processes that are ended when the test is over."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


_IMPORTS = (
    "import sys; from pathlib import Path\n"
    "from p2pinfer.engine.store.store import Store\n"
    "from tests.support.stored import *\n"
    "store = Store(Path(sys.argv[1]))\n"
)


def test_two_processes_write_one_part(
    store: Store, processes: list["subprocess.Popen[str]"]
) -> None:
    """Two that write and finish the same parts at once both succeed, and every part is whole."""
    blobs = [random.Random(n).randbytes(CHUNK_BYTES + 50) for n in range(20)]
    code = _IMPORTS + (
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for n in range(20):\n"
        "    data = random.Random(n).randbytes(CHUNK_BYTES + 50)\n"
        "    put(store, part_of(data), data)\n"
        "print('done')\n"
    )
    processes += [start(code, str(store.root)) for _ in range(2)]
    assert race(processes) == ["done\n"] * 2
    for data in blobs:
        assert store.path(part_of(data)).read_bytes() == data
    assert not any((store.root / "partial").iterdir())


def race(processes: list["subprocess.Popen[str]"]) -> list[str]:
    """Start processes together once all report ready, and return their output."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate(timeout=120)[0] for process in processes]


def test_two_processes_keep_one_quota(
    tmp_path: Path, processes: list["subprocess.Popen[str]"]
) -> None:
    """Parts begun at the same time by two processes are counted together."""
    code = (
        "import sys; from pathlib import Path\n"
        "from p2pinfer.core.errors import UserError\n"
        "from p2pinfer.engine.store.store import Store\n"
        "from tests.engine.store.test_store import part_of\n"
        f"store = Store(Path(sys.argv[1]), quota_bytes={20 * MIB})\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for n in range(25):\n"
        f"    data = bytes([n]) * {MIB}\n"
        "    data = sys.argv[2].encode() + data[1:]\n"
        "    try: store.write_chunk(part_of(data), 0, data)\n"
        "    except UserError: print('full'); break\n"
    )
    processes += [start(code, str(tmp_path), name) for name in "AB"]
    assert set(race(processes)) == {"full\n"}
    assert Store(tmp_path).used_bytes() == 20 * MIB


def test_another_process_finishes_the_part(store: Store) -> None:
    """A process that has begun a part sees that another finished it, and continues."""
    store.write_chunk(PART, 0, chunk(0))
    run(_IMPORTS + "put(store)", str(store.root))
    assert store.held(PART)
    store.write_chunk(PART, 1, chunk(1))
    store.finish(PART)
    assert store.chunks_held(PART) == {0, 1, 2, 3}
    assert files(store) == [f"parts/{PART.hash}.gguf"]


def test_another_process_begins_the_part_again(store: Store) -> None:
    """What is known of a partial file does not count for a new file of the same name."""
    store.write_chunk(PART, 0, chunk(0))
    partial = store.root / "partial" / PART.hash
    with partial.open("rb"):  # while it is open, no other file gets its inode
        partial.unlink()
        Store(store.root).write_chunk(PART, 1, chunk(1))
        assert store.chunks_held(PART) == {1}
        store.write_chunk(PART, 0, chunk(0))
    assert store.chunks_held(PART) == {0, 1}


def test_threads_share_a_store(store: Store) -> None:
    """Chunks written by several threads at once are all there."""
    data = random.Random(2).randbytes(16 * CHUNK_BYTES)
    part = part_of(data)
    barrier = threading.Barrier(4)
    failures: list[BaseException] = []

    def write(first: int) -> None:
        try:
            barrier.wait(timeout=60)
            for index in range(first, 16, 4):
                store.write_chunk(part, index, chunk(index, data))
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    assert store.chunks_held(part) == set(range(16))
    store.finish(part)


def test_killed_while_writing(store: Store, processes: list["subprocess.Popen[str]"]) -> None:
    """A writer killed at any moment has lost at most the chunk that it was writing.

    It reports the chunks it has written; after 20 kills at random moments, all of them are there.
    """
    data = random.Random(3).randbytes(40 * CHUNK_BYTES)
    part = part_of(data)
    code = _IMPORTS + (
        f"data = random.Random(3).randbytes({40 * CHUNK_BYTES}); part = part_of(data)\n"
        "for index in range(40):\n"
        "    if index in store.chunks_held(part): continue\n"
        "    store.write_chunk(part, index, chunk(index, data))\n"
        "    print(index, flush=True)\n"
        "store.finish(part); print('done', flush=True)\n"
    )
    said: set[int] = set()
    luck = random.Random(4)
    for _ in range(20):
        process = start(code, str(store.root))
        processes.append(process)
        assert process.stdout is not None
        for _ in range(luck.randint(1, 3)):
            line = process.stdout.readline()
            said |= {int(line)} if line.strip().isdecimal() else set()
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
        said |= {int(line) for line in rest.splitlines() if line.isdecimal()}
        held = Store(store.root).chunks_held(part)
        assert said <= held
        if store.held(part):
            break
    run(code, str(store.root))
    assert store.path(part).read_bytes() == data
    store.verify(part)


def test_killed_while_finishing(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Wherever a finish is killed, the next process finds the part, or all of its chunks."""

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    for step in ("ftruncate", "fsync"):
        fresh = Store(tmp_path / step)
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "os", SimpleNamespace(**{**vars(os), step: die}))
            with pytest.raises(Killed):
                put(fresh)
        again = Store(tmp_path / step)
        assert again.chunks_held(PART) == {0, 1, 2, 3}
        again.finish(PART)
        again.verify(PART)
    with monkeypatch.context() as patch:  # renamed, and not yet synced
        patch.setattr(store_module, "sync_folder", die)
        with pytest.raises(Killed):
            put(store)
    Store(store.root).verify(PART)


def test_threads_begin_a_part_together(store: Store) -> None:
    """Whichever of two threads begins a part, the other's chunks count."""
    for number in range(60):
        data = bytes([number]) * (CHUNK_BYTES + 1)
        part = part_of(data)
        with ThreadPoolExecutor(2) as threads:
            for index in range(2):
                threads.submit(store.write_chunk, part, index, chunk(index, data))
        store.finish(part)


def test_a_part_removed_and_begun_again_by_another_process(store: Store) -> None:
    """Chunks written to a removed file do not count, though the new file looks the same."""
    for index in range(4):
        store.write_chunk(PART, index, chunk(index))
    other = Store(store.root)
    other.remove(ModelId("0" * 64))  # removing any model removes partial parts that no model has
    other.write_chunk(PART, 0, chunk(0))
    with pytest.raises(MissingChunk):
        store.finish(PART)
    assert store.chunks_held(PART) == {0}


def test_a_part_found_damaged_by_another_process(store: Store) -> None:
    """A part that another process finished, and found damaged later, is checked again."""
    other = Store(store.root)
    for index in range(4):
        store.write_chunk(PART, index, chunk(index))
    assert other.chunks_held(PART) == {0, 1, 2, 3}
    store.finish(PART)
    flip(store.path(PART), CHUNK_BYTES)
    with pytest.raises(DamagedPart):
        store.verify(PART)
    with pytest.raises(MissingChunk, match="lacks chunk 1"):
        other.finish(PART)
    assert other.chunks_held(PART) == {0, 2, 3}


def test_chunks_of_a_failed_sync_do_not_count(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed sync the system may show bytes that are on no disk."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "os", SimpleNamespace(**{**vars(os), "fsync": fail}))
        with pytest.raises(UserError, match="Input/output error"):
            put(store)
    assert store.chunks_held(PART) == set()
    put(store)
    assert store.path(PART).read_bytes() == DATA


def test_chunks_lost_in_a_power_failure_do_not_count(store: Store) -> None:
    """After a power failure a partial file may hold zeros, or be short."""
    for index in range(4):
        store.write_chunk(PART, index, chunk(index))
    partial = store.root / "partial" / PART.hash
    with partial.open("r+b") as file:
        file.seek(CHUNK_BYTES)
        file.write(bytes(CHUNK_BYTES))
    os.truncate(partial, 3 * CHUNK_BYTES - 1)
    again = Store(store.root)
    assert again.chunks_held(PART) == {0}
    put(again)
    assert again.path(PART).read_bytes() == DATA
    assert again.path(PART).stat().st_size == PART.size


@pytest.mark.skipif(sys.platform != "linux", reason="the way to limit a file's size is Linux's")
def test_a_full_disk_leaves_the_store_whole(store: Store) -> None:
    """A write cut short and refused gives a sentence; it works once there is room.

    A limit on the size of files stands in for the disk: the system writes what fits and then fails.
    """
    put(store, part_of(b"good"), b"good")
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from tests.support.stored import DATA, PART, chunk\n"
        "from p2pinfer.core.errors import UserError\n"
        "from p2pinfer.engine.store.store import Store\n"
        "store = Store(Path(sys.argv[1])); store.write_chunk(PART, 0, chunk(0))\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({CHUNK_BYTES + 5},) * 2)\n"
        "try: store.write_chunk(PART, 1, chunk(1))\n"
        "except UserError as error: print(error)\n"
    )
    said = run(code, str(store.root))
    assert said.startswith(f"the store in {store.root} cannot be used")
    assert store.chunks_held(PART) == {0}
    assert store.read_chunk(part_of(b"good"), 0) == b"good"
    put(store)
    assert store.path(PART).read_bytes() == DATA
