"""The limits of containers and cgroups, read from trees as Linux shows them."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from p2pinfer.engine.cgroups import memory_left_bytes, processors
from p2pinfer.engine.cores import usable_cores
from p2pinfer.engine.llama.memory import available_bytes

MIB = 1 << 20
HOST = 64 << 30
V2_MACHINE = {"sys/fs/cgroup/cgroup.controllers": "cpu memory"}  # the topmost group has no limits


def tree(root: Path, files: Mapping[str, object]) -> Path:
    """Write a tree of files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def v2(folder: str, limit: object, used: int, idle: int = 0, **more: object) -> dict[str, object]:
    """Return the files of a group of version 2."""
    files = {"memory.max": limit, "memory.current": used, "memory.stat": f"inactive_file {idle}"}
    return {f"sys/fs/cgroup/{folder}/{k}": v for k, v in {**files, **more}.items()}


def test_a_services_limit_is_that_of_its_unit(tmp_path: Path) -> None:
    """``systemd-run -p MemoryMax=300M``; the cache of files counts as free."""
    own = "user.slice/run-1.scope"
    files = {"proc/self/cgroup": f"0::/{own}", **V2_MACHINE}
    tree(tmp_path, files | v2("user.slice", "max", 500 * MIB) | v2(own, 300 * MIB, 120 * MIB))
    assert memory_left_bytes(tmp_path) == 180 * MIB
    assert available_bytes(tmp_path, lambda: HOST) == 180 * MIB
    assert available_bytes(tmp_path, lambda: 100 * MIB) == 100 * MIB
    tree(tmp_path, v2(own, 300 * MIB, 120 * MIB, 50 * MIB))
    assert memory_left_bytes(tmp_path) == 230 * MIB
    tree(tmp_path, v2(own, 300 * MIB, 310 * MIB))
    assert memory_left_bytes(tmp_path) == 0


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    """The inner one allows more than the outer one has left; ``memory.high`` is a limit too."""
    files = {"proc/self/cgroup": "0::/outer/inner", **V2_MACHINE}
    tree(tmp_path, files | v2("outer", 300 * MIB, 250 * MIB) | v2("outer/inner", "max", 10 * MIB))
    assert memory_left_bytes(tmp_path) == 50 * MIB
    tree(tmp_path, {"sys/fs/cgroup/outer/inner/memory.high": 40 * MIB})
    assert memory_left_bytes(tmp_path) == 30 * MIB


@pytest.mark.parametrize("path", ["/", "/docker/8f3a", "/../../kubepods/pod1"])
def test_a_container_sees_its_own_group_at_the_top(tmp_path: Path, path: str) -> None:
    """Whatever the host calls it."""
    tree(tmp_path, {"proc/self/cgroup": f"0::{path}"} | v2("", 300 * MIB, 100 * MIB))
    assert memory_left_bytes(tmp_path) == 200 * MIB


@pytest.mark.parametrize("path", ["/", "/docker/8f3a"])
def test_version_1_has_a_tree_for_each_resource(tmp_path: Path, path: str) -> None:
    """There "no limit" is a huge number, and nested groups' usage has another name."""
    base = f"sys/fs/cgroup/memory{path}"
    files = {
        "proc/self/cgroup": f"11:cpu,cpuacct:{path}\n4:memory:{path}\n0::/",
        f"{base}/memory.limit_in_bytes": 300 * MIB,
        f"{base}/memory.usage_in_bytes": 200 * MIB,
        f"{base}/memory.stat": f"inactive_file 1\ntotal_inactive_file {30 * MIB}",
        "sys/fs/cgroup/memory/other/memory.limit_in_bytes": MIB,
        f"sys/fs/cgroup/cpu,cpuacct{path}/cpu.cfs_quota_us": 250_000,
        f"sys/fs/cgroup/cpu,cpuacct{path}/cpu.cfs_period_us": 100_000,
    }
    tree(tmp_path, files)
    assert memory_left_bytes(tmp_path) == 130 * MIB
    assert processors(tmp_path) == 2.5
    tree(tmp_path, {f"{base}/memory.limit_in_bytes": 9223372036854771712})
    tree(tmp_path, {f"sys/fs/cgroup/cpu,cpuacct{path}/cpu.cfs_quota_us": -1})
    assert memory_left_bytes(tmp_path) is None
    assert processors(tmp_path) is None


def test_other_systems_have_no_limits(tmp_path: Path) -> None:
    """As on macOS, or if the files make no sense."""
    assert memory_left_bytes(tmp_path) is processors(tmp_path) is None
    files = {"proc/self/cgroup": "0::/a", **V2_MACHINE}
    tree(tmp_path, files | v2("a", "much", 1) | {"sys/fs/cgroup/a/cpu.max": "max 100000"})
    assert memory_left_bytes(tmp_path) is processors(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "cores"), [("50000", 1), ("150000", 1), ("max", 4), ("900000", 4)]
)
def test_usable_cores_respect_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    """The machine may have many more than ``taskset`` and the time quota allow."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 4, 9}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    files = {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": f"{quota} 100000"}
    assert usable_cores(tree(tmp_path, files)) == cores
