"""``p2pinfer service``: run a peer in the background, as this system runs such things."""

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
"""Before a peer that failed is started again: what failed may need a while, such as a network."""

NICE = 10
"""So that whatever the owner does comes first."""

STOP_SLACK_S = 30
"""Beyond what leaving takes at most, before the system ends a peer that was told to leave."""

SYSTEMD_HINT = (
    "keep this as ~/.config/systemd/user/p2pinfer.service, then type"
    " systemctl --user enable --now p2pinfer; to go on while you are logged out,"
    " loginctl enable-linger"
)
LAUNCHD_HINT = (
    f"keep this as ~/Library/LaunchAgents/{LABEL}.plist, then type"
    f" launchctl load -w ~/Library/LaunchAgents/{LABEL}.plist"
)


def service(
    *options: Annotated[str, Parameter(allow_leading_hyphen=True)],
    kind: Annotated[
        Kind | None, option("kind", "systemd or launchd; else what this system has.")
    ] = None,
) -> None:
    """Print a definition for the system's own manager.

    Parameters
    ----------
    options: str
        Of join, which are checked; also those in variables are written down.
    """
    words, variables = _join(options)
    if (kind or ("launchd" if sys.platform == "darwin" else "systemd")) == "systemd":
        print(systemd_unit(words, variables, _stop_s()), end="")
        note(SYSTEMD_HINT)
    else:
        print(launchd_plist(words, variables, _stop_s(), Path.home()), end="")
        note(LAUNCHD_HINT)


def _join(options: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the command, and the variables that it needs; raises CycloptsError."""
    from p2pinfer.cli.config_file import settings_of
    from p2pinfer.cli.main import CONFIG, parse

    parse(["join", *options])
    settings = [*settings_of(CONFIG.seen["join",]), *settings_of(CONFIG.seen[()])]
    names = [str(each.where) for each in settings if each.source == "environment"]
    names += ["P2PINFER_HOME", "P2PINFER_CONFIG"]
    variables = {name: os.environ[name] for name in names if name in os.environ}
    script = Path(sys.executable).with_name("p2pinfer")
    program = [str(script)] if script.exists() else python_command("p2pinfer")
    return [*program, "join", *map(_anywhere, options)], variables


def _anywhere(word: str) -> str:
    """Write a file that lies here so that it is found from anywhere."""
    path = Path(word)
    return str(path.absolute()) if path.is_file() else word


def _stop_s() -> int:
    from peers.serving.server import DRAIN_S_MAX, TAKE_OVER_S_MAX

    return round(DRAIN_S_MAX + TAKE_OVER_S_MAX) + STOP_SLACK_S


def systemd_unit(words: Sequence[str], variables: Mapping[str, str], stop_s: int) -> str:
    """Return a unit for a user's own systemd; its journal keeps and rotates the log."""
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
        "# An option that cannot be used will not be better next time.",
        "RestartPreventExitStatus=2",
        "# Only the peer is told to leave: it ends its engine when its sessions are done.",
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
    """Return an agent for launchd, which keeps the log where the system rotates it."""
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
