"""``p2pinfer service``: run a peer in the background, under the system's service manager."""

import os
import plistlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from p2pinfer.cli.options import option
from p2pinfer.core.python_process import python_command
from p2pinfer.logs import note

Kind = Literal["systemd", "launchd"]

LABEL = "p2pinfer.join"

RESTART_S = 30
"""Before a failed peer is restarted: what failed, such as the network, may need a while."""

NICE = 10
"""Gives the owner's own programs precedence."""

STOP_SLACK_S = 30
"""Allowed beyond the longest time that leaving can take, before the system kills the peer."""

SYSTEMD_HINT = (
    "save this as ~/.config/systemd/user/p2pinfer.service, then run"
    " systemctl --user enable --now p2pinfer; to keep it running while you are logged out, run"
    " loginctl enable-linger"
)
LAUNCHD_HINT = (
    f"save this as ~/Library/LaunchAgents/{LABEL}.plist, then run"
    f" launchctl load -w ~/Library/LaunchAgents/{LABEL}.plist"
)


def service(
    *options: Annotated[str, Parameter(allow_leading_hyphen=True)],
    kind: Annotated[
        Kind | None,
        option("kind", "Service manager to write for. If omitted: this system's."),
    ] = None,
) -> None:
    """Print a definition for the system's service manager.

    Parameters
    ----------
    options: str
        Options of join; they are checked. Those set in environment variables are included.
    """
    words, variables = _join(options)
    if (kind or ("launchd" if sys.platform == "darwin" else "systemd")) == "systemd":
        print(systemd_unit(words, variables, _stop_s()), end="")
        note(SYSTEMD_HINT)
    else:
        print(launchd_plist(words, variables, _stop_s(), Path.home()), end="")
        note(LAUNCHD_HINT)


def _join(options: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the variables that it needs; raises CycloptsError."""
    from p2pinfer.cli.config_file import settings_of
    from p2pinfer.cli.main import CONFIG, parse

    parse(["join", *options])
    settings = [*settings_of(CONFIG.seen["join",]), *settings_of(CONFIG.seen[()])]
    names = [str(each.where) for each in settings if each.source == "environment"]
    names += ["P2PINFER_HOME", "P2PINFER_CONFIG", "P2PINFER_LLAMA"]
    variables = {name: os.environ[name] for name in names if name in os.environ}
    script = Path(sys.executable).with_name("p2pinfer")
    program = [str(script)] if script.exists() else python_command("p2pinfer")
    return [*program, "join", *map(_anywhere, options)], variables


def _anywhere(word: str) -> str:
    """Return an existing file's absolute path, also after an @, and any other word as it is."""
    at = "@" if word.startswith("@") else ""
    path = Path(word.removeprefix(at))
    return f"{at}{path.absolute()}" if path.is_file() else word


def _stop_s() -> int:
    from peers.serving.server import DRAIN_S_MAX, TAKE_OVER_S_MAX

    return round(DRAIN_S_MAX + TAKE_OVER_S_MAX) + STOP_SLACK_S


def systemd_unit(words: Sequence[str], variables: Mapping[str, str], stop_s: int) -> str:
    """Return a systemd user unit; the journal keeps and rotates the log."""
    environment = [f"Environment={_quoted(f'{k}={v}')}" for k, v in variables.items()]
    lines = [
        "[Unit]",
        "Description=p2pinfer: lend this machine to a swarm",
        "",
        "[Service]",
        "ExecStart=" + " ".join(_quoted(word).replace("$", "$$") for word in words),
        *environment,
        "Restart=on-failure",
        f"RestartSec={RESTART_S}",
        "# A restart does not cure an unusable option.",
        "RestartPreventExitStatus=2",
        "# Signal only the peer: it stops its engine once its sessions are done.",
        "KillMode=mixed",
        f"TimeoutStopSec={stop_s}",
        f"Nice={NICE}",
        "CPUWeight=20",
        "IOSchedulingClass=idle",
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Quote as systemd reads it, where % begins a specifier."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if escaped != text or " " in text else text


def launchd_plist(
    words: Sequence[str], variables: Mapping[str, str], stop_s: int, home: Path
) -> str:
    """Return a launchd agent, which logs where the system rotates files."""
    log = str(home / "Library" / "Logs" / "p2pinfer.log")
    agent = {
        "Label": LABEL,
        "ProgramArguments": list(words),
        "EnvironmentVariables": dict(variables),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": RESTART_S,
        "ExitTimeOut": stop_s,
        "ProcessType": "Background",
        "Nice": NICE,
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    return plistlib.dumps(agent, sort_keys=False).decode()
