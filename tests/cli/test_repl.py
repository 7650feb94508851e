"""The chat on a terminal: commands, files, and Markdown shown while it is generated."""

import io
import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from p2pinfer.cli import repl, terminal
from p2pinfer.cli.markdown import MarkdownStream, split_whole
from p2pinfer.cli.repl import Repl, load, make_prompt, save, with_system
from p2pinfer.client.answer import Answer
from p2pinfer.client.conversation import Conversation
from p2pinfer.core.errors import UserError
from p2pinfer.core.trust import Trust
from p2pinfer.node.marked import read_marked
from p2pinfer.node.requester import Client

TEXT = "# Trees\n\nAn *oak*.\n\n```python\nprint(1)\n\nprint(2)\n```\n\n1. one\n2. two\n\nThe end"


class FakeConversation:
    """Gives the same answer to everything, and remembers the questions."""

    def __init__(self) -> None:
        self.messages: list[dict[str, str]] = []
        self.asked: list[str] = []
        self.thinks = True

    def think(self, *, wanted: bool) -> None:
        """Take it in."""
        self.thinks = wanted

    def reset(self) -> None:
        """Forget."""
        self.messages = []

    async def ask(self, question: str, show: Any) -> Answer:
        """Answer."""
        self.asked.append(question)
        show("Yes.")
        said = {"role": "assistant", "content": "Yes."}
        self.messages += [{"role": "user", "content": question}, said]
        return Answer(
            "Yes.",
            tokens=2,
            tokens_per_second=40.0,
            route=[{"peer": "12D3KooWabcdef", "layers": "1:29"}],
            trust=Trust(1, 5, 0.1),
        )


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return the buffer that notes to the person go to."""
    written = io.StringIO()
    console = Console(file=written, width=200)
    monkeypatch.setattr(terminal, "notes", console)
    monkeypatch.setattr(repl, "notes", console)
    return written


def talk() -> tuple[Repl, FakeConversation]:
    """Return a chat whose prompt is not used."""
    found = FakeConversation()
    info = SimpleNamespace(name="Toy", layers=30)
    others = {"cd" * 32: "Other Model"}
    client = SimpleNamespace(model=SimpleNamespace(info=info, id="ab" * 32), models=lambda: others)
    prompt = cast("PromptSession[str]", None)
    return Repl(cast("Conversation", found), cast("Client", client), prompt), found


async def test_each_command_works(notes: io.StringIO, tmp_path: Path) -> None:
    """Each command, before and after an answer."""
    made, found = talk()
    file = str(tmp_path / "kept.json")
    for word in ("/route", "/verify", "/retry", "/help", "/nonsense"):
        await made.command(word, "")
    for name in ("", "toy", "Neither"):
        assert made.model(name) is None
    assert made.model("other model") == "cd" * 32
    await made._answer("Is it?")
    for word, rest in (("/route", ""), ("/verify", ""), ("/retry", ""), ("/save", file)):
        await made.command(word, rest)
    assert found.asked == ["Is it?", "Is it?"]
    assert len(found.messages) == 2
    await made.command("/reset", "")
    await made.command("/load", file)
    await made.command("/system", "Be brief.")
    assert [each["role"] for each in found.messages] == ["system", "user", "assistant"]
    await made.command("/save", file)
    await made.command("/think", "off")
    assert not found.thinks
    await made.command("/think", "")
    await made.command("/think", "on")
    assert found.thinks
    said = notes.getvalue()
    for words in (
        "There is no answer yet.",
        "no question has been asked yet",
        "Unknown command /nonsense",
        "12D3KooWabcdef",
        "checked: the one peer signed for its part; none was re-run this time (1 in 10 is)",
        "1 peer signed for 5 rows",
        "already exists",
        "type /think on, or /think off",
        "* Toy  " + "ab" * 32,
        "  Other Model  " + "cd" * 32,
        "nobody serves a model Neither; this swarm has Toy, Other Model",
    ):
        assert words in said
    assert "40.0 tokens/s · checked" in made.status()


async def test_answers_are_marked_and_mended(
    notes: io.StringIO,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They become lessons at home; a mended one stands in the conversation from then on."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))
    made, found = talk()
    for word, rest in (("/good", ""), ("/mend", "No.")):
        await made.command(word, rest)
    assert notes.getvalue().count("there is no answer yet to mark") == 2
    await made._answer("Is it?")
    await made.command("/mend", "")
    assert "/mend TEXT" in notes.getvalue()
    await made.command("/good", "")
    assert [each[-1]["content"] for each in read_marked()] == ["Yes."]
    await made.command("/mend", "No, since June.")
    assert found.messages[-1]["content"] == "No, since June."
    await made._answer("Why?")
    await made.command("/good", "")
    lessons = [[turn["content"] for turn in each] for each in read_marked()]
    assert lessons == [["Is it?", "No, since June."], ["Is it?", "No, since June.", "Why?", "Yes."]]
    assert "2 in all" in capsys.readouterr().out + notes.getvalue()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"messages": 5}', '{"messages": [{"role": "x", "content": "y"}]}',
                '{"messages": [{"role": "user", "content": 5}]}', "[" * 100_000]
)  # fmt: skip
def test_load_refuses_files_that_are_not_conversations(tmp_path: Path, content: str) -> None:
    """In one sentence."""
    file = tmp_path / "file"
    file.write_text(content)
    with pytest.raises(UserError):
        load(str(file))
    with pytest.raises(UserError):
        load(str(tmp_path / "nowhere"))
    with pytest.raises(UserError):
        save([], str(tmp_path / "no" / "folder"))


def test_system_message_is_replaced_and_removed() -> None:
    """A conversation never has more than one."""
    asked = {"role": "user", "content": "x"}
    once = with_system([asked], "a")
    assert with_system(once, "b") == [{"role": "system", "content": "b"}, asked]
    assert with_system(once, "") == [asked]


def test_saved_conversation_is_plain_json(tmp_path: Path) -> None:
    """Other programs can read it."""
    file = tmp_path / "kept.json"
    messages = [{"role": "user", "content": "ä"}]
    save(messages, str(file))
    assert json.loads(file.read_text("utf-8")) == {"messages": messages}
    assert load(str(file)) == messages


@given(st.lists(st.integers(1, len(TEXT) - 1), max_size=8))
def test_markdown_looks_the_same_however_it_is_split(cuts: list[int]) -> None:
    """Nothing is lost, repeated or torn; code with an empty line in it stays whole."""

    def shown(pieces: list[str]) -> str:
        written = io.StringIO()
        stream = MarkdownStream(Console(file=written, width=60))
        for piece in pieces:
            stream.feed(piece)
        stream.end()
        return "\n".join(line.rstrip() for line in written.getvalue().splitlines() if line.strip())

    bounds = [0, *sorted(set(cuts)), len(TEXT)]
    pieces = [TEXT[a:b] for a, b in pairwise(bounds)]
    found = shown(pieces)
    for words in ("Trees", "An oak.", "print(1)", "print(2)", "The end"):
        assert found.count(words) == 1
    assert "```" not in found


def test_open_code_is_not_split() -> None:
    """Until its fence is closed, nothing after it is whole."""
    assert split_whole("a\n\n```\nx\n\ny") == ("a\n\n", "```\nx\n\ny")
    assert split_whole("a\n\n```\nx\n\ny\n```\n\nb")[1] == "b"


def test_keys_send_start_lines_and_search(tmp_path: Path) -> None:
    """Enter sends, Alt-Enter does not, and Ctrl-R finds what was typed before."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        prompt = make_prompt(tmp_path / "history")
        keys.send_text("one\x1b\rtwo\r")
        assert prompt.prompt("> ") == "one\ntwo"
        keys.send_text("other\r")
        assert prompt.prompt("> ") == "other"
        keys.send_text("\x12two\r\r")
        assert prompt.prompt("> ") == "one\ntwo"


def test_a_prompt_must_be_utf8_text() -> None:
    """Python passes other bytes on as surrogates, which no model reads."""
    assert terminal.question_of("Who?", as_json=True) == "Who?"
    for bad in (" \n", "caf\udce9"):
        with pytest.raises(UserError):
            terminal.question_of(bad, as_json=True)
