"""The command line: parse, call one function, print, choose the exit code."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from p2pinfer import logs
from p2pinfer.cli.config_file import ConfigFile
from p2pinfer.cli.options import LOG, LogFlags
from p2pinfer.core import errors
from p2pinfer.core.errors import P2pinferError

EXIT_CODES = """
Exit codes: 0 done, 1 failed, 2 unusable input, 3 nobody serves this model,
4 damaged or unfinished parts are left, or a certificate or an answer did not hold,
130 interrupted.
Every option can also be set as P2PINFER_<NAME>, or in the file that p2pinfer config names.
"""

COMMANDS = {
    "bench": ("bench:app", "Measure; prints JSON."),
    "chat": ("chat:chat", "Chat with a model through a swarm."),
    "config": (
        "config:config",
        (
            "Show all settings, and where each comes from.\n\n"
            "Options count for more than variables, these for more than the file, and the file for"
            " more than defaults. The file is TOML: an option a line, without its dashes; lines"
            " under [join], or another command's name, are for that command alone."
        ),
    ),
    "demo": (
        "chat:demo",
        "Start a swarm of local peers, each a process of its own, chat with it, and end it.",
    ),
    "doctor": ("peers:doctor", "Say why this machine serves or not."),
    "join": (
        "join:join",
        (
            "Lend this machine to a swarm: serve the layers of a model where it helps most.\n\n"
            "The first Ctrl-C lets sessions finish and hands the layers over, the second one stops"
            " at once."
        ),
    ),
    "ledger": ("ledger:app", "Show who worked for whom."),
    "model": ("model:app", "Add, list, check and remove models."),
    "network-key": ("peers:network_key", "Make a network's key."),
    "peers": ("peers:peers", "Show who serves what, and how fast."),
    "ps": ("status:ps", "List the sessions that are open here."),
    "serve": (
        "serve:serve",
        (
            "Serve OpenAI's interface and a web page that shows the swarm.\n\n"
            "The options of answers hold for whoever does not ask otherwise."
        ),
    ),
    "sim": ("sim:app", "Simulate a network with the code of real peers."),
    "status": (
        "status:status",
        (
            "Say what this machine serves, for whom, how fast, and what it has earned.\n\n"
            "Where nothing of p2pinfer runs that is said, and it is no failure."
        ),
    ),
    "service": (
        "service:service",
        (
            "Print a systemd user unit, or on macOS a launchd plist, that runs join in the"
            " background."
        ),
    ),
    "verify": ("verify:app", "Check an answer's certificate."),
    "--install-completion": (
        "completion:install_completion",
        "Have the shell complete commands and options.",
    ),
}
"""Where each command is, and its help, whose first line is listed: none is loaded untyped."""

CONFIG = ConfigFile(lambda: app)

app: App = App(
    name="p2pinfer",
    help=f"Pool ordinary machines into a swarm that runs one language model.\n{EXIT_CODES}",
    version=lambda: _version(),
    help_format="plaintext",
    config=CONFIG,
)
for _name, (_where, _help) in COMMANDS.items():
    app.command(f"p2pinfer.cli.{_where}", name=_name, help=_help)


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)], log: LogFlags = LOG
) -> None:
    """Begin to log, and run the command that the other words name."""
    log.begin()
    app(tokens, exit_on_error=False, print_error=False)


def spread(words: Sequence[str]) -> list[str]:
    """Put the option before each of several addresses, so that a question behind them is one.

    What begins with a slash behind an address is another address.
    """
    found: list[str] = []
    is_due = is_behind = False
    for word in words:
        if is_behind and word.startswith("/"):
            found.append("--bootstrap")
        else:
            is_behind = is_due or word.startswith("--bootstrap=")
            is_due = word == "--bootstrap"
        found.append(word)
    return found


def parse(words: Sequence[str]) -> None:
    """Parse a command line as ``main`` would, and run nothing; raises CycloptsError, UserError.

    What its options are set to is in ``CONFIG`` afterwards.
    """
    _, bound, _ = app.meta.parse_args(spread(words), exit_on_error=False, print_error=False)
    app.parse_args(bound.args, exit_on_error=False, print_error=False)


def _version() -> str:
    from importlib.metadata import version  # which imports much that is needed for nothing else

    return version("p2pinfer")


def main() -> None:
    """Run the command line, and turn what goes wrong into a sentence and an exit code."""
    try:
        with errors.lone_errors():
            app.meta(spread(sys.argv[1:]), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(_usage(error), errors.EXIT_USAGE)
    except P2pinferError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        sys.exit(errors.EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output is gone; Python would try once more to write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(errors.EXIT_FAILED)
    except OSError as error:  # a full disk, a file that nobody may read
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}", errors.EXIT_FAILED)
    except Exception as error:  # noqa: BLE001 -- a mistake of ours, which is no reading matter
        logs.tell_mistake(error)
        sys.exit(errors.EXIT_FAILED)


def _usage(error: CycloptsError) -> str:
    """Say what is wrong with a command line, and where to read what can be typed."""
    if isinstance(error, UnusedCliTokensError):
        words = " ".join(error.unused_tokens or ())
        text = f"unexpected {words!r}: put a question of several words into quotes."
    else:
        text = str(error)
    command = " ".join(["p2pinfer", *(error.command_chain or ())])
    return f"{text} See: {command} --help"


def _fail(text: str, code: int) -> None:
    logs.note(text, failed=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
