"""Laptops in one home find each other, and their swarm, without a word on the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.natlab.hosts import Host
from tests.support.natlab.internet import Internet
from tests.support.surroundings import NOT_LOOKING
from tests.support.tiny_models import TINY, write_tiny

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]


@contextmanager
def started(host: Host, home: Path, *words: str) -> Iterator[subprocess.Popen[Any]]:
    """Run p2pinfer on a host that has its own home directory, while the block lasts."""
    home.mkdir(exist_ok=True)
    clean = {key: value for key, value in os.environ.items() if key not in NOT_LOOKING}
    with (home / "log").open("ab") as log:
        process = host.popen(
            [sys.executable, "-m", "p2pinfer", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=clean | {"P2PINFER_HOME": str(home), "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def said(process: subprocess.Popen[Any], home: Path) -> Any:
    """Return the line of JSON that a process prints."""
    assert process.stdout
    line = process.stdout.readline()
    assert line, (home / "log").read_text()
    return json.loads(line)


def test_a_second_laptop_needs_no_argument(internet: Internet, tmp_path: Path) -> None:
    """It takes the model and the layers that are missing from the first; a third only chats.

    A neighbour behind another router finds nobody.
    """
    home, next_door = internet.nat("home", "5.5.5.11"), internet.nat("next", "5.5.5.12")
    hosts = [
        internet.host(f"h{number}", f"192.168.1.{number + 2}", behind=home) for number in range(3)
    ]
    neighbour = internet.host("h3", "192.168.1.2", behind=next_door)
    places = [tmp_path / host.name for host in (*hosts, neighbour)]
    write_tiny(TINY["llama"], model := tmp_path / "tiny.gguf")
    layers = TINY["llama"].layers
    brought = ("join", "--json", "--model", str(model), "--layers", "1:2")
    with started(hosts[0], places[0], *brought) as first:
        one = said(first, places[0])
        with started(hosts[1], places[1], "join", "--json") as second:
            other = said(second, places[1])
            assert other["model"] == one["model"]
            assert other["layers"] == f"1:{layers - 1}"
            with started(hosts[2], places[2], "peers", "--json") as looker:
                assert {each["peer"] for each in said(looker, places[2])} == {
                    *(one["peer"], other["peer"])
                }
            chat = ("chat", "Name a colour.", "--json", "--max-tokens", "4")
            with started(hosts[2], places[2], *chat) as asker:
                assert said(asker, places[2])["tokens"]
                assert asker.wait() == 0
            # Those that answered are remembered, by who only asks, too.
            again = ("peers", "--json", "--no-mdns", "--no-dht")
            with started(hosts[2], places[2], *again) as looker:
                assert len(said(looker, places[2])) == 2
            with started(neighbour, places[3], "peers", "--json") as stranger:
                assert stranger.wait() == 3
            assert "no peer answers on the local network" in (places[3] / "log").read_text()
