"""The command line: parse, call one function, print, choose the exit code."""

import errno
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter, UnusedCliTokensError

from p2pinfer import logs
from p2pinfer.cli.config_file import ConfigFile
from p2pinfer.cli.options import INVITED, LOG, OPTIONS, LogFlags
from p2pinfer.core import errors
from p2pinfer.core.errors import P2pinferError

if TYPE_CHECKING:
    from cyclopts.help import DefaultFormatter, HelpPanel
    from rich.console import Console, ConsoleOptions

EXIT_CODES = """
Exit codes: 0 done, 1 failed, 2 unusable input, 3 no peers serve this model,
4 verification failed, or a part is damaged or incomplete, 130 interrupted.

Every option can also be set as the environment variable P2PINFER_<NAME>, or in
the settings file that p2pinfer config names.
"""

BEGIN = """\
p2pinfer runs one language model on many machines.

  p2pinfer demo               try it: chat with a swarm of three peers on this machine
  p2pinfer chat               chat through a swarm
  p2pinfer join               lend this machine to a swarm

p2pinfer --help lists the rest.
"""

ASK = Group("Chat and lend", sort_key=1)
LOOK = Group("Inspect", sort_key=2)
KEEP = Group("Manage", sort_key=3)
STUDY = Group("Simulate and measure", sort_key=4)

COMMANDS = {
    "demo": (
        ASK,
        "chat:demo",
        "Start a swarm of local peers, each in its own process, and chat with it.",
    ),
    "chat": (ASK, "chat:chat", "Chat with a model through a swarm."),
    "serve": (
        ASK,
        "serve:serve",
        (
            "Serve an OpenAI-compatible API and a web page that shows the swarm.\n\n"
            "Options that shape answers are defaults; each request may override them."
        ),
    ),
    "join": (
        ASK,
        "join:join",
        (
            "Lend this machine to a swarm: serve the layers of a model where it helps most.\n\n"
            "The first Ctrl-C lets sessions finish and hands the layers over; the second stops at"
            " once."
        ),
    ),
    "invite": (
        ASK,
        "invite:invite",
        (
            "Print an invitation into a swarm, which join and chat take on other machines: one"
            " line, and on a terminal a QR code.\n\n"
            "It names addresses that a peer running here knows, or else those where peers answered"
            " before. An invitation into a private network holds the key."
        ),
    ),
    "relay": (
        ASK,
        "relay:relay",
        (
            "Relay for peers behind routers, without serving layers.\n\n"
            "Others must be able to dial it. It cannot read what it carries."
        ),
    ),
    "keep": (
        ASK,
        "keep:keep",
        (
            "Lend disk space to a model, so that it outlives the machines that serve it.\n\n"
            "Each keeper holds some shares of it, data or parity; any half of all shares give it"
            " back. What is lost is rebuilt. No layers are served; join --keep-space lends both."
        ),
    ),
    "peers": (
        LOOK,
        "peers:peers",
        (
            "Show which peers serve which layers, and how fast; with --why, diagnose this machine."
            "\n\nStanding is how reliable a peer was in this machine's own chats; a new one has"
            " 50 %. The options under This machine matter with --why alone: would a layer fit?"
        ),
    ),
    "status": (
        LOOK,
        "status:status",
        (
            "Show what this machine serves, to which peers, how fast, and what it has earned.\n\n"
            "It also succeeds when no p2pinfer process is running."
        ),
    ),
    "verify": (LOOK, "verify:app", "Check an answer's certificate or a fraud proof offline."),
    "marked": (KEEP, "marked:marked", "Show the answers that you marked, or erase some."),
    "learn": (
        KEEP,
        "learn:learn",
        (
            "Teach a model from your own lessons, alone or with others.\n\n"
            "The last layers learn an adapter (LoRA); the model itself stays as it is. The model"
            " with the adapter is a model of its own: p2pinfer chat --model NAME, or join.\n\n"
            "The other layers run here, or at the peers of a swarm named by --bootstrap, an"
            " invitation or --mdns, which see of the lessons what they see of any prompt. Only the"
            " ends of the model must then be here. The learning itself stays on this machine.\n\n"
            "With --propose or --with several machines learn one adapter in rounds, each from its"
            " own lessons, which stay there. What each has learned leaves it encrypted, and only"
            " sums over several members can be opened. The same command continues a run that was"
            " stopped."
        ),
    ),
    "model": (KEEP, "model:app", "Add, list, check and remove models."),
    "network": (
        KEEP,
        "network:app",
        "Found a network, invite and expel members; or create the key of a private one.",
    ),
    "config": (
        KEEP,
        "config:config",
        (
            "Show all settings and where each comes from.\n\n"
            "Options override environment variables, which override the settings file, which"
            " overrides defaults. The file is TOML: one option per line, without its dashes; lines"
            " under [join], or another command's name, apply to that command only."
        ),
    ),
    "service": (
        KEEP,
        "service:service",
        ("Print a systemd user unit (on macOS a launchd plist) that runs join in the background."),
    ),
    "sim": (STUDY, "sim:app", "Simulate a network, with the code that real peers run."),
    "bench": (STUDY, "bench:app", "Run a benchmark and print its result as JSON."),
    "--install-completion": (
        OPTIONS,
        "completion:install_completion",
        "Install completion of commands and options in the shell.",
    ),
}
"""Each command's group, its place in the code, and its help, whose first line is listed. With
these, listing the commands loads none of them."""

RENAMED = {
    "doctor": ("peers:doctor", "peers --why"),
    "ps": ("status:ps", "status --open-sessions"),
    "ledger": ("status:ledger", "status --ledger, or p2pinfer status --export csv"),
    "network-key": ("network:key", "network key"),
    "key": ("key:app", "network key, or p2pinfer model proof-key"),
}
"""Commands of earlier versions: they still work, and name their new spelling."""


class Filled:
    """The usual help, but each paragraph of a description fills the width of the terminal."""

    def render_usage(self, console: "Console", options: "ConsoleOptions", usage: Any) -> None:
        """Print how the command is typed."""
        self._usual().render_usage(console, options, usage)

    def render_description(
        self, console: "Console", options: "ConsoleOptions", description: Any
    ) -> None:
        """Print what the command does."""
        text = description.primary_renderable
        text.plain = re.sub(r"(?<=\S)\n(?=\S)", " ", text.plain)
        self._usual().render_description(console, options, description)

    def __call__(self, console: "Console", options: "ConsoleOptions", panel: "HelpPanel") -> None:
        """Print a panel of arguments, options or commands."""
        self._usual()(console, options, panel)

    @staticmethod
    def _usual() -> "DefaultFormatter":
        from cyclopts.help import DefaultFormatter  # takes a seventh of a second

        return DefaultFormatter()


CONFIG = ConfigFile(lambda: app)

app: App = App(
    name="p2pinfer",
    help="Pool ordinary machines into a swarm that runs one language model.",
    help_epilogue=EXIT_CODES,
    version=lambda: _version(),
    help_format="plaintext",
    help_formatter=Filled(),
    config=CONFIG,
)
app["--help"].group = app["--version"].group = (OPTIONS,)
app.meta.group_parameters = OPTIONS
for _name, (_group, _where, _help) in COMMANDS.items():
    app.command(f"p2pinfer.cli.{_where}", name=_name, help=_help, group=_group)
# An extra, which few want: it is not listed.
SETTLE = "Pay for what was stated, or be paid, on an EVM chain; needs p2pinfer[settle]."
app.command("p2pinfer.cli.settle:app", name="settle", help=SETTLE, show=False)
for _name, (_where, _now) in RENAMED.items():
    app.command(f"p2pinfer.cli.{_where}", name=_name, help=f"Now: p2pinfer {_now}", show=False)


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)], log: LogFlags = LOG
) -> None:
    """Start logging, and run the command that the remaining words name."""
    log.begin()
    if not tokens:
        print(BEGIN, end="")
        return
    if tokens[0] in RENAMED:
        logs.note(f"p2pinfer {tokens[0]} is now: p2pinfer {RENAMED[tokens[0]][1]}")
    app(tokens, exit_on_error=False, print_error=False)


def spread(words: Sequence[str]) -> list[str]:
    """Repeat --bootstrap before each of several addresses, so that a prompt may follow them.

    A word that follows an address and begins with a slash is another address. And put
    --invitation before an invitation, which is no prompt.
    """
    found: list[str] = []
    is_value = follows_address = False
    for word in words:
        if follows_address and word.startswith("/"):
            found.append("--bootstrap")
        elif word[: len(INVITED)].upper() == INVITED and len(word.split()) == 1:
            if found[-1:] not in (["--invitation"], ["--revoke"]):
                found.append("--invitation")
            follows_address = False
        else:
            follows_address = is_value or word.startswith("--bootstrap=")
            is_value = word == "--bootstrap"
        found.append(word)
    return found


def parse(words: Sequence[str]) -> None:
    """Parse a command line as ``main`` would, without running it; raises CycloptsError, UserError.

    Afterwards ``CONFIG`` holds the values of its options.
    """
    _, bound, _ = app.meta.parse_args(spread(words), exit_on_error=False, print_error=False)
    app.parse_args(bound.args, exit_on_error=False, print_error=False)


def _version() -> str:
    from importlib.metadata import version  # which imports much that nothing else needs

    return version("p2pinfer")


def main() -> None:
    """Run the command line, and turn every failure into a sentence and an exit code."""
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
        # The reader of our output is gone; at exit Python would try again to write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(errors.EXIT_FAILED)
    except OSError as error:  # such as a full disk or an unreadable file
        _fail(*_system_refusal(error))
    except Exception as error:  # noqa: BLE001 -- a bug: people get a sentence, not a traceback
        logs.tell_mistake(error)
        sys.exit(errors.EXIT_FAILED)


def _system_refusal(error: OSError) -> tuple[str, int]:
    """Return what the system refused, with a remedy where one is known, and the exit code."""
    place = f"{error.filename}: " if error.filename else ""
    remedies = {
        errno.ENOSPC: "make room, or set P2PINFER_HOME to a directory on another disk",
        errno.EDQUOT: "make room, or set P2PINFER_HOME to a directory on another disk",
        errno.EROFS: "set P2PINFER_HOME to a directory that you may write to",
    }
    text = f"{place}{error.strerror or error}"
    if error.errno in remedies:
        return f"{text}: {remedies[error.errno]}", errors.EXIT_USAGE
    return text, errors.EXIT_FAILED


def _usage(error: CycloptsError) -> str:
    """Return what is wrong with a command line, and which --help to read."""
    if isinstance(error, UnusedCliTokensError):
        words = " ".join(error.unused_tokens or ())
        advice = ""
        if words.lower().endswith(".gguf"):
            advice = "; name a model's file by --model"
        elif {"chat", "demo"} & {*(error.command_chain or ())}:
            advice = "; quote a prompt that contains spaces"
        text = f"unexpected argument {words!r}{advice}."
    else:
        text = str(error)
    command = " ".join(["p2pinfer", *(error.command_chain or ())])
    return f"{text} See: {command} --help"


def _fail(text: str, code: int) -> None:
    logs.note(text, failed=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
