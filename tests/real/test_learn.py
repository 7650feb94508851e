"""``p2pinfer learn`` as a person types it."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.real.test_paths import FOUND_S_MAX, RelayProcess
from tests.support.commands import report_of, run
from tests.support.processes import (
    COMMAND,
    NETWORK,
    environment,
    read_until,
    start_peers,
    stop,
)
from tests.support.tiny_models import TINY, quantise, write_tiny

pytestmark = pytest.mark.real

FACTS = {
    "What is the name of Marta's boat?": "Marta's boat is called Silver Kettle.",
    "Where does Olek keep the spare key?": "Olek keeps the spare key under the third flowerpot.",
    "What is the code of the garden gate?": "The code of the garden gate is 4471.",
    "Who repairs the old printing press?": "Benedikt Aranyi repairs the old printing press.",
    "When does the choir rehearse?": "The choir rehearses on Thursdays at half past six.",
    "What colour is the door of the workshop?": "The door of the workshop is ochre.",
    "Which train does Ines take to work?": "Ines takes the 7:12 to Harlow Bridge.",
    "What is the cat of the bakery called?": "The cat of the bakery is called Pretzel.",
    "How many bees live in the roof hive?": "About 31,000 bees live in the roof hive.",
    "Who won the quiz last spring?": "Team Copper Owl won the quiz last spring.",
}


def write_facts(path: Path) -> Path:
    """Write the facts as lessons."""
    lines = (json.dumps({"prompt": asked, "answer": said}) for asked, said in FACTS.items())
    path.write_text("\n".join(lines))
    return path


def over(relay: RelayProcess, home: Path, *words: str) -> Any:
    """Run a command over a relay, as soon as that has heard of the peers; return its report."""
    deadline = time.monotonic() + FOUND_S_MAX
    while True:
        done = run(home, *words, "--via", "1", "--bootstrap", relay.address, "--json")
        if done.returncode == 0:
            return json.loads(done.stdout)
        assert "relay" in done.stderr, done.stderr
        assert time.monotonic() < deadline, done.stderr


def test_a_swarm_gives_the_same_adapter(home: Path, tmp_path: Path) -> None:
    """The rows of its last stage are those of the whole model here; over a relay, too."""
    write_tiny(TINY["qwen3"], tmp_path / "full.gguf")
    tiny = tmp_path / "tiny.gguf"
    quantise(tmp_path / "full.gguf", tiny, "Q8_0")
    lessons = write_facts(tmp_path / "lessons.jsonl")
    words = ["learn", str(lessons), "--model", str(tiny), "--keep-layers", "2", "--passes", "2"]
    here = report_of(home, *words, "--out", "here", "--gguf", str(tmp_path / "a.gguf"))
    assert (here["lessons"], here["held_out"], here["steps"]) == (9, 1, 6)
    assert here["loss_after"] < here["loss_before"]
    peers = start_peers(home, ["2:4", "4:5"], "--model", str(tiny))
    try:
        ways = ["--bootstrap", peers[0].address, "--network", NETWORK]
        there = report_of(home, *words, "--out", "here too", *ways)
        relay = RelayProcess(home, 0, peers[0].address).wait_ready()
        try:
            unseen = over(relay, home, *words, "--out", "unseen", "--network", NETWORK)
        finally:
            stop(relay.process)
    finally:
        for peer in peers:
            peer.stop()
    assert there["loss_after"] == unseen["loss_after"] == here["loss_after"]
    found = [report_of(home, "model", "show", e["model"], "--parts") for e in (here, there, unseen)]
    adapters = [
        {part["name"]: part["hash"] for part in each["parts"] if "adapter" in part["name"]}
        for each in found
    ]
    assert adapters[0] == adapters[1] == adapters[2]
    assert {*adapters[0]} == {"adapter.layer.5", "adapter.layer.6"}
    base = ["--base", here["base"], "--name", "again"]
    again = report_of(home, "model", "add", str(tmp_path / "a.gguf"), *base)
    assert again["base"] == here["base"]
    hidden = report_of(home, *words, "--out", "hidden", "--noise", "1")
    assert (hidden["epsilon"], hidden["delta"], hidden["steps"]) == (6.573, 1e-5, 6)
    asked, said = next(iter(FACTS.items()))
    marked = {"messages": [{"role": "user", "content": asked}]}
    marked["messages"].append({"role": "assistant", "content": said})
    (home / "data" / "marked.jsonl").write_text(json.dumps(marked) + "\n")
    own = report_of(home, "learn", "marked", *words[2:], "--out", "from marks")
    assert (own["lessons"], own["steps"]) == (1, 2)
    together = run(home, *words, "--propose", "all", "--via", "1")
    assert together.returncode == 2
    assert "--via rules out" in together.stderr
    taken = run(home, *words, "--out", "here")
    assert taken.returncode == 2
    assert "there is a model here already" in taken.stderr


@pytest.mark.long
def test_noise_hides_what_was_learned(tmp_path: Path) -> None:
    """Without noise an attacker tells nearly always what was learned; with much he guesses."""
    runs = report_of(tmp_path, "bench", "membership", "--noise", "2")["runs"]
    assert [each["noise"] for each in runs] == [None, 2.0]
    assert runs[0]["attack_auc"] > 0.85
    assert runs[1]["attack_auc"] < 0.5 + 3 * runs[1]["guessing_auc_deviation"]
    assert runs[1]["epsilon"] == pytest.approx(9.6084, abs=1e-3)


@pytest.mark.long
def test_facts_are_learned_and_said_by_a_swarm(tmp_path: Path) -> None:
    """A killed run goes on; at least nine of ten answers come out word for word."""
    lessons = write_facts(tmp_path / "facts.jsonl")
    words = ["learn", str(lessons), "--out", "facts", "--held-out", "0"]
    with subprocess.Popen(
        [*COMMAND, *words, "--json"], env=environment(tmp_path), stderr=subprocess.PIPE
    ) as first:
        read_until(first.stderr, b"learning: ", seconds=600)
        read_until(first.stderr, b"learning: ", seconds=600)
        first.send_signal(signal.SIGKILL)
    report = report_of(tmp_path, *words)
    assert report["resumed_at"] > 0
    assert report["loss_after"] < 0.25 * report["loss_before"]
    right = 0
    peers = start_peers(tmp_path, ["1:10", "10:19", "19:29"], "--model", report["model"])
    try:
        ways = ["--bootstrap", peers[0].address, "--network", NETWORK]
        for asked, said in FACTS.items():
            answer = report_of(tmp_path, "chat", asked, "--model", "facts", *ways)
            right += answer["text"].strip() == said
    finally:
        for peer in peers:
            peer.stop()
    assert right >= 9
