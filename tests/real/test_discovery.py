"""Real processes discover each other: a short run of ``p2pinfer bench discovery``."""

import json
import subprocess

import pytest

from p2pinfer.core.python_process import python_command

pytestmark = pytest.mark.real


def test_processes_find_each_other_and_stay_cheap() -> None:
    """Four peers and a late one know all others; their knowledge is fresh and cheap."""
    command = python_command("p2pinfer", "bench", "discovery", "--json")
    command += ["--peers", "4", "--seconds", "12", "--cut", "0"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["late_peer_knows_all_s"] < 2
    assert found["oldest_advertisement_s"] < 2 * found["period_s"]
    assert found["cpu_percent_max"] < 5  # 1 on an idle machine: a busy one's caches are cold
    assert found["connections_median"] == 3
