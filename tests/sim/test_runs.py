"""Every shipped scenario, shortened: nothing goes wrong, and it runs the same way twice."""

import json
import os
import subprocess
import sys

import pytest

from sim.scenario import shipped
from tests.support.sim_runs import run_short

TWICE = """
import json, sys
from tests.support.sim_runs import run_short
print(json.dumps({name: run_short(name).record.digest for name in sys.argv[1:]}))
"""


@pytest.fixture(scope="module")
def others() -> dict[str, str]:
    """Run all of them in another process, with another string hash seed."""
    command = [sys.executable, "-c", TWICE, *shipped()]
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    digests: dict[str, str] = json.loads(done.stdout)
    return digests


@pytest.mark.parametrize("name", shipped())
def test_a_seed_is_a_run(name: str, others: dict[str, str]) -> None:
    """No check fails, answers come, and every message is the same in another process."""
    outcome = run_short(name)
    assert outcome.record.violations == []
    assert outcome.record.events["token"] > 0
    assert outcome.record.digest == others[name]
