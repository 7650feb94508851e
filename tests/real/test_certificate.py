"""The commands: an answer comes with a certificate, which holds until it is changed."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import COMMAND, Peer, environment

pytestmark = pytest.mark.real

ANSWER_S_MAX = 120.0


def run(home: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=ANSWER_S_MAX,
        env=environment(home),
        check=False,
    )


def test_an_answer_is_checked_and_certified(home: Path, swarm: list[Peer], tmp_path: Path) -> None:
    """The same machine, which has the layers, checks it; one changed byte is noticed."""
    file = tmp_path / "answer.certificate"
    asked = ["chat", "Name a colour.", "--json", "--max-tokens", "8", "--temperature", "0"]
    checks = ["--audit-rate", "1", "--require-verified", "--certificate", str(file)]
    done = run(home, *asked, *checks, "--network", "real", "--bootstrap", swarm[0].address)
    assert done.returncode == 0, done.stderr
    trust = json.loads(done.stdout)["trust"]
    assert trust["held"]
    # A stage that nobody else could run again opens rows instead.
    assert {each["verdict"] for each in trust["audits"]} <= {"same bits", "proved"}
    assert len(trust["audits"]) == 3
    verified = run(home, "verify", str(file), "--json")
    assert verified.returncode == 0, verified.stderr
    findings = json.loads(verified.stdout)["findings"]
    assert len(findings) >= 7
    assert all(each["held"] for each in findings)
    data = file.read_bytes()
    middle = len(data) // 2
    file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    spoilt = run(home, "verify", str(file))
    assert spoilt.returncode == 4
    assert re.search(rb"section (stage 1|openings), bytes", spoilt.stdout)
