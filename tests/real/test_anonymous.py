"""Three real peers, as on three machines: stages learn that one of two vouches, and not which."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pinfer.core.sampling import Sampling
from p2pinfer.node.ledger_db import open_books
from tests.support.processes import (
    COMMAND,
    NETWORK,
    READY_S_MAX,
    Peer,
    client_options,
    environment,
    join,
    open_client,
    stop,
    wait_ready,
)

pytestmark = pytest.mark.real

LAYERS = ("1:10", "10:19", "19:29")
ANSWER_S_MAX = 240.0
READY_S = 2 * READY_S_MAX
"""Each probes its own layers, as no other has before it."""

AS_EXPECTED = [{"for": 1, "as_one_of": 2}, {"for": 1, "as_one_of": 0}, {"for": 1, "as_one_of": 0}]


@pytest.fixture
def machines(home: Path, tmp_path: Path) -> Iterator[tuple[list[Peer], list[Path]]]:
    """Provide peers with folders of their own, as on three machines; the first one is this one."""
    homes, started = [home, tmp_path / "two", tmp_path / "three"], list[subprocess.Popen[bytes]]()
    peers = list[Peer]()
    try:
        for layers, folder in zip(LAYERS, homes, strict=True):
            bootstrap = [peers[0].address] if peers else []
            started.append(join(folder, ["--layers", layers], NETWORK, bootstrap))
            peers.append(wait_ready(started[-1], READY_S))
        yield peers, homes
    finally:
        for process in started:
            stop(process)


def status(home: Path, *words: str) -> Any:
    """Return what `p2pinfer status` says on one machine."""
    command = [*COMMAND, "status", *words, "--json"]
    found = subprocess.run(command, capture_output=True, check=True, env=environment(home))
    return json.loads(found.stdout)


def vouched(home: Path) -> dict[str, int]:
    """Return what a machine's peer says of vouchers."""
    (found,) = (each for each in status(home)["processes"] if each["role"] == "peer")
    said: dict[str, int] = found["vouched"]
    return said


async def test_stages_learn_that_somebody_vouches(
    default_model: Path, machines: tuple[list[Peer], list[Path]]
) -> None:
    """Each knows of one requester, this peer says that it vouches, and no statement names it."""
    peers, homes = machines
    before = open_books().report()["had_unnamed"]
    options = replace(client_options(default_model, peers[0]), anonymous=True)
    with trio.fail_after(ANSWER_S_MAX):
        async with open_client(options) as client:
            route = await client.find_route(lambda _: None)
            prompt = await client.ends.tokenize("A tree is", special=False)
            found = list[dict[str, int]]()
            while found != AS_EXPECTED:  # the stages may not have heard of each other yet
                async with client.open_session(route) as session:
                    tokens = session.generate(prompt, Sampling(), 4)
                    assert [token async for token in tokens]
                    assert await client.examine(session)
                found = [await trio.to_thread.run_sync(vouched, each) for each in homes]
    report = open_books().report()
    assert report["had_unnamed"] > before
    pairs = {(each["server"], each["user"]) for each in report["statements"]}
    assert pairs.isdisjoint((server.id, peers[0].id) for server in peers)
