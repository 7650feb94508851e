"""Settings from a file, and where every setting comes from.

The file is TOML. A line ``sessions = 4`` applies to every command that has the option; lines under
``[join]`` apply to that command only. Cyclopts reads command lines and variables before it asks
here, so they take precedence.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclopts import App, Argument, ArgumentCollection, Token

from p2pinfer.core.errors import UserError

FILE_BYTES_MAX = 1 << 20

SECRETS = {"--api-key", "--invitation", "--revoke"}
"""Options whose values are never shown."""

Table = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What an option of some commands is set to."""

    option: str
    value: Any
    source: str
    """``default``, ``flag``, ``environment`` or ``file``."""
    where: str | None
    """The variable or the file."""


def config_path() -> Path | None:
    """Return where the file is, or would be; None if P2PINFER_CONFIG is set to nothing."""
    named = os.environ.get("P2PINFER_CONFIG")
    if named is not None:
        return Path(named).expanduser() if named else None
    if home := os.environ.get("P2PINFER_HOME"):
        return Path(home).expanduser() / "config.toml"
    import platformdirs

    return platformdirs.user_config_path("p2pinfer") / "config.toml"


def read_config(path: Path | None) -> Table:
    """Return the file's settings; none if it does not exist, unless P2PINFER_CONFIG names it.

    Raises:
        UserError: it cannot be read, or is not TOML.
    """
    if path is None:
        return {}
    import tomllib  # here, because most commands find no file

    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
        if len(text) > FILE_BYTES_MAX:
            raise UserError(f"{path} is too large for a settings file: it has more than 1 MiB")
        return tomllib.loads(text.decode())
    except (FileNotFoundError, NotADirectoryError):
        if "P2PINFER_CONFIG" in os.environ:
            raise UserError(f"P2PINFER_CONFIG names {path}, which does not exist") from None
        return {}
    except OSError as error:
        raise UserError(
            f"cannot read the settings in {path} ({error.strerror}): set P2PINFER_CONFIG to another"
            " file, or to nothing to use none"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error


class ConfigFile:
    """Fills in the file's settings where neither a flag nor a variable is set."""

    def __init__(self, root: Callable[[], App]) -> None:
        """Prepare to read; ``root`` returns the app whose commands the file may name."""
        self._root = root
        self.seen: dict[tuple[str, ...], Sequence[Argument]] = {}
        """Parsed arguments of the latest invocation, by command; global ones under ()."""

    def __call__(self, _: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Add the file's settings to one command's arguments; raises UserError."""
        self.seen[commands] = arguments
        path = config_path()
        table = read_config(path)
        if not table:
            return
        known = {argument.name: argument for argument in arguments if _is_option(argument)}
        _check(table, self._root(), known, str(path))
        for level in _levels(table, commands):
            for key, value in level.items():
                argument = known.get(f"--{key}")
                if argument is None or isinstance(value, dict):
                    continue
                if any(token.source != str(path) for token in argument.tokens):
                    continue  # typed, or in the environment
                argument.tokens[:] = _tokens(argument, value, str(path))


def _is_option(argument: Argument) -> bool:
    return bool(argument.parameter.env_var)


def _levels(table: Table, commands: Iterable[str]) -> Iterator[Table]:
    """Yield the tables that apply to a command, the most specific last."""
    yield table
    for name in commands:
        table = table.get(name, {})
        if not isinstance(table, dict):
            return
        yield table


def _tokens(argument: Argument, value: object, path: str) -> list[Token]:
    """Return a value as it would be typed; raises UserError if it cannot be typed."""
    name, takes_many = argument.name, argument.token_count()[1]
    values = value if isinstance(value, list) and takes_many else [value]
    if not all(isinstance(each, str | int | float) for each in values):
        a_list = ", or a list of them" if takes_many else ""
        raise UserError(f"{path}: {name[2:]} must be text, a number, true or false{a_list}")
    texts = [str(each).lower() if isinstance(each, bool) else str(each) for each in values]
    return [Token(keyword=name, value=t, source=path, index=i) for i, t in enumerate(texts)]


def _check(table: Table, app: App, known: Collection[str], path: str) -> None:
    """Raise UserError if an option that the file names belongs to no command."""
    for key, value in table.items():
        if isinstance(value, dict):
            if key not in app or key.startswith("-"):
                raise UserError(f"{path}: [{key}] is not a command; see p2pinfer --help")
            _check(value, app[key], (), path)
        elif f"--{key}" not in known and f"--{key}" not in option_names(app):
            from difflib import get_close_matches

            near = get_close_matches(f"--{key}", option_names(app), 1)
            meant = f"did you mean {near[0][2:]!r}?" if near else "p2pinfer --help lists commands"
            raise UserError(f"{path}: there is no option {key!r}; {meant}")


def option_names(app: App) -> set[str]:
    """Return the options of a command and its subcommands that a file may set."""
    apps = [app, *([app.meta] if app._meta else [])]
    found = {
        argument.name
        for each in apps
        if each.default_command
        for argument in each.assemble_argument_collection()
        if _is_option(argument)
    }
    return found.union(*(option_names(app[name]) for name in app if not name.startswith("-")))


def settings_of(arguments: Iterable[Argument]) -> list[Setting]:
    """Return the settings of a command's options."""
    found = []
    for argument in arguments:
        if not (_is_option(argument) and argument.show):
            continue
        name, tokens = argument.name, argument.tokens
        value: Any = argument.field_info.default
        source, where = "default", None
        if tokens:
            values = [token.value or token.implicit_value for token in tokens]
            value = values if argument.token_count()[1] else values[-1]
            kinds = {"cli": "flag", "env": "environment"}
            source = kinds.get(tokens[0].source, "file")
            where = tokens[0].keyword if source == "environment" else None
            where = tokens[0].source if source == "file" else where
        if name in SECRETS and value is not None:
            value = "(secret)"
        found.append(Setting(name, value, source, where))
    return found
