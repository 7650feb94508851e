"""How many threads an engine may use, on machines as Linux describes them in files."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from p2pinfer.engine.cores import engine_cores, label, thread_counts


def machine(root: Path, files: Mapping[str, object]) -> Path:
    """Write what a machine says of itself."""
    for name, text in files.items():
        path = root / "sys/devices" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def siblings(*cores: str) -> dict[str, str]:
    """Say which processors are threads of one core, such as ``0-1``."""
    found = {}
    for core in cores:
        first, _, last = core.partition("-")
        for each in range(int(first), int(last or first) + 1):
            found[f"system/cpu/cpu{each}/topology/thread_siblings_list"] = core
    return found


def speeds(name: str, *each: int) -> dict[str, int]:
    """Give each processor a figure."""
    return {f"system/cpu/cpu{number}/{name}": speed for number, speed in enumerate(each)}


INTEL = {
    **siblings("0-1", "2-3", "4-5", "6-7", "8", "9", "10", "11"),
    "cpu_core/cpus": "0-7",
    "cpu_atom/cpus": "8-11",
}
"""Four fast cores of two threads each, and four efficient ones."""

ARM = speeds("cpu_capacity", 430, 430, 430, 430, 1024, 1024, 1024, 990)
AMD = speeds("cpufreq/cpuinfo_max_freq", *[5_100_000, 5_000_000] * 2, *[3_300_000] * 4)
ALIKE = speeds("cpufreq/cpuinfo_max_freq", *[4_000_000] * 8)


@pytest.mark.parametrize(
    ("files", "own", "cores"),
    [
        (INTEL, range(12), [0, 2, 4, 6]),  # the node has the others
        (INTEL, range(8), [0, 2, 4]),
        (INTEL, range(8, 12), [8, 9, 10]),
        (INTEL, [0, 1], [0]),
        (INTEL, [1, 3, 8], [1, 3]),
        (INTEL, [5], [5]),
        (ARM, range(8), [4, 5, 6, 7]),
        (AMD, range(8), [0, 1, 2, 3]),
        (ALIKE, range(8), [0, 1, 2, 3, 4, 5, 6]),
        (ALIKE, [3], [3]),
        (ALIKE, [3, 6], [3]),
        ({}, range(2), [0]),
        ({}, range(1), [0]),
        ({}, range(4), [0, 1, 2]),
        (siblings("0-1", "2-3"), range(4), [0]),
        ({**ALIKE, "system/cpu/cpu2/cpufreq/cpuinfo_max_freq": "x"}, range(8), [*range(7)]),
        ({"cpu_core/cpus": "much"}, range(4), [0, 1, 2]),
    ],
)
def test_engines_run_on_fast_cores_and_leave_one_to_the_node(
    files: Mapping[str, object], own: range, cores: list[int], tmp_path: Path
) -> None:
    """Of those that affinity leaves; one of a core's two threads."""
    assert engine_cores(machine(tmp_path, files), set(own)) == cores


@pytest.mark.parametrize(
    ("quota", "count"),
    [(50_000, 1), (150_000, 1), (200_000, 1), (250_000, 1), (400_000, 3), (9_000_000, 7)],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_time_is_shared_with_the_node(
    quota: int, count: int, version: int, tmp_path: Path
) -> None:
    """With the time of one and a half processors, a second thread would only be held up."""
    if version == 2:
        files = {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": f"{quota} 100000"}
    else:
        base = "sys/fs/cgroup/cpu/a"
        files = {
            "proc/self/cgroup": "3:cpu:/a",
            f"{base}/cpu.cfs_quota_us": f"{quota}",
            f"{base}/cpu.cfs_period_us": "100000",
        }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert len(engine_cores(tmp_path, set(range(8)))) == count


@pytest.mark.parametrize(
    ("most", "counts"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (7, [1, 2, 4, 7]), (8, [1, 2, 4, 8])],
)
def test_few_numbers_of_threads_are_tried(most: int, counts: list[int]) -> None:
    """Each of them is probed, which takes time."""
    assert thread_counts(most) == counts


def test_results_for_so_many_and_for_at_most_as_many_have_different_names() -> None:
    """One thread at most is one thread."""
    assert [label(n, is_most=most) for n in (1, 4) for most in (False, True)] == [
        *["1", "1"],
        *["4", "upto4"],
    ]
