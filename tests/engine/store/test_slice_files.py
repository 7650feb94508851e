"""Which slices stay on the disk: those that a process runs, or is about to run."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.engine.store.assemble import open_parts
from p2pinfer.engine.store.slice_files import GRACE_S, VERSION, Slices, in_use
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from tests.support.stored import DATA, PART, put
from tests.support.toys import quiet, write_toy

MODEL, OTHER = ModelId("ab" * 32), ModelId("cd" * 32)
NOW_S = 1_800_000_000.0


def made(cache: Path) -> Slices:
    """Return the slices of a cache, at a time when none was requested recently."""
    return Slices(cache, lambda: NOW_S)


def slice_of(cache: Path, name: str, model: ModelId = MODEL, *, age_s: float = 2 * GRACE_S) -> Path:
    """Write a slice of 100 bytes."""
    path = Slices(cache).path(model, f"{name}.gguf")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(100))
    os.utime(path, (NOW_S - age_s, NOW_S - age_s))
    return path


def names(cache: Path) -> set[str]:
    """Return the names of all slices."""
    return {path.stem for path in cache.rglob("*") if path.is_file()}


def test_unused_slices_are_removed(tmp_path: Path) -> None:
    """Only of that model and kind, except the most recently requested if some are spared."""
    for name, age_s in (("stage-1-10", 500), ("stage-2-9", 300), ("stage-1-5", 400)):
        slice_of(tmp_path, name, age_s=age_s)
    slice_of(tmp_path, "first-1")
    slice_of(tmp_path, "stage-3-4", OTHER)
    assert made(tmp_path).drop_unused(MODEL, "stage-", spare=2) == 100
    assert names(tmp_path) == {"stage-2-9", "stage-1-5", "first-1", "stage-3-4"}
    assert made(tmp_path).drop_unused(MODEL, "stage-") == 200
    assert names(tmp_path) == {"first-1", "stage-3-4"}
    assert made(tmp_path).used_bytes() == 200


def test_a_running_slice_stays(tmp_path: Path) -> None:
    """A worker that dies loads its slice again; once it has ended, the slice may be removed."""
    run, idle = slice_of(tmp_path, "stage-1-10"), slice_of(tmp_path, "stage-1-5")
    with in_use(run):
        made(tmp_path).drop_unused(MODEL, "stage-")
        assert (run.exists(), idle.exists()) == (True, False)
        assert made(tmp_path).make_room(1000) == 0
        assert made(tmp_path).remove(MODEL) == 0
        assert run.exists()
    assert made(tmp_path).drop_unused(MODEL, "stage-") == 100
    assert not run.exists()


def test_a_slice_that_another_process_runs_stays(tmp_path: Path) -> None:
    """Until that process ends, however it ends."""
    path = slice_of(tmp_path, "stage-1-10")
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from p2pinfer.engine.store.slice_files import in_use\n"
        "with in_use(Path(sys.argv[1])):\n    print('running', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"running\n"
        assert made(tmp_path).remove(MODEL) == 0
        process.kill()
    assert made(tmp_path).remove(MODEL) == 100
    assert not path.parent.exists()


def test_a_slice_just_requested_stays(tmp_path: Path) -> None:
    """Another peer here is about to load it; a killed process's leftovers are removed in time."""
    path = slice_of(tmp_path, "stage-1-10")
    half = slice_of(tmp_path, "stage-2-3", age_s=10)
    half = half.rename(half.with_name(".stage-2-3.gguf.x1y2"))
    slices = made(tmp_path)
    assert not slices.note_wanted(path.with_name("stage-7-8.gguf"))
    assert Slices(tmp_path).note_wanted(path)
    assert Slices(tmp_path).drop_unused(MODEL, "stage-") == 0
    os.utime(path, (NOW_S - 10, NOW_S - 10))
    assert slices.make_room(1000) == slices.drop_unused(MODEL, "stage-") == 0
    for each in (path, half):
        os.utime(each, (NOW_S - 70, NOW_S - 70))
        assert slices.drop_unused(MODEL, "stage-") == 100
    assert names(tmp_path) == set()


def test_slices_of_earlier_versions_are_removed_with_their_model(tmp_path: Path) -> None:
    """And nothing else that is in the cache."""
    old = tmp_path / f"v{VERSION - 1}" / MODEL[:32] / "stage-1-2.gguf"
    mine = tmp_path / "views" / MODEL[:32] / "kept"
    for path in (old, mine):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"1234567")
    assert made(tmp_path).used_bytes() == 7
    assert made(tmp_path).remove(MODEL) == 7
    assert mine.exists()


def test_measurements_of_a_slice_go_with_it(tmp_path: Path) -> None:
    """It stays as long as the slice, however old it is."""
    one, other = slice_of(tmp_path, "stage-1-10"), slice_of(tmp_path, "stage-1-1")
    for path in (one, other):
        probe = path.with_name(f"{path.name}.probe-1.json")
        probe.write_text("{}")
        os.utime(probe, (0, 0))
    with in_use(one):
        made(tmp_path).drop_unused(MODEL, "stage-")
        assert names(tmp_path) == {"stage-1-10", "stage-1-10.gguf.probe-1"}
    other.with_name(f"{other.name}.probe-2.json").write_text("{}")
    assert made(tmp_path).remove(MODEL) == 100
    assert not one.parent.exists()


def test_a_missing_slice_is_reported(tmp_path: Path) -> None:
    """It may have been removed by hand between being requested and being run."""
    with pytest.raises(UserError, match="start again"), in_use(tmp_path / "stage-1-2.gguf"):
        pass
    path = slice_of(tmp_path, "stage-1-2")
    with in_use(path), path.open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_move_leaves_no_old_slice(tmp_path: Path) -> None:
    """The old slice is removed as soon as no process runs it; the new one stays."""
    store = Store(tmp_path / "store")
    model = open_parts(
        store, add_model(store, write_toy(tmp_path / "m.gguf"), quiet), tmp_path / "cache"
    )
    before = model.stage(1, 2, spare=0)
    age(before)
    with in_use(before):
        after = model.stage(1, 3, spare=0)
        age(after)
        assert before.exists()
    with in_use(after):
        model.drop_unused_stages()
        assert not before.exists()
        assert after.exists()
    assert model.stage(1, 3, spare=0) == after
    age(after)
    model.stage(2, 3, spare=0)
    assert not after.exists()


def test_audits_leave_a_few(tmp_path: Path) -> None:
    """Audits run the same ranges repeatedly."""
    store = Store(tmp_path / "store")
    model = open_parts(
        store, add_model(store, write_toy(tmp_path / "m.gguf"), quiet), tmp_path / "cache"
    )
    for first, end in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3)):
        age(model.stage(first, end, spare=2))
    assert len(names(tmp_path / "cache")) == 3


def age(path: Path) -> None:
    """Make a slice look as if it was requested long ago."""
    long_ago_s = path.stat().st_mtime - 2 * GRACE_S
    os.utime(path, (long_ago_s, long_ago_s))


def test_slices_count_for_the_quota_and_make_room(tmp_path: Path) -> None:
    """Unused ones are removed first; if used ones leave no room, the error says so."""
    slices = made(tmp_path / "cache")
    store = Store(tmp_path / "store", quota_bytes=len(DATA) + 150, slices=slices)
    idle = slice_of(tmp_path / "cache", "stage-1-10")
    run = slice_of(tmp_path / "cache", "stage-1-5")
    with in_use(run):
        put(store)
        assert not idle.exists()
        assert store.used_bytes() == len(DATA) + 100
        with pytest.raises(UserError, match="quota"):
            store.check_room_for_slice(60)
    store.check_room_for_slice(60)
    assert not run.exists()


def test_room_is_needed_for_future_slices(tmp_path: Path) -> None:
    """They take their parts' bytes again; existing slices need nothing more."""
    slices = made(tmp_path / "cache")
    store = Store(tmp_path / "store", quota_bytes=2 * len(DATA) - 1, slices=slices)
    store.check_room([PART])
    with pytest.raises(UserError, match="quota"):
        store.check_room([PART], cut=True)
    put(store)
    store.check_room([PART], cut=True)
    with pytest.raises(UserError, match="quota"):
        store.check_room_for_slice(len(DATA))


def test_removing_a_model_removes_its_slices(tmp_path: Path) -> None:
    """The freed bytes are reported."""
    store = Store(tmp_path / "store", slices=Slices(tmp_path / "cache"))
    model = add_model(store, write_toy(tmp_path / "m.gguf"), quiet)
    cut = open_parts(store, model, tmp_path / "cache").stage(1, 2)
    used = store.used_bytes()
    assert used > cut.stat().st_size
    assert store.remove(model.id) == used
    assert not cut.exists()
    assert store.used_bytes() == 0
