"""Command-line agents against the gateway: each lists a folder by a tool call, and writes a file.

They are started as docs/clients.md shows.

A scripted stand-in speaks for the model, which shows the interfaces and not what a model can. The
agents are installed by ``make agents``; without Node or them these tests are skipped.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.page_code import ADDRESS, blocks
from tests.support.stand_in import MARK, stand_in_gateway

MODULES = Path(__file__).parent / "agents" / "node_modules"
TEST_S_MAX = 300.0
"""Some of them take half a minute to start on a busy machine."""

TASK = "List this folder, then write a greeting into hello.txt."
THERE = "quokka.txt"
GREETING = "Good morning, quokka."
LAST_WORDS = "The greeting is written."

IS_WHOLE = (MODULES / ".package-lock.json").exists()
"""npm writes it last."""

WHY_NOT = (
    "Node is not installed"
    if shutil.which("node") is None
    else "the agents are not installed: make agents"
    if not IS_WHOLE
    else ""
)

NODE_MIN = 20
"""What the agents run on. Two of them ask for 22 and do without."""

pytestmark = [pytest.mark.real, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


@dataclass(frozen=True)
class Agent:
    """What one agent's tools are called. How it is started is on the page of clients."""

    section: str
    """Of the page."""
    program: str
    """Its executable; a pattern below node_modules, of which the last match is taken."""
    look: tuple[str, Mapping[str, Any]]
    """The tool that lists the folder, and its arguments."""
    write: Callable[[Path], tuple[str, Mapping[str, Any]]]
    """The same for writing a file."""


AGENTS = {
    "codex": Agent(
        "Codex",
        ".bin/codex",
        ("exec_command", {"cmd": "ls"}),
        lambda _: ("exec_command", {"cmd": f"printf %s '{GREETING}' > hello.txt"}),
    ),
    "opencode": Agent(
        "opencode",
        "opencode-*/bin/opencode",  # the last one is for processors of any age
        ("bash", {"command": "ls", "description": "Lists the folder"}),
        lambda path: ("write", {"filePath": str(path), "content": GREETING}),
    ),
    "claude": Agent(
        "Claude Code",
        "@anthropic-ai/claude-code-*/claude",
        ("Bash", {"command": "ls", "description": "List the folder"}),
        lambda path: ("Write", {"file_path": str(path), "content": GREETING}),
    ),
    "qwen": Agent(
        "qwen-code",
        ".bin/qwen",
        ("run_shell_command", {"command": "ls", "is_background": False}),
        lambda path: ("write_file", {"file_path": str(path), "content": GREETING}),
    ),
}
"""By the names of their commands."""

OFFLINE = {
    "DISABLE_AUTOUPDATER": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
}
"""What they would fetch otherwise, and do without."""


def call(name: str, arguments: Mapping[str, Any]) -> str:
    """Write a call as the stand-in's family of models does."""
    told = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{told}\n</tool_call>"


def said_by(role: str, prompt: str) -> list[str]:
    """Return what a prompt's messages of one role say."""
    found = re.split(re.escape(MARK).replace(re.escape("{}"), "([a-z]+)"), prompt)
    return [text for who, text in zip(found[1::2], found[2::2], strict=True) if who == role]


def speak(agent: Agent, folder: Path, prompt: str) -> str:
    """Look, write, and say so; of titles and the like, which agents also ask for, say a word."""
    if not prompt.startswith("tools: ") or TASK not in "".join(said_by("user", prompt)):
        return "Greeting"
    match len(said_by("tool", prompt)):
        case 0:
            return call(*agent.look)
        case 1:
            return call(*agent.write(folder / "hello.txt"))
    return LAST_WORDS


@pytest.mark.parametrize("name", AGENTS)
async def test_an_agent_does_its_task(name: str, tmp_path: Path) -> None:
    """What it finds reaches the model, what the model says becomes a file, and it ends well."""
    agent, folder, home = AGENTS[name], tmp_path / "folder", tmp_path / "home"
    programs = sorted(MODULES.glob(agent.program))
    if not programs:
        pytest.skip(f"{name} is not installed for this system: make agents")
    node = await trio.run_process(["node", "--version"], capture_stdout=True)
    if int(node.stdout.decode().removeprefix("v").split(".")[0]) < NODE_MIN:
        pytest.skip(f"Node {NODE_MIN} or newer is not installed")
    for each in (folder, home, home / "bin"):
        each.mkdir()
    (home / "bin" / name).symlink_to(programs[-1])
    (folder / THERE).touch()
    environment = {
        "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        **OFFLINE,
    }
    ((language, code),) = blocks()[agent.section]
    assert (language, TASK in code) == ("sh", True)
    with trio.fail_after(TEST_S_MAX):
        async with stand_in_gateway(partial(speak, agent, folder)) as (url, prompts):
            ended = await trio.run_process(
                ["sh", "-e", "-c", code.replace(ADDRESS, url)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
    everything = (ended.stdout + ended.stderr).decode(errors="replace")
    assert ended.returncode == 0, everything
    results = [text for each in prompts for text in said_by("tool", each)]
    assert any(THERE in text for text in results), results
    assert (folder / "hello.txt").read_text() == GREETING
    assert LAST_WORDS in everything
