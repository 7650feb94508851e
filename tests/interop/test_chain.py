"""The tests of settlement, in an environment where a real EVM is installed: ``make chain``."""

import subprocess
from pathlib import Path

import pytest

from tests.interop.test_anvil import PROGRAMS

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-chain"

pytestmark = pytest.mark.skipif(
    not (ENVIRONMENT / "whole").exists(), reason="the EVM is not installed: make chain"
)


def test_vouchers_are_paid_on_a_real_evm() -> None:
    """What there is of it may not pass because it is skipped."""
    python = str(ENVIRONMENT / "bin" / "python")
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [
        "tests/node/test_settlement.py",
        *(["tests/interop/test_anvil.py"] * bool(PROGRAMS)),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
