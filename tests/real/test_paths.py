"""Asking through relays, with real peers: the same tokens, and nobody sees who asks which peers."""

import json
import logging
import os
import sqlite3
import subprocess
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from statistics import quantiles

import psutil
import pytest
import trio

from p2pinfer.core import errors
from p2pinfer.core.sampling import Sampling
from p2pinfer.node.requester import Client
from peers.asking.session import Token
from tests.support.processes import (
    COMMAND,
    NETWORK,
    Peer,
    client_options,
    environment,
    open_client,
    read_until,
    stop,
)

pytestmark = pytest.mark.real

ALL_S_MAX = 240.0
"""To join, load the ends and answer, on a busy machine."""
FOUND_S_MAX = 60.0
"""For relays and peers to hear of each other: they compare their views every few seconds."""

BOOKED_S_MAX = 30.0
"""For stages to write down what they did."""

PROMPT = [504, 2365, 314]
LONG = 60
PRICED = 240
"""Tokens of each kind."""
HARMED_AT = 5
GREEDY = Sampling(temperature=0.0)

DECODE_RATIO_MIN = 0.8
"""Of the plain speed for each relay, on one machine."""

log = logging.getLogger("p2pinfer.test")


class RelayProcess:
    """A relay that serves no layers, in a process of its own."""

    def __init__(self, home: Path, number: int, way_in: str) -> None:
        listen = ("--listen", "/ip4/127.0.0.1/tcp/0", "--relay-mbit", "10000")
        key = str(home / f"relay{number}")
        where = ("--network", NETWORK, "--bootstrap", way_in, "--identity", key)
        self.id = self.address = ""
        self.process = subprocess.Popen(
            [*COMMAND, "relay", "--json", "--until-stdin-closes", *listen, *where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(home),
            process_group=0,
        )

    def wait_ready(self) -> "RelayProcess":
        """Wait until it relays."""
        said = json.loads(read_until(self.process.stdout, b"\n").splitlines()[-1])
        self.id, self.address = said["peer"], said["addresses"][0]
        return self


@pytest.fixture(scope="module")
def relays(home: Path, swarm: list[Peer]) -> Iterator[list[RelayProcess]]:
    """Provide relays that serve no layers; tests that kill some must replace them."""
    found = [RelayProcess(home, number, swarm[0].address) for number in range(4)]
    try:
        for relay in found:
            relay.wait_ready()
        yield found
    finally:
        for relay in found:
            stop(relay.process)


@pytest.fixture(autouse=True)
def _no_guards(home: Path) -> None:
    (home / "state" / "guards.json").unlink(missing_ok=True)


@asynccontextmanager
async def hidden(
    model: Path, via: int, *ways_in: RelayProcess, pace_ms: int = 0, guards: int = 1
) -> AsyncGenerator[Client, None]:
    """Join as a requester behind relays, as soon as enough of them are known."""
    kept = Path(os.environ["P2PINFER_HOME"]) / "state" / "guards.json"
    addresses = [each.address for each in ways_in]
    options = replace(client_options(model), bootstrap=addresses, via=via, pace_ms=pace_ms)
    with trio.fail_after(ALL_S_MAX):
        deadline = trio.current_time() + FOUND_S_MAX
        while True:
            try:
                async with open_client(options) as client:
                    (found,) = json.loads(kept.read_text()).values()
                    if len(found) < guards:
                        raise errors.NoPath("the first relay has not heard of others yet")
                    yield client
                    return
            except errors.NoPath:
                kept.unlink(missing_ok=True)
                if trio.current_time() > deadline:
                    raise
                await trio.sleep(1)


async def tokens_of(client: Client) -> list[int]:
    """Return a greedy answer."""
    route = await client.find_route(lambda _: None)
    async with client.open_session(route) as session:
        return [token.id async for token in session.generate(PROMPT, GREEDY, LONG)]


def remote_ports() -> set[int]:
    """Return the ports that this process is connected to."""
    found = psutil.Process(os.getpid()).net_connections("tcp")
    return {each.raddr.port for each in found if each.raddr and each.status == "ESTABLISHED"}


def port_of(address: str) -> int:
    """Return an address's port."""
    return int(address.split("/")[4])


def test_too_few_relays_are_an_error_and_nobody_is_asked_otherwise(
    home: Path, swarm: list[Peer]
) -> None:
    """One sentence that says what to do, and the exit code of a swarm that cannot answer.

    The first test: later ones start relays.
    """
    for via in ("1", "2"):
        command = ("chat", "Hello", "--via", via, "--bootstrap", swarm[0].address)
        done = subprocess.run(
            [*COMMAND, *command, "--network", NETWORK],
            capture_output=True,
            text=True,
            env=environment(home),
            check=False,
        )
        assert done.returncode == errors.EXIT_NOBODY_SERVES
        assert not done.stdout
        assert "p2pinfer relay" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("via", [1, 2])
async def test_the_same_tokens_though_no_stage_is_called(
    default_model: Path, swarm: list[Peer], relays: list[RelayProcess], via: int
) -> None:
    """This machine is connected with relays alone, and all that is checked holds."""
    with trio.fail_after(ALL_S_MAX):
        async with open_client(client_options(default_model, swarm[0])) as client:
            plain = await tokens_of(client)
    before, behind = remote_ports(), {port_of(each.address) for each in relays}
    async with hidden(default_model, via, relays[0]) as client:
        assert await tokens_of(client) == plain
        route = await client.find_route(lambda _: None)
        async with client.open_session(route) as session:
            async with aclosing(session.generate(PROMPT, GREEDY, LONG)) as tokens:
                async for _ in tokens:
                    assert remote_ports() - before <= behind
            trust = await client.examine(session)
            assert trust
            assert client.certify(session, "", trust)
            assert len({*session.path}) == via
            guard = session.path[0]
        assert trust.held
        assert {hop.peer for hop in route} == {peer.id for peer in swarm}
        assert guard == client.transport.path[0]
        assert remote_ports() - before <= behind
    assert json.loads((Path(os.environ["P2PINFER_HOME"]) / "state" / "guards.json").read_text())
    async with hidden(default_model, via) as client:  # without an address: the first one is kept
        assert client.transport.path[0] == guard


def askers(home: Path) -> set[str]:
    """Return who asked, as the stages of this file have it in their books."""
    with closing(sqlite3.connect(home / "data" / "ledger.sqlite3")) as books:
        return {name for (name,) in books.execute("SELECT user FROM work WHERE side = 'served'")}


async def test_each_session_has_a_name_of_its_own(
    default_model: Path, home: Path, swarm: list[Peer], relays: list[RelayProcess]
) -> None:
    """In one run, at all stages; what fetched the directory asks for nothing; rows are paced."""
    before = askers(home)
    async with hidden(default_model, 2, relays[0], pace_ms=20) as client:
        answers = [await tokens_of(client) for _ in range(2)]
        assert answers[0] == answers[1]
        deadline = trio.current_time() + BOOKED_S_MAX
        while len(new := askers(home) - before) < 2 and trio.current_time() < deadline:  # noqa: ASYNC110 -- other processes write it
            await trio.sleep(1)
        assert len(new) == 2
        assert client.transport.peer_id not in new
        route = await client.find_route(lambda _: None)
        async with client.open_session(route) as one, client.open_session(route) as other:
            names = {each.evidence.terms.requester for each in (one, other) if each.evidence}
            assert len(names - new) == 2
            assert one.path[0] == other.path[0]


@pytest.mark.parametrize(("via", "dies"), [(1, 0), (2, 0), (2, 1)])
async def test_a_relay_that_dies_costs_no_token(
    default_model: Path,
    home: Path,
    swarm: list[Peer],
    relays: list[RelayProcess],
    via: int,
    dies: int,
) -> None:
    """Another one takes its place, and the answer goes on with the same stages."""
    async with hidden(default_model, via, relays[0], guards=2) as client:
        plain = await tokens_of(client)
        route = await client.find_route(lambda _: None)
        found: list[int] = []
        async with (
            client.open_session(route) as session,
            aclosing(session.generate(PROMPT, GREEDY, LONG)) as tokens,
        ):
            async for token in tokens:
                found.append(token.id)
                if len(found) == HARMED_AT:
                    before = session.path
                    (number,) = [n for n, each in enumerate(relays) if each.id == before[dies]]
                    relays[number].process.kill()
            assert session.path[dies] not in before
        assert found == plain
    stop(relays[number].process)
    relays[number] = RelayProcess(home, number, swarm[0].address).wait_ready()


@pytest.mark.long  # some hundred tokens, each made twice
@pytest.mark.parametrize("via", [1, 2])
async def test_the_price_of_relays(
    default_model: Path,
    swarm: list[Peer],
    relays: list[RelayProcess],
    via: int,
    record_property: Callable[[str, object], None],
) -> None:
    """One token with and one without in turn: at least 0.8 of the plain speed for each relay.

    Which is first changes. Lower quartiles are compared: what other work on the machine adds to
    some tokens, more of them where more processes take part, is not the price of relays.
    """
    took_s: dict[Client, list[float]] = {}

    @asynccontextmanager
    async def tokens(client: Client) -> AsyncGenerator[AsyncGenerator[Token, None]]:
        took_s[client] = []
        route = await client.find_route(lambda _: None)
        async with (
            client.open_session(route) as session,
            aclosing(session.generate(PROMPT, GREEDY, PRICED + 1)) as found,
        ):
            await anext(found)
            yield found

    async with (
        hidden(default_model, via, relays[0]) as behind,
        open_client(client_options(default_model, swarm[0])) as plain,
        tokens(behind) as slower,
        tokens(plain) as faster,
    ):
        turn = [(plain, faster), (behind, slower)]
        for _ in range(PRICED):
            for client, each in turn:
                started = trio.current_time()
                await anext(each)
                took_s[client].append(trio.current_time() - started)
            turn.reverse()
        pairs = zip(quantiles(took_s[plain]), quantiles(took_s[behind]), strict=True)
        low, middle, _ = (before / after for before, after in pairs)
    record_property("plain_ms", round(1000 * quantiles(took_s[plain])[0], 2))
    record_property("ratio_of_quartiles", round(low, 3))
    record_property("ratio_of_medians", round(middle, 3))
    log.info("via %d: %.3f of the plain speed, by medians %.3f", via, low, middle)
    assert low >= DECODE_RATIO_MIN**via
