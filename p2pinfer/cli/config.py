"""``p2pinfer config``: all settings, and where each comes from."""

import json
from typing import Annotated, Any

from cyclopts import Parameter

from p2pinfer.cli.config_file import Setting, config_path, settings_of
from p2pinfer.cli.options import AsJson

COMMANDS = ("join", "chat", "serve", "demo", "peers")
"""The commands whose options are shown when none is named."""


def config(
    *command: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True,
            help="A command line to show the settings of, such as: join --memory 2GiB. If omitted:"
            f" {', '.join(COMMANDS[:-1])} and {COMMANDS[-1]}.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Print the settings that commands would run with."""
    found = merged({name: _settings([name]) for name in COMMANDS} if not command else {
        command[0]: _settings(list(command))
    })  # fmt: skip
    path = config_path()
    is_there = path is not None and path.exists()
    if as_json:
        file = str(path) if path else None
        print(json.dumps({"file": file, "exists": is_there, "options": found}, default=str))
        return
    print(f"file  {path or 'none'}{'' if is_there or not path else ' (does not exist)'}")
    width = max(len(each["option"]) for each in found)
    for each in found:
        commands = f" ({', '.join(each['commands'])})" if each["differs"] else ""
        from_ = {"environment": each["where"]}.get(each["source"], each["source"])
        print(f"{each['option']:{width}}  {_text(each['value']):<32} {from_}{commands}")


def _settings(words: list[str]) -> list[Setting]:
    """Return the settings of a command line; raises CycloptsError if it cannot be parsed."""
    from p2pinfer.cli.main import CONFIG, app, parse

    parse(words)
    names, _, _ = app.parse_commands(words)
    return [*settings_of(CONFIG.seen.get(names, ())), *settings_of(CONFIG.seen[()])]


def merged(by_command: dict[str, list[Setting]]) -> list[dict[str, Any]]:
    """Return each setting once for all commands that agree on it, sorted by option."""
    found: dict[str, dict[str, Any]] = {}
    for command, settings in by_command.items():
        for each in settings:
            row = found.setdefault(repr(each), {**vars(each), "commands": []})
            row["commands"].append(command)
    options = [row["option"] for row in found.values()]
    for row in found.values():
        row["differs"] = options.count(row["option"]) > 1
    return sorted(found.values(), key=lambda row: row["option"])


def _text(value: Any) -> str:
    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)
