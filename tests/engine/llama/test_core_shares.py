"""Engines of one machine share its cores, and make way for other programs."""

import fcntl
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from p2pinfer.core.python_process import python_environment
from p2pinfer.engine.cores import thread_counts
from p2pinfer.engine.llama import speeds
from p2pinfer.engine.llama.binding import Settings
from p2pinfer.engine.llama.core_shares import (
    CALM_S,
    CONTENDED_PER_S,
    LOOK_S,
    CoreShares,
    Threads,
    Yielding,
    shares_folder,
)
from p2pinfer.engine.llama.speeds import measured_once

COUNTS = [1, 2, 4, 7]


def shares(folder: Path, cores: int = 7) -> CoreShares:
    """Give one engine's part in the sharing of a machine."""
    return CoreShares(folder, range(cores))


def test_a_machines_only_engine_has_all_cores(tmp_path: Path) -> None:
    """In each of its decodes, unless it is to take fewer."""
    alone = shares(tmp_path)
    for limit, threads in ((7, 7), (7, 7), (4, 4), (3, 2), (1, 1), (0, 1), (9, 7)):
        assert alone.take(COUNTS, limit) == threads
        alone.give_back()


def test_engines_never_run_more_threads_than_there_are_cores(tmp_path: Path) -> None:
    """Each has one core for itself, and the rest for the time of a decode."""
    one, two, three = (shares(tmp_path) for _ in range(3))
    for each in (one, two, three):
        each.take(COUNTS, 1)
        each.give_back()
    assert one.take(COUNTS, 7) == 4  # of the five that are left to it
    assert two.take(COUNTS, 7) == 2
    assert three.take(COUNTS, 7) == 1
    one.give_back()
    three.give_back()
    assert three.take(COUNTS, 7) == 4


def test_a_new_engine_has_a_core_as_soon_as_one_is_free(tmp_path: Path) -> None:
    """It begins with one thread beside an engine that has them all at that moment."""
    old, new = shares(tmp_path), shares(tmp_path)
    assert old.take(COUNTS, 7) == 7
    assert new.take(COUNTS, 7) == 1
    new.give_back()
    old.give_back()
    assert new.take(COUNTS, 7) == 4
    assert old.take(COUNTS, 7) == 2  # its own, and one of the two that are left


def test_more_engines_than_cores_run_one_thread_each(tmp_path: Path) -> None:
    """There is nothing less to run."""
    every = [shares(tmp_path, 2) for _ in range(4)]
    assert [each.take([1, 2], 2) for each in every] == [2, 1, 1, 1]


def test_cores_that_a_person_names_are_kept(tmp_path: Path) -> None:
    """Others do without them."""
    named, other = shares(tmp_path), shares(tmp_path)
    named.keep(4)
    assert other.take(COUNTS, 7) == 2
    assert Threads([1, 2, 4], None).held().__enter__() == 4


def test_an_engine_that_ends_leaves_its_cores(tmp_path: Path) -> None:
    """However it ends."""
    code = f"""
import os
from pathlib import Path
from p2pinfer.engine.llama.core_shares import CoreShares
print(CoreShares(Path({str(tmp_path)!r}), range(7)).take({COUNTS}, 7), flush=True)
os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", code]
    ended = subprocess.run(
        command, capture_output=True, text=True, env=python_environment(), check=False
    )
    assert (ended.stdout, ended.returncode) == ("7\n", -9)
    assert shares(tmp_path).take(COUNTS, 7) == 7


def test_without_a_folder_nothing_is_shared(tmp_path: Path) -> None:
    """Neither where the files cannot be made."""
    assert CoreShares(None, range(7)).take(COUNTS, 7) == 7
    assert CoreShares(tmp_path / "none", range(7)).take(COUNTS, 7) == 7


def test_the_folder_is_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's, or a link to somewhere, is not used."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = shares_folder()
    assert folder
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert shares_folder() is None


# Making way


def decode(found: Yielding, seconds: float, per_s: float, threads: int | None = None) -> None:
    """Note decodes with as many threads as may run, disturbed so often per thread."""
    threads = threads or found.limit
    found.note(seconds, threads, round(per_s * seconds * threads))


def test_undisturbed_engines_keep_their_threads() -> None:
    """A system does this and that at times."""
    found = Yielding(7)
    for _ in range(100):
        decode(found, 0.1, 10)
    assert found.limit == 7


def test_disturbed_engines_run_fewer_threads_until_it_is_calm() -> None:
    """Half as many each time, and in the end one."""
    found = Yielding(7)
    for limit in (3, 1, 1):
        decode(found, 0.1, 2 * CONTENDED_PER_S)
        assert found.limit == limit
    for limit in (2, 4, 7, 7):
        for _ in range(round(CALM_S / 0.125)):
            decode(found, 0.125, 0)
        assert found.limit == limit


def test_short_decodes_are_judged_together() -> None:
    """One that lost its core once within a millisecond says nothing."""
    found = Yielding(4)
    found.note(0.001, 4, 1)
    assert found.limit == 4
    for _ in range(100):
        found.note(LOOK_S / 100, 4, 0)
    assert found.limit == 4


def test_a_pauses_decode_runs_on_the_cores_of_the_one_that_pauses(tmp_path: Path) -> None:
    """It takes none of its own, and gives none back."""
    threads = Threads(COUNTS, shares(tmp_path), iter(range(9)).__next__, lambda: 0)
    other = shares(tmp_path)
    with threads.held() as outer, threads.held() as inner:
        assert outer == inner == 7
    with threads.held() as outer:
        with threads.held():
            pass
        assert other.take(COUNTS, 7) == 1
    assert other.take(COUNTS, 7) == 4


def test_a_disturbed_slice_runs_fewer_threads(tmp_path: Path) -> None:
    """What the system counts is looked at around each decode."""
    clock, switches = iter(range(99)), iter(range(0, 99_000, 1000))
    threads = Threads(COUNTS, shares(tmp_path), clock.__next__, switches.__next__)
    ran = []
    for _ in range(4):
        with threads.held() as count:
            ran.append(count)
    assert ran == [7, 2, 1, 1]


def test_one_thread_asks_for_nothing() -> None:
    """It is what every engine may run."""
    threads = Threads(thread_counts(1), CoreShares(None, [0]), iter(()).__next__)
    with threads.held() as count:
        assert count == 1


def test_measurements_take_turns_and_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices of like layers ask the same; another build, or other choices, are measured again."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    choices, asked = [Settings(1), Settings(2)], list[object]()

    def measure(choices: Sequence[Settings]) -> list[float]:
        with (
            pytest.raises(BlockingIOError),
            (tmp_path / f"{shares_folder()}/core-turn").open() as f,
        ):
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        asked.append(choices)
        return [1.0] * len(choices)

    path = tmp_path / "speeds.json"
    for key, some, count in (("a", 2, 1), ("a", 2, 1), ("b", 2, 2), ("b", 1, 3)):
        assert measured_once(measure, [path], key, choices[:some]) == [1.0] * some
        assert len(asked) == count
    path.write_text("{")
    assert measured_once(lambda _: [], [path], "b", choices) == []
    other = tmp_path / "other.json"
    assert measured_once(measure, [path, other], "b", choices) == [1.0, 1.0]
    assert measured_once(lambda _: [], [tmp_path / "none.json", other], "b", choices) == [1.0, 1.0]
    monkeypatch.setattr(speeds, "FAR_POSITIONS", 1)  # as in another version
    assert measured_once(lambda _: [], [other], "b", choices) == []
