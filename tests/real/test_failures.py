"""Processes that are killed, frozen or told to leave, in the middle of an answer."""

import os
import signal
import subprocess
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from p2pinfer.client.answer import ATTEMPTS_MAX
from p2pinfer.core.errors import PeerError
from p2pinfer.core.sampling import Sampling
from p2pinfer.node.requester import Client
from peers.asking.session import Session
from tests.support.processes import (
    COMMAND,
    NETWORK,
    SESSIONS,
    Peer,
    alive,
    children,
    client_options,
    environment,
    open_client,
    read_until,
    start_peers,
    stop,
    wait_gone,
)

pytestmark = pytest.mark.real

ALL_S_MAX = 120.0
NOTICE_S_MAX = 5.0
"""From a peer's end until the requester notices; a frozen one takes 2 s."""

PROMPT = [504, 2365, 314]
LONG = 60
HARMED_AT = 5
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def victims(home: Path) -> Iterator[list[Peer]]:
    """Provide three peers that tests may harm; a test that kills one must replace it."""
    peers = start_peers(home, ["1:10", "10:19", "19:29"])
    yield peers
    for peer in peers:
        stop(peer.process)


@asynccontextmanager
async def client_of(model: Path, *peers: Peer) -> AsyncGenerator[Client, None]:
    """Join as a requester, with a limit on the total time."""
    with trio.fail_after(ALL_S_MAX):
        async with open_client(client_options(model, *peers)) as client:
            yield client


@asynccontextmanager
async def open_session(client: Client) -> AsyncGenerator[Session, None]:
    """Open a session as all callers do, trying again where a peer still advertised has died."""
    async with AsyncExitStack() as stack:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            route = await client.find_route(lambda _: None)
            try:
                session = await stack.enter_async_context(client.open_session(route))
                break
            except PeerError:
                if attempt == ATTEMPTS_MAX:
                    raise
        yield session


async def answer_survives(client: Client, harm: Callable[[], object]) -> list[list[str]]:
    """Do harm in the middle of an answer, which must not change; return the routes."""
    async with open_session(client) as session:
        whole = [token.id async for token in session.generate(PROMPT, GREEDY, LONG)]
    found: list[int] = []
    async with (
        open_session(client) as session,
        aclosing(session.generate(PROMPT, GREEDY, LONG)) as tokens,
    ):
        before = [hop.peer for hop in session.route]
        async for token in tokens:
            found.append(token.id)
            if len(found) == HARMED_AT:
                harm()
        after = [hop.peer for hop in session.route]
    assert found == whole
    return [list(before), list(after)]


async def test_killed_engine_does_not_end_the_answer(
    default_model: Path, victims: list[Peer]
) -> None:
    """Its peer starts another, and continues with it if no other peer holds the layers."""
    peer = victims[1]
    (worker,) = children(peer.process.pid)
    async with client_of(default_model, victims[0]) as client:
        before, after = await answer_survives(client, lambda: os.kill(worker, signal.SIGKILL))
    assert before == after
    assert peer.process.poll() is None
    assert worker not in children(peer.process.pid)


async def test_frozen_peer_is_noticed(default_model: Path, victims: list[Peer]) -> None:
    """It sends nothing and closes nothing; the answer waits, and continues once the peer does."""
    peer = victims[1]
    said: list[str] = []
    async with client_of(default_model, victims[0]) as client:
        route = await client.find_route(lambda _: None)
        async with (
            client.open_session(route, said.append) as session,
            aclosing(session.generate(PROMPT, GREEDY, LONG)) as tokens,
        ):
            found = [(await anext(tokens)).id for _ in range(HARMED_AT)]
            os.kill(peer.process.pid, signal.SIGSTOP)
            try:
                with trio.fail_after(NOTICE_S_MAX):
                    while not said:  # noqa: ASYNC110 -- the message comes without an event
                        await trio.sleep(0.05)
            finally:
                os.kill(peer.process.pid, signal.SIGCONT)
            found += [token.id async for token in tokens]
        assert len(found) == LONG
    assert peer.id in said[0]


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_killed_peer_is_replaced(
    default_model: Path, home: Path, victims: list[Peer], place: int
) -> None:
    """First, middle or last: the answer waits for another, and continues with the same tokens."""
    killed, others = victims[place], victims[:place] + victims[place + 1 :]
    (worker,) = children(killed.process.pid)
    ways_in = [peer.address for peer in others]
    start = partial(start_peers, home, [killed.layers], bootstrap=ways_in)
    async with client_of(default_model, others[0]) as client, trio.open_nursery() as nursery:

        async def replace() -> None:
            (victims[place],) = await trio.to_thread.run_sync(start)

        def harm() -> None:
            killed.process.kill()
            nursery.start_soon(replace)

        before, after = await answer_survives(client, harm)
        assert [peer.process.poll() for peer in others] == [None, None]
    stop(killed.process)
    wait_gone([worker])
    assert before[place] == killed.id
    before[place] = victims[place].id
    assert after == before


def ask_and_die(home: Path, address: str) -> None:
    """Chat, and be killed in the middle of an answer."""
    words = ("chat", "Tell a very long story.", "--max-tokens", "900", "--network", NETWORK)
    with subprocess.Popen(
        [*COMMAND, *words, "--bootstrap", address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(home),
    ) as chat:
        assert chat.stdout
        assert chat.stdout.read(1)
        chat.kill()


async def test_killed_requester_frees_its_session(
    default_model: Path, home: Path, victims: list[Peer]
) -> None:
    """All sessions are free again for others, and the peers stay."""
    ask_and_die(home, victims[0].address)
    async with client_of(default_model, victims[0]) as client, AsyncExitStack() as stack:
        for _ in range(SESSIONS):
            await stack.enter_async_context(open_session(client))
    assert [peer.process.poll() for peer in victims] == [None] * 3


def test_peer_leaves_when_its_parent_does(home: Path) -> None:
    """Its standard input closes; neither it nor its engine is left."""
    (peer,) = start_peers(home, ["1:10"])
    workers = children(peer.process.pid)
    assert workers
    assert peer.stop() == 0
    wait_gone(workers)


def test_peer_without_a_parent_stops_loading(home: Path) -> None:
    """It ends before it reports that it is ready."""
    result = subprocess.run(
        [*COMMAND, "join", "--json", "--until-stdin-closes", "--layers", "1:10"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=ALL_S_MAX,
        env=environment(home, P2PINFER_LISTEN="/ip4/127.0.0.1/tcp/0"),
        check=True,
    )
    assert result.stdout == b""
    assert [line for line in result.stderr.splitlines() if b"Joining" not in line] == []


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)],
)
def test_no_process_outlives_a_demo(home: Path, number: signal.Signals, code: int) -> None:
    """Neither Ctrl-C nor a kill during an answer leaves a peer or an engine running."""
    demo = subprocess.Popen(
        [*COMMAND, "demo", "Tell a very long story.", "--max-tokens", "900", "--seed", "1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(home),
        process_group=0,
    )
    with demo:
        assert demo.stdout
        assert demo.stderr
        assert demo.stdout.read(1)
        family = children(demo.pid)
        assert len(family) == 9  # three peers and their engines; the ends, tokenizer and template
        demo.send_signal(number)
        rest = demo.stderr.read()  # until all processes that could write to it have ended
        assert demo.wait() == code
        assert b"Traceback" not in rest
    wait_gone(family)


def join(home: Path) -> subprocess.Popen[bytes]:
    """Start a peer as a person does."""
    command = [*COMMAND, "join", "--layers", "1:10", "--listen", "/ip4/127.0.0.1/tcp/0"]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(home),
        process_group=0,
    )


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_interrupted_peer_ends_cleanly(home: Path, stream: str) -> None:
    """Once it is ready (reported on stdout), and also while it loads (on stderr)."""
    word = {"stdout": b"ready", "stderr": b"Joining"}[stream]
    with join(home) as peer:
        try:
            read_until(getattr(peer, stream), word)
            workers = children(peer.pid)
            peer.send_signal(signal.SIGINT)
            assert peer.stderr
            rest = peer.stderr.read()
            assert peer.wait() == 0
        finally:
            peer.kill()
    assert b"leaving" in rest
    assert b"Traceback" not in rest
    wait_gone(workers)


def test_second_interrupt_does_not_wait() -> None:
    """A command slow to leave is ended by the second Ctrl-C, with exit code 130."""
    program = """
import trio
from p2pinfer.cli.running import run_task
async def main():
    with trio.CancelScope(shield=True):
        print("busy", flush=True)
        await trio.sleep_forever()
run_task(main, interrupted=0)
"""
    with subprocess.Popen(
        [COMMAND[0], "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        read_until(command.stdout, b"busy")
        command.send_signal(signal.SIGINT)
        read_until(command.stderr, b"leaving")
        assert alive([command.pid])
        command.send_signal(signal.SIGINT)
        assert command.wait() == 130
