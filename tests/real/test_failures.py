"""Processes that are killed, frozen or told to leave, in the middle of an answer."""

import os
import signal
import subprocess
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from p2pinfer.chat import ChatOptions, open_conversation
from p2pinfer.core.errors import P2pinferError, PeerError
from p2pinfer.core.messages import Refusal
from p2pinfer.core.sampling import Sampling
from p2pinfer.node import Client
from peers.talk import RefusedError
from tests.real.processes import (
    COMMAND,
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
"""From a peer's end until the requester knows; from a frozen one too, which takes 2 s."""

REPLACED_S_MAX = 20.0
"""Until another peer's word has come round; what the dead one said is believed for 35 s."""

PROMPT = [504, 2365, 314]
LONG = 900


@pytest.fixture(scope="module")
def victims(home: Path) -> Iterator[list[Peer]]:
    """Give three peers that may be hurt; whoever kills one puts another in its place."""
    peers = start_peers(home, ["1:10", "10:19", "19:29"])
    yield peers
    for peer in peers:
        stop(peer.process)


@asynccontextmanager
async def client_of(model: Path, *peers: Peer) -> AsyncGenerator[Client, None]:
    """Join as a requester, and give up if it all takes far too long."""
    with trio.fail_after(ALL_S_MAX):
        async with open_client(client_options(model, *peers)) as client:
            yield client


async def fail(client: Client, harm: Callable[[], None]) -> PeerError:
    """Do harm in the middle of an answer; return what the requester is told, and soon."""
    with pytest.raises(PeerError) as error:
        await _harmed_answer(client, harm)
    return error.value


async def _harmed_answer(client: Client, harm: Callable[[], None]) -> None:
    route = await client.find_route(lambda _: None)
    async with (
        client.open_session(route) as session,
        aclosing(session.generate(PROMPT, Sampling(), LONG)) as tokens,
    ):
        for _ in range(5):
            await anext(tokens)
        harm()
        with trio.fail_after(NOTICE_S_MAX):
            async for _ in tokens:
                pass


async def works(client: Client) -> None:
    """Wait until a session works again."""
    while True:
        try:
            route = await client.find_route(lambda _: None)
            async with client.open_session(route) as session:
                tokens = session.generate(PROMPT, Sampling(), 3)
                assert len([token async for token in tokens]) == 3
                return
        except P2pinferError:
            await trio.sleep(0.1)  # what has died is being started in another process


async def test_killed_engine_ends_the_session_and_not_the_peer(
    default_model: Path, victims: list[Peer]
) -> None:
    """The requester is told which peer's engine failed; the peer starts another one."""
    peer = victims[1]
    (worker,) = children(peer.process.pid)
    async with client_of(default_model, victims[0]) as client:
        error = await fail(client, lambda: os.kill(worker, signal.SIGKILL))
        assert isinstance(error, RefusedError)
        assert error.refused.code is Refusal.ENGINE_FAILED
        assert error.peer == peer.id
        await works(client)
    assert peer.process.poll() is None
    assert worker not in children(peer.process.pid)


async def test_frozen_peer_is_noticed(default_model: Path, victims: list[Peer]) -> None:
    """It says nothing and closes nothing; once it goes on it serves as before."""
    peer = victims[1]
    async with client_of(default_model, victims[0]) as client:
        try:
            error = await fail(client, lambda: os.kill(peer.process.pid, signal.SIGSTOP))
        finally:
            os.kill(peer.process.pid, signal.SIGCONT)
        assert error.peer == peer.id
        await works(client)


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_killed_peer_is_named_and_can_be_replaced(
    default_model: Path, home: Path, victims: list[Peer], place: int
) -> None:
    """First, middle or last of the chain; the others live, and serve with another in its place."""
    killed, others = victims[place], victims[:place] + victims[place + 1 :]
    (worker,) = children(killed.process.pid)
    async with client_of(default_model, others[0]) as client:
        await works(client)  # and goes around those who were killed before
        error = await fail(client, killed.process.kill)
        assert error.peer == killed.id
        assert [peer.process.poll() for peer in others] == [None, None]
        stop(killed.process)
        wait_gone([worker])
        ways_in = [peer.address for peer in others]
        start = partial(start_peers, home, [killed.layers], bootstrap=ways_in)
        (victims[place],) = await trio.to_thread.run_sync(start)
        with trio.fail_after(REPLACED_S_MAX):
            await works(client)
    options = ChatOptions(Sampling(), max_tokens=3)
    async with (
        client_of(default_model, victims[place]) as new,  # to it the dead one seems alive
        open_conversation(new, options, lambda _: None) as talk,
    ):
        assert (await talk.ask("Name a tree.", lambda _: None)).tokens == 3


def test_peer_leaves_when_its_parent_does(home: Path) -> None:
    """Its standard input closes; neither it nor its engine stays behind."""
    (peer,) = start_peers(home, ["1:10"])
    workers = children(peer.process.pid)
    assert workers
    assert peer.stop() == 0
    wait_gone(workers)


def test_peer_whose_parent_is_gone_does_not_load_to_the_end(home: Path) -> None:
    """It leaves before it has said that it is ready."""
    result = subprocess.run(
        [*COMMAND, "join", "--json", "--until-stdin-closes", "--layers", "1:10"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=ALL_S_MAX,
        env=environment(home, P2PINFER_LISTEN="/ip4/127.0.0.1/tcp/0"),
        check=True,
    )
    assert result.stdout == b""
    assert [line for line in result.stderr.splitlines() if b"Loading" not in line] == []


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)],
)
def test_nobody_outlives_a_demo(home: Path, number: signal.Signals, code: int) -> None:
    """Neither Ctrl-C nor a kill in mid-answer leaves a peer or an engine behind."""
    demo = subprocess.Popen(
        [*COMMAND, "demo", "Count to a thousand.", "--max-tokens", "900", "--seed", "1"],
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
        assert len(family) == 7  # three peers with an engine each, and the demo's own
        demo.send_signal(number)
        rest = demo.stderr.read()  # until all that could write to it are gone
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
def test_interrupted_peer_leaves_in_good_order(home: Path, stream: str) -> None:
    """Once it is ready (it says so on stdout), and already while it loads (on stderr)."""
    word = {"stdout": b"ready", "stderr": b"Loading"}[stream]
    with join(home) as peer:
        read_until(getattr(peer, stream), word)
        workers = children(peer.pid)
        peer.send_signal(signal.SIGINT)
        assert peer.stderr
        rest = peer.stderr.read()
        assert peer.wait() == 0
    assert b"leaving" in rest
    assert b"Traceback" not in rest
    wait_gone(workers)


def test_second_interrupt_does_not_wait() -> None:
    """A command that takes its time to leave is ended by the second Ctrl-C, with 130."""
    program = """
import trio
from p2pinfer.running import run_task
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
