"""Definitions for systemd and launchd: what they start, and that they are valid."""

import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from p2pinfer.cli.service import launchd_plist, systemd_unit
from p2pinfer.core.errors import EXIT_USAGE
from tests.support.command_line import run
from tests.support.surroundings import NOT_LOOKING

WORDS = ["/opt/my programs/p2pinfer", "join", "--network", 'a%b$c"d\\e']
VARIABLES = {"P2PINFER_HOME": "/home/me/50% of $it"}


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))


def value(unit: str, key: str) -> str:
    """Return a key's value in a unit, as systemd would read it."""
    (line,) = [line for line in unit.splitlines() if line.startswith(f"{key}=")]
    return line.partition("=")[2].replace("%%", "%").replace("$$", "$")


def test_a_systemd_unit_starts_the_given_command() -> None:
    """Whatever special characters its words hold."""
    unit = systemd_unit(WORDS, VARIABLES, 270)
    assert "%%b$$c" in unit
    assert shlex.split(value(unit, "ExecStart")) == WORDS
    assert shlex.split(value(unit, "Environment")) == ["P2PINFER_HOME=/home/me/50% of $it"]
    assert value(unit, "TimeoutStopSec") == "270"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed here")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """It knows every key, and finds the program."""
    unit = tmp_path / "p2pinfer.service"
    unit.write_text(systemd_unit([sys.executable, "join", *WORDS[2:]], VARIABLES, 270))
    result = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_a_launchd_agent_starts_the_given_command() -> None:
    """As launchd reads it; it is restarted when it fails, but not when it has left."""
    agent = plistlib.loads(launchd_plist(WORDS, VARIABLES, 270, Path("/Users/me")).encode())
    assert agent["ProgramArguments"] == WORDS
    assert agent["EnvironmentVariables"] == VARIABLES
    assert (agent["RunAtLoad"], agent["KeepAlive"]) == (True, {"SuccessfulExit": False})
    assert agent["StandardErrorPath"] == "/Users/me/Library/Logs/p2pinfer.log"


def test_options_and_variables_of_join_are_included(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Paths of existing files become absolute; the hint is not part of the definition."""
    monkeypatch.chdir(tmp_path)
    Path("key").touch()
    monkeypatch.setenv("P2PINFER_MEMORY", "2GiB")
    monkeypatch.setenv("P2PINFER_TOP_K", "3")
    for name in NOT_LOOKING:
        monkeypatch.delenv(name)
    monkeypatch.setenv("P2PINFER_LOG_LEVEL", "info")
    options = ["--only-idle", "--identity", "key", "--log-format", "json"]
    assert run(monkeypatch, "service", "--kind", "launchd", *options) == 0
    told = capsys.readouterr()
    agent = plistlib.loads(told.out.encode())
    key = str(tmp_path / "key")
    words = ["join", "--only-idle", "--identity", key, "--log-format", "json"]
    assert agent["ProgramArguments"][-len(words) :] == words
    assert agent["EnvironmentVariables"] == {
        "P2PINFER_MEMORY": "2GiB", "P2PINFER_LOG_LEVEL": "info", "P2PINFER_HOME": str(tmp_path),
    }  # fmt: skip
    assert "launchctl" in told.err
    assert run(monkeypatch, "service", "--kind", "systemd") == 0
    told = capsys.readouterr()
    assert "[Install]" in told.out
    assert "systemctl" in told.err


@pytest.mark.parametrize("options", [["--nonsense"], ["--log-level", "loud"], ["--sessions", "x"]])
def test_options_that_join_does_not_have_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """Before anything is printed."""
    assert run(monkeypatch, "service", *options) == EXIT_USAGE
    assert capsys.readouterr().out == ""
