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


def test_a_machine_without_layers_proves_them(swarm: list[Peer], tmp_path: Path) -> None:
    """It has 2 % of the model; all three stages, sole holders, open rows that it checks."""
    bare, file = tmp_path / "bare", tmp_path / "answer.certificate"
    ways = ["--network", "real", "--bootstrap", swarm[0].address]
    (model,) = {each["model"] for each in json.loads(run(bare, "peers", "--json", *ways).stdout)}
    nowhere = run(bare, "model", "proof-key", model)
    assert (nowhere.returncode, b"name a peer" in nowhere.stderr) == (2, True)
    made = run(bare, "model", "proof-key", model, "--json", *ways)
    assert json.loads(made.stdout)["layers"] == 30, made.stderr
    held = sum(each.stat().st_size for each in (bare / "data").rglob("*") if each.is_file())
    assert held < 2_000_000
    asked = ["chat", "Name a colour.", "--json", "--max-tokens", "8", "--temperature", "0"]
    checks = ["--audit-rate", "0", "--proof-rate", "1", "--certificate", str(file)]
    done = run(bare, *asked, *checks, "--model", model, *ways)
    assert done.returncode == 0, done.stderr
    trust = json.loads(done.stdout)["trust"]
    found = {each["peer"]: (each["verdict"], each["by"]) for each in trust["audits"]}
    assert found == {peer.id: ("proved", ["this machine"]) for peer in swarm}
    assert "caught by that with a chance of 34 %" in trust["line"]
    findings = json.loads(run(bare, "verify", str(file), "--json").stdout)["findings"]
    opened = [each for each in findings if each["what"] == "opened rows"]
    assert [each["held"] for each in opened] == [True] * 3
    assert all("with a chance of 34 %" in each["text"] for each in opened)
    rows = [each["proved"] for each in json.loads(run(bare, "peers", "--json", *ways).stdout)]
    assert [each["rows"] for each in rows] == [4] * 3
