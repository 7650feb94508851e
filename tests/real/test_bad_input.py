"""Bad input is refused with one clear sentence and the documented exit code."""

import io
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from p2pinfer.cli import main
from p2pinfer.node.identity_lock import hold_identity
from tests.support.processes import Peer, start_peers
from tests.support.tiny_models import TINY, write_tiny

pytestmark = pytest.mark.real

SENTENCE = re.compile(r"p2pinfer: [^\n]{20,}\n")
HERE = ["--listen", "/ip4/127.0.0.1/tcp/0"]
NOBODY = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGFgCLy6XehU9vhoStQAgaNDPQPoRbqRbZiE85zLuEQb8"


@dataclass
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str
    """The last line; those before it only report progress."""


Command = Callable[..., Said]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Provide a function that runs a command in this process, which must start no other."""

    def run(*words: str, stdin: str = "") -> Said:
        monkeypatch.setattr(sys, "argv", ["p2pinfer", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as end:
            main.main()
        out, err = capsys.readouterr()
        *notes, last = err.splitlines(keepends=True)
        assert [note for note in notes if "…" not in note and " of disk in " not in note] == []
        assert isinstance(end.value.code, int)
        return Said(end.value.code, out, last)

    return run


def check(said: Said, code: int, words: str) -> None:
    """Check an exit code, and that the only sentence matches ``words``."""
    assert (said.code, said.out) == (code, "")
    assert SENTENCE.fullmatch(said.err)
    assert re.search(words, said.err), said.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--max-tokens 0", "--max-tokens must be at least 1, not 0"),
        ("--peers 0", "--peers must be from 1 to 16 for 28 layers"),
        ("--peers 99", "--peers must be from 1 to 16 for 28 layers"),
        ("--peers three", '--peers: unable to convert "three" into int.*demo --help'),
        ("--temperature -1", "--temperature must be >= 0"),
        ("--top-p 2", "--top-p must be <= 1"),
        ("--seed -1", "--seed must be >= 0"),
        ("--threads 0", "--threads must be from 1 to [0-9]+, not 0"),
        ("--threads 9999", "--threads must be from 1 to [0-9]+, not 9999"),
        ("--sessions 0", "--sessions must be from 1 to [0-9]+, not 0"),
        ("--context 0", "--context must be from 64 to 4194304, not 0"),
        ("--context 10000000", "--context must be from 64 to 4194304, not 10000000"),
        ("--keep-layers -1", "--keep-layers must be at least 0, not -1"),
        ("--keep-layers 15", "--keep-layers must be from 0 to 14: .* has 30 layers"),
        ("--keep-layers 30", "--keep-layers must be from 0 to 14: .* has 30 layers"),
        ("--keep-layers 14", "--peers must be from 1 to 2 for 2 layers"),
        ("--no-draft --draft-model default", "which --no-draft switches off: drop one"),
        ("--peers 99 --draft-model none.gguf", "cannot read none.gguf: No such file"),
        ("--bogus", "Unknown option: --bogus.*p2pinfer demo --help"),
        ("there", "unexpected argument 'there'; quote a prompt that contains spaces"),
        ("m.gguf", "unexpected argument 'm.gguf'; name a model's file by --model"),
    ],
)
def test_options_out_of_range(command: Command, options: str, words: str) -> None:
    """They are refused before any peer is started."""
    check(command("demo", "Hi", *options.split()), 2, words)


def test_more_sessions_than_memory(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what is needed and what is free; the model allows 8,192 positions."""
    words = "8 sessions of 8,192 positions need .* GiB of memory, and {} GiB are free: .*--context"
    monkeypatch.setattr("p2pinfer.node.requester.available_bytes", lambda: 1 << 30)
    check(command("demo", "Hi", "--context", "1000000"), 2, words.format("1.0"))
    monkeypatch.setattr("p2pinfer.node.requester.available_bytes", lambda: 1 << 28)
    join = ["join", "--layers", "1:10", *HERE, "--context", "1000000"]
    check(command(*join), 2, words.format("0.2"))


def test_less_memory_than_the_weights_take(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even with few sessions."""
    monkeypatch.setattr("p2pinfer.node.requester.available_bytes", lambda: 1 << 26)
    monkeypatch.setattr("p2pinfer.node.requester.swap_bytes", lambda: 0)
    few = ["--sessions", "1", "--context", "64"]
    words = "needs at least {} MiB of memory, and 64 MiB are free: end other programs"
    check(command("demo", "Hi", *few), 2, "with 3 local peers " + words.format(862))
    check(command("join", "--layers", "1:10", *HERE, *few), 2, words.format("[0-9]+"))


def test_options_are_checked_before_any_peer_is_asked(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No peer answers at the address, yet the error is about the invalid option."""
    words = ["chat", "hi", "--model", "default", "--bootstrap", NOBODY]
    check(command(*words, "--keep-layers", "15"), 2, "--keep-layers must be from 0 to 14")
    check(command(*words, "--keep-layers", "0"), 2, "open network would see .* say --show-tokens")
    check(command(*words), 3, "no peer answers")
    monkeypatch.setattr("p2pinfer.node.requester.available_bytes", lambda: 1 << 20)
    check(command(*words), 2, "this machine's part of .* needs at least .* of memory")


@pytest.mark.parametrize(
    "words", [["demo"], ["demo", ""], ["demo", " \n"], ["chat", "--mdns", "--json"]]
)
def test_empty_prompts(command: Command, words: list[str]) -> None:
    """An empty prompt, or an empty pipe."""
    check(command(*words, stdin="  \n"), 2, "nothing to answer: type a prompt, or pipe one in")


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (b"hello, this is no model at all", "model.gguf is not a GGUF file"),
        (b"", "model.gguf is cut short"),
        (1_000_000, "model.gguf is cut short: it ends within its header"),
        (90_000_000, "model.gguf is cut short: it has 90,000,000 bytes"),
    ],
)
def test_file_that_is_not_a_whole_model(
    command: Command, default_model: Path, tmp_path: Path, kept: bytes | int, words: str
) -> None:
    """Another kind of file, or the beginning of a model."""
    path = tmp_path / "model.gguf"
    path.write_bytes(default_model.read_bytes()[:kept] if isinstance(kept, int) else kept)
    check(command("demo", "Hi", "--model", str(path)), 2, words)
    check(command("join", "--layers", "1:10", *HERE, "--model", str(path)), 2, words)


def test_model_that_does_not_exist(command: Command, tmp_path: Path) -> None:
    """No such file, or a directory."""
    missing = str(tmp_path / "none.gguf")
    check(command("demo", "Hi", "--model", missing), 2, "cannot read .*none.gguf: No such file")
    check(command("demo", "Hi", "--model", str(tmp_path)), 2, "cannot read .*: Is a directory")
    check(command("demo", "--model", missing), 2, "cannot read .*none.gguf: No such file")


def test_model_that_cannot_be_cut(command: Command, tmp_path: Path) -> None:
    """An architecture not proven to compute the same in slices."""
    path = tmp_path / "bloom.gguf"
    write_tiny(replace(TINY["llama"], architecture="bloom"), path)
    check(command("demo", "Hi", "--model", str(path)), 2, "bloom")
    check(command("join", "--layers", "1:3", *HERE, "--model", str(path)), 2, "bloom")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("5:40", "has no layers 5:40; choose a range within 0:30"),
        ("10:5", "--layers 10:5 is not a range such as 10:20"),
        ("5:5", "--layers 5:5 is not a range such as 10:20"),
        ("10", "--layers 10 is not a range such as 10:20"),
        ("a:b", "--layers a:b is not a range such as 10:20"),
        ("-1:5", "--layers -1:5 is not a range such as 10:20"),
    ],
)
def test_ranges_that_no_model_has(command: Command, layers: str, words: str) -> None:
    """Outside the model, empty, or not a range."""
    check(command("join", *HERE, "--layers", layers), 2, words)


def test_addresses_that_cannot_be_used(command: Command) -> None:
    """To listen on, and to join a swarm at."""
    join = ["join", "--layers", "1:10", "--listen"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = command(*join, f"/ip4/127.0.0.1/tcp/{port}")
    check(said, 2, f"Port {port} is in use by another program: stop that, or take another")
    check(command(*join, "nonsense"), 2, "'nonsense' is not a multiaddr")
    announce = ["join", "--layers", "1:10", *HERE, "--announce"]
    check(command(*announce, "203.0.113.7:4001"), 2, "--announce .* must look like /ip4/203")
    check(command(*announce, "/ip4/0.0.0.0/tcp/4001"), 2, "nobody can call 0.0.0.0")
    check(command("chat", "Hi"), 2, "p2pinfer demo, .* serve --local 3.* --bootstrap ADDRESS")
    check(command("chat", "Hi", "--bootstrap", "nonsense"), 2, "'nonsense' is not a multiaddr")
    check(command("chat", "Hi", "--bootstrap", "/ip4/127.0.0.1/tcp/1"), 2, "must look like /ip4/")
    check(command("chat", "Hi", "--bootstrap", NOBODY), 3, "127.0.0.1/tcp/1: connection refused")


def test_keys_that_cannot_be_used(command: Command, tmp_path: Path) -> None:
    """Not a key, readable by others, a directory, or in use by a peer."""
    key = tmp_path / "key"
    key.write_text("garbage\n")
    key.chmod(0o600)
    join = ["join", "--layers", "1:10", *HERE, "--identity"]
    check(command(*join, str(key)), 2, "key is not a key .*name another one")
    key.write_text("00" * 32)
    key.chmod(0o644)
    check(command(*join, str(key)), 2, "key is open to other users: run chmod 600")
    check(command(*join, str(tmp_path)), 2, "cannot be used: .*directory.*Name another one")
    with hold_identity(tmp_path / "held"):
        check(command(*join, str(tmp_path / "held")), 2, "another peer .*: name another file")


def test_home_that_cannot_be_used(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path under a file; and, unless run as root, one without write permission."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "file"))
    words = "cannot keep anything in .*: set P2PINFER_HOME to a directory"
    check(command("demo", "Hi"), 2, words)
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "closed"))
        check(command("demo", "Hi"), 2, words)


def test_prompt_longer_than_the_context(command: Command, swarm: list[Peer]) -> None:
    """The error gives both numbers, and what to do."""
    chat = ["chat", "tree " * 100, "--network", "real", "--bootstrap", swarm[0].address]
    words = (
        "the prompt has [0-9]+ tokens, and a session holds 64 tokens: shorten it, or .*--context"
    )
    check(command(*chat, "--context", "64"), 2, words)


def test_chat_templates_that_cannot_be_used(
    command: Command, default_model: Path, tmp_path: Path
) -> None:
    """A file's, and a model's own, before any peer is started; the error names a remedy."""
    own = tmp_path / "own.jinja"
    demo = ["demo", "Hi", "--peers", "99"]
    check(command(*demo, "--chat-template", str(own)), 2, "cannot read .*own.jinja: No such file")
    own.write_text("{% if %}")
    check(command(*demo, "--chat-template", str(own)), 2, "own.jinja is no chat template: ")
    data = default_model.read_bytes()
    assert data.count(b"{% endfor %}") == 1
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data.replace(b"{% endfor %}", b"{% endfoo %}"))
    demo += ["--model", str(broken)]
    check(command(*demo), 2, "template is broken: .*endfoo.*--chat-template FILE")
    own.write_text("{{ messages[0].content }}")
    check(command(*demo, "--chat-template", str(own)), 2, "--peers must be from 1 to 16")


@pytest.fixture
def lone(home: Path) -> Iterator[Peer]:
    """Provide a peer that serves a third of the layers; the rest is not served."""
    (peer,) = start_peers(home, ["1:10"], network="holes")
    yield peer
    peer.stop()


def test_routes_with_gaps(command: Command, home: Path, lone: Peer) -> None:
    """First no peer serves the rest; then one serves a part of it."""
    chat = ["chat", "Hi", "--network", "holes", "--bootstrap", lone.address, "--wait", "0.1"]
    check(command(*chat), 3, "no chain of peers for .*: nobody serves layers 10:29")
    (other,) = start_peers(home, ["12:29"], bootstrap=[lone.address], network="holes")
    try:
        check(command(*chat), 3, "nobody serves layers 10:12")
    finally:
        other.stop()


def test_peers_of_another_model(command: Command, lone: Peer, other_model: Path) -> None:
    """The error names both models."""
    chat = ["chat", "Hi", "--network", "holes", "--bootstrap", lone.address, "--wait", "0.1"]
    words = r"serve another model \(SmolLM2-135M-Instruct\), not Smollm2 136M"
    check(command(*chat, "--model", str(other_model)), 3, words)


def test_draft_models_with_other_tokens(command: Command, lone: Peer, tmp_path: Path) -> None:
    """They are refused before anything is asked, with what to choose instead."""
    tiny = tmp_path / "tiny.gguf"
    write_tiny(TINY["llama"], tiny)
    chat = ["chat", "Hi", "--network", "holes", "--bootstrap", lone.address, "--wait", "0.1"]
    words = "--draft-model .* has other tokens than .*: choose a smaller model of the same family"
    check(command(*chat, "--draft-model", str(tiny)), 2, words)
