"""The commands as a person types them: what they print, where, and with which exit code."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.processes import COMMAND, Peer, environment, read_until, stop

pytestmark = pytest.mark.real


def test_demo_prints_one_json_object(home: Path) -> None:
    """The answer, its cost and its peers; nothing else on standard output."""
    words = ["demo", "Name a colour.", "--json", "--temperature", "0", "--max-tokens", "8"]
    result = run(home, *words)
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    answer = json.loads(line)
    assert {"text", "tokens", "prompt_tokens", "tokens_per_second", "route"} <= set(answer)
    assert answer["text"]
    assert 1 <= answer["tokens"] <= 8
    assert answer["prompt_tokens"] > 3
    assert answer["time_to_first_token_ms"] > 0
    assert [hop["layers"] for hop in answer["route"]] == ["1:10", "10:19", "19:29"]
    assert len({hop["peer"] for hop in answer["route"]}) == 3


def test_options_come_from_the_environment_and_the_question_from_a_pipe(home: Path) -> None:
    """Only the answer is on standard output; a typed option overrides a variable."""
    variables = {
        "P2PINFER_PEERS": "2",
        "P2PINFER_MAX_TOKENS": "900",
        "P2PINFER_TEMPERATURE": "0",
        "P2PINFER_BOOTSTRAP": "nonsense",  # for chat and join; local peers ignore it
    }
    result = run(home, "demo", "--max-tokens", "5", stdin="Name a colour.\n", **variables)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("\n")
    assert result.stdout.strip()
    assert "[" not in result.stdout
    notes = result.stderr.splitlines()
    assert [note for note in notes if note.startswith("Starting 2 peers for ")]
    assert " of disk in " in notes[0]  # reported before it is used
    assert notes[-2].startswith("[")
    assert " tokens, " in notes[-2]
    assert " signed for " in notes[-1]


@contextmanager
def joined(home: Path, line: str) -> Iterator[list[str]]:
    """Run the command that a peer suggests for the next machine; yield the lines it prints."""
    program, *words = shlex.split(line)
    assert program == "p2pinfer"
    process = subprocess.Popen(
        [*COMMAND, *words, "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(home, P2PINFER_LISTEN="/ip4/127.0.0.1/tcp/0"),
    )
    try:
        yield read_until(process.stdout, b"ready;").decode().splitlines()
    finally:
        stop(process)


def test_lines_that_join_prints_can_be_typed(home: Path) -> None:
    """From the first peer's lines to the second peer, and to a chat through both.

    Both run on one machine for one person, and are still two peers.
    """
    with joined(home, "p2pinfer join --layers 1:15 --network lines") as first:
        shown = dict(line.split(maxsplit=1) for line in first if line.startswith(("peer", "addr")))
        assert shown["peer"].startswith("id ")
        assert shown["address"].endswith(shown["peer"].split()[1])
        (next_line,) = [line for line in first if " join " in line]
        assert "--layers 15:29 " in next_line
        with joined(home, next_line) as second:
            assert not [line for line in second if "--layers 15:29" in line]
            (chat_line,) = [line for line in first if " chat " in line]
            words = [*shlex.split(chat_line)[1:], "--json", "--max-tokens", "3"]
            result = run(home, *words, stdin="Name a colour.")
            assert result.returncode == 0, result.stderr
            layers = [hop["layers"] for hop in json.loads(result.stdout)["route"]]
            assert layers == ["1:15", "15:29"]


def test_chat_finds_all_peers_through_one(home: Path, swarm: list[Peer]) -> None:
    """Each of the three peers knows the others."""
    words = ["chat", "Hi", "--network", "real", "--bootstrap", swarm[2].address, "--json"]
    result = run(home, *words, "--max-tokens", "3")
    assert result.returncode == 0, result.stderr
    route = json.loads(result.stdout)["route"]
    assert [hop["peer"] for hop in route] == [peer.id for peer in swarm]


def test_status_names_the_peers_of_this_machine(home: Path, swarm: list[Peer]) -> None:
    """Each process with its layers; there are no requests, so no session is open."""
    result = run(home, "status", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)["processes"]
    told = {(each["pid"], each["peer"], each["layers"], each["state"]) for each in found}
    assert told == {(p.process.pid, p.id, p.layers, "serving") for p in swarm}
    assert run(home, "ps", "--json").stdout == "[]\n"


def test_reader_that_leaves_early_causes_no_traceback(home: Path, swarm: list[Peer]) -> None:
    """As with ``| head``; the exit code says that not everything was written."""
    words = ["chat", "Tell a very long story.", "--network", "real"]
    words += ["--bootstrap", swarm[0].address]
    with subprocess.Popen(
        [*COMMAND, *words, "--max-tokens", "200"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(home),
    ) as chat:
        assert chat.stdout
        assert chat.stderr
        chat.stdout.read(1)
        chat.stdout.close()
        notes = chat.stderr.read().decode()
        assert chat.wait() == 1
    assert notes.startswith("Joining the swarm …\n")
    assert [line for line in notes.splitlines() if "…" not in line] == []


COMMANDS: list[list[str]] = [
    [],
    ["chat"],
    ["demo"],
    ["join"],
    ["service"],
    ["config"],
    ["bench"],
    ["bench", "decode"],
    ["bench", "transport"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(home: Path, command: list[str]) -> None:
    """Every command explains itself."""
    result = run(home, *command, "--help")
    assert result.returncode == 0
    assert result.stderr == ""
    assert result.stdout.startswith(f"Usage: {' '.join(['p2pinfer', *command])}")
    assert "--log-level" in result.stdout
    assert "environment variable P2PINFER_<NAME>" in result.stdout


def test_version(home: Path) -> None:
    """The version alone, for scripts."""
    result = run(home, "--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.strip().replace(".", "").isdecimal()


def test_help_loads_nothing_heavy(home: Path) -> None:
    """Slow imports are left to the commands that need them."""
    program = """
import sys
import p2pinfer.cli.main
print(sorted({"libp2p", "llama_cpp", "trio", "numpy", "msgpack", "rich.live"} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment(home),
        check=True,
    )
    assert result.stdout.strip() == "[]"
