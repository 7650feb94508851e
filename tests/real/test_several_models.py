"""One machine lends to two models at once, within its memory."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from p2pinfer.engine.llama.memory import WORKER_BYTES
from p2pinfer.node.memory_plan import layer_bytes
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from p2pinfer.node.requester import Machine
from tests.support.processes import (
    COMMAND,
    CONTEXT,
    READY_S_MAX,
    SESSIONS,
    environment,
    read_until,
    stop,
)

pytestmark = pytest.mark.real

LAYERS = 28
"""All that a swarm runs of either model."""

TWO = "two"


def said(home: Path, *words: str) -> dict[str, Any]:
    """Run a command, and return its JSON."""
    done = subprocess.run(
        [*COMMAND, *words, "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=READY_S_MAX,
        env=environment(home),
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_one_machine_answers_for_two_models(
    home: Path, default_model: Path, other_model: Path
) -> None:
    """The memory of both is what was named; its two peers know each other, and leave together."""
    store = open_store()
    model = open_whole(name_model(str(default_model), store, lambda *_: None), store)
    each = WORKER_BYTES + LAYERS * layer_bytes(model, Machine(SESSIONS, CONTEXT))
    names = ["--model", str(default_model), "--model", str(other_model)]
    process = subprocess.Popen(
        [
            *[*COMMAND, "join", "--json", "--until-stdin-closes", *names],
            *["--listen", "/ip4/127.0.0.1/tcp/0", "--network", TWO, "--no-mdns", "--no-dht"],
            *["--context", str(CONTEXT), "--sessions", str(SESSIONS)],
            *["--memory", str(2 * each)],
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(home),
        process_group=0,
    )
    try:
        lines = read_until(process.stdout, b"\n", READY_S_MAX)
        while lines.count(b"\n") < 2:
            lines += read_until(process.stdout, b"\n", READY_S_MAX)
        ready = [json.loads(line) for line in lines.splitlines()]
        assert len({one["peer"] for one in ready}) == 2
        assert len({one["model"] for one in ready}) == 2
        statuses = said(home, "status")
        here = [one for one in statuses["processes"] if one["pid"] == process.pid]
        peers = {one["peer"]: one for one in here}
        assert peers.keys() == {one["peer"] for one in ready}
        assert [one["layers"] for one in ready] == [f"1:{1 + LAYERS}"] * 2
        for one in ready:  # both are found by the address of either
            way_in = ["--network", TWO, "--bootstrap", ready[0]["addresses"][0]]
            way_in += ["--no-mdns", "--no-dht"]
            asked = ["chat", "Name a tree.", "--model", one["model"], "--max-tokens", "3"]
            answer = said(home, *asked, *way_in)
            assert answer["tokens"] == 3
    finally:
        code = stop(process)
    assert code == 0
