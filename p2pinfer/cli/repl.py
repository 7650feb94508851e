"""A conversation on a terminal: questions with history and search, answers, and /commands."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trio
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.filters import is_searching
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console

from p2pinfer.cli.markdown import MarkdownStream
from p2pinfer.cli.terminal import notes, say, summary, until_interrupt, words, write
from p2pinfer.client.answer import Answer
from p2pinfer.client.conversation import Conversation
from p2pinfer.core.errors import P2pinferError, UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.core.model_names import readable_name
from p2pinfer.engine.template import Message
from p2pinfer.node.marked import mark
from p2pinfer.node.requester import Client

SAVED_BYTES_MAX = 8_000_000
"""Of a saved conversation: more text than the longest context holds."""

COMMANDS = {
    "/route": "show which peer ran which layers (1:10 is layers 1 to 9, counted from 0)",
    "/verify": "show all that was checked of the last answer",
    "/retry": "ask the last question again",
    "/good": "mark the last answer as good: it is kept here, to learn from",
    "/mend TEXT": "say what the last answer should have been; kept here, to learn from",
    "/save FILE": "save the conversation",
    "/load FILE": "load a saved conversation",
    "/system TEXT": "set the system message (empty text clears it)",
    "/model NAME": "show which models the swarm serves, or ask another one",
    "/think on|off": "let the model think before it answers, or not",
    "/reset": "clear the conversation",
    "/quit": "leave (or Ctrl-D)",
}

KEYS = "Ctrl-C stops an answer; Alt-Enter starts a new line; Ctrl-R searches earlier questions."


class Repl:
    """A person at a terminal, in a conversation."""

    def __init__(
        self, conversation: Conversation, client: Client, prompt: "PromptSession[str]"
    ) -> None:
        self._conversation, self._client, self._prompt = conversation, client, prompt
        self.last: Answer | None = None
        self._words = words()

    async def run(self) -> ModelId | None:
        """Answer questions until the person leaves, or wants another model, which is returned."""
        say(self._words("Ask something, or type /help for commands."))
        while True:
            typed = await trio.to_thread.run_sync(self._read)
            word, _, rest = typed.strip().partition(" ")
            if word in {"/quit", "/exit", "/bye"}:
                return None
            if word == "/model":
                if wanted := self.model(rest.strip()):
                    return wanted
            elif word.startswith("/"):
                await self.command(word, rest.strip())
            elif word:
                await self._answer(typed)

    async def command(self, word: str, rest: str) -> None:
        """Run a command; an error is shown, and the conversation goes on."""
        _ = self._words
        try:
            match word:
                case "/help" | "/?":
                    width = max(map(len, COMMANDS))
                    say("\n".join(f"{name:{width}}  {_(text)}" for name, text in COMMANDS.items()))
                    say(_(KEYS))
                case "/reset":
                    self._conversation.reset()
                    say(_("The conversation is cleared."))
                case "/route":
                    say(_(route_text(self.last)))
                case "/verify":
                    say(trust_text(self.last))
                case "/think":
                    if rest not in {"on", "off"}:
                        raise UserError("type /think on, or /think off")
                    self._conversation.think(wanted=rest == "on")
                    say(_(f"Thinking is {rest}."))
                case "/system":
                    self._conversation.messages = with_system(self._conversation.messages, rest)
                    say(_(f"The system message is {'set' if rest else 'cleared'}."))
                case "/good":
                    self._mark()
                case "/mend":
                    self._mark(rest)
                case "/save":
                    save(self._conversation.messages, rest)
                    say(_("Saved to {0}.", rest))
                case "/load":
                    self._conversation.messages = load(rest)
                    say(_("Loaded {0} messages.", len(self._conversation.messages)))
                case "/retry":
                    await self._retry()
                case _:
                    say(_("Unknown command {0}; /help lists the commands.", word))
        except UserError as error:
            self._refuse(error)

    def model(self, name: str) -> ModelId | None:
        """Return the model of a name that is to be asked from now on; without one, list them."""
        now = self._client.model.id
        models = {now: self._client.model.info.name} | self._client.models()
        try:
            wanted = model_named(name, models) if name else now
        except UserError as error:
            self._refuse(error)
            return None
        if wanted != now:
            return wanted
        for model, full in models.items():
            say(f"{'*' if model == now else ' '} {readable_name(full)}  {model}")
        return None

    def _refuse(self, error: P2pinferError) -> None:
        notes.print(self._words(str(error)), style="red", markup=False)

    def status(self) -> str:
        """Return a line about the last answer, for the toolbar under the prompt."""
        if self.last is None:
            return f" {self._client.model.info.name}"
        chain = " → ".join(f"…{hop['peer'][-6:]}" for hop in self.last.route)
        trust = self.last.trust
        _ = self._words
        checked = "" if trust is None else f" · {_('checked') if trust.held else _('NOT TRUSTED')}"
        return f" {self.last.tokens_per_second:.1f} tokens/s{checked} · {chain}"  # may be cut off

    def _read(self) -> str:
        """Read one question; ``/quit`` at the end of input, nothing on Ctrl-C."""
        try:
            return self._prompt.prompt("> ", bottom_toolbar=self.status, handle_sigint=False)
        except KeyboardInterrupt:
            return ""
        except EOFError:
            return "/quit"

    def _mark(self, instead: str | None = None) -> None:
        """Keep the last answer as a lesson, or what it should have been; raises UserError."""
        messages = self._conversation.messages
        if not messages or messages[-1]["role"] != "assistant":
            raise UserError("there is no answer yet to mark")
        if instead is not None:
            if not instead:
                raise UserError("say what the answer should have been: /mend TEXT")
            messages = [*messages[:-1], {"role": "assistant", "content": instead}]
        try:
            count = mark(messages)
        except OSError as error:
            raise UserError(f"cannot keep the answer: {error.strerror}") from error
        self._conversation.messages = messages
        say(self._words("Kept on this machine, {0} in all; p2pinfer marked shows them.", count))

    async def _retry(self) -> None:
        messages = self._conversation.messages
        asked = [at for at, each in enumerate(messages) if each["role"] == "user"]
        if not asked:
            raise UserError("no question has been asked yet")
        self._conversation.messages = messages[: asked[-1]]
        await self._answer(messages[asked[-1]]["content"])

    async def _answer(self, question: str) -> None:
        """Show an answer; Ctrl-C stops it, an error is shown, and the conversation goes on."""
        show, end = answer_shower()
        answer: Answer | None = None
        async with until_interrupt():
            try:
                answer = await self._conversation.ask(question, show)
            except P2pinferError as error:
                end()
                self._refuse(error)
                return
        end()
        self.last = answer or self.last
        say(summary(answer) if answer else self._words("[stopped]"))


def answer_shower() -> tuple[Callable[[str], None], Callable[[], None]]:
    """Return functions that show a piece of an answer and end it; Markdown only on a terminal."""
    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        stream = MarkdownStream(console)
        return stream.feed, stream.end
    return write, lambda: write("\n")


def route_text(answer: Answer | None) -> str:
    """Return which peer ran which layers of an answer."""
    if answer is None:
        return "There is no answer yet."
    lines = [f"{hop['layers']:>7}  {hop['peer']}" for hop in answer.route]
    lines += path_lines(answer.path)
    drafted = answer.drafts_kept + answer.drafts_dropped
    if drafted:
        right = "{0} of {1} tokens sent ahead were the right ones"
        lines.append(words()(right, answer.drafts_kept, drafted))
    return "\n".join(lines)


def path_lines(path: Sequence[str]) -> list[str]:
    """Return which relays an answer went through, and what they promise."""
    if not path:
        return []
    _, last = words(), f"…{path[-1][-6:]}"
    lines = [
        _("through {0}", " → ".join(path)),
        _(
            "the stages saw the address of {0} and an id drawn for this conversation, not yours",
            last,
        ),
    ]
    if len(path) == 1:
        lines.append(
            _("the relay saw your address and which peers you asked, and could read nothing")
        )
    else:
        lines.append(_("the first relay saw your address, and of the others only {0}", last))
        lines.append(_("{0} saw the first relay and the peers you asked, not your address", last))
    lines.append(_("who watches your line and a stage's, or runs both, can still tell by timing"))
    return lines


def trust_text(answer: Answer | None) -> str:
    """Return all that was checked of an answer."""
    if answer is None:
        return words()("There is no answer yet.")
    if answer.trust is None:
        return words()("Nothing was checked of the last answer.")
    return "\n".join(map(words(), [answer.trust.line(), *answer.trust.details()]))


def model_named(name: str, models: Mapping[ModelId, str]) -> ModelId:
    """Return the model that a person names; raises UserError, which lists what there is."""
    for model, full in models.items():
        if name.casefold() in {model, full.casefold(), readable_name(full).casefold()}:
            return model
    known = ", ".join(map(readable_name, models.values()))
    raise UserError(f"nobody serves a model {name}; this swarm has {known}")


def with_system(messages: list[Message], text: str) -> list[Message]:
    """Return a conversation with another system message, or with none."""
    others = [each for each in messages if each["role"] != "system"]
    return [{"role": "system", "content": text}, *others] if text else others


def save(messages: list[Message], name: str) -> None:
    """Save a conversation to a new file; raises UserError."""
    if not name:
        raise UserError("name a file: /save FILE")
    try:
        with Path(name).expanduser().open("x", encoding="utf-8") as file:
            json.dump({"messages": messages}, file, ensure_ascii=False, indent=1)
    except FileExistsError:
        raise UserError(f"{name} already exists: choose another name") from None
    except OSError as error:
        raise UserError(f"cannot write {name}: {error.strerror}") from error


def load(name: str) -> list[Message]:
    """Return a saved conversation; raises UserError."""
    if not name:
        raise UserError("name a file: /load FILE")
    try:
        with Path(name).expanduser().open("rb") as file:
            data = file.read(SAVED_BYTES_MAX + 1)
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from error
    try:
        found = json.loads(data)["messages"] if len(data) <= SAVED_BYTES_MAX else None
        messages = [{"role": each["role"], "content": each["content"]} for each in found or ()]
    except (ValueError, KeyError, TypeError, RecursionError):
        messages = []
    roles = {"system", "user", "assistant"}
    good = all(m["role"] in roles and isinstance(m["content"], str) for m in messages)
    if not messages or not good:
        raise UserError(f"{name} is not a conversation that /save wrote")
    return messages


def make_prompt(history: Path) -> "PromptSession[str]":
    """Return the prompt: Enter sends, Alt-Enter and pasted line ends start new lines."""
    keys = KeyBindings()

    @keys.add("enter", filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    words = [name.split()[0] for name in COMMANDS]
    return PromptSession(
        history=FileHistory(str(history)),
        key_bindings=keys,
        multiline=True,
        prompt_continuation="  ",
        completer=WordCompleter(words, sentence=True),
        complete_while_typing=False,
        enable_open_in_editor=False,
    )


async def converse(conversation: Conversation, client: Client, history: Path) -> ModelId | None:
    """Hold a conversation on the terminal; returns as ``Repl.run``."""
    assert sys.stdin.isatty()
    return await Repl(conversation, client, make_prompt(history)).run()
