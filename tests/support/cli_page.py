"""The command line as Markdown: every command and every option, from the app itself."""

from collections.abc import Iterator
from inspect import cleandoc

from cyclopts import App, Argument

from p2pinfer.cli import repl
from p2pinfer.cli.main import app


def commands(root: App, *names: str) -> Iterator[tuple[tuple[str, ...], App]]:
    """Yield each command that does something, and its words, groups before what is in them."""
    for name in root:
        command = root[name]
        if name.startswith("-") or not command.show or name != command.name[0]:
            continue  # hidden, or another spelling
        yield (*names, name), command
        yield from commands(command, *names, name)


def shown(command: App) -> list[Argument]:
    """Return what a command takes, without what is for the program's own use."""
    if not command.default_command:
        return []
    found = command.assemble_argument_collection(parse_docstring=True)
    return [each for each in found if each.name != "*" and each.show]


def is_option(argument: Argument) -> bool:
    """Whether it is typed with dashes."""
    return argument.name.startswith("-")


def variable(argument: Argument) -> str:
    """Return the environment variable that sets an option, or nothing."""
    names = argument.parameter.env_var
    assert isinstance(names, tuple)
    return names[0] if names else ""


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _default(argument: Argument) -> str:
    value = argument.field_info.default
    if isinstance(value, tuple):
        return " ".join(f"`{each}`" for each in value)
    if value is None or value is False or value is argument.field_info.empty:
        return ""
    return "on" if value is True else f"`{value}`"


def _options(arguments: list[Argument]) -> Iterator[str]:
    yield "| option | default | meaning |"
    yield "|---|---|---|"
    for each in arguments:
        names = " ".join(f"`{name}`" for name in each.names)
        choices = each.get_choices()
        help_ = _cell(each.parameter.help or "")
        if choices:
            help_ += f" One of: {', '.join(choices)}."
        yield f"| {names} | {_default(each)} | {help_} |"


def _one(words: tuple[str, ...], command: App) -> Iterator[str]:
    arguments = shown(command)
    placed = [each for each in arguments if not is_option(each)]
    options = [each for each in arguments if is_option(each)]
    within = list(commands(command))
    typed = ["p2pinfer", *words]
    typed += [each.name if each.required else f"[{each.name}]" for each in placed]
    if within:
        typed.append("COMMAND" if not command.default_command else "[COMMAND]")
    if options:
        typed.append("[OPTIONS]")
    yield f"{'#' * (1 + len(words))} `p2pinfer {' '.join(words)}`"
    yield ""
    yield f"    {' '.join(typed)}"
    yield ""
    yield cleandoc(str(command.help)).split("\n\nParameters\n")[0].strip()
    yield ""
    for each in placed:
        if each.parameter.help:
            yield f"- `{each.name}`: {_cell(each.parameter.help)}"
            yield ""
    if options:
        yield from _options(options)
        yield ""


def render() -> str:
    """Return the generated part of the page."""
    lines = ["## Commands", "", "| command | does |", "|---|---|"]
    for words, command in commands(app):
        name = f"p2pinfer {' '.join(words)}"
        if len(words) == 1:
            does = _cell(str(command.help).strip().splitlines()[0])
            lines.append(f"| [`{name}`](#{name.replace(' ', '-')}) | {does} |")
    lines += ["", "## Options of every command", ""]
    lines += [*_options(shown(app.meta)), ""]
    for words, command in commands(app):
        lines += _one(words, command)
    lines += ["## In the interactive chat", "", "| typed | does |", "|---|---|"]
    lines += [f"| `{typed}` | {_cell(does)} |" for typed, does in repl.COMMANDS.items()]
    lines += ["", repl.KEYS]
    return "\n".join(lines)
