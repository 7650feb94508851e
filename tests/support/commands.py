"""Running commands to their end in processes of their own."""

import json
import subprocess
from collections.abc import Container
from pathlib import Path
from typing import Any

from tests.support.processes import COMMAND, environment

COMMAND_S_MAX = 900.0
"""For the slowest measurement on a busy machine; the long ones take minutes on a quiet one."""


def run(
    home: Path, *words: str, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=COMMAND_S_MAX,
        env=environment(home, **variables),
        check=False,
    )


def report_of(home: Path, *words: str, codes: Container[int] = (0,)) -> Any:
    """Run a command with ``--json``, and return the one line that it prints, parsed."""
    result = run(home, *words, "--json")
    assert result.returncode in codes, result.stderr
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def bench(home: Path, *words: str) -> dict[str, Any]:
    """Run a measurement and return its report."""
    report: dict[str, Any] = report_of(home, "bench", *words)
    return report
